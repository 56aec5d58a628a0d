"""Functions over fixed memory, captured as CUDA graphs on an accelerator: pictures, prompts, passes.

A pass over a few tokens is a few hundred small kernels, and starting them one by one takes longer than running them.
A graph starts them all at once, but always on the same memory: inputs are written into buffers, and a pass reads and
writes the cache at columns computed on the device. Without an accelerator the same functions run uncaptured, on the
same buffers; the tests compare them with the ordinary path, and replay them operation by operation as a graph would.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class CaptureError(RuntimeError):
    """A function could not be captured."""


def graph_pool(device: torch.device) -> Any:
    """Return a new memory pool for graphs; None without an accelerator."""
    return torch.cuda.graph_pool_handle() if device.type == "cuda" else None


def capture(run: Callable[[], Tensor], device: torch.device, pool: Any) -> Callable[[], Tensor]:
    """Return what runs ``run`` again on the same memory: a graph on an accelerator, elsewhere ``run`` itself.

    A graph's result is valid until another graph of its pool runs.

    Args:
        run: reads and writes memory that stays where it is, and nothing else.
        device: of that memory.
        pool: of graphs that share what they compute in, from `graph_pool`.
    """
    if device.type != "cuda":
        return run
    stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # libraries allocate their workspaces before the capture
        for _ in range(2):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # Other threads (a robot's control loop) may use the device while this one captures.
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        result = run()

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay


class StaticCall:
    """A function and the tensors that it is called with, which stay where they are: write into them, then call.

    Args:
        function: must read its arguments and memory that stays where it is, and nothing else.
        *inputs: its arguments; what they hold now must do for a trial run.
        pool: see `capture`.

    Raises:
        CaptureError: if the function cannot be captured.
    """

    def __init__(self, function: Callable[..., Tensor], *inputs: Tensor, pool: Any = None) -> None:
        self.inputs = inputs
        device = inputs[0].device
        kind = device.type

        def run() -> Tensor:
            # Autocast keeps casts of weights until it is left; a graph would read them after that.
            with torch.autocast(
                kind,
                torch.get_autocast_dtype(kind),
                enabled=torch.is_autocast_enabled(kind),
                cache_enabled=False,
            ):
                return function(*inputs)

        try:
            self._run = capture(run, device, pool)
        except RuntimeError as error:
            raise CaptureError(str(error)) from error

    def __call__(self) -> Tensor:
        """Run the function; the result is valid until the next call of any function of the same pool."""
        return self._run()


class StaticFeed:
    """A pass's tokens on the device, in one buffer, so that one copy moves all of them.

    Args:
        batch: rows.
        width: tokens per row.
        device: of the backbone.
    """

    def __init__(self, batch: int, width: int, device: torch.device) -> None:
        self.width = width
        shapes = ((batch, width), (batch,), (batch, width))
        counts = [int(torch.Size(shape).numel()) for shape in shapes]
        sizes = [*(8 * count for count in counts), batch * width * width]  # bytes; the last are flags
        self._host = torch.zeros(sum(sizes), dtype=torch.uint8, pin_memory=device.type == "cuda")
        self._device = torch.zeros(sum(sizes), dtype=torch.uint8, device=device)

        def views(buffer: Tensor) -> list[Tensor]:
            parts = torch.split(buffer, sizes)
            numbers = [part.view(torch.long).view(s) for part, s in zip(parts, shapes, strict=False)]
            return [*numbers, parts[-1].view(torch.bool).view(batch, width, width)]

        self._host_views = [view.numpy() for view in views(self._host)]
        #: ids ``(B, W)``, starts ``(B,)``, depths ``(B, W)`` int64 and visibility ``(B, W, W)`` bool.
        self.views = views(self._device)
        self._host_views[3][:] = np.eye(width, dtype=bool)  # a token that attends to nothing would give NaN
        self._device.copy_(self._host)

    def write(
        self, ids: NDArray[Any], starts: NDArray[Any], depths: NDArray[Any], visible: NDArray[Any]
    ) -> None:
        """Send at most ``width`` tokens per row, and fillers that attend to themselves and that no other attends to.

        The host's buffer is free again once a result that depends on it has been read.
        """
        fed = ids.shape[1]
        host_ids, host_starts, host_depths, host_visible = self._host_views
        host_ids[:, :fed], host_ids[:, fed:] = ids, 0
        host_starts[:] = starts
        host_depths[:, :fed], host_depths[:, fed:] = depths, 0
        if fed < self.width:
            host_visible[:] = np.eye(self.width, dtype=bool)
        host_visible[:, :fed, :fed] = visible
        self._device.copy_(self._host, non_blocking=True)
