"""Answers are computed without gradients, but never in PyTorch's inference mode.

The policy keeps caches, buffers and chunks, and a tensor made in inference mode cannot be written to outside it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch


def without_gradients[**P, R](function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function that keeps tensors: it runs without gradients and makes ordinary tensors.

    >>> with torch.inference_mode():
    ...     without_gradients(lambda: torch.zeros(1))().is_inference(), torch.zeros(1).is_inference()
    (False, True)
    """
    # Leaving inference mode switches gradients on, so `no_grad` is inside.
    return torch.inference_mode(False)(torch.no_grad()(function))
