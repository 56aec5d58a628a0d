"""One ``lerobot-train`` run of an ablation: begun, gone on with where it stopped, or left alone if it is finished.

::

    FOLDER/arguments.json   what was asked for; another wish is refused
    FOLDER/run-1/           lerobot-train's output; one without a checkpoint is left, and run-2 begun
    FOLDER/run-1.log        what it printed, resumed runs after the first

Knows LeRobot's checkpoint folders; knows nothing about what is compared.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from threading import Event
from typing import Any

from lerobot_policy_vla0.errors import EvaluationError
from lerobot_policy_vla0.output_files import write_json
from lerobot_policy_vla0.tools.ablation.plan import Training
from lerobot_policy_vla0.tools.workers import last_lines, start_worker

_MODEL = "pretrained_model"
_COMMAND = (sys.executable, "-m", "lerobot_policy_vla0.tools.ablation.worker")


def finished_policy(folder: Path) -> Path | None:
    """Return the last checkpoint's policy of a run that reached its last step; None if none did."""
    for run in reversed(_runs(folder)):
        step, steps = _progress(run)
        if step is not None and step >= steps:
            return (run / "checkpoints" / "last" / _MODEL).resolve()
    return None


def train(
    training: Training, folder: Path, variables: dict[str, str], device: str | None, stop: Event
) -> Path:
    """Train until the last step, from where an earlier call stopped if there is a checkpoint.

    Args:
        training: what to run.
        folder: of its runs.
        variables: environment variables for it.
        device: ``--policy.device``, or None to leave it as it is.
        stop: ends the run when it is set; its checkpoints stay.

    Returns:
        The folder of the trained policy.

    Raises:
        EvaluationError: the folder was begun with other arguments, or the command failed (its log is named).
    """
    folder.mkdir(parents=True, exist_ok=True)
    asked = {**training.arguments, "seed": str(training.seed)}
    _same_as_before(folder / "arguments.json", asked)
    done = finished_policy(folder)
    if done is not None:
        return done
    runs = _runs(folder)
    own = [] if device is None else [f"--policy.device={device}"]
    if runs and _progress(runs[-1])[0] is not None:
        run = runs[-1]
        # As LeRobot resumes: everything comes from the checkpoint's own configuration.
        config = run / "checkpoints" / "last" / _MODEL / "train_config.json"
        arguments = [f"--config_path={config}", "--resume=true", *own]
    else:
        run = folder / f"run-{len(runs) + 1}"
        arguments = [*(f"--{name}={value}" for name, value in asked.items()), f"--output_dir={run}", *own]
    log = run.with_suffix(".log")
    _call(arguments, log, variables, stop)
    done = finished_policy(folder)
    if done is None:
        raise EvaluationError(f"{run} ended without the checkpoint of its last step; log: {log}")
    return done


def _same_as_before(path: Path, asked: dict[str, str]) -> None:
    if not path.exists():
        write_json(path, asked)
        return
    before = json.loads(path.read_text())
    if before != asked:
        different = sorted(k for k in before.keys() | asked.keys() if before.get(k) != asked.get(k))
        raise EvaluationError(
            f"{path.parent} was begun with other arguments ({', '.join(different)} differ): give another --out"
        )


def _runs(folder: Path) -> list[Path]:
    """Return the folders of a training's runs, oldest first; numbers of runs that left only a log count."""
    numbers = {int(path.stem.removeprefix("run-")) for path in folder.glob("run-*")}
    return [folder / f"run-{number}" for number in sorted(numbers)]


def _progress(run: Path) -> tuple[int | None, int]:
    """Return the step of the last checkpoint, None without one, and the number of steps of the whole run."""
    last = run / "checkpoints" / "last"
    try:
        step = json.loads((last / "training_state" / "training_step.json").read_text())["step"]
        config: dict[str, Any] = json.loads((last / _MODEL / "train_config.json").read_text())
    except FileNotFoundError:
        return None, 0
    return int(step), int(config["steps"])


def _call(arguments: list[str], log: Path, variables: dict[str, str], stop: Event) -> None:
    """Run ``lerobot-train``; it ends with us.

    Raises:
        EvaluationError: it failed.
    """
    with log.open("ab") as output:
        worker = start_worker(_COMMAND, arguments, output, {**os.environ, **variables})
    try:
        while not worker.has_ended() and not stop.wait(0.2):
            pass
    finally:
        status = worker.end()
    if stop.is_set():
        raise EvaluationError(f"{log.stem} was stopped; its checkpoints stay")
    if status:
        said = " / ".join(last_lines(log, 3))
        raise EvaluationError(
            f"lerobot-train ended with status {status}; log: {log}, which ends with: {said}"
        )
