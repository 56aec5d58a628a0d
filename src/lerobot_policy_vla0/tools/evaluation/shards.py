"""Runs the shards of an evaluation, several at a time, and continues when one of them fails.

Every shard is ``lerobot-eval`` in a process of its own with a policy of its own. Each attempt writes to a new folder. A
shard that dies, or hangs and is killed, is tried again; then it counts as failed, and the others continue.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from threading import Event

from lerobot_policy_vla0.errors import EvaluationError
from lerobot_policy_vla0.output_files import write_json
from lerobot_policy_vla0.tools.evaluation import heartbeat, steps
from lerobot_policy_vla0.tools.evaluation.eval_info import FILE_NAME
from lerobot_policy_vla0.tools.evaluation.folder import (
    LOCK,
    ShardedEvaluation,
    check_usable,
    merge,
    open_evaluation,
)
from lerobot_policy_vla0.tools.evaluation.heartbeat import STALL_SECONDS, StallWatch
from lerobot_policy_vla0.tools.evaluation.perturbation import parse_perturbation
from lerobot_policy_vla0.tools.evaluation.plan import Shard, parse_arguments, plan_shards
from lerobot_policy_vla0.tools.evaluation.tracking import Tracker, load_tool, tracking
from lerobot_policy_vla0.tools.evaluation.watched import WatchOrder
from lerobot_policy_vla0.tools.libero.setup import check_before_start, start_variant
from lerobot_policy_vla0.tools.reporting.pages import clock
from lerobot_policy_vla0.tools.workers import last_lines, run_in_places, run_worker

#: Command of a worker; see `lerobot_worker`.
WORKER = (sys.executable, "-m", "lerobot_policy_vla0.tools.lerobot_worker", "eval")

_SHOWN_LINES = 6  # of a failed worker's log


@dataclass(frozen=True)
class Outcome:
    """Names of shards, by what happened to them in a call of `evaluate`."""

    skipped: tuple[str, ...]  # finished before
    finished: tuple[str, ...]
    failed: tuple[str, ...]  # without a complete result
    hung: tuple[str, ...] = ()  # an attempt hung; they are finished or failed, too

    @property
    def complete(self) -> bool:
        """Whether every shard has a result."""
        return not self.failed


def evaluate(
    out: Path,
    arguments: Sequence[str],
    *,
    n_workers: int = 1,
    devices: Sequence[str] = (),
    episodes_per_shard: int | None = None,
    retries: int = 1,
    stall_seconds: float = STALL_SECONDS,
    track: str | None = None,
    perturb: str | None = None,
    say: Callable[[str], None] = print,
) -> Outcome:
    """Evaluate a policy in shards, skipping those that are finished, and merge the results.

    ``OUT/eval_info.json`` is written if no shard failed. The steps of finished shards are in ``OUT/steps``. If the
    environment says that LIBERO has other start positions (see `libero.places`), the evaluation is of these.

    Args:
        out: folder of the evaluation; may hold an unfinished one with the same arguments.
        arguments: of ``lerobot-eval``.
        n_workers: shards that run at a time.
        devices: workers are spread over them, e.g. ``cuda:1``; empty leaves ``--policy.device`` as it is.
        episodes_per_shard: see `plan.plan_shards`.
        retries: further attempts at a shard that leaves no complete result.
        stall_seconds: a worker that makes no progress for so long is killed and counts as failed; see `heartbeat`.
        perturb: what to change in what the policy sees; see `perturbation.parse_perturbation`.
        track: log the evaluation while it runs: one of `tracking.TOOLS`.
        say: called with one line per event.

    Raises:
        EvaluationError: the arguments contradict each other or those the folder was begun with, or another ``vla0
            eval`` is at work in it.
        LiberoError: LIBERO would be started and is not set up; says what to run.
    """
    if n_workers < 1:
        raise EvaluationError(f"--shards={n_workers}: at least one process has to run")
    if not stall_seconds > 0:
        raise EvaluationError(f"--stall-seconds={stall_seconds:g}: a number of seconds above 0 is needed")
    values = parse_arguments(arguments)
    if devices and "policy.device" in values:
        raise EvaluationError(
            f"--devices {','.join(devices)} and --policy.device={values['policy.device']} both choose the device: "
            "leave one out"
        )
    for device in devices:
        device_settings(device)  # raises now, not after the first shards
    if len(kinds := {device.partition(":")[0] for device in devices}) > 1:
        raise EvaluationError(
            f"--devices {','.join(devices)}: results of {' and '.join(sorted(kinds))} would be mixed"
        )
    for kind in kinds:
        values["policy.device"] = kind
    perturbation = None if perturb is None else parse_perturbation(perturb)
    if perturbation is not None:
        perturbation.check_environment(values["env.type"])
    shards = plan_shards(values, episodes_per_shard)
    if track is not None:
        load_tool(track)  # raises now, not after the folder was made
    check_usable(out)
    if not (out / FILE_NAME).exists():
        check_before_start(values)
    start = start_variant(values)
    if start is not None:
        say(f"start positions: {start} (LIBERO_CONFIG_PATH)")
    with _exclusive(out):
        evaluation = open_evaluation(out, values, shards, perturbation, start)
        with tracking(track, out, evaluation, say) as tracker:
            outcome = _run_all(evaluation, n_workers, devices, retries, stall_seconds, tracker, say)
        if outcome.complete:
            write_json(out / FILE_NAME, merge(evaluation))
        finished = {shard.name: evaluation.read(shard).path.parent for shard in evaluation.finished()}
        if missing := steps.collect(finished, out / steps.FOLDER):
            say(f"no steps were recorded of {', '.join(missing)}")
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
    """Return the environment variables that a worker needs to render where there is no screen.

    Without them MuJoCo tries to open a window, and an ablation would fail only after hours of training.

    >>> rendering_settings("linux", {}), rendering_settings("linux", {"DISPLAY": ":0"})
    ({'MUJOCO_GL': 'egl'}, {})
    """
    screen = any(environment.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
    return {"MUJOCO_GL": "egl"} if platform == "linux" and not screen else {}


@contextmanager
def _exclusive(out: Path) -> Iterator[None]:
    """Lock a folder: two evaluations in one would play the same shards twice."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / LOCK).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise EvaluationError(
                f"another vla0 eval is at work in {out}: wait for it, or give another --out"
            ) from None
        yield


def _run_all(
    evaluation: ShardedEvaluation,
    n_workers: int,
    devices: Sequence[str],
    retries: int,
    stall_seconds: float,
    tracker: Tracker,
    say: Callable[[str], None],
) -> Outcome:
    total = len(evaluation.shards)
    waiting = [shard for shard in evaluation.shards if not evaluation.is_finished(shard)]
    skipped = tuple(shard.name for shard in evaluation.shards if shard not in waiting)
    if skipped:
        say(f"{len(skipped)} of {total} shards are finished already")
        done = [shard for shard in evaluation.shards if shard.name in skipped]
        tracker.finished_before([(shard, evaluation.read(shard).tasks) for shard in done])
    places = [devices[i % len(devices)] if devices else None for i in range(n_workers)]
    threads = max(1, (os.cpu_count() or 1) // min(n_workers, max(1, len(waiting))))
    numbers, stop = count(len(skipped) + 1), Event()
    hung: set[str] = set()

    def play(shard: Shard, device: str | None) -> bool:
        """Try a shard until it has a complete result or there are no tries left; return whether it has one."""
        for tries_left in reversed(range(max(0, retries) + 1)):
            began = time.monotonic()
            folder = _new_attempt(evaluation, shard)
            watch = StallWatch(folder / heartbeat.FILE_NAME, stall_seconds)

            def hangs(watch: StallWatch = watch) -> bool:
                hung = watch.hangs()
                tracker.progress(shard, watch.note.solved, watch.note.played)
                return hung

            status, log = _run(evaluation, shard, folder, device, threads, stop, hangs)
            if stop.is_set():
                break
            try:
                tasks = evaluation.read(shard).tasks
            except EvaluationError:
                ending = f"ended with status {status} without a complete result"
                if watch.hung:
                    ending = f"{watch.describe()} (--stall-seconds {stall_seconds:g}), and was killed"
                    hung.add(shard.name)
                elif status < 0:
                    ending = f"killed by {signal.Signals(-status).name} without a complete result"
                evaluation.note_failure(shard, watch.hung, ending)
                tracker.failed(shard, watch.hung, last=not tries_left)
                why = f"{ending}; log: {log}"
                if tries_left:
                    say(f"{shard.name}: {why}; trying once more")
                    continue
                lines = last_lines(log, _SHOWN_LINES) or ["(the log is empty)"]
                say("\n    ".join([f"[{next(numbers)}/{total}] {shard.name}: FAILED: {why}", *lines]))
            else:
                tracker.finished(shard, tasks)
                outcomes = [success for task in tasks for success in task.successes]
                result = f"{sum(outcomes)} of {len(outcomes)} solved, {clock(time.monotonic() - began)}"
                say(f"[{next(numbers)}/{total}] {shard.name}: {result}")
                return True
        return False

    has_result = run_in_places(play, waiting, places, stop)
    results = {shard.name: done for shard, done in zip(waiting, has_result, strict=True)}
    finished, failed = (tuple(name for name in results if results[name] is done) for done in (True, False))
    return Outcome(skipped, finished, failed, tuple(name for name in results if name in hung))


def _new_attempt(evaluation: ShardedEvaluation, shard: Shard) -> Path:
    """Make the folder of the next attempt at a shard."""
    attempts = evaluation.attempts(shard)
    number = int(attempts[-1].name.removeprefix("attempt-")) + 1 if attempts else 1
    folder = evaluation.shard_folder(shard) / f"attempt-{number}"
    folder.mkdir(parents=True)
    return folder


def _run(
    evaluation: ShardedEvaluation,
    shard: Shard,
    folder: Path,
    device: str | None,
    threads: int,
    stop: Event,
    hangs: Callable[[], bool],
) -> tuple[int, Path]:
    """Run one attempt at a shard, killed when ``hangs`` says so; return the exit status and the log."""
    log = folder.with_suffix(".log")
    defaults = {"OMP_NUM_THREADS": str(threads), **rendering_settings(sys.platform, os.environ)}
    environment = {**defaults, **os.environ, "PYTHONUNBUFFERED": "1"}
    if device is not None:
        environment |= device_settings(device)
    order = WatchOrder(
        str(folder),
        shard.n_episodes,
        shard.first_episode,
        task=None if shard.suite is None else (shard.suite, shard.task_id),
        perturbation=evaluation.perturbation,
    )
    arguments = [order.as_argument(), *shard.arguments, f"--output_dir={folder}"]
    return run_worker(WORKER, arguments, log, environment, stop, hangs), log
