"""Records scripted experts into one LeRobotDataset; for the recorders in ``examples/``.

Every finished episode is one file in ``<root>.staging``, so a killed recording goes on where it stopped. The data set
is written in order of task and seed while the others play, and moved into place in one step: neither the number of
processes nor an interruption can be seen in it.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from lerobot_policy_vla0.tools.demonstrations import SETTINGS_FILE, open_recording

if TYPE_CHECKING:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

#: Of a disturbance from step to step: its memory is about ten steps.
NOISE_CORRELATION = 0.9
#: A task and a seed: what an episode depends on, beside the settings.
Key = tuple[str, int]


@dataclass(kw_only=True)
class Result:
    """How one episode went.

    Attributes:
        task: its name.
        instruction: what a policy is told.
        seed: of the placements, and of the disturbance.
        success: by the environment's own judgement.
        steps: executed.
        failure: why it is not kept, in words; empty for a success.
    """

    task: str
    instruction: str
    seed: int
    success: bool
    steps: int
    failure: str = ""


@dataclass
class Episode[R: Result]:
    """An episode and its frames by key, ``(T, ...)`` each; a frame is of the moment before its row's action."""

    result: R
    frames: dict[str, np.ndarray[Any, Any]]


def write_episode(path: Path, episode: Episode[Any]) -> None:
    """Write an episode in one step: the file is complete or not there. A failure keeps no frames."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    frames = episode.frames if episode.result.success else {}
    arrays: dict[str, Any] = {"result": np.array(json.dumps(asdict(episode.result))), **frames}
    with temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)
    temporary.replace(path)


def read_episode[R: Result](path: Path, kind: type[R]) -> Episode[R]:
    """Read back what `write_episode` wrote; ``kind`` is the class of its result."""
    with np.load(path) as data:
        frames = {key: data[key] for key in data.files if key != "result"}
        return Episode(kind(**json.loads(str(data["result"]))), frames)


def read_result[R: Result](path: Path, kind: type[R]) -> R:
    """Read how the episode in a file went, without its frames."""
    with np.load(path) as data:
        return kind(**json.loads(str(data["result"])))


def disturbance(seed: int, std: float, size: int) -> Iterator[np.ndarray[Any, Any]]:
    """Yield the disturbance of one step after the other, ``(size,)``, of standard deviation ``std``.

    Consecutive steps correlate by `NOISE_CORRELATION`.
    """
    rng = np.random.default_rng(seed)
    drift = rng.normal(0.0, std, size)
    while True:
        fresh = rng.normal(0.0, std, size)
        drift = NOISE_CORRELATION * drift + math.sqrt(1 - NOISE_CORRELATION**2) * fresh
        yield drift


def record(
    settings: Mapping[str, Any],
    root: Path,
    repo_id: str,
    kind: type[Result],
    play: Callable[[list[tuple[Key, Path]]], Iterable[Result]],
    **dataset: Any,
) -> Path:
    """Record, or reuse, the data set described by ``settings`` at ``root``.

    Args:
        settings: ``tasks``, ``episodes`` (successful ones per task), ``seed`` (the first one of every task), and what
            else the data set depends on.
        root: its folder; ``<root>.staging`` and ``<root>.partial`` are used on the way.
        repo_id: name stored with the data set; nothing is uploaded.
        kind: the class of the results.
        play: plays each episode, writes it to its file with `write_episode`, and gives its result when it is there.
        **dataset: arguments of ``LeRobotDataset.create``: ``fps``, ``features``, ``robot_type``, ``use_videos``.

    Returns:
        ``root``.

    Raises:
        RecordingError: ``root`` or its staging folder holds something else; names both values of each difference.
    """
    began = time.perf_counter()
    staging = open_recording(root, settings)
    if staging is None:
        return root

    def staged(key: Key) -> Path:
        return staging / key[0] / f"{key[1]}.npz"

    successes = {
        (path.parent.name, int(path.stem)): read_result(path, kind).success
        for path in staging.glob("*/*.npz")
    }
    if successes:
        print(f"going on: {len(successes)} episodes are in {staging}")
    partial = root.with_name(root.name + ".partial")
    if partial.exists():  # left by a killed recording; everything in it comes from the staged files
        shutil.rmtree(partial)
    written = _create_dataset(partial, repo_id, dataset)
    kept: list[Key] = []  # written so far

    def write_settled() -> None:
        """Write the episodes before the first one that is still to be played."""
        settled = takewhile(successes.__contains__, wanted(settings, successes))
        for key in [key for key in settled if successes[key]][len(kept) :]:
            _add_episode(written, read_episode(staged(key), kind))
            kept.append(key)

    # Play until every task has its successes; a failure is replaced by the task's next seed.
    with tqdm(total=len(settings["tasks"]) * settings["episodes"], unit="episode", desc="recording") as bar:
        while missing := [key for key in wanted(settings, successes) if key not in successes]:
            bar.update(sum(successes.get(key, False) for key in wanted(settings, successes)) - bar.n)
            for result in play([(key, staged(key)) for key in missing]):
                successes[result.task, result.seed] = result.success
                bar.update(result.success)
                if not result.success:
                    bar.write(f"{result.failure}: {result.task}, seed {result.seed}; taking the next seed")
                write_settled()
        write_settled()  # everything may have been there before

    written.finalize()
    (partial / SETTINGS_FILE).write_text(
        json.dumps({"settings": dict(settings), "episodes": kept}, indent=1) + "\n"
    )
    partial.rename(root)
    shutil.rmtree(staging)
    print(
        f"recorded {len(kept)} episodes in {root} in {time.perf_counter() - began:.0f} s; "
        f"failed ones left out: {len(wanted(settings, successes)) - len(kept)}"
    )
    return root


def wanted(settings: Mapping[str, Any], successes: Mapping[Key, bool]) -> list[Key]:
    """Return task and seed of the episodes to play, in order: each failure makes a task's range of seeds one longer.

    >>> wanted({"tasks": ["a"], "episodes": 2, "seed": 7}, {("a", 7): False})
    [('a', 7), ('a', 8), ('a', 9)]
    """
    keys = []
    for task in settings["tasks"]:
        seed, left = settings["seed"], settings["episodes"]
        while left:
            keys.append((task, seed))
            left -= successes.get((task, seed), True)
            seed += 1
    return keys


def _create_dataset(root: Path, repo_id: str, options: Mapping[str, Any]) -> LeRobotDataset:
    import av
    import datasets
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    # Otherwise each prints something for every episode.
    datasets.disable_progress_bars()
    os.environ.setdefault("SVT_LOG", "1")  # the AV1 encoder: errors only
    av.logging.set_libav_level(av.logging.ERROR)
    return LeRobotDataset.create(repo_id, root=root, **options)


def _add_episode(dataset: LeRobotDataset, episode: Episode[Any]) -> None:
    for row in range(len(episode.frames["action"])):
        frame = {key: values[row] for key, values in episode.frames.items()}
        dataset.add_frame({**frame, "task": episode.result.instruction})
    dataset.save_episode()


def recorded_episodes(root: Path) -> list[Key]:
    """Return task and seed of every episode of a data set that was recorded here, in its order."""
    return [(task, seed) for task, seed in json.loads((root / SETTINGS_FILE).read_text())["episodes"]]


def episode_actions(root: Path) -> list[np.ndarray[Any, Any]]:
    """Return the actions of every episode of a data set: float32 ``(T, D)`` each."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    dataset = LeRobotDataset(f"local/{root.name}", root=root).hf_dataset
    rows = dataset.with_format("numpy", columns=["episode_index", "action"])
    episodes, actions = np.asarray(rows["episode_index"][:]), np.stack(rows["action"][:])
    return [actions[episodes == episode] for episode in np.unique(episodes)]
