"""How many kernels a piece of work starts, how long they run, and how long the device waits between them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from decode_shapes import milliseconds
from hardware import synchronise
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile


def busy_and_span(intervals: list[tuple[float, float]]) -> tuple[float, float]:
    """Return how long at least one of some intervals lasts, and from where to where they reach.

    >>> busy_and_span([(0.0, 2.0), (1.0, 3.0), (5.0, 6.0)])
    (4.0, 6.0)
    """
    busy, end = 0.0, float("-inf")
    for first, last in sorted(intervals):
        busy += max(last - max(first, end), 0.0)
        end = max(end, last)
    return busy, end - min(first for first, _ in intervals)


def kernels_of(run: Callable[[], Any], device: torch.device, repeats: int) -> dict[str, float]:
    """Profile one run, after others; without an accelerator, operators called by no other stand for kernels.

    Args:
        run: the work; it may wait for its result.
        device: where it is done.
        repeats: runs for the wall time, which the profiler has no part in.

    Returns:
        ``kernels``, and in milliseconds ``busy_ms`` (at least one kernel runs), ``gaps_ms`` (none does, between the
        first one's start and the last one's end), ``wall_ms`` (without the profiler) and ``host_ms``: what of the wall
        time no kernel runs in.
    """
    wall = milliseconds(run, device, repeats)
    cuda = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as profiler:
        run()
        synchronise(device)
    wanted = DeviceType.CUDA if cuda else DeviceType.CPU
    events: Any = profiler.events()
    intervals = [
        (event.time_range.start, event.time_range.end)
        for event in events
        if event.device_type == wanted
        and not getattr(event, "is_user_annotation", False)
        and (cuda or event.cpu_parent is None)
    ]
    if not intervals:
        raise RuntimeError(f"the profiler saw nothing run on {device.type}")
    busy, span = (value / 1e3 for value in busy_and_span(intervals))
    return {
        "kernels": len(intervals),
        "busy_ms": round(busy, 3),
        "gaps_ms": round(span - busy, 3),
        "wall_ms": round(wall, 3),
        "host_ms": round(max(wall - busy, 0.0), 3),
    }
