"""`vla0 eval`: shards that are killed, resumed and merged are the evaluation nobody interrupted."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.commands import BIN, preloaded
from helpers.paths import REPO
from helpers.tiny import make_config, make_stats
from helpers.waiting import LONG, has_ended, wait_until

from lerobot_policy_vla0 import VLA0Policy, make_vla0_pre_post_processors
from lerobot_policy_vla0.errors import EvaluationError, LiberoError
from lerobot_policy_vla0.tools import workers
from lerobot_policy_vla0.tools.commands import main
from lerobot_policy_vla0.tools.evaluation import folder, shards
from lerobot_policy_vla0.tools.evaluation.folder import fingerprint, read_evaluation
from lerobot_policy_vla0.tools.evaluation.runs import read_run
from lerobot_policy_vla0.tools.evaluation.shards import device_settings, evaluate

TESTS = REPO / "tests"


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Workers are stubs; returns a folder that passes for a policy."""
    monkeypatch.setattr(shards, "WORKER", (sys.executable, str(TESTS / "helpers" / "stub_worker.py")))
    monkeypatch.setattr(workers, "POLL", 0.01)
    policy = tmp_path / "policy"
    policy.mkdir()
    features = {"action": {"shape": [4]}}
    config = {
        "type": "vla0",
        "chunk_size": 8,
        "n_action_steps": 4,
        "n_bins": 1000,
        "output_features": features,
    }
    (policy / "config.json").write_text(json.dumps(config))
    return policy


def arguments(policy: Path, *more: str) -> list[str]:
    """Return an evaluation of six episodes on two tasks."""
    return [
        f"--policy.path={policy}",
        "--env.type=metaworld",
        "--env.task=reach-v3,push-v3",
        "--eval.n_episodes=6",
        "--seed=30",
        *more,
    ]


# ---- the real thing --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small policy with random weights, saved as LeRobot saves one."""
    torch.manual_seed(0)
    checkpoint = tmp_path_factory.mktemp("policy") / "checkpoint"
    config = make_config()
    VLA0Policy(config).save_pretrained(checkpoint)
    for processor in make_vla0_pre_post_processors(config, make_stats(low=-2.0, high=2.0)):
        processor.save_pretrained(checkpoint)
    return checkpoint


def _outcomes(path: Path) -> list[Any]:
    tasks = json.loads(path.read_text())["per_task"]
    keys = ("sum_rewards", "max_rewards", "successes")
    return [[task["task_group"], task["task_id"], *(task["metrics"][key] for key in keys)] for task in tasks]


def test_a_simulator_that_is_not_set_up_stops_what_is_missing_and_not_what_is_finished(
    stub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at: list[str] = []

    def refuse(values: dict[str, str]) -> None:
        looked_at.append(values["env.type"])
        raise LiberoError("not set up")

    with monkeypatch.context() as patch:
        patch.setattr(shards, "check_before_start", refuse)
        with pytest.raises(LiberoError, match="not set up"):
            evaluate(tmp_path / "out", arguments(stub))
    assert looked_at == ["metaworld"] and not (tmp_path / "out").exists()
    assert evaluate(tmp_path / "out", arguments(stub)).complete
    monkeypatch.setattr(shards, "check_before_start", refuse)
    assert len(evaluate(tmp_path / "out", arguments(stub)).skipped) == 2
    assert looked_at == ["metaworld"]


def test_a_killed_and_resumed_evaluation_equals_the_uninterrupted_one(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(REPO / "src"), str(TESTS), os.environ.get("PYTHONPATH", "")])
    )
    asked = [
        *(f"--policy.path={policy}", "--env.type=scored", "--env.discover_packages_path=helpers.scored_env"),
        *("--env.task=one,two", "--eval.n_episodes=4", "--eval.batch_size=2", "--seed=5"),
    ]
    out, reached = tmp_path / "sharded", tmp_path / "reached"
    with (tmp_path / "whole.log").open("wb") as log:  # meanwhile: it takes as long as all the rest
        whole = subprocess.Popen(
            preloaded(BIN / "lerobot-eval", *asked, f"--output_dir={tmp_path / 'whole'}"),
            stdout=log,
            stderr=log,
        )

    # The first shard finishes; the second one, with seeds 7 and 8, hangs, and then the whole command is killed.
    monkeypatch.setenv("SCORED_ENV_ACCIDENT", f"hang:8:{reached}")
    command = [
        sys.executable,
        "-m",
        "lerobot_policy_vla0.tools.commands",
        "eval",
        "--shards=2",
        "--episodes-per-shard=2",
    ]
    with subprocess.Popen(
        [*command, f"--out={out}", "--", *asked], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        first_line = parent.stdout.readline()
        assert first_line.startswith("[1/2] scored_00_episodes0000-0001: ")
        wait_until(reached.exists)
        parent.send_signal(signal.SIGKILL)
    assert not (out / "eval_info.json").exists()
    worker = int(reached.read_text())
    wait_until(lambda: has_ended(worker))  # it is not left behind
    left = read_run("unfinished", [out])
    assert [skipped.path.name for skipped in left.skipped] == ["scored_00_episodes0002-0003"]
    assert {episode.seed for episode in left.episodes} == {5, 6}

    # Resumed: only the second shard runs; its first attempt is killed, the next one gets through.
    monkeypatch.setenv("SCORED_ENV_ACCIDENT", f"kill:7:{tmp_path / 'killed'}")
    said: list[str] = []
    outcome = evaluate(out, asked, n_workers=2, episodes_per_shard=2, say=said.append)
    assert outcome.skipped == ("scored_00_episodes0000-0001",)
    assert outcome.finished == ("scored_00_episodes0002-0003",) and outcome.complete
    assert "killed by SIGKILL without a complete result" in said[1] and "trying once more" in said[1]

    # lerobot-eval itself was never interrupted.
    assert whole.wait(LONG) == 0, (tmp_path / "whole.log").read_text()[-4000:]
    expected = _outcomes(tmp_path / "whole" / "eval_info.json")
    assert len({reward for task in expected for reward in task[2]}) >= 4  # the outcomes do differ by seed
    assert _outcomes(out / "eval_info.json") == expected

    # And what the report makes of it: every episode once, queries counted, videos found.
    run = read_run("resumed", [out])
    assert run.skipped == []
    found = [(e.task_id, e.seed, e.success) for e in run.episodes]
    assert found == [
        (task, 5 + i, success)
        for task, (_, _, _, _, successes) in enumerate(expected)
        for i, success in enumerate(successes)
    ]
    assert all(episode.video is not None for episode in run.episodes)
    # Two tasks of two batches of two rows; an episode of at most six steps asks every three.
    assert {query.rows for query in run.queries} == {2} and 4 <= len(run.queries) <= 8
    assert run.policies[0]["config"] == {
        **{"type": "vla0", "chunk_size": 3, "n_action_steps": 3, "n_bins": 100},
        "action_dim": 2,
    }


# ---- accidents -------------------------------------------------------------------------------------------------


def test_finished_shards_are_skipped_and_the_merged_file_is_whole(stub: Path, tmp_path: Path) -> None:
    out, said = tmp_path / "out", []
    first = evaluate(out, arguments(stub), n_workers=2, episodes_per_shard=3, say=said.append)
    assert len(first.finished) == 4 and sorted(line[:5] for line in said) == [
        "[1/4]",
        "[2/4]",
        "[3/4]",
        "[4/4]",
    ]
    assert any("reach-v3_00_episodes0003-0005: 1 of 3 solved" in line for line in said)
    merged = (out / "eval_info.json").read_bytes()
    again = evaluate(out, arguments(stub), episodes_per_shard=3, say=said.append)
    assert (len(again.skipped), again.finished, said[4]) == (4, (), "4 of 4 shards are finished already")
    assert (out / "eval_info.json").read_bytes() == merged
    info = json.loads(merged)
    assert [(task["task_group"], task["metrics"]["successes"]) for task in info["per_task"]] == [
        ("reach-v3", [True, False, False] * 2),
        ("push-v3", [True, False, False] * 2),
    ]
    assert info["overall"]["n_episodes"] == 12 and info["overall"]["eval_s"] == 40.0
    assert info["per_group"]["push-v3"]["pc_success"] == pytest.approx(100 / 3)


def test_a_shard_that_keeps_failing_is_named_and_the_others_go_on(
    stub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STUB_ACCIDENTS", "30:die:1,33:fail,36:half:1")
    out = tmp_path / "out"
    command = ["eval", "--shards", "3", "--episodes-per-shard=3", f"--out={out}", "--", *arguments(stub)]
    command[-2] = "--eval.n_episodes=9"
    assert main(command) == 1
    printed = capsys.readouterr()
    log = out / "shards/reach-v3_00_episodes0003-0005/attempt-2.log"
    assert (
        f"reach-v3_00_episodes0003-0005: FAILED: ended with status 1 without a complete result; log: {log}"
        in printed.out
    )
    assert "    RuntimeError: no such policy" in printed.out
    assert (
        printed.out.count("killed by SIGKILL without a complete result") == 4
    )  # twice per task, tried again
    assert "2 shards failed: " in printed.err and "The same command tries them again" in printed.err
    assert not (out / "eval_info.json").exists()
    # The half-written result is still there, and was not taken for one.
    assert (out / "shards/push-v3_00_episodes0006-0008/attempt-1/eval_info.json").exists()
    run = read_run("partial", [out])
    assert len(run.skipped) == 2 and len(run.episodes) == 12

    monkeypatch.delenv("STUB_ACCIDENTS")
    assert main(command) == 0
    assert (out / "eval_info.json").exists()


def test_an_interrupted_command_takes_its_workers_along(
    stub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STUB_ACCIDENTS", "33:hang")
    out = tmp_path / "out"
    hanging = out / "shards/reach-v3_00_episodes0003-0005/attempt-1/pid"

    def interrupt(line: str) -> None:
        wait_until(hanging.exists)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(out, arguments(stub), n_workers=2, episodes_per_shard=3, say=interrupt)
    assert has_ended(int(hanging.read_text()))

    monkeypatch.delenv("STUB_ACCIDENTS")
    command = ["eval", "--shards=2", "--episodes-per-shard=3", f"--out={out}", "--", *arguments(stub)]
    assert main(command) == 0

    def stopped(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shards, "evaluate", stopped)
    assert main(command) == 130
    assert "stopped; the same command goes on" in capsys.readouterr().err


def test_the_report_counts_the_policys_queries(
    stub: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate(tmp_path / "out", arguments(stub), say=lambda _: None)
    assert main(["eval-report", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    # Each of two shards: a query of 10 ms for two rows, one of 30 ms for one.
    assert "out: 6 answers, each 8 x 4 integers in 0 to 1000, written under a grammar" in printed
    assert re.search(r"\| out +\| +1\.7 s \| +4 \| +20\.0 \| +30\.0 \| +5\.0 \|", printed)

    (stub / "model.safetensors").write_bytes(b"trained on")
    again = [argument.replace("--seed=30", "--seed=90") for argument in arguments(stub)]
    evaluate(tmp_path / "more", again, say=lambda _: None)
    assert main(["eval-report", f"p={tmp_path / 'out'}", f"p={tmp_path / 'more'}"]) == 0
    assert "p: 2 different checkpoints under one name. 12 answers" in capsys.readouterr().out


def test_a_result_with_too_few_episodes_is_none(
    stub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUB_ACCIDENTS", "30:wrong")
    outcome = evaluate(tmp_path / "out", arguments(stub), retries=0, say=lambda _: None)
    assert outcome.failed == ("reach-v3_00", "push-v3_00")
    with pytest.raises(EvaluationError, match="holds 5 episodes, the shard has 6"):
        folder.merge(read_evaluation(tmp_path / "out"))


def test_other_arguments_policies_or_versions_are_never_mixed(
    stub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    evaluate(out, arguments(stub), say=lambda _: None)
    before = (out / "evaluation.json").read_bytes()

    def again(*more: str, **options: Any) -> None:
        evaluate(out, arguments(stub, *more), say=lambda _: None, **options)

    with pytest.raises(EvaluationError, match=r"--policy.n_action_steps was not given, now 1\. Repeat those"):
        again("--policy.n_action_steps=1")
    with pytest.raises(EvaluationError, match=r"had up to 6 episodes, now 3 \(--episodes-per-shard\)"):
        again(episodes_per_shard=3)
    monkeypatch.setattr(folder, "installed_versions", lambda: {"torch": "9"})
    with pytest.raises(EvaluationError, match=r"version of torch was \d[^;]*, now 9"):
        again()
    monkeypatch.undo()
    (stub / "model.safetensors").write_bytes(b"trained on")
    with pytest.raises(EvaluationError, match=r"the files of the policy in .* have changed"):
        again()
    assert (out / "evaluation.json").read_bytes() == before
    assert not (out / "shards" / "reach-v3_00" / "attempt-2").exists()


def test_a_folder_of_something_else_is_left_alone(stub: Path, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    with pytest.raises(EvaluationError, match=r"notes exists and holds no evaluation.json"):
        evaluate(tmp_path / "notes", arguments(stub))
    assert [path.name for path in (tmp_path / "notes").iterdir()] == ["mine.txt"]


def test_two_evaluations_do_not_share_a_folder(stub: Path, tmp_path: Path) -> None:
    with (
        shards._exclusive(tmp_path / "out"),
        pytest.raises(EvaluationError, match="another vla0 eval is at work in"),
    ):
        evaluate(tmp_path / "out", arguments(stub))


# ---- devices ---------------------------------------------------------------------------------------------------


def test_workers_are_spread_over_devices(stub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CUDA_VISIBLE_DEVICES", "MUJOCO_EGL_DEVICE_ID", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    out = tmp_path / "out"
    evaluate(out, arguments(stub), n_workers=2, devices=["cuda:0", "cuda:1"], say=lambda _: None)
    seen = [json.loads(path.read_text()) for path in sorted(out.glob("shards/*/attempt-1/surroundings.json"))]
    assert sorted(one["CUDA_VISIBLE_DEVICES"] for one in seen) == ["4", "6"]
    assert all(one["MUJOCO_EGL_DEVICE_ID"] == one["CUDA_VISIBLE_DEVICES"] for one in seen)
    assert all(one["policy.device"] == "cuda" for one in seen)
    assert all(int(one["OMP_NUM_THREADS"]) == max(1, (os.cpu_count() or 1) // 2) for one in seen)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere MuJoCo needs no telling")
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "egl"),
        ({"MUJOCO_GL": "osmesa"}, "osmesa"),
        ({"DISPLAY": ":0"}, None),
        ({"WAYLAND_DISPLAY": "w"}, None),
    ],
)
def test_workers_render_where_there_is_no_screen(
    stub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, str], expected: str | None
) -> None:
    for name in ("MUJOCO_GL", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    out = tmp_path / "out"
    evaluate(out, arguments(stub), say=lambda _: None)
    seen = [json.loads(path.read_text()) for path in out.glob("shards/*/attempt-1/surroundings.json")]
    assert seen and all(one["MUJOCO_GL"] == expected for one in seen)


def test_devices_that_are_none_are_refused(
    stub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert device_settings("cpu") == {}
    with pytest.raises(EvaluationError, match="'gpu0' is none of cpu, mps, cuda, cuda:0"):
        device_settings("gpu0")
    with pytest.raises(EvaluationError, match=r"there is no cuda:1: CUDA_VISIBLE_DEVICES=0"):
        device_settings("cuda:1")
    with pytest.raises(
        EvaluationError, match=r"--devices cpu and --policy.device=cuda both choose the device"
    ):
        evaluate(tmp_path / "out", arguments(stub, "--policy.device=cuda"), devices=["cpu"])
    with pytest.raises(EvaluationError, match="--devices cpu,cuda:0: results of cpu and cuda would be mixed"):
        evaluate(tmp_path / "out", arguments(stub), devices=["cpu", "cuda:0"])
    with pytest.raises(EvaluationError, match="--shards=0"):
        evaluate(tmp_path / "out", arguments(stub), n_workers=0)
    assert not (tmp_path / "out").exists()


def test_a_fingerprint_is_of_contents_and_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "weights").write_bytes(bytes(range(256)) * 40)
    first = fingerprint(tmp_path)
    os.utime(tmp_path / "weights", (1, 1))
    assert fingerprint(tmp_path) == first
    monkeypatch.setattr(folder, "_WHOLE", 1000)
    monkeypatch.setattr(folder, "_SAMPLE", 100)
    sampled = fingerprint(tmp_path)
    (tmp_path / "weights").write_bytes(bytes(range(1, 256)) * 40 + b"x" * 40)
    assert fingerprint(tmp_path) != sampled
    (tmp_path / "weights").rename(tmp_path / "other")
    assert fingerprint(tmp_path) != first


def test_a_policy_folder_without_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"is not a policy's folder: config.json"):
        folder.describe_policy(str(tmp_path))
    assert folder.describe_policy("some/repo-on-the-hub") == {"fingerprint": None, "config": {}}
