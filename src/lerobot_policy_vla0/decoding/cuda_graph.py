"""A pass of fixed width over fixed memory, captured as a CUDA graph on an accelerator.

A pass over a few tokens is a few hundred small kernels, and starting them one by one takes longer than running them.
A graph starts them all at once, but always on the same memory: inputs are written into one buffer, and the pass reads
and writes the cache at columns computed on the device. Without an accelerator the same code runs uncaptured. It is then
slower than the ordinary pass; the tests compare the two.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

#: Runs a pass on ids ``(B, W)``, starts ``(B,)``, depths ``(B, W)`` and visibility ``(B, W, W)`` bool.
PassFunction = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def graph_pool(device: torch.device) -> Any:
    """Return a new memory pool for graphs; None without an accelerator."""
    return torch.cuda.graph_pool_handle() if device.type == "cuda" else None


class StaticPass:
    """A pass of one width.

    Args:
        run: the pass; it must read its arguments and memory that stays where it is, and nothing else.
        batch: rows.
        width: tokens per row.
        device: of the backbone.
        spare: place in the answer from which no answer uses the columns; the pass runs there while it is captured.
        pool: of graphs that share their memory, from `graph_pool`. A graph's logits are read before another one runs.

    Raises:
        RuntimeError: if the pass cannot be captured.
    """

    def __init__(
        self,
        run: PassFunction,
        *,
        batch: int,
        width: int,
        device: torch.device,
        spare: int,
        pool: Any = None,
    ) -> None:
        self.batch = batch
        self.width = width
        self._run = run
        cuda = device.type == "cuda"
        sizes = (batch * width, batch, batch * width, batch * width * width)
        # One buffer, so that one copy moves all inputs.
        self._host = torch.zeros(sum(sizes), dtype=torch.long, pin_memory=cuda)
        self._device = torch.zeros(sum(sizes), dtype=torch.long, device=device)
        shapes = ((batch, width), (batch,), (batch, width), (batch, width, width))
        self._host_views = [
            p.view(s) for p, s in zip(torch.split(self._host, list(sizes)), shapes, strict=True)
        ]
        self._views = [p.view(s) for p, s in zip(torch.split(self._device, list(sizes)), shapes, strict=True)]
        self._graph: Any = None
        self._logits: Tensor | None = None
        if cuda:
            self._capture(spare, pool)

    def _capture(self, spare: int, pool: Any) -> None:
        self._views[1].fill_(spare)
        self._views[3].copy_(torch.eye(self.width, dtype=torch.long))
        stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # libraries allocate their workspaces before the capture
            for _ in range(2):
                self._forward()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads (a robot's control loop) may use the device while this one captures.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            self._logits = self._forward()
        self._graph = graph

    def _forward(self) -> Tensor:
        ids, starts, depths, visible = self._views
        return self._run(ids, starts, depths, visible.bool())

    def __call__(
        self,
        ids: NDArray[Any],
        starts: NDArray[Any],
        depths: NDArray[Any],
        visible: NDArray[Any],
    ) -> Tensor:
        """Run the pass on at most `width` tokens per row; return logits ``(B, fed, 12)``, valid until the next call."""
        fed = ids.shape[1]
        host_ids, host_starts, host_depths, host_visible = self._host_views
        host_ids[:, fed:] = 0
        host_depths[:, fed:] = 0
        host_visible.copy_(torch.eye(self.width, dtype=torch.long).expand_as(host_visible))
        host_ids[:, :fed] = torch.from_numpy(ids)
        host_starts.copy_(torch.from_numpy(starts))
        host_depths[:, :fed] = torch.from_numpy(depths)
        host_visible[:, :fed, :fed] = torch.from_numpy(visible.astype(np.int64))
        self._device.copy_(self._host, non_blocking=True)
        if self._graph is None:
            self._logits = self._forward()
        else:
            self._graph.replay()
        assert self._logits is not None
        return self._logits[:, :fed]
