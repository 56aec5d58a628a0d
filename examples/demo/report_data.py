"""What a run left on disk, read and checked: evaluations, baselines, training log, stage times.

Every figure in the report comes from here. A required file that is missing is an error that names it; an optional one
that is missing gives None ("not measured").
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lerobot_policy_vla0.errors import EvaluationError
from lerobot_policy_vla0.tools.evaluation.eval_info import read_eval_info
from lerobot_policy_vla0.tools.evaluation.statistics import wilson_interval
from lerobot_policy_vla0.tools.reporting.pages import Table, clock, percent, percent_range


class ReportError(Exception):
    """The report cannot be written; the message names the file and what is wrong with it."""


@dataclass
class Row:
    """One line of the success table: a name and whether it succeeded on each seed."""

    name: str
    success: dict[int, bool]

    @property
    def n_success(self) -> int:
        return sum(self.success.values())

    def as_json(self) -> dict[str, Any]:
        low, high = wilson_interval(self.n_success, len(self.success))
        return {
            "name": self.name,
            "n_success": self.n_success,
            "n_episodes": len(self.success),
            "rate": round(self.n_success / len(self.success), 4),
            "wilson_95": [round(low, 4), round(high, 4)],
            "success_by_seed": {str(seed): success for seed, success in sorted(self.success.items())},
        }


def read_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        ReportError: names the file that is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise ReportError(f"{path} is missing") from None
    except ValueError as error:
        raise ReportError(f"{path} is not JSON: {error}") from None


def read_evaluations(run: Path) -> tuple[dict[int, bool], dict[int, Path]]:
    """Merge every `eval_seed<S>/eval_info.json` of a run.

    `lerobot-eval` does not write its seeds, so they come from the folder's name: its episode i was reset with
    seed S + i.

    Args:
        run: Folder of the run.

    Returns:
        Success by seed, and the video by seed for the episodes that have one.

    Raises:
        ReportError: no evaluation, an unreadable one, two with the same seed, or one over more than one task.
    """
    success: dict[int, bool] = {}
    videos: dict[int, Path] = {}
    files = sorted(run.glob("eval_seed*/eval_info.json"))
    if not files:
        raise ReportError(f"{run}/eval_seed<first seed>/eval_info.json is missing: nothing was evaluated")
    for file in files:
        start = int(file.parent.name.removeprefix("eval_seed"))
        try:
            tasks = read_eval_info(file).tasks
        except EvaluationError as error:
            raise ReportError(str(error)) from None
        if len(tasks) != 1:
            raise ReportError(f"{file} is about {len(tasks)} tasks; the report compares policies on one")
        for seed, (solved, video) in enumerate(zip(tasks[0].successes, tasks[0].videos, strict=True), start):
            if seed in success:
                raise ReportError(f"{file} repeats seed {seed}, which another evaluation of {run} has")
            success[seed] = solved
            if video is not None:
                videos[seed] = video
    return success, videos


def read_rows(run: Path) -> tuple[list[Row], dict[int, Path]]:
    """Return the success table (policy, strongest blind replay, the others, constant action) and videos by
    seed.

    Raises:
        ReportError: the baselines miss a seed that the policy was evaluated on; names it.
    """
    success, videos = read_evaluations(run)
    file = run / "baselines.json"
    baselines = read_json(file)
    missing = sorted(set(success) - set(baselines["seeds"]))
    if missing:
        raise ReportError(
            f"{file} lacks {len(missing)} seeds the policy was evaluated on (the first is {missing[0]}); "
            "run baselines.py with the same --seeds and --episodes"
        )

    def row(name: str, result: dict[str, Any]) -> Row:
        by_seed = dict(zip(baselines["seeds"], result["success"], strict=True))
        return Row(name, {seed: by_seed[seed] for seed in sorted(success)})

    rows = [Row("policy", success)]
    for rank, replay in enumerate(baselines["blind_replays"]):
        name = f"blind replay of demonstration {replay['episode_index']}"
        rows.append(row(f"{name} (strongest)" if rank == 0 else name, replay))
    rows.append(row("constant mean action", baselines["constant"]))
    return rows, videos


# ---- training log ------------------------------------------------------------------------------------------

_METRIC = re.compile(r"(?<!\S)([A-Za-z_/]+):([-+]?(?:[0-9.]+(?:e[-+]?\d+)?|nan|inf))(?!\S)")


@dataclass
class TrainingLog:
    """Curves read from the output of `lerobot-train`: metric name to {step: value}."""

    train: dict[str, dict[float, float]] = field(default_factory=dict)
    validation: dict[int, float] = field(default_factory=dict)


def read_training_log(path: Path) -> TrainingLog:
    """Return the curves in the captured output of `lerobot-train` (0.6.1), also of several runs in a row.

    Its rows give the step rounded to thousands ("step:2K") but the epoch to a hundredth; the exact step is
    epoch x frames / batch size, rounded to the distance of the rows. A step that a resumed run repeats counts
    once, as seen last.

    Raises:
        ReportError: the file is missing or holds no training row.
    """
    if not path.is_file():
        raise ReportError(f"{path} is missing")
    # Progress bars write \r, and a log row can follow one on the same line.
    text = path.read_text(errors="replace").replace("\r", "\n")
    frames, batch, every = 0.0, 0.0, 1
    log = TrainingLog()
    for line in text.split("\n"):
        if found := re.search(r"dataset\.num_frames=(\d+)", line):
            frames = float(found[1])
        elif found := re.search(r"Effective batch size: .* = (\d+)", line):
            batch = float(found[1])
        elif found := re.search(r"'log_freq': (\d+)", line):
            every = int(found[1])
        elif found := re.search(r"step (\d+): eval_loss=(\S+)", line):
            log.validation[int(found[1])] = float(found[2])
        elif "smpl:" in line and "epch:" in line and frames and batch:
            values = {name: float(value) for name, value in _METRIC.findall(line[line.index("smpl:") :])}
            step = every * round(values.pop("epch") * frames / batch / every)
            for name, value in values.items():
                log.train.setdefault(name, {})[step] = value
    if "loss" not in log.train:
        raise ReportError(f"{path} holds no training row ('step:... smpl:... epch:... loss:...')")
    return log


def read_stages(path: Path) -> dict[str, float] | None:
    """Return wall seconds by stage in order, or None if they were not measured."""
    if not path.is_file():
        return None
    return {name: float(stage["seconds"]) for name, stage in read_json(path).items()}


# ---- text --------------------------------------------------------------------------------------------------


def success_table(rows: list[Row]) -> Table:
    """Return the success table: name, count, rate, interval."""
    cells = []
    for row in rows:
        n, played = row.n_success, len(row.success)
        interval = percent_range(wilson_interval(n, played), 0)
        cells.append([row.name, f"{n} of {played}", percent(n / played, 0), interval])
    return Table(["", "solved", "rate", "95 % interval (Wilson)"], cells)


def seed_table(rows: list[Row]) -> Table:
    """Return the table by seed: the seed, then + or - for each row."""
    cells = [
        [str(seed), *("+" if row.success[seed] else "-" for row in rows)] for seed in sorted(rows[0].success)
    ]
    return Table(["seed", *(row.name for row in rows)], cells)


def stage_table(stages: dict[str, float] | None) -> Table:
    """Return the table of wall times, with a total."""
    header = ["stage", "wall time"]
    if stages is None:
        return Table(header, [["all", "not measured"]])
    cells = [[name, clock(seconds)] for name, seconds in [*stages.items(), ("total", sum(stages.values()))]]
    return Table(header, cells)


def beyond_blind(rows: list[Row]) -> str:
    """Return in one sentence what the policy solves where the strongest blind replay fails."""
    policy, blind = rows[0], rows[1]
    hard = [seed for seed, solved in blind.success.items() if not solved]
    if not hard:
        return "The strongest blind replay solves every seed: success here says nothing about vision."
    solved = sum(policy.success[seed] for seed in hard)
    return f"Of the {len(hard)} seeds the strongest blind replay fails, the policy solves {solved}."
