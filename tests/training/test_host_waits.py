"""A training step waits for the device once, before the model runs; its scalars wait until somebody looks at them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.host_waits import HostWaits
from helpers.tiny import make_batch, make_config

from lerobot_policy_vla0 import VLA0Policy
from lerobot_policy_vla0.errors import ActionError, ImageError
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
def test_a_step_waits_once_and_its_scalars_once_they_are_read(options: dict[str, Any]) -> None:
    config = make_config(**options)
    policy = VLA0Policy(config).train()
    batch = make_batch(config, 4)
    optimizer = torch.optim.AdamW(policy.parameters(), foreach=True)
    policy.forward(batch)[0].backward()  # the first step reads the augmentation's seed
    optimizer.step()
    with HostWaits() as waits:
        loss, scalars = policy.forward(batch)
        loss.backward()
        names = list(scalars)
    own = waits.of("lerobot_policy_vla0")
    assert [place.rsplit("/", 1)[1].split(":")[0] for place in own] == ["modeling_vla0.py"], own
    assert own.total() == 1
    # transformers reads the pictures' size again and again: the vision tower's, and nothing else.
    others = {place: n for place, n in waits.places.items() if place not in own and "/torch/" not in place}
    assert all("/transformers/models/qwen2_5_vl/modeling_" in place for place in others), others
    assert len(others) <= 9, others
    # LeRobot looks at them at the end of a step, after `loss.item()` and `grad_norm.item()` of its own.
    with HostWaits() as waits:
        read = [dict(scalars), dict(scalars)]
        scalars["sample_weight_mean"] = 2.0  # as LeRobot adds to them
    assert waits.places.total() == 1, waits.places
    assert read[0] == read[1] and list(read[0]) == names and "bin_error" in names
    assert read[0]["loss"] == float(loss.detach()) and all(type(value) is float for value in read[0].values())
    assert list(scalars) == [*names, "sample_weight_mean"] and len(scalars) == len(names) + 1


def test_bad_input_is_refused_before_the_model_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config()
    policy = VLA0Policy(config).train()
    monkeypatch.setattr(policy.vlm, "hidden_states", lambda *_, **__: pytest.fail("the model ran"))
    batch = make_batch(config, 2)
    actions = batch["action"].clone()
    actions[1, 0, 1] = float("nan")
    with pytest.raises(ActionError, match="NaN or infinit"):
        policy.forward({**batch, "action": actions})
    with pytest.raises(ImageError, match=r"observation\.images\.top"):
        policy.forward({**batch, config.camera_keys[0]: batch[config.camera_keys[0]] * 255})


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
