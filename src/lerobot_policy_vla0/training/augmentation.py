"""The state of the training augmentation: a seed and a count of steps, saved with the weights.

LeRobot's saved random state is not enough to resume, because a new data loader draws from it. The state is an
`nn.Module`, because PEFT saves modules beside an adapter.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class AugmentationState(nn.Module):
    """Makes one random generator per training step; a resumed run gets the same ones."""

    state: Tensor

    def __init__(self) -> None:
        super().__init__()
        # (seed, number of training steps)
        self.register_buffer("state", torch.tensor([torch.initial_seed() % 2**62, 0]))
        self._host: tuple[int, int] | None = None  # read from the device only once

    def next_generator(self, rank: int) -> torch.Generator:
        """Return the generator of this training step on process ``rank``, and count the step."""
        if self._host is None:
            seed, count = self.state.tolist()
            self._host = (int(seed), int(count))
        seed, count = self._host
        self._host = (seed, count + 1)
        self.state[1] = count + 1
        return _step_generator(seed, count, rank)


def _step_generator(seed: int, count: int, rank: int) -> torch.Generator:
    """Return the generator of one step and process, on the CPU so that all devices get the same draws.

    Mixing as in SplitMix gives neighbouring steps and ranks unrelated seeds.
    """
    mixed = (seed + count * 0x9E3779B97F4A7C15 + rank * 0xBF58476D1CE4E5B9) % 2**63
    return torch.Generator().manual_seed(mixed)
