"""What the policy guarantees on a robot: goals in range, no answer no motion, nothing stale (docs/so100.md)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.tiny import CAMERA, make_batch, make_config, make_restless
from torch import Tensor

from lerobot_policy_vla0 import VLA0Policy, make_vla0_pre_post_processors
from lerobot_policy_vla0.errors import ActionError, CameraError, DecodeError, ImageError, PromptError

LOW, HIGH = [-112.5, 3.0, -0.1], [98.25, 3.0, 1e4]


@pytest.fixture(scope="module")
def policy() -> VLA0Policy:
    torch.manual_seed(0)
    return VLA0Policy(make_config(n_action_steps=2)).eval()


@pytest.mark.parametrize("mode", ["MIN_MAX", "QUANTILES"])
@pytest.mark.parametrize("n_bins", [1, 3, 100, 1000, 99_999])
def test_every_bin_means_an_action_in_the_range_of_the_training_data(n_bins: int, mode: str) -> None:
    config = make_config(action_dim=3, n_bins=n_bins, normalization_mapping={"ACTION": mode})
    names = ("min", "max") if mode == "MIN_MAX" else ("q01", "q99")
    low, high = torch.tensor(LOW), torch.tensor(HIGH)
    _, postprocess = make_vla0_pre_post_processors(
        config, {"action": dict(zip(names, (low, high), strict=True))}
    )
    codec = VLA0Policy(config).codec
    bins = torch.arange(n_bins + 1).view(-1, 1, 1).expand(-1, 1, 3)  # every integer the grammar allows
    actions = postprocess(codec.bins_to_actions(bins)[:, 0])  # (n_bins + 1, 3)
    width = high - low
    slack = 1e-6 * torch.maximum(width, torch.maximum(low.abs(), high.abs()))  # float32
    assert bool((actions >= low - slack).all()) and bool((actions <= high + slack).all())
    torch.testing.assert_close(actions[0], low, atol=1e-4, rtol=1e-6)
    torch.testing.assert_close(actions[-1], high, atol=1e-4, rtol=1e-6)
    assert bool((actions.diff(dim=0)[:, [0, 2]] > 0).all())  # and the integers are in order


@pytest.mark.parametrize("decoder", ["reference", "fast", "speculative"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_raise_in_every_mode(decoder: str, value: float) -> None:
    policy = VLA0Policy(make_config(decoder=decoder, max_action_step=0.1)).eval()
    batch = make_batch(policy.config, batch=1)
    policy.select_action(dict(batch))
    policy.drop_queued_actions()
    with torch.no_grad():
        policy.vlm.model.lm_head.weight.fill_(value)
    policy.train()  # frees weights the decoder may hold
    policy.eval()
    for call in (policy.select_action, policy.predict_action_chunk):
        with pytest.raises(DecodeError, match="logits are NaN or infinite in batch rows"):
            call(dict(batch))
    with pytest.raises(DecodeError, match="logits are NaN or infinite"):
        policy.predict_action_chunk(
            dict(batch), inference_delay=1, prev_chunk_left_over=torch.full((3, 2), 0.5)
        )


def damaged(batch: dict[str, Any], what: str) -> dict[str, Any]:
    """Return the batch with something wrong with it."""
    batch = dict(batch)
    if what in ("nan", "inf"):
        batch[CAMERA] = batch[CAMERA].clone()
        batch[CAMERA][0, 0, 3, 3] = float(what)
    elif what == "no camera":
        del batch[CAMERA]
    elif what == "no prompt":
        del batch["observation.language.tokens"]
    elif what == "empty":
        batch[CAMERA] = batch[CAMERA][..., :0]
    else:
        batch["observation.state"] = torch.zeros(1, 3)
    return batch


@pytest.mark.parametrize(
    ("what", "error", "message"),
    [
        ("nan", ImageError, "pixel values contain NaN"),
        ("inf", ImageError, r"pixel values lie in \[.*inf"),
        ("no camera", CameraError, r"missing: \['observation\.images\.top'\]"),
        ("no prompt", PromptError, "the batch has no 'observation.language.tokens'"),
        ("empty", ImageError, "the image is empty"),
        ("joints", ActionError, "observation.state has 3 values, the policy was trained with 2"),
    ],
)
def test_an_observation_that_is_damaged_or_missing_raises_in_every_mode(
    policy: VLA0Policy, what: str, error: type[Exception], message: str
) -> None:
    policy.reset()
    batch = damaged(make_batch(policy.config, batch=1), what)
    for call in (policy.select_action, policy.predict_action_chunk):
        with pytest.raises(error, match=message):
            call(dict(batch))
    with pytest.raises(error, match=message):
        policy.predict_action_chunk(
            dict(batch), inference_delay=1, prev_chunk_left_over=torch.full((3, 2), 0.5)
        )


def test_after_an_error_the_policy_goes_on_with_the_next_good_observation(policy: VLA0Policy) -> None:
    good = make_batch(policy.config, batch=1)
    policy.reset()
    expected = policy.select_action(dict(good))
    policy.reset()
    with pytest.raises(ImageError):
        policy.select_action(damaged(good, "nan"))
    assert torch.equal(policy.select_action(dict(good)), expected)


OPTIONS: list[dict[str, Any]] = [
    {},
    {"max_action_step": 0.05},
    {"n_action_steps": 1, "ensemble_n_chunks": 3},
    {"n_action_steps": 1, "ensemble_n_chunks": 3, "max_action_step": 0.05},
    {"decoder": "speculative", "max_action_step": [0.02, None]},
]


#: `drop_queued_actions` keeps the last action for the limit: see the test below.
FORGETTING = [
    *((options, "reset") for options in OPTIONS),
    *((options, "drop_queued_actions") for options in OPTIONS if "max_action_step" not in options),
]


@pytest.mark.parametrize(("options", "forget"), FORGETTING, ids=str)
def test_nothing_of_the_motion_before_is_left(options: dict[str, Any], forget: str) -> None:
    def make() -> VLA0Policy:
        torch.manual_seed(0)
        return make_restless(VLA0Policy(make_config(**options)))

    def act(policy: VLA0Policy, seeds: range) -> Tensor:
        batches = [make_batch(policy.config, batch=1, seed=seed) for seed in seeds]
        return torch.stack([policy.select_action(batch) for batch in batches])

    fresh, used = make(), make()
    expected = act(fresh, range(10, 15))
    before = act(used, range(4))
    assert not torch.equal(before, expected[:4])
    getattr(used, forget)()
    assert torch.equal(act(used, range(10, 15)), expected)
    # The same for chunks, and for the end of the last one.
    getattr(used, forget)()
    getattr(fresh, forget)()
    batch, other = (make_batch(used.config, batch=1, seed=seed) for seed in (20, 21))
    used.predict_action_chunk(dict(other))
    getattr(used, forget)()
    ran_dry = torch.zeros(3, 2)
    assert torch.equal(
        used.predict_action_chunk(dict(batch), inference_delay=1, prev_chunk_left_over=ran_dry),
        fresh.predict_action_chunk(dict(batch), inference_delay=1, prev_chunk_left_over=ran_dry),
    )


@pytest.mark.parametrize("queued", [0, 1, 2])
def test_a_changed_instruction_does_not_lift_the_limit(queued: int) -> None:
    """Seen on an arm: three times the limit in one step when the task changed in the middle of a chunk."""
    torch.manual_seed(0)
    policy = make_restless(VLA0Policy(make_config(max_action_step=0.05)))
    batches = [make_batch(policy.config, batch=1, seed=seed) for seed in range(8)]
    sent = [policy.select_action(batch) for batch in batches[: 6 - queued]]
    policy.drop_queued_actions()
    assert not policy.executor.queue
    sent += [policy.select_action(batch) for batch in batches[6 - queued :]]
    changes = torch.stack(sent).diff(dim=0).abs()
    assert changes.max() <= 0.1 + 1e-6  # of the range, which is 2 wide
    assert changes[5 - queued].max() > 0
    policy.drop_queued_actions()
    policy.reset()  # a new motion, which may begin anywhere
    other = make_restless(VLA0Policy(make_config()))
    other.load_state_dict(policy.state_dict())
    assert torch.equal(policy.select_action(batches[0]), other.select_action(batches[0]))
