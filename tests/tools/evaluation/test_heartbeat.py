"""When a worker counts as hanging: by its own notes, and by the parent's clock."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lerobot_policy_vla0.tools.evaluation.heartbeat import SLOW_SECONDS, Activity, Heartbeat, Note, StallWatch
from lerobot_policy_vla0.tools.evaluation.watched import Watch, WatchedEnv, WatchOrder


class Clock:
    """Time that passes when it is told to."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_worker_hangs_when_its_notes_stop(tmp_path: Path, clock: Clock) -> None:
    file = tmp_path / "heartbeat.json"
    watch = StallWatch(file, 10, clock)
    clock.now += SLOW_SECONDS  # nothing is there yet: it may still be importing
    assert not watch.hangs()
    heart = Heartbeat(file)
    for step in range(3):
        heart.beat(Activity.STEPPING, step=step)
        assert not watch.hangs()
        clock.now += 10
        assert not watch.hangs()
    heart.beat(Activity.STEPPING, step=2)  # the same step: still a sign of life
    assert not watch.hangs()
    clock.now += 10.1
    assert watch.hangs()
    assert watch.note == Note(Activity.STEPPING, 2)
    assert watch.describe() == (
        "hung while stepping the environments in step 2 after 0 finished episodes: no progress for 10 s"
    )


@pytest.mark.parametrize(
    ("activity", "limit"),
    [
        (Activity.STARTING, 3600),
        (Activity.BUILDING, 10),
        (Activity.LOADING, 3600),
        (Activity.RESETTING, 10),
        (Activity.ACTING, 10),
        (Activity.RENDERING, 10),
        (Activity.BETWEEN, 3600),
        (Activity.EXITING, 10),
        (Activity.UNWATCHED, float("inf")),
    ],
)
def test_loading_may_take_longer_than_a_step(
    tmp_path: Path, clock: Clock, activity: Activity, limit: float
) -> None:
    Heartbeat(tmp_path / "heartbeat.json").beat(activity)
    watch = StallWatch(tmp_path / "heartbeat.json", 10, clock)
    assert not watch.hangs() and watch.limit == limit
    assert StallWatch(tmp_path / "none", 5000, clock).limit == 5000


def test_a_note_that_is_being_written_is_a_sign_of_life(tmp_path: Path, clock: Clock) -> None:
    file = tmp_path / "heartbeat.json"
    Heartbeat(file).beat(Activity.ACTING, step=7)
    watch = StallWatch(file, 10, clock)
    assert not watch.hangs()
    clock.now += 11
    file.write_text('{"beat": 2, "acti')
    assert not watch.hangs() and watch.note == Note(Activity.ACTING, 7)


class Env:
    """A vector environment of two; says what the heartbeat says while it is at work."""

    num_envs = 2

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.seen: list[Note] = []
        self.ends: list[list[bool]] = [[False, False], [True, False], [True, True]]

    def reset(self, *, seed: list[int], options: dict[str, Any]) -> Any:
        self.seen.append(self.watch.heartbeat.note)
        return {"pixels": None}, {"seed": seed, **options}

    def step(self, actions: np.ndarray) -> Any:
        self.seen.append(self.watch.heartbeat.note)
        ended = np.array(self.ends.pop(0))
        info = {"is_success": ended & [True, False]}
        return {"pixels": None}, np.ones(2), ended, np.zeros(2, bool), info

    def call(self, name: str) -> tuple[Any, ...]:
        self.seen.append(self.watch.heartbeat.note)
        return {"_max_episode_steps": (2, 2)}.get(name, (name, name))


def test_notes_come_from_what_is_done_with_the_environments(tmp_path: Path) -> None:
    watch = Watch(WatchOrder(str(tmp_path), n_episodes=4))
    env = Env(watch)
    watched = WatchedEnv(env, watch, ("suite", 0), fps=10)
    assert watch.heartbeat.note == Note(Activity.STARTING)
    assert watched.reset(seed=[4, 5], options={"a": 1}) == ({"pixels": None}, {"seed": [4, 5], "a": 1})
    assert env.seen[-1] == Note(Activity.RESETTING)
    assert watch.heartbeat.note == Note(Activity.ACTING)
    watched.call("render")
    assert env.seen[-1] == Note(Activity.RENDERING)
    assert watch.heartbeat.note == Note(Activity.ACTING)
    for step in (1, 2, 3):
        watched.step(np.zeros((2, 3)))
        assert env.seen[-1] == Note(Activity.STEPPING, step)
    assert watch.heartbeat.note == Note(Activity.BETWEEN, 3, played=2, solved=1)

    # LeRobot ends an episode after the most steps it may have, whatever the environments say.
    env.ends = [[False, False], [False, False]]
    watched.reset(seed=[6, 7], options={})
    assert watched.call("_max_episode_steps") == (2, 2)
    watched.step(np.zeros((2, 3)))
    assert watch.heartbeat.note == Note(Activity.ACTING, 1, played=2, solved=1)
    watched.step(np.zeros((2, 3)))
    assert watch.heartbeat.note == Note(Activity.BETWEEN, 2, played=4, solved=1)
    watch.finish()
    assert watch.heartbeat.note == Note(Activity.EXITING, 0, played=4, solved=1)
    assert watched.ends == []  # everything else is the environment's own
