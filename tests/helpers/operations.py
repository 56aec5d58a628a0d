"""Counts the operations that a piece of code starts, each of which is a kernel on a GPU."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

#: Operations that only describe memory in another way.
_VIEWS = frozenset(
    (
        "view", "_unsafe_view", "reshape", "t", "transpose", "permute", "slice", "select", "split", "chunk",
        "split_with_sizes", "expand", "unsqueeze", "squeeze", "detach", "alias", "as_strided", "unbind", "narrow",
        "empty", "empty_like", "lift_fresh", "_local_scalar_dense",
    )
)  # fmt: skip


class Operations(TorchDispatchMode):
    """While it is entered, counts operations by name; views are left out."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    @property
    def total(self) -> int:
        """How many there were."""
        return self.names.total()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._overloadpacket.__name__
        if name not in _VIEWS:
            self.names[name] += 1
        return func(*args, **(kwargs or {}))
