"""Counts what makes the host wait for the device, and says where; on a CPU as well, where nothing waits."""

from __future__ import annotations

import traceback
from collections import Counter
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

#: Operations whose result's shape, or whose value on the host, depends on numbers on the device.
_OPERATIONS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique", "_unique2")
#: Functions that read numbers without an operation, or send numbers without leave to go on meanwhile.
_FUNCTIONS = ("tolist", "numpy", "cpu", "tensor", "as_tensor")


class HostWaits:
    """While it is entered, counts waits by the line of Python that caused them: ``file.py:line name``."""

    def __init__(self) -> None:
        self.places: Counter[str] = Counter()
        self._modes = (_Functions(self), _Operations(self))

    def of(self, package: str) -> Counter[str]:
        """Return those caused in a package, by the end of their path."""
        return Counter({place: n for place, n in self.places.items() if f"/{package}/" in place})

    def note(self, name: str) -> None:
        """Count one."""
        own = (__file__, torch.__file__.rsplit("/", 1)[0], traceback.__file__)
        for frame in reversed(traceback.extract_stack()):
            if not frame.filename.startswith(own):
                self.places[f"{Path(frame.filename)}:{frame.lineno} {name}"] += 1
                return

    def __enter__(self) -> Self:
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)


class _Functions(TorchFunctionMode):
    def __init__(self, waits: HostWaits) -> None:
        super().__init__()
        self._waits = waits

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        # Without a device, a new tensor stays on the host, and `to(..., non_blocking=True)` sends it.
        if name in _FUNCTIONS and not (name in ("tensor", "as_tensor") and "device" not in (kwargs or {})):
            self._waits.note(name)
        return func(*args, **(kwargs or {}))


class _Operations(TorchDispatchMode):
    def __init__(self, waits: HostWaits) -> None:
        super().__init__()
        self._waits = waits

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._overloadpacket.__name__
        masks = name in ("index", "index_put", "index_put_") and any(
            isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        counted = (
            name == "repeat_interleave" and isinstance(args[0], Tensor) and func._overloadname == "Tensor"
        )
        if name in _OPERATIONS or masks or counted:
            self._waits.note(name)
        return func(*args, **(kwargs or {}))
