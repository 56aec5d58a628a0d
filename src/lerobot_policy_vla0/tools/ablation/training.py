"""Runs one ``lerobot-train`` of an ablation: begins it, continues it from its last checkpoint, or finds it finished.

::

    FOLDER/arguments.json   what was asked for; other arguments are refused
    FOLDER/run-1/           lerobot-train's output; if it holds no checkpoint, it is left and run-2 begins
    FOLDER/run-1.log        what it printed; resumed runs are added
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from threading import Event

from lerobot_policy_vla0.errors import EvaluationError
from lerobot_policy_vla0.output_files import write_json
from lerobot_policy_vla0.tools.ablation.plan import Training
from lerobot_policy_vla0.tools.workers import last_lines, run_worker

_LAST = Path("checkpoints", "last")
_MODEL = _LAST / "pretrained_model"
_COMMAND = (sys.executable, "-m", "lerobot_policy_vla0.tools.lerobot_worker", "train")


def finished_policy(folder: Path) -> Path | None:
    """Return the last checkpoint's policy of a run that reached its last step; None if none did."""
    for run in reversed(_runs(folder)):
        step, steps = _progress(run)
        if step is not None and step >= steps:
            return (run / _MODEL).resolve()
    return None


def train(
    training: Training, folder: Path, variables: dict[str, str], device: str | None, stop: Event
) -> Path:
    """Train until the last step, from the last checkpoint if there is one; return the trained policy's folder.

    Args:
        training: what to run.
        folder: of its runs.
        variables: environment variables for the command.
        device: ``--policy.device``, or None to leave it as it is.
        stop: ends the run when it is set; its checkpoints stay.

    Raises:
        EvaluationError: the folder was begun with other arguments, or the command failed (its log is named).
    """
    # 1. The folder holds runs of this training only.
    folder.mkdir(parents=True, exist_ok=True)
    asked = {**training.arguments, "seed": str(training.seed)}
    record = folder / "arguments.json"
    if not record.exists():
        write_json(record, asked)
    before = json.loads(record.read_text())
    if before != asked:
        different = sorted(k for k in before.keys() | asked.keys() if before.get(k) != asked.get(k))
        raise EvaluationError(
            f"{folder} was begun with other arguments ({', '.join(different)} differ): give another --out"
        )
    if (done := finished_policy(folder)) is not None:
        return done

    # 2. Resume the last run if it has a checkpoint; otherwise begin a new one.
    runs = _runs(folder)
    if runs and _progress(runs[-1])[0] is not None:
        run = runs[-1]
        # As LeRobot resumes: everything comes from the checkpoint's own configuration.
        arguments = [f"--config_path={run / _MODEL / 'train_config.json'}", "--resume=true"]
    else:
        run = folder / f"run-{len(runs) + 1}"
        arguments = [*(f"--{name}={value}" for name, value in asked.items()), f"--output_dir={run}"]
    if device is not None:
        arguments.append(f"--policy.device={device}")
    log = run.with_suffix(".log")
    status = run_worker(_COMMAND, arguments, log, {**os.environ, **variables}, stop)

    # 3. What it left.
    if stop.is_set():
        raise EvaluationError(f"{log.stem} was stopped; its checkpoints stay")
    if status:
        raise EvaluationError(
            f"lerobot-train ended with status {status}; log: {log}, which ends with: {' / '.join(last_lines(log, 3))}"
        )
    if (done := finished_policy(folder)) is None:
        raise EvaluationError(f"{run} ended without the checkpoint of its last step; log: {log}")
    return done


def _runs(folder: Path) -> list[Path]:
    """Return the folders of a training's runs, oldest first. A run that left only a log counts too."""
    numbers = {int(path.stem.removeprefix("run-")) for path in folder.glob("run-*")}
    return [folder / f"run-{number}" for number in sorted(numbers)]


def _progress(run: Path) -> tuple[int | None, int]:
    """Return the step of the last checkpoint, None without one, and the number of steps of the whole run."""
    try:
        step = json.loads((run / _LAST / "training_state" / "training_step.json").read_text())["step"]
        steps = json.loads((run / _MODEL / "train_config.json").read_text())["steps"]
    except FileNotFoundError:
        return None, 0
    return int(step), int(steps)
