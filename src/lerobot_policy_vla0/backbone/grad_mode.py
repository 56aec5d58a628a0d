"""The mode that answers are computed in: without gradients, and never in PyTorch's inference mode.

What is made in inference mode cannot be written to outside it, and a policy keeps what it makes: caches, buffers,
chunks.
"""

from __future__ import annotations

from collections.abc import Callable

import torch


def without_gradients[**P, R](function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function that keeps tensors: it runs without gradients, and keeps ordinary tensors in any mode.

    >>> with torch.inference_mode():
    ...     without_gradients(lambda: torch.zeros(1))().is_inference(), torch.zeros(1).is_inference()
    (False, True)
    """
    # Leaving inference mode switches gradients on, so they are switched off inside.
    return torch.inference_mode(False)(torch.no_grad()(function))
