"""A headless browser for the tests that open a page; they skip without one."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from torchvision.io import decode_png, read_file

from helpers.waiting import LONG

NAMES = (
    "chromium-headless-shell",
    "chromium",
    "chromium-browser",
    "google-chrome",
    "chrome",
    "chrome-headless-shell",
)


def has_browser() -> bool:
    """Tell whether a page can be opened."""
    return _find() is not None


def _find() -> str | None:
    return next((found for name in NAMES if (found := shutil.which(name))), None)


def _command(profile: Path) -> list[str]:
    browser = _find()
    if browser is None:
        pytest.skip(f"no browser on the PATH ({', '.join(NAMES)})")
    return [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]


def open_page(page: Path, folder: Path) -> str:
    """Open an HTML file as a person would, and check that there is something to see.

    Args:
        page: the file.
        folder: for the browser's profile and picture.

    Returns:
        The document after scripts ran.
    """
    command = _command(folder / "profile")
    picture = folder / "screen.png"
    shot = [*command, f"--screenshot={picture}", "--window-size=1000,1600", page.resolve().as_uri()]
    subprocess.run(shot, check=True, capture_output=True, timeout=LONG)
    pixels = decode_png(read_file(str(picture)))[:3].float()  # (3, H, W)
    assert pixels.shape == (3, 1600, 1000)
    background = pixels[:, :5, :5].mean((1, 2), keepdim=True)
    drawn = ((pixels - background).abs().amax(0) > 60).float().mean()
    assert drawn > 0.01, f"{drawn:.2%} of the page is drawn on"
    dump = [*command, "--dump-dom", page.resolve().as_uri()]
    return subprocess.run(dump, check=True, capture_output=True, timeout=LONG).stdout.decode()
