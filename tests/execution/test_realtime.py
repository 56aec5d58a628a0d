"""realtime.py and predict_action_chunk's two extra arguments: committed steps begin the answer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.tiny import make_batch, make_config
from lerobot.rollout.inference.rtc import supports_rtc_inference

from lerobot_policy_vla0 import VLA0Policy
from lerobot_policy_vla0.errors import ActionError, ConfigError
from lerobot_policy_vla0.execution.realtime import committed_steps
from lerobot_policy_vla0.text.codec import ActionCodec, quantise


@pytest.fixture(scope="module")
def policy() -> VLA0Policy:
    torch.manual_seed(0)
    return VLA0Policy(make_config(chunk_size=4, n_action_steps=4, n_bins=100)).eval()


def steps(*rows: tuple[float, float]) -> torch.Tensor:
    return torch.tensor(rows)


def committed_bins(codec: ActionCodec, left: torch.Tensor, delay: int, batch: int) -> torch.Tensor | None:
    """Return the committed steps as `predict_action_chunk` hands them to the decoder."""
    committed = committed_steps(left, delay, batch, chunk_size=codec.chunk_size, action_dim=codec.action_dim)
    return None if committed is None else quantise(committed, codec.n_bins)[0]


def test_lerobot_takes_the_policy_for_real_time_chunking(policy: VLA0Policy) -> None:
    assert supports_rtc_inference(policy)


@pytest.mark.parametrize("decoder", ["reference", "fast", "speculative"])
def test_the_chunk_begins_with_the_committed_steps_and_no_more(decoder: str) -> None:
    config = make_config(chunk_size=4, n_action_steps=4, n_bins=100, decoder=decoder)
    policy = VLA0Policy(config).eval()
    batch = make_batch(config, batch=1)
    free = policy.predict_action_chunk(dict(batch))
    left = steps((-1.0, 0.5), (0.5, -0.98), (0.9, 0.9), (0.0, 0.0))
    for delay in range(4):
        got = policy.predict_action_chunk(dict(batch), inference_delay=delay, prev_chunk_left_over=left)
        assert got.shape == (1, 4, 2)
        torch.testing.assert_close(got[0, :delay], left[:delay], atol=1e-6, rtol=0)
        assert delay == 0 or not torch.equal(got, free)
    assert torch.equal(
        policy.predict_action_chunk(dict(batch), inference_delay=0, prev_chunk_left_over=left), free
    )
    assert torch.equal(
        policy.predict_action_chunk(dict(batch), inference_delay=3, prev_chunk_left_over=None), free
    )


def test_values_between_two_bins_become_the_nearest_one(policy: VLA0Policy) -> None:
    got = committed_bins(policy.codec, steps((0.013, -0.999), (2.0, -7.0)), 2, batch=1)
    assert got is not None and got.tolist() == [[[51, 0], [100, 0]]]


def test_one_left_over_serves_all_rows_and_each_row_may_have_its_own(policy: VLA0Policy) -> None:
    shared = committed_bins(policy.codec, steps((1.0, 1.0)), 1, batch=3)
    assert shared is not None and shared.tolist() == [[[100, 100]]] * 3
    own = committed_bins(policy.codec, torch.tensor([[[1.0, 1.0]], [[-1.0, 0.5]]]), 1, batch=2)
    assert own is not None and own.tolist() == [[[100, 100]], [[0, 75]]]


def test_rows_of_zeros_that_lerobot_appends_are_no_commitments(policy: VLA0Policy) -> None:
    left = steps((0.5, 0.5), (0.0, 0.2), (0.0, 0.0), (0.0, 0.0))
    got = committed_bins(policy.codec, left, 4, batch=1)
    assert got is not None and got.tolist() == [[[75, 75], [50, 60]]]
    assert committed_bins(policy.codec, torch.zeros(3, 2), 2, batch=1) is None
    assert committed_bins(policy.codec, torch.zeros(0, 2), 2, batch=1) is None


@pytest.mark.parametrize(
    ("left", "delay", "error", "message"),
    [
        (steps((0.5, 0.5)), 0.5, ConfigError, r"inference_delay=0\.5 must be a whole number"),
        (steps((0.5, 0.5)), -1, ConfigError, "inference_delay=-1 must be"),
        (torch.ones(2, 3), 1, ActionError, r"shape \(2, 3\), expected \(steps, 2\)"),
        (torch.ones(2), 1, ActionError, r"shape \(2,\), expected"),
        (torch.ones(5, 2, 2), 1, ActionError, r"shape \(5, 2, 2\), expected"),
        (steps((0.5, float("nan"))), 1, ActionError, "NaN or infinite values in its first 1 steps"),
        (steps((0.5, float("inf"))), 1, ActionError, "NaN or infinite values"),
    ],
)
def test_what_cannot_be_continued_is_refused(
    policy: VLA0Policy, left: torch.Tensor, delay: Any, error: type[Exception], message: str
) -> None:
    batch: dict[str, Any] = make_batch(policy.config, batch=1)
    with pytest.raises(error, match=message):
        policy.predict_action_chunk(batch, inference_delay=delay, prev_chunk_left_over=left)


def test_nan_after_the_committed_steps_is_nobodys_business(policy: VLA0Policy) -> None:
    got = committed_bins(policy.codec, steps((0.5, 0.5), (float("nan"), 0.0)), 1, batch=1)
    assert got is not None and got.tolist() == [[[75, 75]]]


def test_loaded_policy_is_warm_after_its_first_reset(policy: VLA0Policy, tmp_path: Any) -> None:
    policy.save_pretrained(tmp_path)
    loaded = VLA0Policy.from_pretrained(tmp_path)
    assert loaded.last_decode is None
    loaded.reset()
    warm = loaded.last_decode
    assert warm is not None and warm.passes > 1
    decoder = loaded.decoder
    batch = make_batch(policy.config, batch=1)
    loaded.predict_action_chunk(dict(batch))
    loaded.reset()
    assert loaded.decoder is decoder and loaded.last_decode is not warm
    assert torch.equal(loaded.predict_action_chunk(dict(batch)), policy.predict_action_chunk(dict(batch)))


def test_one_late_chunk_is_no_reason_to_stop_and_three_in_a_row_are(
    policy: VLA0Policy, caplog: pytest.LogCaptureFixture
) -> None:
    batch: dict[str, Any] = make_batch(policy.config, batch=1)
    nothing = torch.zeros(10, 2)
    left = steps((0.5, 0.5), (0.1, 0.0), (0.0, 0.0))

    def predict(left_over: torch.Tensor) -> torch.Tensor:
        return policy.predict_action_chunk(dict(batch), inference_delay=9, prev_chunk_left_over=left_over)

    policy.reset()
    for _ in range(3):  # late twice, then in time although LeRobot's longest delay stays 9
        with caplog.at_level("WARNING"):
            predict(nothing)
            predict(nothing)
        assert (
            caplog.messages
            == [
                "a chunk took 9 control steps to compute, more than its chunk_size=4: the robot "
                "waited for the next one"
            ]
            * 2
        )
        caplog.clear()
        torch.testing.assert_close(predict(left)[0, :2], left[:2], atol=1e-6, rtol=0)
    predict(nothing)
    predict(nothing)
    for _ in range(2):
        with pytest.raises(
            ConfigError, match=r"chunks in a row took longer to compute \(up to 9 .*chunk_size=4\)"
        ):
            predict(nothing)
    policy.reset()
    predict(nothing)
