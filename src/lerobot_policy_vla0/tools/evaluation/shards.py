"""Runs the shards of an evaluation in processes, several at a time, and survives whatever happens to them.

Knows processes, devices and logs; what a shard is and whether it is finished say `plan` and `folder`. Every shard is
``lerobot-eval`` in a process of its own with a policy of its own. Each attempt writes to a new folder; one that
leaves no complete result is tried once more, then the shard counts as failed and the others go on.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from lerobot_policy_vla0.errors import EvaluationError
from lerobot_policy_vla0.output_files import write_json
from lerobot_policy_vla0.tools.evaluation import queries
from lerobot_policy_vla0.tools.evaluation.eval_info import FILE_NAME
from lerobot_policy_vla0.tools.evaluation.folder import (
    LOCK,
    ShardedEvaluation,
    check_usable,
    merge,
    open_evaluation,
)
from lerobot_policy_vla0.tools.evaluation.plan import Shard, parse_arguments, plan_shards
from lerobot_policy_vla0.tools.libero.setup import check_before_start
from lerobot_policy_vla0.tools.reporting.pages import clock
from lerobot_policy_vla0.tools.workers import Worker, last_lines, start_worker

#: Command of a worker; see `worker`.
WORKER = (sys.executable, "-m", "lerobot_policy_vla0.tools.evaluation.worker")

_POLL = 0.1  # seconds
_TAIL = 6  # lines of a failed worker's log that are shown


@dataclass(frozen=True)
class Outcome:
    """What a call of `evaluate` left behind.

    Attributes:
        folder: of the evaluation.
        skipped: shards that were finished before.
        finished: shards that were finished now.
        failed: shards without a result; the merged file is written only if there are none.
    """

    folder: Path
    skipped: tuple[str, ...]
    finished: tuple[str, ...]
    failed: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether every shard has a result."""
        return not self.failed


@dataclass
class _Run:
    shard: Shard
    device: str | None
    folder: Path
    log: Path
    worker: Worker
    began: float


def evaluate(
    out: Path,
    arguments: Sequence[str],
    *,
    n_workers: int = 1,
    devices: Sequence[str] = (),
    episodes_per_shard: int | None = None,
    retries: int = 1,
    say: Callable[[str], None] = print,
) -> Outcome:
    """Evaluate a policy in shards, skipping those that are finished, and merge the results.

    Args:
        out: folder of the evaluation; may hold an unfinished one with the same arguments.
        arguments: of ``lerobot-eval``.
        n_workers: shards that run at a time.
        devices: ``cpu``, ``cuda`` or ``cuda:1``; workers are spread over them. Empty leaves ``--policy.device`` as
            it is.
        episodes_per_shard: see `plan.plan_shards`.
        retries: further attempts at a shard that leaves no complete result.
        say: called with one line per event.

    Returns:
        Which shards were skipped, finished, failed. ``OUT/eval_info.json`` is written if none failed.

    Raises:
        EvaluationError: the arguments contradict each other or those the folder was begun with, or another ``vla0
            eval`` is at work in it.
        LiberoError: LIBERO would be started and is not set up; says what to run.
    """
    if n_workers < 1:
        raise EvaluationError(f"--shards={n_workers}: at least one process has to run")
    values = parse_arguments(arguments)
    if devices and "policy.device" in values:
        raise EvaluationError(
            f"--devices {','.join(devices)} and --policy.device={values['policy.device']} both choose the device: "
            "leave one out"
        )
    for device in devices:
        device_settings(device)  # complains now, not in the middle
    if len(kinds := {device.partition(":")[0] for device in devices}) > 1:
        raise EvaluationError(
            f"--devices {','.join(devices)}: results of {' and '.join(sorted(kinds))} would be mixed"
        )
    for kind in kinds:
        values["policy.device"] = kind
    shards = plan_shards(values, episodes_per_shard)
    check_usable(out)
    if not (out / FILE_NAME).exists():
        check_before_start(values)
    with _exclusive(out):
        evaluation = open_evaluation(out, values, shards)
        outcome = _run_all(evaluation, n_workers, devices, retries, say)
        if outcome.complete:
            write_json(out / FILE_NAME, merge(evaluation))
    return outcome


def device_settings(device: str) -> dict[str, str]:
    """Return the environment variables that give a worker one device.

    A worker on ``cuda:1`` sees that GPU alone, and renders on it too unless ``MUJOCO_EGL_DEVICE_ID`` says otherwise.

    Raises:
        EvaluationError: it is not cpu, mps, cuda or cuda:N, or N is not among ``CUDA_VISIBLE_DEVICES``.
    """
    kind, colon, index = device.partition(":")
    if kind != "cuda" or not colon:
        if device not in ("cpu", "cuda", "mps"):
            raise EvaluationError(f"--devices: {device!r} is none of cpu, mps, cuda, cuda:0, cuda:1, ...")
        return {}
    if not index.isdigit():
        raise EvaluationError(f"--devices: {device!r}: a number has to follow cuda:")
    visible = [part.strip() for part in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if part.strip()]
    if visible and int(index) >= len(visible):
        raise EvaluationError(f"--devices: there is no {device}: CUDA_VISIBLE_DEVICES={','.join(visible)}")
    real = visible[int(index)] if visible else index
    settings = {"CUDA_VISIBLE_DEVICES": real}
    if real.isdigit():
        settings["MUJOCO_EGL_DEVICE_ID"] = os.environ.get("MUJOCO_EGL_DEVICE_ID", real)
    return settings


def rendering_settings(platform: str, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that let a worker render where there is no screen; those the user has set win.

    MuJoCo opens a window unless told otherwise, and an ablation would only find out after hours of training.

    >>> rendering_settings("linux", {}), rendering_settings("linux", {"DISPLAY": ":0"})
    ({'MUJOCO_GL': 'egl'}, {})
    """
    screen = any(environment.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
    return {"MUJOCO_GL": "egl"} if platform == "linux" and not screen else {}


def _run_all(
    evaluation: ShardedEvaluation,
    n_workers: int,
    devices: Sequence[str],
    retries: int,
    say: Callable[[str], None],
) -> Outcome:
    skipped = tuple(shard.name for shard in evaluation.shards if evaluation.is_finished(shard))
    waiting = deque(shard for shard in evaluation.shards if shard.name not in skipped)
    total = len(evaluation.shards)
    finished: list[str] = []
    failed: list[str] = []
    if skipped:
        say(f"{len(skipped)} of {total} shards are finished already")
    # A worker takes a place and gives it back: places on one device never outnumber its share.
    places: list[str | None] = [devices[i % len(devices)] if devices else None for i in range(n_workers)]
    threads = max(1, (os.cpu_count() or 1) // min(n_workers, max(1, len(waiting))))
    tries: dict[str, int] = {}
    runs: list[_Run] = []
    try:
        while waiting or runs:
            while waiting and places:
                runs.append(_start(evaluation, waiting.popleft(), places.pop(0), threads))
            time.sleep(_POLL)
            for run in [run for run in runs if run.worker.has_ended()]:
                runs.remove(run)
                status = run.worker.end()
                places.insert(0, run.device)
                name = run.shard.name
                done = f"[{len(skipped) + len(finished) + len(failed) + 1}/{total}]"
                if evaluation.is_finished(run.shard):
                    finished.append(name)
                    say(
                        f"{done} {name}: {_result(evaluation, run.shard)}, {clock(time.monotonic() - run.began)}"
                    )
                    continue
                tries[name] = tries.get(name, 0) + 1
                why = f"{_ending(status)} without a complete result; log: {run.log}"
                if tries[name] <= retries:
                    say(f"{name}: {why}; trying once more")
                    waiting.appendleft(run.shard)
                    continue
                failed.append(name)
                said = [f"    {line}" for line in last_lines(run.log, _TAIL)]
                say("\n".join([f"{done} {name}: FAILED: {why}", *(said or ["    (the log is empty)"])]))
    finally:
        for run in runs:
            run.worker.end()
    return Outcome(evaluation.folder, skipped, tuple(finished), tuple(failed))


def _start(evaluation: ShardedEvaluation, shard: Shard, device: str | None, threads: int) -> _Run:
    attempts = evaluation.attempts(shard)
    number = int(attempts[-1].name.removeprefix("attempt-")) + 1 if attempts else 1
    folder = evaluation.shard_folder(shard) / f"attempt-{number}"
    folder.mkdir(parents=True)
    log = folder.with_suffix(".log")
    defaults = {"OMP_NUM_THREADS": str(threads), **rendering_settings(sys.platform, os.environ)}
    environment = {**defaults, **os.environ, "PYTHONUNBUFFERED": "1"}
    if device is not None:
        environment |= device_settings(device)
    arguments = [str(folder / queries.FILE_NAME), *shard.arguments, f"--output_dir={folder}"]
    with log.open("xb") as output:
        worker = start_worker(WORKER, arguments, output, environment)
    return _Run(shard, device, folder, log, worker, time.monotonic())


@contextmanager
def _exclusive(out: Path) -> Iterator[IO[str]]:
    """Hold a folder: two evaluations in one would play the same shards twice."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / LOCK).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise EvaluationError(
                f"another vla0 eval is at work in {out}: wait for it, or give another --out"
            ) from None
        yield file


def _result(evaluation: ShardedEvaluation, shard: Shard) -> str:
    outcomes = [success for task in evaluation.read(shard).tasks for success in task.successes]
    return f"{sum(outcomes)} of {len(outcomes)} solved"


def _ending(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    return f"killed by {signal.Signals(-status).name}"
