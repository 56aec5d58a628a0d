"""What it takes to compare two trainings of one policy."""

from __future__ import annotations

import torch

#: Every process draws its own crops, jitter and masks, so that comparing needs them off; one digit per number gives
#: every sample as many tokens, so that the mean of means is the mean.
COMPARABLE = (
    "--policy.crop_ratio=1",
    "--policy.brightness=0",
    "--policy.contrast=0",
    "--policy.saturation=0",
    "--policy.hue=0",
    "--policy.action_mask_max_ratio=0",
    "--policy.n_bins=9",
)


def distance(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    """Return how far two sets of weights are from each other, the augmentation's state left out.

    AdamW turns rounding in gradients near zero into steps of full size, so weights are compared as a whole.
    """
    assert first.keys() == second.keys()
    keys = first.keys() - {"augmentation.state"}
    return sum(float((first[key] - second[key]).double().pow(2).sum()) for key in keys) ** 0.5
