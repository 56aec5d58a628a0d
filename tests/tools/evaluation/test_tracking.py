"""`vla0 eval --track`: what is logged, with a stand-in for the tools, and what is said when they are not there."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lerobot_policy_vla0.errors import EvaluationError
from lerobot_policy_vla0.tools.evaluation import tracking
from lerobot_policy_vla0.tools.evaluation.eval_info import TaskResult
from lerobot_policy_vla0.tools.evaluation.folder import ShardedEvaluation
from lerobot_policy_vla0.tools.evaluation.plan import Shard
from lerobot_policy_vla0.tools.evaluation.statistics import wilson_interval
from lerobot_policy_vla0.tools.evaluation.tracking import Tracker


class Tool:
    """Does what wandb and trackio do: `init` returns a run with `log` and `finish`."""

    def __init__(self) -> None:
        self.began: list[dict[str, Any]] = []
        self.mode: str | None = None
        self.lines: list[dict[str, float]] = []
        self.finished = 0
        self.broken: Exception | None = None

    def init(self, *, project: str, name: str, config: dict[str, Any]) -> Any:
        """Begin a run."""
        if self.broken:
            raise self.broken
        self.mode = os.environ.get("WANDB_MODE")  # nothing is passed that would override it
        self.began.append({"project": project, "name": name, "config": config})
        return self

    def log(self, metrics: dict[str, float]) -> None:
        """Add a line."""
        if self.broken:
            raise self.broken
        self.lines.append(metrics)

    def finish(self) -> None:
        """End the run."""
        self.finished += 1


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> Tool:
    made = Tool()
    for name in tracking.TOOLS:
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(init=made.init))
    return made


def shard(name: str, suite: str | None, task: str) -> Shard:
    return Shard(name, suite, 0, task, 0, 0, 4, ())


def result(suite: str, *successes: bool) -> TaskResult:
    rewards = tuple(map(float, successes))
    return TaskResult(suite, 0, successes, rewards, rewards, (None,) * len(successes))


def test_every_episode_is_logged_with_the_interval(
    tmp_path: Path, tool: Tool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    evaluation = ShardedEvaluation(tmp_path / "mine", {"seed": "3"}, {"fingerprint": "f"}, {"torch": "2"}, ())
    a, b = shard("a", "goal", "task 0"), shard("b", "goal", "task 1")
    with tracking.tracking("wandb", tmp_path / "mine", evaluation, print) as tracker:
        tracker.progress(a, 0, 0)  # nothing has ended
        tracker.progress(a, 1, 1)
        tracker.progress(a, 1, 1)  # nothing has changed
        tracker.progress(b, 1, 2)
        tracker.finished(a, [result("goal", True, True, False)])
    assert tool.mode == "offline" and tool.finished == 1
    assert tool.began == [
        {
            "project": "vla0-eval",
            "name": "mine",
            "config": {
                "arguments": {"seed": "3"},
                "policy": {"fingerprint": "f"},
                "versions": {"torch": "2"},
                "perturb": "",
                "parts": 0,
            },
        }
    ]
    failures = {"failed_attempts": 0, "hung_attempts": 0, "failed_parts": 0}
    assert [line["episodes"] for line in tool.lines] == [1, 3, 5]
    low, high = wilson_interval(3, 5)
    assert tool.lines[2] == {
        **failures,
        **{"episodes": 5, "success": 3 / 5, "success_low": low, "success_high": high},
        **{"task_episodes/goal task 0": 3, "task_success/goal task 0": 2 / 3},
    }
    assert tool.lines[1]["task_success/goal task 1"] == 1 / 2
    assert "task_success/goal task 0" not in tool.lines[1]


def test_a_failed_attempts_episodes_are_played_again(tool: Tool) -> None:
    tracker, part = Tracker(tool, print), shard("a", "push-v3", "push-v3")
    tracker.progress(part, 2, 3)
    tracker.failed(part, hung=True, last=False)
    assert tool.lines[-1] == {
        **{"episodes": 0, "failed_attempts": 1, "hung_attempts": 1, "failed_parts": 0},
        "task_episodes/push-v3": 0,
    }
    tracker.progress(part, 1, 1)
    assert (tool.lines[-1]["episodes"], tool.lines[-1]["task_success/push-v3"]) == (1, 1.0)
    tracker.failed(part, hung=False, last=True)
    assert [tool.lines[-1][key] for key in ("failed_attempts", "hung_attempts", "failed_parts")] == [2, 1, 1]


def test_what_was_finished_before_is_one_line(tool: Tool) -> None:
    tracker, whole = Tracker(tool, print), shard("a", None, "one,two")
    tracker.finished_before(
        [(whole, [result("toy", True, False)]), (shard("b", "x", "task 0"), [result("x", True)])]
    )
    assert len(tool.lines) == 1 and tool.lines[0]["episodes"] == 3
    assert tool.lines[0]["task_success/toy task 0"] == 0.5 and tool.lines[0]["task_success/x task 0"] == 1.0


def test_a_tool_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(
        EvaluationError, match=r"--track=trackio needs the package trackio.*: pip install trackio"
    ):
        tracking.load_tool("trackio")
    with pytest.raises(EvaluationError, match="--track=tensorboard is none of trackio, wandb"):
        tracking.load_tool("tensorboard")


def test_a_tool_that_cannot_start_is_an_error_and_one_that_breaks_is_not(tmp_path: Path, tool: Tool) -> None:
    evaluation = ShardedEvaluation(tmp_path, {}, {}, {}, ())
    tool.broken = RuntimeError("no API key")
    with (
        pytest.raises(EvaluationError, match=r"wandb could not start \(no API key\).*WANDB_MODE=offline"),
        tracking.tracking("wandb", tmp_path, evaluation, print),
    ):
        pass
    tool.broken, said = None, []
    with tracking.tracking("trackio", tmp_path, evaluation, said.append) as tracker:
        tool.broken = OSError("disk full")
        for played in (1, 2):
            tracker.progress(shard("a", "x", "x"), 0, played)
    assert said == ["--track: logging failed and stops here (disk full); the evaluation goes on"]
