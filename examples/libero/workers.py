"""Plays episodes in several processes, one environment each."""

from __future__ import annotations

import atexit
import gc
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from episodes import Placed, run_expert
from lerobot.envs.libero import LiberoEnv
from simulation import make_env
from tasks import TASKS

from lerobot_policy_vla0.tools.recorder import write_episode
from lerobot_policy_vla0.tools.workers import in_processes


@dataclass(frozen=True)
class Job:
    """One episode to play."""

    task: str
    seed: int
    image_size: int | None = None  # None: nothing is rendered
    noise: float = 0.0
    path: Path | None = None  # where the episode is written


_open: tuple[tuple[str, int | None], LiberoEnv] | None = None  # kept from episode to episode
_registered = False  # whether it is closed at exit


def play(job: Job) -> Placed:
    """Play one episode and write it, if it has a path."""
    global _open, _registered
    key = (job.task, job.image_size)
    if _open is None or _open[0] != key:
        close()
        _open = (key, make_env(TASKS[job.task].suite, job.task, job.image_size))
    episode = run_expert(_open[1], job.task, job.seed, job.noise)
    if not _registered:
        # Only now: exit handlers run in reverse order, and MuJoCo registers the end of EGL with the first picture.
        atexit.register(close)
        _registered = True
    if job.path is not None:
        write_episode(job.path, episode)
    return episode.result


def close() -> None:
    """Close the environment that is open, renderer included."""
    global _open
    if _open is not None:
        _open[1].close()
        _open = None
        gc.collect()  # robosuite frees the renderer only when it is collected, too late at the end of a process


def play_all(jobs: list[Job], workers: int) -> Iterator[Placed]:
    """Play the jobs in `workers` processes and yield each result as soon as it is there."""
    return (placed for _, placed in in_processes(play, [(job,) for job in jobs], workers))
