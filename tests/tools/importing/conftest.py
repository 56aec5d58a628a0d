"""Checkpoints that LeRobot did not write, and one that was imported."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from helpers import toy_env  # noqa: F401 - registers --env.type=toy
from helpers.commands import preloaded
from helpers.official_checkpoint import (
    write_paper_checkpoint,
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in the paper's layout, with LIBERO's numbers and a tiny model."""
    return write_paper_checkpoint(tmp_path_factory.mktemp("paper") / "vla0-libero")


@pytest.fixture(scope="module")
def imported(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a policy folder, made by the command in a process of its own."""
    out = tmp_path_factory.mktemp("imported") / "policy"
    finished = subprocess.run(
        preloaded("-m", "lerobot_policy_vla0.tools.commands", "import", source, "--out", out),
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-4000:]
    assert "8 steps x 7 integers in 0-1000" in finished.stdout
    assert "observation.images.image, observation.images.image2" in finished.stdout
    return out


@pytest.fixture
def broken(source: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint to damage."""
    return Path(shutil.copytree(source, tmp_path / "broken"))
