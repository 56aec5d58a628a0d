"""Writes a report as a folder: a page, the numbers and the pictures. The folder appears whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lerobot_policy_vla0.output_files import new_folder, write_json


def write_report(
    folder: Path, numbers: dict[str, Any], pictures: Mapping[str, bytes], texts: Mapping[str, str]
) -> Path:
    """Write ``report.json``, PNG files and texts, of which one is ``index.html``; return the path of that page.

    Raises:
        OutputError: if the folder is not empty, or cannot be written.
    """
    with new_folder(folder) as partial:
        write_json(partial / "report.json", numbers)
        for name, png in pictures.items():
            (partial / name).write_bytes(png)
        for name, text in texts.items():
            (partial / name).write_text(text)
    return folder / "index.html"
