"""A trained policy and its export, made once."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.exports import save_trained

from lerobot_policy_vla0.tools.commands import main


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy that writes the answers to one batch without a grammar."""
    return save_trained(tmp_path_factory.mktemp("trained") / "policy")


@pytest.fixture(scope="session")
def exported(trained: Path) -> Path:
    """Its export."""
    out = trained.with_name("export")
    assert main(["export", str(trained), "--out", str(out)]) == 0
    return out
