"""Writes files and folders that appear complete or not at all; new folders never replace existing ones."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from lerobot_policy_vla0.errors import OutputError


def refuse_existing(out: Path) -> None:
    """Refuse a path that exists, except an empty folder.

    Raises:
        OutputError: if ``out`` exists (also as a dangling link) and is not an empty folder, or is a mount point.
    """
    if out.is_symlink() or (out.exists() and not (out.is_dir() and not any(out.iterdir()))):
        raise OutputError(
            f"{out} exists already; nothing is overwritten. Give another --out, or move it away."
        )
    if out.is_mount():
        raise OutputError(f"{out} is a mount point, which cannot be replaced: give a folder in it as --out.")


def require_space(out: Path, n_bytes: int) -> None:
    """Refuse to write more than the disk of ``out`` can hold.

    Raises:
        OutputError: naming ``out``, the bytes it needs, and the free bytes.
    """
    free = _free_bytes(out)
    if free < n_bytes:
        raise OutputError(
            f"{out} needs {_size(n_bytes)}, and its disk has {_size(free)} free. Free some space, or write to another "
            "disk."
        )


def _free_bytes(out: Path) -> int:
    """Return the free bytes of the disk of ``out``, which need not exist yet."""
    return shutil.disk_usage(next(place for place in (out, *out.absolute().parents) if place.exists())).free


def _size(n_bytes: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6)):
        if n_bytes >= size:
            return f"{n_bytes / size:.1f} {unit}"
    return f"{n_bytes / 1000:.1f} kB"


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    """Turn the various errors of writing to a disk into one that names ``out``."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise _unwritable(out, error) from error
    except Exception as error:
        if type(error) is not Exception:  # tokenizers raises the bare class for all errors
            raise
        raise _unwritable(out, error) from error


def _unwritable(out: Path, error: Exception) -> OutputError:
    return OutputError(
        f"{out} could not be written ({error}); its disk has {_size(_free_bytes(out))} free. Check space and "
        "permissions."
    )


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``out``; it becomes ``out`` on success and is removed on an error.

    Raises:
        OutputError: if ``out`` exists (see `refuse_existing`) before or after the work, or the disk is full or not
            writable.
    """
    refuse_existing(out)
    with _writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as scratch:
            partial = Path(scratch) / out.name
            partial.mkdir()  # `TemporaryDirectory` is readable by its owner only; this folder has normal permissions
            yield partial
            refuse_existing(out)  # another process may have created it meanwhile
            partial.rename(out)


@contextmanager
def new_files(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder inside ``folder``; its files move into ``folder`` on success and are removed on errors.

    Files of the same names are replaced only then; others stay.

    Raises:
        OutputError: if the disk is full or not writable.
    """
    with _writing(folder), tempfile.TemporaryDirectory(prefix=".partial.", dir=folder) as scratch:
        yield Path(scratch)
        for file in sorted(path for path in Path(scratch).rglob("*") if path.is_file()):
            place = folder / file.relative_to(scratch)
            place.parent.mkdir(parents=True, exist_ok=True)
            file.replace(place)


def write_text(path: Path, content: str) -> None:
    """Write or replace a file atomically: it is complete or absent, even if the machine stops meanwhile."""
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
