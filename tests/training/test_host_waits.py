"""A training step waits for the device twice: for the sizes of its tensors, and for its scalars."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.host_waits import HostWaits
from helpers.tiny import make_batch, make_config

from lerobot_policy_vla0 import VLA0Policy
from lerobot_policy_vla0.text.codec import IGNORE_INDEX
from lerobot_policy_vla0.training.loss import answer_loss


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"action_mask_unit": "number"},
        {"loss_on_padding": False},
        {"tile_images": False},
        {"dtype": "bfloat16"},
        {"gradient_checkpointing": True},
    ],
    ids=str,
)
def test_a_step_waits_for_its_sizes_and_for_its_scalars(options: dict[str, Any]) -> None:
    config = make_config(**options)
    policy = VLA0Policy(config).train()
    batch = make_batch(config, 4)
    optimizer = torch.optim.AdamW(policy.parameters(), foreach=True)
    policy.forward(batch)[0].backward()  # the first step reads the augmentation's seed
    optimizer.step()
    with HostWaits() as waits:
        policy.forward(batch)[0].backward()
    own = waits.of("lerobot_policy_vla0")
    assert [place.rsplit("/", 1)[1].split(":")[0] for place in own] == ["modeling_vla0.py"] * 2, own
    assert own.total() == 2
    # transformers reads the pictures' size again and again: the vision tower's, and nothing else.
    others = {place: n for place, n in waits.places.items() if place not in own and "/torch/" not in place}
    assert all("/transformers/models/qwen2_5_vl/modeling_" in place for place in others), others
    assert len(others) <= 9, others


def test_the_counter_sees_what_waits() -> None:
    x = torch.arange(4.0)
    with HostWaits() as waits:
        waiting = [x.sum().item(), bool(x.any()), x.tolist(), x.nonzero(), x[x > 1], float(x[0])]
        waiting += [torch.tensor([1.0], device=x.device), torch.equal(x, x), x.repeat_interleave(x.long())]
        x.cumsum(0), x[x.argsort()], torch.where(x > 1, x, 0), torch.tensor([1.0])
    assert waits.places.total() == len(waiting), waits.places


def test_labelled_places_are_the_same_with_and_without_their_number() -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(3, 7, 5), torch.randn(11, 5)
    labels = torch.randint(0, 11, (3, 7)).masked_fill(torch.rand(3, 7) < 0.4, IGNORE_INDEX)
    row, column = (labels != IGNORE_INDEX).nonzero(as_tuple=True)
    for labelled in (None, len(row)):
        result = answer_loss(hidden, labels, lambda h: h @ weight.T, labelled=labelled)
        assert torch.equal(result.row, row) and torch.equal(result.column, column)
