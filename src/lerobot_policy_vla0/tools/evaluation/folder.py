"""Reads and writes the folder of a sharded evaluation: what was asked for, and the results of its shards.

::

    OUT/lock                        held by the vla0 eval that is at work here
    OUT/evaluation.json             what was asked for: arguments, the policy's fingerprint, versions, the shards
    OUT/shards/NAME/attempt-1/      what lerobot-eval wrote; a later attempt gets a folder of its own
    OUT/shards/NAME/attempt-1.log   what it printed
    OUT/shards/NAME/attempt-1.failure.json   why the attempt failed, if it did
    OUT/steps/NAME.parquet          every step of a finished shard; see `steps`
    OUT/eval_info.json              all shards together, in lerobot-eval's own form, once all are finished

Nothing is overwritten except the merged file and the steps, which follow from the shards. A folder is only continued
with the arguments, policy, versions, perturbation and start positions it was begun with, so results that mean different
things are never mixed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lerobot_policy_vla0.errors import EvaluationError
from lerobot_policy_vla0.output_files import write_json
from lerobot_policy_vla0.tools.evaluation.eval_info import FILE_NAME, EvalInfo, read_eval_info
from lerobot_policy_vla0.tools.evaluation.perturbation import Perturbation
from lerobot_policy_vla0.tools.evaluation.plan import Shard
from lerobot_policy_vla0.tools.libero.places import Variant

MANIFEST = "evaluation.json"
LOCK = "lock"
FAILURE = ".failure.json"  # end of the name of an attempt's file
_FORMAT = 1
_METRICS = ("sum_rewards", "max_rewards", "successes", "video_paths", "predicted_video_paths")

#: Packages that an outcome depends on. Simulators that are not installed are left out.
_PACKAGES = (
    "lerobot_policy_vla0",
    "lerobot",
    "torch",
    "transformers",
    "numpy",
    "mujoco",
    "metaworld",
    "hf-libero",
)

_WHOLE = 64 * 2**20  # bytes; of larger files samples are enough: training changes all of them
_SAMPLES, _SAMPLE = 64, 2**16


@dataclass(frozen=True)
class Failure:
    """An attempt at a shard that left no complete result."""

    shard: str  # its name
    attempt: int
    hung: bool  # it made no progress and was killed for that
    why: str  # the end of a sentence that begins with the shard's name


@dataclass(frozen=True)
class ShardedEvaluation:
    """A sharded evaluation as it was asked for."""

    folder: Path  # where it is on disk
    arguments: dict[str, str]  # of lerobot-eval, by name
    policy: dict[str, Any]  # see `describe_policy`
    versions: dict[str, str]  # of the packages an outcome depends on
    shards: tuple[Shard, ...]
    perturbation: Perturbation | None = None  # of what the policy sees
    start: Variant | None = None  # start positions of LIBERO that are not its own

    @property
    def changes(self) -> str:
        """What is not as the environment has it, such as ``start=swap,noise=4``; empty if nothing is."""
        start = f"start={self.start.name}" if self.start else ""
        seen = self.perturbation.label if self.perturbation else ""
        return ",".join(filter(None, (start, seen)))

    def shard_folder(self, shard: Shard) -> Path:
        """Return the folder that holds a shard's attempts."""
        return self.folder / "shards" / shard.name

    def attempts(self, shard: Shard) -> list[Path]:
        """Return the folders of a shard's attempts, oldest first."""
        found = [path for path in self.shard_folder(shard).glob("attempt-*") if path.is_dir()]
        return sorted(found, key=lambda path: int(path.name.removeprefix("attempt-")))

    def failures(self, shard: Shard) -> list[Failure]:
        """Return the attempts at a shard that failed, oldest first; not those that were interrupted."""
        found = []
        for path in self.shard_folder(shard).glob(f"attempt-*{FAILURE}"):
            try:
                found.append(Failure(**json.loads(path.read_text())))
            except (OSError, ValueError, TypeError) as error:
                raise EvaluationError(f"{path} cannot be read: {error}") from None
        return sorted(found, key=lambda failure: failure.attempt)

    def note_failure(self, shard: Shard, hung: bool, why: str) -> None:
        """Write down why the last attempt at a shard failed."""
        attempt = self.attempts(shard)[-1]
        number = int(attempt.name.removeprefix("attempt-"))
        write_json(attempt.with_name(attempt.name + FAILURE), asdict(Failure(shard.name, number, hung, why)))

    def read(self, shard: Shard) -> EvalInfo:
        """Return a finished shard's result, its tasks named as in the undivided evaluation.

        Raises:
            EvaluationError: no attempt finished, or the result is not that of this shard; says why.
        """
        problem: EvaluationError | None = None
        for attempt in reversed(self.attempts(shard)):
            try:
                return _as_planned(read_eval_info(attempt / FILE_NAME), shard)
            except EvaluationError as error:
                problem = problem or error
        raise EvaluationError(f"{self.shard_folder(shard)} is not finished: {problem or 'it was not begun'}")

    def is_finished(self, shard: Shard) -> bool:
        """Tell whether a shard has a complete result."""
        try:
            self.read(shard)
        except EvaluationError:
            return False
        return True

    def finished(self) -> list[Shard]:
        """Return the shards that have a complete result."""
        return [shard for shard in self.shards if self.is_finished(shard)]


def check_usable(folder: Path) -> None:
    """Raise EvaluationError unless a folder is new, empty, or a sharded evaluation's."""
    if (folder / MANIFEST).exists() or not folder.exists():
        return
    if not folder.is_dir() or {path.name for path in folder.iterdir()} - {LOCK}:
        raise EvaluationError(f"{folder} exists and holds no {MANIFEST}: give a new folder as --out")


def open_evaluation(
    folder: Path,
    arguments: dict[str, str],
    shards: list[Shard],
    perturbation: Perturbation | None = None,
    start: Variant | None = None,
) -> ShardedEvaluation:
    """Begin an evaluation in a folder that exists and that `check_usable` accepts, or continue the one that is there.

    The arguments are those of ``lerobot-eval``, by name, without those that only say where a shard runs.

    Raises:
        EvaluationError: the folder's evaluation was begun with other arguments, another policy, other versions,
            another perturbation or other start positions; names every difference.
    """
    policy, versions = describe_policy(arguments["policy.path"]), installed_versions()
    asked = ShardedEvaluation(folder, arguments, policy, versions, tuple(shards), perturbation, start)
    if (folder / MANIFEST).exists():
        begun = read_evaluation(folder)
        if differences := _differences(begun, asked):
            raise EvaluationError(
                f"{folder} was begun with other settings: {'; '.join(differences)}. Repeat those to go on with it, "
                "or give another --out"
            )
        return begun
    content = {"format": _FORMAT} | asdict(asked)
    del content["folder"]
    write_json(folder / MANIFEST, content)
    return asked


def read_evaluation(folder: Path) -> ShardedEvaluation:
    """Return the evaluation that a folder was begun for; raise EvaluationError if its manifest is unreadable."""
    path = folder / MANIFEST
    try:
        raw = json.loads(path.read_text())
        if raw["format"] != _FORMAT:
            raise ValueError(f"format {raw['format']}, this version reads {_FORMAT}")
        shards = tuple(Shard(**{**shard, "arguments": tuple(shard["arguments"])}) for shard in raw["shards"])
        perturbation = Perturbation(**raw["perturbation"]) if raw.get("perturbation") else None
        start = Variant(**raw["start"]) if raw.get("start") else None
        return ShardedEvaluation(
            folder, raw["arguments"], raw["policy"], raw["versions"], shards, perturbation, start
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EvaluationError(f"{path} cannot be read as a sharded evaluation: {error}") from None


def merge(evaluation: ShardedEvaluation) -> dict[str, Any]:
    """Return all shards as the undivided ``lerobot-eval`` would have written them.

    Rewards, successes and their order are the same. The wall time is the sum of the shards', and there may be more
    videos, because every shard writes some. Raises EvaluationError if a shard is not finished.
    """
    seconds = 0.0
    tasks: dict[tuple[str, int], dict[str, list[Any]]] = {}
    for shard in evaluation.shards:
        info = evaluation.read(shard)
        seconds += info.seconds
        for task in info.tasks:
            metrics = tasks.setdefault((task.suite, task.task_id), {name: [] for name in _METRICS})
            metrics["sum_rewards"] += task.sum_rewards
            metrics["max_rewards"] += task.max_rewards
            metrics["successes"] += task.successes
            metrics["video_paths"] += [str(video) for video in task.videos if video]
    suites: dict[str, list[dict[str, list[Any]]]] = {}
    for (suite, _), metrics in tasks.items():
        suites.setdefault(suite, []).append(metrics)
    overall = _aggregate(list(tasks.values()))
    return {
        "per_task": [
            {"task_group": suite, "task_id": task_id, "metrics": metrics}
            for (suite, task_id), metrics in tasks.items()
        ],
        "per_group": {suite: _aggregate(metrics) for suite, metrics in suites.items()},
        "overall": overall | {"eval_s": seconds, "eval_ep_s": seconds / overall["n_episodes"]},
    }


def _aggregate(tasks: list[dict[str, list[Any]]]) -> dict[str, Any]:
    joined = {name: [value for metrics in tasks for value in metrics[name]] for name in _METRICS}
    n = len(joined["successes"])
    return {
        "avg_sum_reward": sum(joined["sum_rewards"]) / n,
        "avg_max_reward": sum(joined["max_rewards"]) / n,
        "pc_success": 100 * sum(joined["successes"]) / n,
        "n_episodes": n,
        "video_paths": joined["video_paths"],
        "predicted_video_paths": joined["predicted_video_paths"],
    }


def _as_planned(info: EvalInfo, shard: Shard) -> EvalInfo:
    """Return a shard's result under the task's name in the undivided evaluation; refuse another shard's result."""
    for task in info.tasks:
        if len(task.successes) != shard.n_episodes:
            raise EvaluationError(
                f"{info.path} holds {len(task.successes)} episodes, the shard has {shard.n_episodes}"
            )
    if shard.suite is None:
        return info
    if len(info.tasks) != 1:
        raise EvaluationError(f"{info.path} is about {len(info.tasks)} tasks, the shard is one")
    return replace(info, tasks=(replace(info.tasks[0], suite=shard.suite, task_id=shard.task_id),))


def _differences(begun: ShardedEvaluation, asked: ShardedEvaluation) -> list[str]:
    def compare(kind: str, old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
        return [
            f"{kind}{key} was {old.get(key, 'not given')}, now {new.get(key, 'not given')}"
            for key in sorted(old.keys() | new.keys())
            if old.get(key) != new.get(key)
        ]

    differences = compare("--", begun.arguments, asked.arguments)
    differences += compare("version of ", begun.versions, asked.versions)
    labels = [one.perturbation.label if one.perturbation else "not given" for one in (begun, asked)]
    if labels[0] != labels[1]:
        differences.append(f"--perturb was {labels[0]}, now {labels[1]}")
    elif begun.perturbation != asked.perturbation:
        differences.append(f"the paraphrases in the file of --perturb {labels[0]} have changed")
    starts = [one.start.name if one.start else "those of the environment" for one in (begun, asked)]
    if starts[0] != starts[1]:
        differences.append(f"the start positions were {starts[0]}, now {starts[1]} (LIBERO_CONFIG_PATH)")
    elif begun.start != asked.start:
        differences.append(f"the files of the start positions {starts[0]} have changed (LIBERO_CONFIG_PATH)")
    if not differences and begun.policy != asked.policy:
        differences.append(f"the files of the policy in {asked.arguments['policy.path']} have changed")
    if not differences and begun.shards != asked.shards:
        sizes = [max(shard.n_episodes for shard in one.shards) for one in (begun, asked)]
        differences.append(f"a shard had up to {sizes[0]} episodes, now {sizes[1]} (--episodes-per-shard)")
    return differences


def describe_policy(path: str) -> dict[str, Any]:
    """Return what identifies the policy at ``--policy.path``, and the form of its answers.

    Returns:
        ``fingerprint`` of the checkpoint's files, and ``config``: options of its ``config.json`` that determine the
        form. They are None and empty for a repo on the Hub.
    """
    folder = Path(path)
    if not folder.is_dir():
        return {"fingerprint": None, "config": {}}
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise EvaluationError(
            f"--policy.path={path} is not a policy's folder: config.json: {error}"
        ) from None
    shape = config.get("output_features", {}).get("action", {}).get("shape")
    form = {key: config[key] for key in ("type", "chunk_size", "n_action_steps", "n_bins") if key in config}
    return {"fingerprint": fingerprint(folder), "config": form | ({"action_dim": shape[0]} if shape else {})}


def fingerprint(folder: Path) -> str:
    """Return a digest of the names and contents of a folder's files.

    Files up to 64 MiB are read whole; of larger ones it takes the size and 64 samples of 64 KiB.
    """
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder).as_posix()}\0{size}\0".encode())
        with path.open("rb") as file:
            if size <= _WHOLE:
                digest.update(file.read())
                continue
            for sample in range(_SAMPLES):
                file.seek((size - _SAMPLE) * sample // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE))
    return digest.hexdigest()


def installed_versions() -> dict[str, str]:
    """Return the versions of the packages that an outcome depends on."""
    versions = {}
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions
