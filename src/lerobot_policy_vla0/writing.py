"""Files and folders that appear whole or not at all, and never over what somebody made. Knows not what is in them."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lerobot_policy_vla0.errors import OutputError


def refuse_existing(out: Path) -> None:
    """Refuse a path that is taken; an empty folder is free.

    Raises:
        OutputError: if ``out`` exists, be it as a dangling link, and is not an empty folder; or if it is where a disk
            is mounted, which nothing can take the place of.
    """
    if out.is_symlink() or (out.exists() and not (out.is_dir() and not any(out.iterdir()))):
        raise OutputError(
            f"{out} exists already; nothing is overwritten. Give another --out, or move it away."
        )
    if out.is_mount():
        raise OutputError(f"{out} is a mount point, which cannot be replaced: give a folder in it as --out.")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Give a folder to fill beside ``out``; it becomes ``out`` if all goes well and vanishes if not.

    Raises:
        OutputError: if ``out`` is taken (see `refuse_existing`), before or after the work; if the disk is full or not
            writable.
    """
    refuse_existing(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as scratch:
            partial = Path(scratch) / out.name
            partial.mkdir()  # the scratch folder itself is for its owner only; what appears is as readable as any
            yield partial
            refuse_existing(out)  # somebody else may have been faster
            partial.rename(out)
    except OSError as error:
        raise OutputError(f"{out} could not be written ({error}). Check space and permissions.") from error


def write_text(path: Path, content: str) -> None:
    """Write a file so that it is there whole or not at all, also when the machine stops; replaces one that is there."""
    encoded = content.encode()
    part = path.with_name(f".{path.name}.{os.getpid()}")
    with part.open("wb") as file:
        file.write(encoded)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file with `write_text`."""
    write_text(path, json.dumps(content, indent=1) + "\n")
