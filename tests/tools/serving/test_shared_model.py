"""One model for many robots: everyone gets its own policy's answers, whatever the others ask."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

for extra in ("aiohttp", "msgpack", "prometheus_client"):
    pytest.importorskip(extra, reason="pip install 'lerobot_policy_vla0[serve]'")

from helpers.engine_server import serving as serving_engine
from helpers.served import IMAGE, Alone, openpi_message, save_policy
from helpers.tiny import make_batch, make_config
from helpers.waiting import LONG

from lerobot_policy_vla0 import VLA0Policy
from lerobot_policy_vla0.decoding.request import DecodeRequest
from lerobot_policy_vla0.errors import ConfigError, DecodeError, ServingError
from lerobot_policy_vla0.processor_vla0 import VLA0PromptProcessorStep
from lerobot_policy_vla0.tools.loading import load_config, load_with_processors
from lerobot_policy_vla0.tools.serving.observations import ObservationReader
from lerobot_policy_vla0.tools.serving.robot import Robot, own_processors
from lerobot_policy_vla0.tools.serving.shared_model import SharedModel, _Waiting, join_requests

ROBOTS, STEPS = 6, 7


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_policy(tmp_path_factory.mktemp("shared") / "policy")


@pytest.fixture
def policy() -> VLA0Policy:
    torch.manual_seed(0)
    return VLA0Policy(make_config()).eval()


@pytest.fixture
def shared(policy: VLA0Policy) -> Iterator[SharedModel]:
    model = SharedModel(policy, max_batch=4, timeout_s=LONG)
    yield model
    model.close()


def one(config: Any, seed: int) -> dict[str, Any]:
    return make_batch(config, batch=1, seed=seed)


def test_robots_in_threads_get_what_their_policy_alone_would_do(checkpoint: Path) -> None:
    """With ensembling, a queue and drafts of their own; and their requests are answered together."""
    config = load_config(checkpoint, [])
    policy, *processors = load_with_processors(checkpoint, config)
    sizes: list[int] = []
    model = SharedModel(policy, max_batch=4, timeout_s=LONG, observe=lambda robots, *_: sizes.append(robots))
    reader = ObservationReader(policy.config)
    robots = [Robot(model.new_policy(), (processors[0], processors[1]), reader) for _ in range(ROBOTS)]
    together = threading.Barrier(ROBOTS)

    def drive(number: int) -> list[np.ndarray[Any, Any]]:
        robots[number].reset()
        actions = []
        for step in range(STEPS):
            together.wait(LONG)
            actions.append(robots[number].next_action(openpi_message(100 * number + step)))
        return actions

    with ThreadPoolExecutor(ROBOTS) as threads:
        driven = list(threads.map(drive, range(ROBOTS)))
    model.close()
    assert max(sizes) > 1
    for number in range(ROBOTS):
        alone = Alone(checkpoint)
        alone.policy.reset()
        for step, action in enumerate(driven[number]):
            np.testing.assert_array_equal(action, alone.action(100 * number + step), f"{number} {step}")


def test_a_robots_processors_share_the_tokenizer_and_rename_its_own_cameras(checkpoint: Path) -> None:
    policy, *loaded = load_with_processors(checkpoint, load_config(checkpoint, []))
    plain, renaming = (
        own_processors((loaded[0], loaded[1]), names)[0]
        for names in (None, {"observation.images.mine": IMAGE, IMAGE: "observation.images.other"})
    )
    observation = ObservationReader(policy.config).read(openpi_message(1))
    expected = plain(dict(observation))
    observation["observation.images.mine"] = observation.pop(IMAGE)
    assert torch.equal(renaming(observation)[IMAGE], expected[IMAGE])
    encoders = [
        step.encoder
        for pipeline in (plain, renaming)
        for step in pipeline.steps
        if isinstance(step, VLA0PromptProcessorStep)
    ]
    assert len(encoders) == 2
    assert encoders[0] is encoders[1]


def test_a_robot_drafts_from_its_own_last_chunk(policy: VLA0Policy, shared: SharedModel) -> None:
    """The second answer to the same picture needs few passes, though another robot asked in between."""
    first, second = shared.new_policy(), shared.new_policy()
    repeated = one(policy.config, 1)
    first.config.n_action_steps = 3
    first.predict_action_chunk(repeated)
    begun = first.last_decode.passes
    second.predict_action_chunk(one(policy.config, 2))
    chunk = first.predict_action_chunk(repeated)
    assert torch.equal(chunk, policy.predict_action_chunk(repeated))
    # Nothing was executed in between for `steps_since`, but most of the draft fits: fewer passes than without one.
    assert first.last_decode.accepted > 0
    assert first.last_decode.passes <= begun


def test_joined_requests_are_answered_as_each_alone(policy: VLA0Policy) -> None:
    """Prompts of different length, pictures, committed steps."""
    config = policy.config
    batches = [one(config, seed) for seed in range(3)]
    committed = torch.randint(0, config.n_bins + 1, (1, 1, config.action_dim))
    with policy.inference():
        requests = [policy.make_request(batch, committed) for batch in batches]
        longer = torch.cat([torch.full((1, 5), 7), requests[1].ids], dim=1)
        requests[1] = DecodeRequest(
            longer,
            torch.ones_like(longer, dtype=torch.bool),
            requests[1].pixel_values,
            requests[1].grid_thw,
            committed,
            size=requests[1].size,
        )
        together = policy.decoder.decode(join_requests(requests, policy.vlm.tokens.pad))
        policy.decoder.reset()
        bins = policy.codec.decode_ids(together)
        for row, request in enumerate(requests):
            policy.decoder.reset()
            alone = policy.codec.decode_ids(policy.decoder.decode(request))
            assert torch.equal(bins[row], alone[0])
            assert torch.equal(bins[row, :1], committed[0])


def test_a_bad_request_is_nobody_elses_error(
    policy: VLA0Policy, shared: SharedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = one(policy.config, 1), one(policy.config, 2)
    expected = policy.predict_action_chunk(good)
    policy.reset()
    entered, go = threading.Event(), threading.Event()
    decode = shared._decode

    def held(batch: Any) -> Any:
        entered.set()
        assert go.wait(LONG)
        return decode(batch)

    monkeypatch.setattr(shared, "_decode", held)
    with ThreadPoolExecutor(3) as threads:
        waiting = threads.submit(shared.new_policy().predict_action_chunk, good)
        assert entered.wait(LONG)  # the model is busy, so the next two are answered together
        spoilt = shared.new_policy()
        spoilt_request = spoilt.make_request

        def with_nan(batch: Any, committed: Any = None) -> DecodeRequest:
            request = spoilt_request(batch, committed)
            request.pixel_values.fill_(float("nan"))
            return request

        monkeypatch.setattr(spoilt, "make_request", with_nan)
        failing = threads.submit(spoilt.predict_action_chunk, bad)
        beside = threads.submit(shared.new_policy().predict_action_chunk, good)
        while shared._queue.qsize() < 2:
            pass
        go.set()
        with pytest.raises(DecodeError, match="NaN or infinite"):
            failing.result(LONG)
        assert torch.equal(waiting.result(LONG), expected)
        assert torch.equal(beside.result(LONG), expected)


def test_every_batch_holds_the_request_that_has_waited_longest(policy: VLA0Policy) -> None:
    """Robots that ask again at once, more than fit into a batch, some with a beginning that others cannot join."""
    model = SharedModel(policy, max_batch=3, timeout_s=LONG)
    waiting: list[int] = []  # who asked and is not answered, in the order of asking
    oldest_answered: list[bool] = []
    decode, lock = model._decode, threading.Lock()

    def noted(batch: Any) -> Any:
        with lock:
            robots = [request.request.steps_since for request in batch]
            oldest_answered.append(waiting[0] in robots)
            waiting[:] = [robot for robot in waiting if robot not in robots]
        return decode(batch)

    model._decode = noted  # type: ignore[method-assign]
    committed = torch.zeros(1, 1, policy.config.action_dim, dtype=torch.long)
    with policy.inference():
        requests = [policy.make_request(one(policy.config, 1), given) for given in (None, committed)]

    def drive(robot: int) -> None:
        for _ in range(10):
            # The number of executed steps changes no answer: here it says who asks.
            asked = _Waiting(replace(requests[robot % 3 == 0], steps_since=robot))
            with lock:
                waiting.append(robot)
                model._queue.put(asked)
            asked.answer.result(LONG)

    with ThreadPoolExecutor(ROBOTS) as threads:
        list(threads.map(drive, range(1, ROBOTS + 1)))
    model.close()
    assert len(oldest_answered) > 20
    assert all(oldest_answered)


def test_who_waits_too_long_is_told_and_the_others_go_on(policy: VLA0Policy) -> None:
    model = SharedModel(policy, max_batch=1, timeout_s=0.05)
    go = threading.Event()
    decode = model._decode

    def slow(batch: Any) -> Any:
        assert go.wait(LONG)
        return decode(batch)

    model._decode = slow  # type: ignore[method-assign]
    batch = one(policy.config, 1)
    robot = model.new_policy()
    with pytest.raises(ServingError, match=r"no answer within 0\.05 s \(--query-timeout\)"):
        robot.predict_action_chunk(batch)
    go.set()
    model.timeout_s = LONG
    policy_alone = VLA0Policy(policy.config)
    policy_alone.load_state_dict(policy.state_dict())
    assert torch.equal(robot.predict_action_chunk(batch), policy_alone.eval().predict_action_chunk(batch))
    model.close()
    with pytest.raises(ServingError, match="the server is ending"):
        robot.predict_action_chunk(batch)


def test_sizes_out_of_range_are_refused(policy: VLA0Policy) -> None:
    with pytest.raises(ConfigError, match="--max-batch=5 must be one of 1, 2, 3, 4, 6"):
        SharedModel(policy, max_batch=5)
    with pytest.raises(ConfigError, match=r"--query-timeout=0\.0 must be above 0"):
        SharedModel(policy, timeout_s=0.0)


def test_warming_up_decodes_every_size(policy: VLA0Policy, shared: SharedModel) -> None:
    shared.warm_up()
    assert sorted(shared._decoders) == [1, 2, 3, 4]
    models = {id(decoder.runner.model) for decoder in shared._decoders.values()}  # type: ignore[attr-defined]
    assert len(models) == 1  # the weights are fused and cast once


def test_a_batch_is_filled_up_where_its_size_was_captured_and_nowhere_else(
    shared: SharedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [shared._rows(robots) for robots in (1, 5, 7, 16)] == [1, 5, 7, 16]
    monkeypatch.setattr(VLA0Policy, "device", torch.device("cuda"))
    assert [shared._rows(robots) for robots in (1, 5, 7, 16)] == [1, 6, 8, 16]


def test_an_engine_answers_every_robot_with_its_own_picture(checkpoint: Path) -> None:
    """The process that robots connect to has no weights either, and asks once per robot, never to fill a batch up."""
    with serving_engine(checkpoint) as (engine, address):
        config = load_config(checkpoint, [f"--engine={address}", f"--engine_timeout_s={LONG}"])
        policy, *_ = load_with_processors(checkpoint, config)
        model = SharedModel(policy, max_batch=4, timeout_s=LONG)
        model.warm_up()
        assert len(engine.asked) == 1
        robots = [model.new_policy() for _ in range(3)]
        together = threading.Barrier(3)

        def ask(number: int) -> torch.Tensor:
            together.wait(LONG)
            chunk: torch.Tensor = robots[number].predict_action_chunk(one(config, number))
            return chunk

        with ThreadPoolExecutor(3) as threads:
            chunks = list(threads.map(ask, range(3)))
        model.close()
        assert len(engine.asked) == 4
        for number, chunk in enumerate(chunks):
            assert torch.equal(chunk, engine.policy.predict_action_chunk(one(config, number)))
