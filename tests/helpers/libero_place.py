"""LIBERO, set up by `vla0 libero-setup` in a home of its own."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lerobot_policy_vla0.tools.commands import main
from lerobot_policy_vla0.tools.libero import setup as libero_setup


@dataclass
class LiberoPlace:
    """A LIBERO that was set up."""

    folder: Path
    assets: Path  # as LIBERO finds them
    environment: dict[str, str]


@contextlib.contextmanager
def libero_place(folder: Path) -> Iterator[LiberoPlace]:
    """Set LIBERO up below ``folder``, and work in its environment; skips without LIBERO or its assets."""
    if importlib.util.find_spec("libero") is None:
        pytest.skip("hf-libero is not installed (extra `libero`)")
    if libero_setup.installed_assets() is None:
        pytest.skip("LIBERO's assets are not installed (extra `libero-assets`)")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(folder / "home"))
        patch.setenv("LIBERO_CONFIG_PATH", str(folder / "config"))
        assert main(["libero-setup"]) == 0
        setup = libero_setup.set_up()
        assert setup.assets is not None
        yield LiberoPlace(folder, setup.assets, dict(os.environ))
