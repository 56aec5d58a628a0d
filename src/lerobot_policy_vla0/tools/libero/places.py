"""A place: a folder from which hf-libero starts with other task files and start states than its own.

::

    PLACE/config.yaml                            names the two folders below; LIBERO_CONFIG_PATH names PLACE
    PLACE/variant.json                           which variant it is, and of which files; see `Variant`
    PLACE/bddl_files/SUITE/TASK.bddl             the variant's, under the ordinary names of suite and task
    PLACE/init_files/SUITE/TASK.pruned_init      its start states, as LeRobot loads them

`variants` builds it, and `setup` recognises it by its ``variant.json``. Suites that the variant does not have are not
in it, so none of them starts where it always does.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from lerobot_policy_vla0.errors import LiberoError
from lerobot_policy_vla0.tools.libero.assets import SUITES

MARKER = "variant.json"


@dataclass(frozen=True)
class Variant:
    """The start positions of a place. Two are equal if name and files are."""

    name: str  # such as swap
    source: str = field(compare=False)  # the package, with its version
    sha256: str  # of the files that the place was built from

    def __str__(self) -> str:
        return f"{self.name} of {self.source}"


def read_variant(folder: Path) -> Variant | None:
    """Return the variant of the place ``folder``; None if it is no place.

    Raises:
        LiberoError: ``variant.json`` is unreadable.
    """
    file = folder / MARKER
    if not file.exists():
        return None
    try:
        variant = Variant(**json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise LiberoError(
            f"{file} cannot be read ({error}). Build the folder again: move it away, then vla0 libero-setup --pro."
        ) from error
    return variant


def place_folders(folder: Path) -> dict[str, Path]:
    """Return the lines of LIBERO's configuration that make a place of ``folder``."""
    folder = folder.absolute()
    return {"bddl_files": folder / "bddl_files", "init_states": folder / "init_files"}


def place_suites(folder: Path) -> tuple[str, ...]:
    """Return the suites of the place ``folder``."""
    return tuple(suite for suite in SUITES if (place_folders(folder)["bddl_files"] / suite).is_dir())
