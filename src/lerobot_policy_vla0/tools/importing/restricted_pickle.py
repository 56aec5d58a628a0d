"""Reads a pickle that holds nothing but NumPy arrays, and refuses every other one without running it.

Unpickling calls the functions that a file names. Here a file may name the three that rebuild an array, and no
other one. Plain containers, strings and numbers need no names.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from lerobot_policy_vla0.errors import CheckpointError

# NumPy 2 moved the function that rebuilds an array; files written by either version name one of the two.
_RECONSTRUCT = np.empty(0).__reduce__()[0]
_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class _ArrayUnpickler(pickle.Unpickler):
    """An unpickler that can rebuild arrays and nothing else."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        """Return one of the allowed functions without importing anything."""
        try:
            return _ALLOWED[module_name, global_name]
        except KeyError:
            raise _ForbiddenName(f"{module_name}.{global_name}") from None


class _ForbiddenName(pickle.UnpicklingError):
    """The file names something that could run code; the message is the name."""


def load_array_pickle(file: Path) -> Any:
    """Read containers, strings, numbers and NumPy arrays from a pickle file of protocol 4 or older.

    Protocol 5 stores arrays in a way that names more functions.

    Raises:
        CheckpointError: if the file names another function, which is not run, is no pickle, or is truncated.
    """
    try:
        with file.open("rb") as stream:
            return _ArrayUnpickler(stream).load()
    except _ForbiddenName as error:
        raise CheckpointError(
            f"{file} refers to {str(error)!r}, which unpickling would run; it was not run. Only NumPy arrays are "
            "read (numpy.core.multiarray._reconstruct, numpy.ndarray, numpy.dtype). If you trust the file, "
            "write its arrays again with pickle.dump(..., protocol=4); otherwise do not load it anywhere."
        ) from None
    # A damaged file can raise almost anything: EOFError, ValueError, IndexError, MemoryError, ...
    except Exception as error:
        raise CheckpointError(
            f"{file} is not a readable pickle ({type(error).__name__}: {error}); it is truncated or damaged, or a "
            "Git LFS pointer. Download it again."
        ) from error
