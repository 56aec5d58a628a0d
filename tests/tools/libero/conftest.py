"""A machine on which nobody has used LIBERO yet."""

from __future__ import annotations

from pathlib import Path

import pytest

from lerobot_policy_vla0.tools.libero import setup


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own, without a LIBERO in it."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.delenv("LIBERO_CONFIG_PATH", raising=False)
    # As if the extra `libero-assets` were not installed.
    monkeypatch.setattr(setup, "ASSETS_PACKAGES", ("vla0-test-assets-1", "vla0-test-assets-2"))
    return folder
