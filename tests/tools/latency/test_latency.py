"""The latency plan: hand-computed, beside LeRobot's own queues in simulated time, and through `vla0 latency`."""

from __future__ import annotations

import json
import math
import re
import threading
from collections.abc import Callable
from pathlib import Path
from queue import Queue
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.engine_server import serving
from helpers.tiny import make_config, make_dataset, make_stats

from lerobot_policy_vla0 import VLA0Policy, make_vla0_pre_post_processors
from lerobot_policy_vla0.errors import CameraError, ConfigError
from lerobot_policy_vla0.tools.commands import main
from lerobot_policy_vla0.tools.latency.budget import (
    PLANNERS,
    Loop,
    QueryTime,
    chunk_range,
    delay_steps,
    highest_fps,
    objection,
    plan_async,
    plan_rtc,
    plan_sync,
    threshold_fix,
)
from lerobot_policy_vla0.tools.latency.probe import (
    made_up_observations,
    recorded_observations,
)
from lerobot_policy_vla0.tools.loading import DatasetSource


def loop(chunk: int, fps: float = 10, steps: int | None = None, **options: Any) -> Loop:
    return Loop(fps=fps, chunk_size=chunk, n_action_steps=chunk if steps is None else steps, **options)


def takes(milliseconds: float) -> QueryTime:
    return QueryTime(fixed_ms=milliseconds, per_step_ms=0)


# ---------------------------------------------------------------------- by hand


@pytest.mark.parametrize(
    ("milliseconds", "steps", "still", "share", "verdict"),
    [
        (80, 8, 0, 1.0, "keeps up"),  # within a step of 100 ms
        (300, 8, 200, 0.8, "pauses"),  # 800 ms of motion, then 200 ms beyond the step that queries
        (300, 1, 200, 1 / 3, "refused"),  # every step is late
        (900, 8, 800, 0.5, "pauses"),
        (901, 8, 801, 800 / 1601, "refused"),
    ],
)
def test_sync_stands_still_while_it_queries(
    milliseconds: float, steps: int, still: float, share: float, verdict: str
) -> None:
    plan = plan_sync(takes(milliseconds), loop(8, steps=steps))
    assert (plan.still_ms, plan.executed_steps, plan.verdict) == (pytest.approx(still), steps, verdict)
    assert plan.moving_share == pytest.approx(share)


@pytest.mark.parametrize(
    ("milliseconds", "chunk", "options", "expected"),
    [
        # 250 ms are 3 steps; 12 - 3 = 9 are left, of which 3 are executed until the next chunk is there.
        (250, 12, {}, (3, 9, 3, 0, 3, "keeps up")),
        # Twice the delay is just enough, one step less is not: 2 of 3 steps.
        (250, 6, {}, (3, 3, 3, 0, 3, "keeps up")),
        (250, 5, {}, (3, 2, 2, 100, 2, "pauses")),
        (250, 4, {}, (3, 1, 1, 200, 1, "refused")),
        (250, 3, {}, (3, 0, 0, 300, 0, "refused")),
        (900, 3, {}, (9, 0, 0, 900, 0, "refused")),
        # 47 are left, 17 are executed before a query begins at 30.
        (250, 50, {}, (3, 47, 20, 0, 3, "keeps up")),
        # A threshold below the delay: the queue runs dry although the chunk is long.
        (500, 20, {"queue_threshold": 2}, (5, 15, 15, 300, 2, "pauses")),
        # LeRobot passes on 10 steps of the running chunk unless told otherwise.
        (1400, 40, {}, (14, 26, 14, 0, 10, "keeps up")),
        (1400, 40, {"execution_horizon": 14}, (14, 26, 14, 0, 14, "keeps up")),
    ],
)
def test_rtc_lives_on_what_is_left_of_a_chunk(
    milliseconds: float, chunk: int, options: dict[str, int], expected: tuple[Any, ...]
) -> None:
    plan = plan_rtc(takes(milliseconds), loop(chunk, **options))
    seen = (plan.delay_steps, plan.left_steps, plan.executed_steps, round(plan.still_ms))
    assert (*seen, plan.committed_steps, plan.verdict) == expected


@pytest.mark.parametrize(
    ("milliseconds", "chunk", "options", "expected"),
    [
        # 3 steps; 12 - 1 - 3 = 8 are left of a chunk, 2 until 6 are left, 3 during the query.
        (250, 12, {}, (3, 8, 5, 0, "keeps up")),
        (250, 12, {"network_ms": 100.0}, (4, 7, 5, 0, "keeps up")),
        # 2 * 5 + 1 = 11 is just enough; of one less, two queries in a row execute 9 steps.
        (500, 11, {}, (5, 5, 5, 0, "keeps up")),
        (500, 10, {}, (5, 4, 4, 100, "pauses")),
        (700, 12, {}, (7, 4, 5, 200, "pauses")),
        # Queried when nothing is left: the 2 steps after the one it was noticed in.
        (300, 20, {"chunk_size_threshold": 0.0}, (3, 16, 19, 200, "pauses")),
        (50, 2, {}, (1, 0, 1, 0, "keeps up")),
        (50, 1, {}, (1, 0, 0, 100, "refused")),  # its only action is one the client has executed
    ],
)
def test_async_queries_at_its_threshold(
    milliseconds: float, chunk: int, options: dict[str, float], expected: tuple[Any, ...]
) -> None:
    plan = plan_async(takes(milliseconds), loop(chunk, **options))
    seen = (plan.delay_steps, plan.left_steps, plan.executed_steps, round(plan.still_ms))
    assert (*seen, plan.verdict) == expected


def test_limits_are_searched_with_the_time_of_each_chunk() -> None:
    time = QueryTime(fixed_ms=60, per_step_ms=10)
    # 20 fps: 60 + 10 c ms are ceil((60 + 10 c) / 50) steps, and twice as many must fit. c=4: 100 ms, 2 steps.
    assert chunk_range("rtc", time, loop(8, fps=20)) == (
        4,
        144,
    )  # 1500 ms, 30 steps: the threshold of 30 is reached
    assert plan_rtc(time, loop(4, fps=20)).verdict == "keeps up"
    assert plan_rtc(time, loop(3, fps=20)).verdict != "keeps up"
    # 30 fps: 33.3 ms a step. c=8: 140 ms, 5 steps, 10 > 8. c=10: 160 ms, 5 steps: 10 fits.
    assert (chunk_range("rtc", time, loop(8, fps=30)) or (0, 0))[0] == 10
    # Decoding a step takes longer than half of it is executed in: no chunk is long enough.
    assert chunk_range("rtc", QueryTime(fixed_ms=60, per_step_ms=20), loop(8, fps=30)) is None
    # Sync has to fit a query into a step: 60 + 10 c <= 100 ms.
    assert chunk_range("sync", time, loop(8, fps=10)) == (1, 4)
    # c=8, 140 ms: 4 steps up to 28 fps (3.92), 5 from 29 on (4.06).
    assert highest_fps("rtc", time, loop(8, fps=30)) == 28
    assert highest_fps("sync", time, loop(8, fps=30)) == 7
    assert highest_fps("sync", takes(1500), loop(8)) is None


def test_a_delay_is_rounded_as_lerobot_rounds_it() -> None:
    for fps in (10, 15, 20, 25, 30, 50, 60):
        for milliseconds in range(0, 500, 7):
            assert delay_steps(milliseconds, fps) == math.ceil((milliseconds / 1e3) / (1.0 / fps))


def test_the_defaults_are_lerobots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # LeRobot's client makes a folder for logs where it is imported
    pytest.importorskip("grpc", reason="pip install 'lerobot_policy_vla0[serve]'")
    from lerobot.async_inference.configs import RobotClientConfig
    from lerobot.rollout.inference.factory import RTCInferenceConfig

    ours, rtc = loop(8), RTCInferenceConfig()
    assert ours.execution_horizon == rtc.rtc.execution_horizon
    assert ours.queue_threshold == rtc.queue_threshold
    assert ours.chunk_size_threshold == RobotClientConfig.__dataclass_fields__["chunk_size_threshold"].default


@pytest.mark.parametrize(
    ("mode", "milliseconds", "of", "message"),
    [
        (
            "rtc",
            300,
            loop(8, fps=30),
            r"rtc: a query takes 300 ms, 9 control steps at fps=30, and the chunk has no more than chunk_size=8: "
            r"LeRobot drops as many from its beginning, so the robot would never move\. Lower --fps to 13; or train "
            r"with --policy\.chunk_size=18 or more; or use sync\.",
        ),
        (
            "sync",
            300,
            loop(8, fps=30, steps=1),
            r"sync: a query takes 300 ms, 9 control steps at fps=30, for n_action_steps=1: the robot would stand still "
            r"for 267 ms of every 300\. Set --policy\.n_action_steps to 8 or more",
        ),
        (
            "async",
            300,
            loop(8, fps=30),
            r"async: .* chunk_size=8 leaves 3 to execute meanwhile: the robot would stand still for 6 of every 9 steps",
        ),
        (
            "async",
            10,
            loop(1, fps=30),
            r"no more than chunk_size=1: LeRobot's client drops the first, so the robot would never move again",
        ),
    ],
)
def test_a_refusal_names_both_values_and_the_fix(
    mode: str, milliseconds: float, of: Loop, message: str
) -> None:
    said = objection(mode, takes(milliseconds), of)
    assert said is not None
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(said)
    assert objection("sync", takes(30), of) is None


@pytest.mark.parametrize("mode", ["rtc", "async"])
@pytest.mark.parametrize("chunk", [4, 8, 30])
def test_the_fix_a_refusal_names_is_one(mode: str, chunk: int) -> None:
    time = QueryTime(fixed_ms=200, per_step_ms=12)
    at = highest_fps(mode, time, loop(chunk, fps=30))
    assert at is not None
    assert PLANNERS[mode](time, loop(chunk, fps=at)).verdict == "keeps up"
    assert PLANNERS[mode](time, loop(chunk, fps=at + 1)).verdict != "keeps up"


def test_a_query_begun_too_late_is_told_apart_from_a_short_chunk() -> None:
    late = loop(20, queue_threshold=2, chunk_size_threshold=0.1)
    assert threshold_fix("rtc", takes(500), late) == "set --inference.queue_threshold to 5"
    assert threshold_fix("async", takes(500), late) == "set --chunk_size_threshold to 0.2"
    for mode in ("rtc", "async"):
        assert (
            PLANNERS[mode](takes(500), loop(20, queue_threshold=5, chunk_size_threshold=0.2)).verdict
            == "keeps up"
        )
        assert threshold_fix(mode, takes(500), loop(20)) is None  # it keeps up
        assert threshold_fix(mode, takes(500), loop(7, queue_threshold=2)) is None  # the chunk is too short
    assert threshold_fix("sync", takes(500), late) is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: loop(8, fps=0), "fps=0 must be finite and above 0"),
        (lambda: loop(8, steps=9), "n_action_steps=9 is more than chunk_size=8"),
        (lambda: loop(8, queue_threshold=-1), "queue_threshold=-1 must be at least 0 steps"),
        (lambda: loop(8, chunk_size_threshold=1.5), r"chunk_size_threshold=1.5 must lie in \[0, 1\]"),
        (lambda: loop(8, network_ms=math.nan), "network_ms=nan must be finite"),
        (lambda: QueryTime(fixed_ms=-1, per_step_ms=0), "fixed_ms=-1 must be finite and at least 0"),
    ],
)
def test_impossible_settings_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


# ---------------------------------------------------------------------- beside LeRobot's queues, in simulated time

TICKS = 200


def simulate_rtc(latency_steps: float, of: Loop) -> list[bool]:
    """Run LeRobot's RTC queue in simulated time; return for each control step whether there was an action."""
    from lerobot.policies.rtc import ActionQueue, LatencyTracker
    from lerobot.policies.rtc.configuration_rtc import RTCConfig

    queue, tracker = ActionQueue(RTCConfig()), LatencyTracker()
    chunk = torch.zeros(of.chunk_size, 1)
    done: float | None = None  # when the query in progress ends, in steps
    moved = []
    for tick in range(TICKS):
        while done is not None and done <= tick:
            tracker.add(latency_steps / of.fps)
            queue.merge(chunk, chunk, math.ceil(latency_steps))
            done = done + latency_steps if queue.qsize() <= of.queue_threshold else None
        moved.append(queue.get() is not None)
        if done is None and queue.qsize() <= of.queue_threshold:
            done = tick + latency_steps
    return moved


def simulate_async(latency_steps: float, of: Loop) -> list[bool]:
    """Run the queue of LeRobot's robot client before a server with one place for an observation."""
    from lerobot.async_inference.helpers import TimedAction
    from lerobot.async_inference.robot_client import RobotClient

    client = SimpleNamespace(
        action_queue=Queue(),
        action_queue_lock=threading.Lock(),
        latest_action=-1,
        latest_action_lock=threading.Lock(),
    )
    size, must_go, predicted = -1, True, set()
    waiting: int | None = None  # label of the observation in the server's queue
    computing: tuple[float, int] | None = None  # when it ends, and the label of its observation
    moved = []
    for tick in range(TICKS):
        while computing is not None and computing[0] <= tick:
            ended, label = computing
            actions = [TimedAction(0.0, label + i, torch.zeros(1)) for i in range(of.chunk_size)]
            RobotClient._aggregate_action_queues(client, actions)
            size, must_go, computing = len(actions), True, None
            if waiting is not None:
                computing, waiting = (ended + latency_steps, waiting), None
                predicted.add(computing[1])
        moved.append(not client.action_queue.empty())
        if moved[-1]:
            client.latest_action = client.action_queue.get_nowait().get_timestep()
        if client.action_queue.qsize() / size <= of.chunk_size_threshold:
            label, urgent = max(client.latest_action, 0), must_go and client.action_queue.empty()
            must_go = must_go and not urgent
            if urgent or label not in predicted:
                if computing is None:
                    computing = (tick + latency_steps, label)
                    predicted.add(label)
                else:
                    waiting = label
    return moved


GRID = [
    (delay, chunk, threshold)
    for delay in (1, 2, 3, 5, 9)
    for chunk in (1, 2, 3, 5, 6, 8, 10, 18, 19, 40)
    for threshold in (0.2, 0.5, 0.8)
]


@pytest.mark.parametrize("mode", ["rtc", "async"])
def test_the_plan_is_what_lerobots_own_queues_do(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if mode == "async":
        pytest.importorskip("grpc", reason="pip install 'lerobot_policy_vla0[serve]'")
    verdicts = set()
    for delay, chunk, threshold in GRID:
        of = loop(chunk, queue_threshold=round(20 * threshold), chunk_size_threshold=threshold)
        simulate = simulate_rtc if mode == "rtc" else simulate_async
        for fraction in (1e-6, 0.4):  # just below a whole number of steps, and in between
            steps = delay - fraction
            plan = PLANNERS[mode](takes(100 * steps), of)
            assert plan.delay_steps == delay
            moved = simulate(steps, of)
            case = f"{mode} delay {steps} chunk {chunk} threshold {threshold}: {plan}"
            first = moved.index(True) if any(moved) else TICKS
            share = float(np.mean(moved[first:])) if first < TICKS else 0.0
            verdicts.add(plan.verdict)
            if plan.executed_steps == 0:
                assert sum(moved) <= (mode == "async"), case
            elif plan.verdict == "keeps up":
                assert all(moved[first:]), case
            else:
                assert share >= plan.moving_share - 0.03, case
                # Exact where queries follow one another; one begun at the threshold waits a step less.
                if mode == "rtc" and fraction == 1e-6 and plan.left_steps <= of.queue_threshold:
                    assert share == pytest.approx(plan.moving_share, abs=0.03), case
    assert verdicts == {"keeps up", "pauses", "refused"}


# ---------------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("latency") / "policy"
    policy = VLA0Policy(make_config(chunk_size=4, n_action_steps=4))
    policy.save_pretrained(folder)
    for processor in make_vla0_pre_post_processors(policy.config, make_stats()):
        processor.save_pretrained(folder)
    return folder


def test_the_command_measures_and_prints_json(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_dataset(tmp_path / "data", episodes=1)
    common = [
        f"--policy.path={checkpoint}",
        "--policy.n_action_steps=2",
        "--fps=0.1",
        "--repeats=4",
        "--json",
    ]
    for extra, frames in (([], "made-up frames"), ([f"--dataset.root={data}"], "frames of data")):
        assert main(["latency", *common, *extra]) == 0
        said = json.loads(capsys.readouterr().out)
        measured = said["measured"]
        assert (measured["decoder"], measured["device"], measured["frames"]) == ("speculative", "cpu", frames)
        assert (measured["chunk_size"], measured["action_dim"], measured["n_bins"]) == (4, 2, 100)
        worst = 0.0
        for name in ("cold", "drafted"):
            timing = measured[name]
            assert timing["queries"] == 4
            assert 0 < timing["median_ms"] <= timing["p95_ms"] <= timing["slowest_ms"]
            assert 0 < timing["prefill_ms"] <= timing["fixed_ms"] <= timing["slowest_ms"]
            assert 1 <= timing["passes"] <= 8 * 4 + 1
            worst = max(worst, timing["p95_ms"])
        assert said["latency_ms"] == pytest.approx(worst)
        assert said["fixed_ms"] + 4 * said["per_step_ms"] == pytest.approx(worst)
        assert said["loop"]["n_action_steps"] == 2
        by_name = {mode["name"]: mode for mode in said["modes"]}
        assert list(by_name) == ["sync", "sync, 1 step", "rtc", "async"]
        # Ten seconds per step are plenty for the smallest model, on any machine.
        assert {mode["verdict"] for mode in said["modes"]} == {"keeps up"}
        assert by_name["rtc"]["delay_steps"] == 1


def test_an_engine_is_measured_as_the_robot_sees_it(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole query, network included; how much of it is the prompt's, the engine does not tell."""
    with serving(checkpoint) as (engine, address):
        command = ["latency", f"--policy.path={checkpoint}", f"--policy.engine={address}", "--fps=0.1"]
        assert main([*command, "--repeats=2", "--json"]) == 0
        measured = json.loads(capsys.readouterr().out)["measured"]
        assert (measured["decoder"], measured["device"]) == ("engine", "cpu")
        assert measured["cold"]["prefill_ms"] == 0
        assert 0 < measured["cold"]["fixed_ms"] < measured["cold"]["median_ms"]
        assert measured["cold"]["passes"] >= 2 * 4 * 2  # a token a pass
        assert len(engine.asked) == 1 + 2 + 2  # to warm up, and twice in each way
        assert main([*command, "--repeats=2"]) == 0
        assert "passes, prompt not told" in capsys.readouterr().out


def test_the_command_refuses_what_would_not_move(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = ["latency", f"--policy.path={checkpoint}", "--latency-ms=200", "--fps=30"]
    assert main([*plan, "--mode", "rtc"]) == 2
    out, errors = capsys.readouterr()
    assert (
        "vla0 latency: error: rtc: a query takes 200 ms, 6 control steps at fps=30, and the chunk has"
        in errors
    )
    assert "chunk_size=4" in errors and "Lower --fps to" in errors
    assert "rtc" in out and "refused" in out  # the table is there all the same
    # Sync would move, with pauses, if asked for alone; with all modes refused there is nothing to use.
    assert main(["latency", f"--policy.path={checkpoint}", "--latency-ms=150", "--mode", "sync"]) == 0
    assert main([*plan[:2], "--latency-ms=2000"]) == 2
    errors = capsys.readouterr().err
    assert all(f"{mode}: a query takes 2000 ms" in errors for mode in PLANNERS)


def test_the_command_plans_without_a_policy(capsys: pytest.CaptureFixture[str]) -> None:
    plan = ["latency", "--latency-ms=600", "--fixed-ms=100", "--chunk-size=50"]
    assert main(plan) == 0
    out = capsys.readouterr().out
    assert "a query takes 600.0 ms: 100.0 once and 10.00 per step of chunk_size=50; fps=30" in out
    row = next(line for line in out.splitlines() if line.startswith("rtc "))
    assert row.split() == [
        "rtc",
        "|",
        "20",
        "600",
        "18",
        "32",
        "0",
        "100",
        "%",
        "keeps",
        "up",
        "41",
        "fps",
        "16",
        "to",
        "90",
    ]
    assert "set --inference.rtc.execution_horizon=18." in out
    assert main([*plan, "--inference.rtc.execution_horizon=18"]) == 0
    assert "may not join" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --policy.path=CHECKPOINT to measure, or --latency-ms to plan without"),
        (["--latency-ms=100"], "--latency-ms=100 says nothing without a chunk"),
        (["--latency-ms=-1", "--chunk-size=8"], "--latency-ms=-1 must be finite and above 0"),
        (["--latency-ms=100", "--fixed-ms=200", "--chunk-size=8"], "is a part of --latency-ms=100"),
        (["--policy.path=x", "--fixed-ms=200"], "--fixed-ms=200 has no effect without --latency-ms"),
        (["--latency-ms=9", "--chunk-size=8", "--repeats=3"], "--repeats=3 has no effect with --latency-ms"),
        (["--policy.path=x", "--chunk-size=8"], "--chunk-size=8 has no effect with --policy.path"),
        (
            ["--latency-ms=9", "--chunk-size=8", "--policy.n_bins=9"],
            "--policy.n_bins=9 needs --policy.path",
        ),
        (["--latency-ms=9", "--chunk-size=8", "--dataset.root=x"], "--dataset.root=x has no effect"),
        (["--policy.path=x", "--dataset.revision=v3"], "--dataset.revision=v3 has no effect without"),
        (["--latency-ms=9", "--chunk-size=0"], "chunk_size=0 must be finite and above 0"),
        (["--policy.path=/nowhere/at/all"], "no checkpoint at '/nowhere/at/all'"),
    ],
)
def test_contradicting_arguments_are_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["latency", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_bad_values_of_policy_options_and_datasets_are_refused(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = make_dataset(tmp_path / "data", episodes=1)
    from lerobot.policies.act.configuration_act import ACTConfig

    ACTConfig(device="cpu", push_to_hub=False).save_pretrained(tmp_path / "act")
    for arguments, message in (
        (
            [f"--policy.path={tmp_path / 'act'}", "--policy.n_bins=9"],
            r"act is a 'act' policy, expected 'vla0'",
        ),
        (["--policy.n_action_steps=9"], r"n_action_steps=9 must lie in"),
        (["--policy.n_action_steps=few"], r"the options --policy.n_action_steps=few cannot be read"),
        ([f"--dataset.root={tmp_path / 'none'}"], r"none is no folder: give that of a recording"),
        (
            ["--dataset.repo_id=local/none", f"--dataset.root={tmp_path}"],
            r"'local/none' in .* cannot be read",
        ),
    ):
        assert main(["latency", f"--policy.path={checkpoint}", *arguments]) == 2
        assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "none").exists()
    config = make_config(cameras=("observation.images.wrist",))
    with pytest.raises(CameraError, match=r"lacks the policy's camera\(s\) \['observation.images.wrist'\]"):
        next(recorded_observations(config, DatasetSource("local/data", str(other)).open()))


def test_observations_are_what_a_robot_gives(tmp_path: Path) -> None:
    config = make_config()
    data = DatasetSource("local/data", str(make_dataset(tmp_path / "data", episodes=1))).open()
    made_up, recorded = made_up_observations(config), recorded_observations(config, data)
    for frames in (made_up, recorded):
        (first, task), (second, _) = next(frames), next(frames)
        assert task == ("lower the bar gently" if frames is recorded else "Pick up the cube.")
        assert {key: (v.shape, str(v.dtype)) for key, v in first.items()} == {
            "observation.images.top": ((64, 64, 3), "uint8"),
            "observation.state": ((2,), "float32"),
        }
        assert (first["observation.images.top"] != second["observation.images.top"]).any()
    # The second is three steps later, n_action_steps, and the colours are the recording's.
    expected = (data[3]["observation.images.top"] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(second["observation.images.top"], expected)
