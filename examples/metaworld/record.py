"""Record scripted Meta-World experts into one LeRobotDataset.

    python examples/metaworld/record.py --task button-press-topdown-v3 --episodes 100 \
        --root outputs/demo/button-press-topdown-v3/dataset --repo-id local/button-press-topdown-v3

`--task` may be repeated, or name one of LeRobot's groups (easy, medium, hard, very_hard): each task gets as many
episodes, with its own instruction.

Worker processes play and render; every finished episode is one file in `<root>.staging`, so a killed
recording goes on where it stopped. The dataset is then assembled in order of task and seed (the number of
workers cannot be seen in it) and moved into place in one step. An existing dataset is reused if it was
recorded with the same settings and never overwritten.
"""

from __future__ import annotations

import argparse
import atexit
import shutil
import sys
import time
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path
from typing import Any

import rendering

rendering.set_rendering_defaults()  # before experts imports MuJoCo, here and in every spawned worker

import experts  # noqa: E402
from assembling import Assembler  # noqa: E402
from lerobot.envs.metaworld import DIFFICULTY_TO_TASKS, TASK_DESCRIPTIONS  # noqa: E402
from tqdm import tqdm  # noqa: E402

from lerobot_policy_vla0.tools.demonstrations import (  # noqa: E402
    RecordingError,
    add_recording_arguments,
    exit_status,
    open_recording,
    recording_settings,
)
from lerobot_policy_vla0.tools.workers import spawned_pool  # noqa: E402

# ---- playing (worker processes) ----------------------------------------------------------------------------

_env: experts.RawEnv | None = None  # kept from episode to episode: building one takes about a second


def play(task: str, seed: int, image_size: int, noise: float, path: Path) -> tuple[bool, int]:
    """Play and stage one episode; returns whether it succeeded and its number of steps."""
    global _env
    is_new = _env is None or _env.task != task
    if is_new:
        if _env is not None:
            _env.close()
        _env = experts.RawEnv(task)
    episode = experts.run_expert(_env, seed, image_size, noise)
    if is_new:
        # Only now: exit handlers run in reverse order, and MuJoCo registers the end of EGL with the first
        # frame.
        atexit.register(_env.close)
    experts.write_episode(path, episode)
    return episode.success, len(episode.actions)


# ---- choosing episodes (parent process) --------------------------------------------------------------------


class Plan:
    """Which seeds have to be played and which episodes are kept.

    The kept episodes of a task are its first `episodes` successful seeds counted from `seed`; so they depend
    on the settings alone, not on the number of workers or on which of them was faster. Each failure makes the
    range of seeds to play one longer.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = settings
        self.results: dict[tuple[str, int], bool] = {}  # (task, seed) -> success

    def _seeds(self, task: str) -> range:
        """Seeds up to the last one needed, if all seeds not yet played succeed."""
        start = end = self._settings["seed"]
        successes = 0
        while successes < self._settings["episodes"]:
            successes += self.results.get((task, end), True)
            end += 1
        return range(start, end)

    def _keys(self) -> list[tuple[str, int]]:
        return [(task, seed) for task in self._settings["tasks"] for seed in self._seeds(task)]

    def missing(self) -> list[tuple[str, int]]:
        """Return (task, seed) of every episode still to be played, in order."""
        return [key for key in self._keys() if key not in self.results]

    def settled(self) -> list[tuple[str, int]]:
        """Return (task, seed) of the kept episodes, in dataset order, up to the first one not yet played."""
        kept = []
        for key in self._keys():
            if key not in self.results:
                break
            if self.results[key]:
                kept.append(key)
        return kept

    def failures(self) -> list[tuple[str, int]]:
        """Return (task, seed) of the failed episodes that were passed over."""
        return [key for key in self._keys() if self.results.get(key) is False]


# ---- recording (parent process) ----------------------------------------------------------------------------


def staged_path(staging: Path, task: str, seed: int) -> Path:
    """Return the file of one staged episode."""
    return staging / task / f"seed_{seed}.npz"


def play_and_assemble(settings: dict[str, Any], staging: Path, assembler: Assembler, workers: int) -> Plan:
    """Play what is not staged yet, and add every kept episode to `assembler` as soon as its turn has come."""
    plan = Plan(settings)
    for task in settings["tasks"]:
        for path in (staging / task).glob("seed_*.npz"):
            episode = experts.read_episode(path)
            plan.results[task, episode.seed] = episode.success
    todo = plan.missing()
    total = len(settings["tasks"]) * settings["episodes"]
    if len(todo) < total:
        print(f"going on: {total - len(todo)} of {total} episodes are staged in {staging}")
    bar = tqdm(total=total, initial=total - len(todo), unit="episode", smoothing=0.1, desc="recording")

    def assemble_settled() -> None:
        for key in plan.settled()[len(assembler.added) :]:
            assembler.add(staged_path(staging, *key))

    running: dict[Future[tuple[bool, int]], tuple[str, int]] = {}
    with spawned_pool(workers) as pool, bar:  # finished episodes are on disk whenever this ends
        while todo or running:
            # A few at a time, so that the seed replacing a failure need not wait behind a whole queue.
            while todo and len(running) < 2 * workers:
                key = todo.pop(0)
                path = staged_path(staging, *key)
                running[pool.submit(play, *key, settings["image_size"], settings["noise"], path)] = key
            for job in wait(running, return_when=FIRST_COMPLETED).done:
                key = running.pop(job)
                success, steps = job.result()
                plan.results[key] = success
                bar.set_postfix_str(key[0], refresh=False)
                bar.update(success)
                if not success:
                    tqdm.write(
                        f"the expert failed: {key[0]} seed {key[1]} ({steps} steps); taking the next seed"
                    )
                    todo = [key for key in plan.missing() if key not in running.values()]
            assemble_settled()
        assemble_settled()  # everything may have been staged before
    return plan


# ---- command -----------------------------------------------------------------------------------------------


def record(settings: dict[str, Any], root: Path, repo_id: str, workers: int) -> Path:
    """Record, or reuse, the dataset described by `settings` at `root`.

    Args:
        settings: `tasks`, `episodes` (per task), `seed`, `image_size` (pixels), `noise` (action units).
        root: Folder of the dataset; `<root>.staging` and `<root>.partial` are used on the way.
        repo_id: Name stored with the dataset; nothing is uploaded.
        workers: Number of rendering processes.

    Returns:
        `root`.

    Raises:
        RecordingError: `root` or its staging folder holds something else; names both values of each
            difference.
    """
    started = time.perf_counter()
    staging = open_recording(root, settings)
    if staging is None:
        return root
    assembler = Assembler(root, repo_id, settings)
    plan = play_and_assemble(settings, staging, assembler, workers)
    assembler.finish()
    shutil.rmtree(staging)
    failures = len(plan.failures())
    print(
        f"recorded {len(assembler.added)} episodes in {root} in {time.perf_counter() - started:.0f} s; "
        f"{failures} failed expert episode{'s' * (failures != 1)} left out"
    )
    return root


def check_instructions(tasks: list[str]) -> None:
    """Raise RecordingError naming the tasks that share an instruction: a policy could not tell them apart."""
    by_instruction: dict[str, list[str]] = {}
    for task in tasks:
        by_instruction.setdefault(TASK_DESCRIPTIONS[task], []).append(task)
    for instruction, same in by_instruction.items():
        if len(same) > 1:
            raise RecordingError(
                f"{' and '.join(same)} have the same instruction, {instruction!r}: one policy could not know which is "
                "meant. Record them into data sets of their own."
            )


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--task",
        action="append",
        required=True,
        help="task name, e.g. reach-v3, or a group of LeRobot's (easy, medium, hard, very_hard); may be repeated",
    )
    add_recording_arguments(
        parser, episodes=100, image_size=240, image_help="edge of the stored frames, pixels (of 480)"
    )
    options = parser.parse_args(arguments)
    named = [task for name in options.task for task in DIFFICULTY_TO_TASKS.get(name, [name])]
    options.task = list(dict.fromkeys(experts.plain_task(task) for task in named))
    unknown = [task for task in options.task if task not in TASK_DESCRIPTIONS]
    if unknown:
        parser.error(f"unknown --task {', '.join(unknown)}; known: {', '.join(sorted(TASK_DESCRIPTIONS))}")
    if not 1 <= options.image_size <= 480:
        parser.error(f"--image-size {options.image_size} is outside 1 to 480 (LeRobot renders 480x480)")
    options.settings = recording_settings(parser, options)
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    options = parse_arguments(arguments)

    def work() -> None:
        check_instructions(options.task)
        record(options.settings, options.root, options.repo_id, options.workers)

    return exit_status(work)


if __name__ == "__main__":
    sys.exit(main())
