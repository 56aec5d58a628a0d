"""A stand-in for CUDA graphs on a CPU: records every operation of a run, and runs the same ones on the same memory.

What a graph cannot do fails here in the same way: reading a number on the host is an error, and whatever Python did
besides starting operations (choosing, counting, copying from numpy) is not done again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

#: Operations that a capture refuses: the host would wait for their result.
_REFUSED = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "item")


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, list[Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._overloadpacket.__name__ in _REFUSED:
            raise RuntimeError(f"operation not permitted when stream is capturing: {func}")
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            fresh = (
                [] if func._schema.is_mutable else [x for x in tree_leaves(result) if isinstance(x, Tensor)]
            )
            self.operations.append((func, args, kwargs or {}, fresh))
        return result


def record(run: Callable[[], Tensor], device: torch.device, pool: Any) -> Callable[[], Tensor]:
    """Do what `decoding.cuda_graph.capture` does; results of different graphs share no memory."""
    run()  # as before a capture
    with _Recorder() as recorder:
        result = run()

    def replay() -> Tensor:
        for func, args, kwargs, results in recorder.operations:
            again = func(*args, **kwargs)
            for old, new in zip(results, tree_leaves(again), strict=False):
                old.copy_(new)
        return result

    return replay
