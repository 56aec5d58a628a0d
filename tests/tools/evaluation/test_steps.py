"""The table of steps: its columns and values, batches larger than what is left, and what a killed worker leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset
import pyarrow.parquet
import pytest

from lerobot_policy_vla0.tools.evaluation import steps
from lerobot_policy_vla0.tools.evaluation.queries import Query
from lerobot_policy_vla0.tools.evaluation.steps import StepWriter, collect
from lerobot_policy_vla0.tools.evaluation.watched import Watch, WatchedEnv, WatchOrder

#: Steps of the six episodes of three batches of two. The sixth is one too many for five.
LENGTHS = [3, 1, 2, 2, 1, 3]


class Env:
    """A vector environment of two whose episodes have `LENGTHS`; odd ones are solved when they end."""

    num_envs = 2

    def __init__(self) -> None:
        self.batch, self.steps = -1, 0

    def reset(self, *, seed: list[int]) -> Any:
        self.batch, self.steps = self.batch + 1, 0
        return {}, {}

    def step(self, actions: np.ndarray) -> Any:
        self.steps += 1
        ended = np.array([self.steps >= length for length in LENGTHS[2 * self.batch :][:2]])
        rewards = np.array([1.0, 2.0]) * self.steps
        return {}, rewards, ended, np.zeros(2, bool), {"is_success": ended & [False, True]}


def play(folder: Path, order: WatchOrder) -> Watch:
    """Play five episodes in three batches as LeRobot does, a query every second step."""
    watch = Watch(order)
    watch.steps = StepWriter(folder / steps.FILE_NAME)
    env = WatchedEnv(Env(), watch, order.task or ("toy", 7), fps=20)
    for batch in range(3):
        env.reset(seed=[30 + 2 * batch, 31 + 2 * batch])
        for step in range(max(LENGTHS[2 * batch :][:2])):
            if step % 2 == 0:
                watch.note_query(Query(2, 10.0 + step, 5))
            env.step(np.array([[step, 0.5], [step, -0.5]], np.float32))
    return watch


@pytest.fixture
def rows(tmp_path: Path) -> list[dict[str, Any]]:
    watch = play(tmp_path, WatchOrder(str(tmp_path), n_episodes=5, first_episode=10, task=("very_hard", 3)))
    assert (watch.played, watch.solved) == (5, 2)
    assert not (tmp_path / "steps.parquet").exists()  # it may still be killed
    watch.finish()
    assert not (tmp_path / "steps.parquet.part").exists()
    return pyarrow.parquet.read_table(tmp_path / "steps.parquet").to_pylist()


def test_every_step_of_an_episode_is_a_row(rows: list[dict[str, Any]]) -> None:
    assert {(row["task_group"], row["task_id"]) for row in rows} == {("very_hard", 3)}
    lengths = {episode: sum(row["episode"] == episode for row in rows) for episode in range(10, 16)}
    assert lengths == {10: 3, 11: 1, 12: 2, 13: 2, 14: 1, 15: 0}  # LeRobot forgets the last one, too
    first = [row for row in rows if row["episode"] == 10]
    assert [row.pop("wall_time") >= 0 for row in first] == [True] * 3
    common = {"task_group": "very_hard", "task_id": 3, "episode": 10, "seed": 30, "success": False}
    assert first == [
        {**common, "step": 0, "time": 0.0, "action": [0, 0.5], "reward": 1.0, "passes": 5, "query_ms": 10.0},
        {
            **common,
            "step": 1,
            "time": 0.05,
            "action": [1, 0.5],
            "reward": 2.0,
            "passes": None,
            "query_ms": None,
        },
        {**common, "step": 2, "time": 0.1, "action": [2, 0.5], "reward": 3.0, "passes": 5, "query_ms": 12.0},
    ]
    second = [row for row in rows if row["episode"] == 13]
    assert [(row["seed"], row["action"], row["reward"], row["success"]) for row in second] == [
        (33, [0, -0.5], 2.0, False),
        (33, [1, -0.5], 4.0, True),
    ]


def test_what_a_killed_worker_leaves_is_no_table(tmp_path: Path) -> None:
    watch = play(tmp_path, WatchOrder(str(tmp_path), n_episodes=5))
    (part,) = (path for path in tmp_path.iterdir() if "parquet" in path.name)
    assert part.name == "steps.parquet.part" and part.stat().st_size > 0
    with pytest.raises(pyarrow.ArrowInvalid):
        pyarrow.parquet.read_table(part)
    watch.finish()
    assert pyarrow.parquet.read_table(tmp_path / "steps.parquet").num_rows == 9


def test_finished_shards_are_one_table(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        attempt = tmp_path / "shards" / name / "attempt-1"
        attempt.mkdir(parents=True)
        watch = play(attempt, WatchOrder(str(attempt), n_episodes=5, task=("suite", ord(name))))
        if name != "b":
            watch.finish()
    out = tmp_path / "steps"
    attempts = {name: tmp_path / "shards" / name / "attempt-1" for name in ("a", "b", "c")}
    assert collect({"a": attempts["a"]}, out) == []
    (out / "stale.parquet").write_text("of a shard that is not finished")
    for _ in range(2):
        assert collect(attempts, out) == ["b"]
        assert sorted(path.name for path in out.iterdir()) == ["a.parquet", "c.parquet"]
    table = pyarrow.dataset.dataset(out, format="parquet").to_table()
    assert table.schema.equals(steps.schema()) and table.num_rows == 2 * 9
    assert {row["task_id"] for row in steps.read(out)} == {ord("a"), ord("c")}


def test_the_table_opens_with_datasets(tmp_path: Path) -> None:
    play(tmp_path, WatchOrder(str(tmp_path), n_episodes=5)).finish()
    from datasets import load_dataset

    data = load_dataset("parquet", data_files=str(tmp_path / "*.parquet"), cache_dir=str(tmp_path / "cache"))
    assert data["train"].num_rows == 9 and data["train"][0]["action"] == [0.0, 0.5]
