"""action_limit.py and the option max_action_step: what is sent never changes by more than it says."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny import make_batch, make_config, make_restless, make_stats
from hypothesis import given, settings
from hypothesis import strategies as st
from lerobot.policies.rtc import ActionQueue
from lerobot.policies.rtc.configuration_rtc import RTCConfig
from torch import Tensor

from lerobot_policy_vla0 import VLA0Policy, make_vla0_pre_post_processors
from lerobot_policy_vla0.errors import ActionError, ConfigError, StatsError
from lerobot_policy_vla0.execution.step_limit import ActionLimiter, limit_steps, step_limits

FREE = math.inf


def column(*values: float) -> Tensor:
    """Return one row of one-dimensional actions: (1, T, 1)."""
    return torch.tensor(values).view(1, -1, 1)


# ---------------------------------------------------------------- one sequence


@pytest.mark.parametrize(
    ("wanted", "previous", "expected"),
    [
        ((0.0, 0.1, 0.2), None, (0.0, 0.1, 0.2)),
        ((0.5, 1.0, -1.0), None, (0.5, 0.75, 0.5)),  # the first step is free without a predecessor
        ((0.5, 1.0, -1.0), 0.0, (0.25, 0.5, 0.25)),
        ((1.0, 1.0, 1.0, 1.0), 0.25, (0.5, 0.75, 1.0, 1.0)),  # arrives, and does not overshoot
        ((0.25, 0.5), 0.0, (0.25, 0.5)),  # exactly the limit is allowed
        ((-1.0, 1.0), 0.0, (-0.25, 0.0)),
    ],
)
def test_steps_are_limited_as_computed_by_hand(
    wanted: tuple[float, ...], previous: float | None, expected: tuple[float, ...]
) -> None:
    before = None if previous is None else torch.tensor([[previous]])
    got = limit_steps(column(*wanted), torch.tensor([0.25]), before)
    assert torch.equal(got, column(*expected))


def test_each_dimension_and_each_row_has_its_own_way() -> None:
    wanted = torch.tensor([[[1.0, 1.0, -1.0]], [[0.1, -1.0, 0.3]]])  # (2, 1, 3)
    got = limit_steps(wanted, torch.tensor([0.5, FREE, 0.25]), torch.zeros(2, 3))
    assert torch.equal(got, torch.tensor([[[0.5, 1.0, -0.25]], [[0.1, -1.0, 0.25]]]))
    assert torch.equal(wanted[0], torch.tensor([[1.0, 1.0, -1.0]]))  # not modified


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 12), st.integers(1, 7), st.booleans())
def test_no_change_exceeds_its_limit_and_what_is_allowed_is_untouched(
    seed: int, rows: int, length: int, dims: int, knows: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    wanted = torch.rand(rows, length, dims, generator=generator) * 2 - 1
    limits = torch.rand(dims, generator=generator) * 1.5 + 1e-3
    limits[torch.rand(dims, generator=generator) < 0.2] = FREE
    previous = torch.rand(rows, dims, generator=generator) * 2 - 1 if knows else None
    got = limit_steps(wanted, limits, previous)
    whole = got if previous is None else torch.cat([previous[:, None], got], dim=1)
    assert bool((whole.diff(dim=1).abs() <= limits + 2e-6).all())
    assert bool((got.abs() <= 1.0).all())  # between where it was and where it was to go
    assert torch.equal(limit_steps(got, limits, previous), got)  # nothing left to do
    free = torch.isinf(limits)
    assert torch.equal(got[..., free], wanted[..., free])
    # Never farther from the wanted action than the step before it was.
    gap = (wanted - got).abs()
    earlier = torch.cat([wanted[:, :1] if previous is None else previous[:, None], got[:, :-1]], dim=1)
    assert bool((gap <= (wanted - earlier).abs() + 2e-6).all())


# ---------------------------------------------------------------- chunk after chunk


def test_a_chunk_follows_on_the_one_before() -> None:
    limiter = ActionLimiter(torch.tensor([0.25]))
    assert limiter.apply(column(0.5, 1.0)).flatten().tolist() == [0.5, 0.75]
    assert limiter.apply(column(1.0, -1.0)).flatten().tolist() == [1.0, 0.75]
    limiter.reset()
    assert limiter.apply(column(-1.0)).flatten().tolist() == [-1.0]


def test_steps_being_executed_are_returned_as_they_are_and_the_rest_follows_on() -> None:
    limiter = ActionLimiter(torch.tensor([0.25]))
    limiter.apply(column(-1.0))
    got = limiter.apply(column(0.0, 0.0, 1.0, 1.0), executed=column(0.3, 0.9))
    torch.testing.assert_close(got, column(0.3, 0.9, 1.0, 1.0))
    assert torch.equal(limiter.apply(column(0.0, 0.0), executed=column(0.3, 0.9)), column(0.3, 0.9))


def test_where_nothing_is_known_of_what_came_before_the_first_step_is_free() -> None:
    limiter = ActionLimiter(torch.tensor([0.25]))
    limiter.apply(column(-1.0))
    assert limiter.apply(column(1.0, 0.0), continues=False).flatten().tolist() == [1.0, 0.75]


def test_the_first_bite_is_logged_and_a_reset_counts(caplog: pytest.LogCaptureFixture) -> None:
    limiter = ActionLimiter(torch.tensor([FREE, 0.5]))
    with caplog.at_level(logging.WARNING):
        limiter.apply(torch.zeros(1, 2, 2))
        limiter.reset()
        assert not caplog.records
        limiter.apply(torch.tensor([[[0.0, 0.0], [1.0, 1.0], [1.0, 1.0], [1.0, -1.0]]]))
        limiter.apply(torch.tensor([[[0.0, -1.0], [1.0, -1.0]]]))
    assert [record.getMessage() for record in caplog.records] == [
        "max_action_step bites: dimension 1 was to change by more than 0.25 of its range in one step; it arrives up to "
        "0.75 of the range late. This is said once, reset() counts."
    ]
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        limiter.reset()
        limiter.reset()
    assert [record.getMessage() for record in caplog.records] == [
        "max_action_step limited 4 of the 6 actions since the last reset"
    ]


def test_another_batch_size_without_a_reset_is_refused() -> None:
    limiter = ActionLimiter(torch.tensor([0.5]))
    limiter.apply(torch.zeros(2, 1, 1))
    with pytest.raises(ActionError, match=r"a chunk of 3 rows follows one of 2\. Call policy\.reset"):
        limiter.apply(torch.zeros(3, 1, 1))


# ---------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_action_step": 0.0}, r"\[0\.0\] must be positive and finite"),
        ({"max_action_step": [0.1, -0.1]}, r"\[-0\.1\] must be positive"),
        ({"max_action_step": math.nan}, "must be positive and finite"),
        ({"max_action_step": "fast"}, r"\['fast'\] must be positive"),
        ({"max_action_step": math.inf, "max_action_step_unit": "robot"}, "must be positive and finite"),
        ({"max_action_step": [None, None]}, "limits no dimension"),
        ({"max_action_step": []}, "limits no dimension"),
        ({"max_action_step": 1.0}, r"would never limit anything.*max_action_step_unit='robot'"),
        ({"max_action_step": [0.1, 5.0]}, "would never limit anything"),
        ({"max_action_step": 0.1, "max_action_step_unit": "degrees"}, r"must be one of \('range', 'robot'\)"),
        ({"max_action_step_unit": "robot"}, "has no effect without max_action_step"),
    ],
)
def test_limits_that_mean_nothing_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_config(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_action_step": [0.1, 0.1, 0.1]}, "has 3 values, but the action has 2 dimensions"),
        (
            {"max_action_step": [0.1, 0.2], "binary_action_indices": [1]},
            r"limits dimension\(s\) \[1\], which binary_action_indices=\[1\]",
        ),
        ({"max_action_step": 0.1, "binary_action_indices": [0, 1]}, "are all 2"),
    ],
)
def test_limits_that_do_not_fit_the_action_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_config(**options).validate_features()


def test_one_number_spares_the_binary_dimensions() -> None:
    assert make_config(max_action_step=0.1, binary_action_indices=[1]).step_limits == [0.1, None]
    assert make_config(max_action_step=[None, 0.2]).step_limits == [None, 0.2]
    assert make_config().step_limits is None


def test_the_robots_units_become_normalised_ones() -> None:
    span = torch.tensor([100.0, 4.0, 0.0, 50.0])
    assert step_limits([5.0, 5.0, 5.0, None], "robot", span).tolist() == pytest.approx(
        [0.1, FREE, FREE, FREE]
    )
    with pytest.raises(ConfigError, match=r"span \[4\.0, 0\.0\] in the robot's units"):
        step_limits([5.0, 5.0], "robot", torch.tensor([4.0, 0.0]))
    with pytest.raises(StatsError, match="was built without any"):
        step_limits([5.0], "robot", None)


# ---------------------------------------------------------------- in the policy


def drive(policy: VLA0Policy, queries: int, batch: int = 2) -> Tensor:
    """Return the actions of an episode in which every query sees another picture: (B, steps, D)."""
    policy.reset()
    taken = []
    for seed in range(queries):
        observation = make_batch(policy.config, batch=batch, seed=seed)
        taken += [policy.select_action(dict(observation)) for _ in range(policy.config.n_action_steps)]
    return torch.stack(taken, dim=1)


def twins(**options: Any) -> tuple[VLA0Policy, VLA0Policy]:
    """Return two policies of the same weights, the second limited to a twentieth of the range."""
    out = []
    for limit in (None, 0.05):
        torch.manual_seed(0)
        out.append(make_restless(VLA0Policy(make_config(max_action_step=limit, **options))))
    return out[0], out[1]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"n_action_steps": 2},
        {"n_action_steps": 1, "ensemble_n_chunks": 3},
        {"n_action_steps": 2, "binary_action_indices": [1]},
    ],
)
def test_what_is_executed_is_what_was_wanted_limited_step_by_step(options: dict[str, Any]) -> None:
    free, limited = twins(**options)
    wanted, got = drive(free, 4), drive(limited, 4)
    expected = limit_steps(
        wanted, torch.tensor([0.1, FREE if options.get("binary_action_indices") else 0.1]), None
    )
    assert torch.equal(got, expected)
    assert not torch.equal(got, wanted)
    if options.get("binary_action_indices"):
        assert set(got[..., 1].unique().tolist()) <= {-1.0, 1.0}


def left_over(queue: ActionQueue, horizon: int = 10) -> Tensor | None:
    """Return the rest of the chunk as LeRobot's RTC engine passes it: filled up with zeros."""
    left = queue.get_left_over()
    if left is None:
        return None
    padded = torch.zeros(horizon, left.shape[1])
    padded[: len(left)] = left
    return padded


@pytest.mark.parametrize("consumed", [1, 2, 4])
def test_in_real_time_chunks_follow_on_what_is_being_executed(consumed: int) -> None:
    """LeRobot's queue, a new chunk while ``consumed`` steps are executed; 4 is all there is: the queue runs dry."""
    _, policy = twins(chunk_size=4, n_action_steps=4)
    queue = ActionQueue(RTCConfig())
    sent: list[Tensor] = []
    for seed in range(6):
        before, left = queue.get_action_index(), left_over(queue)
        chunk = policy.predict_action_chunk(
            make_batch(policy.config, batch=1, seed=seed),
            inference_delay=0 if seed == 0 else consumed,
            prev_chunk_left_over=left,
        )[0]
        while seed and queue.get_action_index() < before + consumed and not queue.empty():
            sent.append(queue.get())
        dry = queue.empty()
        queue.merge(chunk, chunk, 0 if dry else consumed, None)
        sent += [queue.get() for _ in range(4 if consumed == 4 else 1)]
    changes = torch.stack(sent).diff(dim=0).abs()
    assert len(sent) > 4 and bool((changes > 0.05).any())
    assert bool((changes <= 0.1 + 1e-5).all()), changes.amax(1)


def test_a_chunk_for_a_policy_server_is_limited_inside() -> None:
    free, policy = twins(chunk_size=4, n_action_steps=4)
    for seed in range(3):
        batch = make_batch(policy.config, batch=2, seed=seed)
        wanted = free.predict_action_chunk(dict(batch))
        got = policy.predict_action_chunk(dict(batch))
        assert torch.equal(got, limit_steps(wanted, torch.tensor([0.1, 0.1]), None))


def save(policy: VLA0Policy, folder: Path, **stats: Any) -> Path:
    """Write a checkpoint with its processors, as LeRobot's training does."""
    policy.save_pretrained(folder)
    for pipeline in make_vla0_pre_post_processors(policy.config, make_stats(**stats)):
        pipeline.save_pretrained(folder)
    return folder


def test_degrees_are_converted_with_the_checkpoints_statistics(tmp_path: Path) -> None:
    free, _ = twins()
    save(free, tmp_path, low=-2.0, high=6.0)
    config = make_config(max_action_step=[0.8, None], max_action_step_unit="robot")
    loaded = VLA0Policy.from_pretrained(tmp_path, config=config)
    got = drive(loaded, 4)
    assert torch.equal(got, limit_steps(drive(free, 4), torch.tensor([0.2, FREE]), None))
    _, postprocess = make_vla0_pre_post_processors(config, make_stats())
    sent = torch.stack([postprocess(action) for action in got.unbind(1)], dim=1)
    assert 0.1 < float(sent[..., 0].diff(dim=1).abs().max()) <= 0.8 + 1e-5


def test_degrees_are_never_ignored_for_want_of_statistics(tmp_path: Path) -> None:
    options: dict[str, Any] = {"max_action_step": 0.8, "max_action_step_unit": "robot"}
    built = VLA0Policy(make_config(**options)).eval()
    batch = make_batch(built.config)
    with pytest.raises(StatsError, match="was built without any"):
        built.select_action(dict(batch))
    with pytest.raises(StatsError, match="was built without any"):
        built.predict_action_chunk(dict(batch))
    built.save_pretrained(tmp_path)
    with pytest.raises(StatsError, match=r"has no policy_postprocessor\.json, so the range of its actions"):
        VLA0Policy.from_pretrained(tmp_path)
    given = VLA0Policy.from_pretrained(tmp_path, dataset_stats=make_stats())
    given.select_action(dict(batch))
    assert save(built, tmp_path / "whole", low=0.0, high=0.5).is_dir()
    with pytest.raises(
        ConfigError, match=r"max_action_step=\[0\.8, 0\.8\] \(robot\) would never limit anything"
    ):
        VLA0Policy.from_pretrained(tmp_path / "whole")


def test_the_option_survives_saving_and_can_be_changed_afterwards(tmp_path: Path) -> None:
    _, policy = twins()
    save(policy, tmp_path)
    assert VLA0Policy.from_pretrained(tmp_path).config.max_action_step == 0.05
    off = VLA0Policy.from_pretrained(tmp_path, config=make_config())
    assert torch.equal(drive(off, 3), drive(twins()[0], 3))
