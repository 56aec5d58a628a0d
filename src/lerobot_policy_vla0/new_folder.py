"""A folder that appears whole or not at all, and never over another one. Knows nothing about what goes into it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lerobot_policy_vla0.errors import CheckpointError


def refuse_existing(out: Path) -> None:
    """Refuse a path that is taken.

    Raises:
        CheckpointError: if ``out`` exists, be it as a dangling link.
    """
    if out.exists() or out.is_symlink():
        raise CheckpointError(
            f"{out} exists already; nothing is overwritten. Give another --out, or move it away."
        )


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Give a folder to fill beside ``out``; it becomes ``out`` if all goes well and vanishes if not.

    Raises:
        CheckpointError: if ``out`` exists, before or after the work; if the disk is full or not writable.
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
        raise CheckpointError(
            f"{out} could not be written ({error}). Check space and permissions."
        ) from error
