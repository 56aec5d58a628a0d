"""The folder of a sharded evaluation: what was asked for, which shards are finished, all of them as one result.

::

    OUT/lock                        held by the vla0 eval that is at work here
    OUT/evaluation.json             what was asked for: arguments, the policy's fingerprint, versions, the shards
    OUT/shards/NAME/attempt-1/      what lerobot-eval wrote; a later attempt gets a folder of its own
    OUT/shards/NAME/attempt-1.log   what it printed
    OUT/eval_info.json              all shards together, in lerobot-eval's own form, once all are finished

Reads and writes these files; starts no process and knows nothing about statistics. Nothing is ever overwritten but the
merged file, which the shards determine. A folder is only gone on with for the arguments, policy and versions it
was begun
with: results that mean different things are never mixed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lerobot_policy_vla0.errors import EvaluationError
from lerobot_policy_vla0.output_files import write_json
from lerobot_policy_vla0.tools.evaluation.eval_info import FILE_NAME, EvalInfo, TaskResult, read_eval_info
from lerobot_policy_vla0.tools.evaluation.plan import Shard

MANIFEST = "evaluation.json"
LOCK = "lock"
_FORMAT = 1

# What an outcome depends on besides the arguments. Simulators that are not installed are left out.
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
class ShardedEvaluation:
    """A sharded evaluation as it was asked for.

    Attributes:
        folder: where it lies.
        arguments: of ``lerobot-eval``, by name.
        policy: ``fingerprint`` of a local checkpoint's files (None for a Hub repo), and ``config``: what its
            ``config.json`` says about answers.
        versions: of the packages an outcome depends on.
        shards: its parts.
    """

    folder: Path
    arguments: dict[str, str]
    policy: dict[str, Any]
    versions: dict[str, str]
    shards: tuple[Shard, ...]

    def shard_folder(self, shard: Shard) -> Path:
        """Return the folder that holds a shard's attempts."""
        return self.folder / "shards" / shard.name

    def attempts(self, shard: Shard) -> list[Path]:
        """Return the folders of a shard's attempts, oldest first."""
        found = [path for path in self.shard_folder(shard).glob("attempt-*") if path.is_dir()]
        return sorted(found, key=lambda path: int(path.name.removeprefix("attempt-")))

    def read(self, shard: Shard) -> EvalInfo:
        """Return a finished shard's result, its tasks named as in the undivided evaluation.

        Raises:
            EvaluationError: no attempt finished, or the result is not that of this shard; says why.
        """
        attempts = self.attempts(shard)
        if not attempts:
            raise EvaluationError(f"{self.shard_folder(shard)} is not finished: it was not begun")
        problem: EvaluationError | None = None
        for attempt in reversed(attempts):
            try:
                return _as_planned(read_eval_info(attempt / FILE_NAME), shard)
            except EvaluationError as error:
                problem = problem or error
        raise EvaluationError(f"{self.shard_folder(shard)} is not finished: {problem}")

    def is_finished(self, shard: Shard) -> bool:
        """Tell whether a shard has a complete result."""
        try:
            self.read(shard)
        except EvaluationError:
            return False
        return True


def check_usable(folder: Path) -> None:
    """Make sure that a folder is new, empty, or a sharded evaluation's.

    Raises:
        EvaluationError: it holds something else.
    """
    if (folder / MANIFEST).exists() or not folder.exists():
        return
    if not folder.is_dir() or {path.name for path in folder.iterdir()} - {LOCK}:
        raise EvaluationError(f"{folder} exists and holds no {MANIFEST}: give a new folder as --out")


def open_evaluation(folder: Path, arguments: Mapping[str, str], shards: list[Shard]) -> ShardedEvaluation:
    """Begin an evaluation in a folder, or go on with the one that is there.

    Args:
        folder: made if it does not exist.
        arguments: of ``lerobot-eval``, by name, without what only says where a shard runs.
        shards: from `plan.plan_shards`.

    Raises:
        EvaluationError: the folder holds something else, or an evaluation that was begun with other arguments, another
            policy or other versions; names every difference.
    """
    asked = ShardedEvaluation(
        folder,
        dict(arguments),
        describe_policy(arguments["policy.path"]),
        installed_versions(),
        tuple(shards),
    )
    if (folder / MANIFEST).exists():
        begun = read_evaluation(folder)
        if differences := _differences(begun, asked):
            raise EvaluationError(
                f"{folder} was begun with other settings: {'; '.join(differences)}. Repeat those to go on with it, "
                "or give another --out"
            )
        return begun
    check_usable(folder)
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "format": _FORMAT,
        "arguments": asked.arguments,
        "policy": asked.policy,
        "versions": asked.versions,
        "shards": [asdict(shard) for shard in shards],
    }
    write_json(folder / MANIFEST, content)
    return asked


def read_evaluation(folder: Path) -> ShardedEvaluation:
    """Return the evaluation that a folder was begun for.

    Raises:
        EvaluationError: its manifest is missing or unreadable.
    """
    path = folder / MANIFEST
    try:
        raw = json.loads(path.read_text())
        if raw["format"] != _FORMAT:
            raise ValueError(f"format {raw['format']}, this version reads {_FORMAT}")
        shards = tuple(Shard(**{**shard, "arguments": tuple(shard["arguments"])}) for shard in raw["shards"])
        return ShardedEvaluation(folder, raw["arguments"], raw["policy"], raw["versions"], shards)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EvaluationError(f"{path} cannot be read as a sharded evaluation: {error}") from None


def merge(evaluation: ShardedEvaluation) -> dict[str, Any]:
    """Return all shards as the undivided ``lerobot-eval`` would have written them.

    The rewards, successes and their order are the same; wall times are the sum of the shards', and each shard may have
    written videos.

    Raises:
        EvaluationError: a shard is not finished.
    """
    infos = [evaluation.read(shard) for shard in evaluation.shards]
    joined: dict[tuple[str, int], list[TaskResult]] = {}
    for info in infos:
        for task in info.tasks:
            joined.setdefault((task.suite, task.task_id), []).append(task)
    per_task: list[dict[str, Any]] = []
    for (suite, task_id), parts in joined.items():
        metrics: dict[str, Any] = {
            "sum_rewards": [value for part in parts for value in part.sum_rewards],
            "max_rewards": [value for part in parts for value in part.max_rewards],
            "successes": [value for part in parts for value in part.successes],
            "video_paths": [str(video) for part in parts for video in part.videos if video],
            "predicted_video_paths": [],
        }
        per_task.append({"task_group": suite, "task_id": task_id, "metrics": metrics})
    seconds = sum(info.seconds for info in infos)
    overall = _aggregate([task["metrics"] for task in per_task])
    overall |= {"eval_s": seconds, "eval_ep_s": seconds / overall["n_episodes"]}
    groups = dict.fromkeys(task["task_group"] for task in per_task)
    return {
        "per_task": per_task,
        "per_group": {
            group: _aggregate([task["metrics"] for task in per_task if task["task_group"] == group])
            for group in groups
        },
        "overall": overall,
    }


def _aggregate(metrics: list[dict[str, Any]]) -> dict[str, Any]:
    def joined(key: str) -> list[Any]:
        return [value for part in metrics for value in part[key]]

    n = len(joined("successes"))
    return {
        "avg_sum_reward": sum(joined("sum_rewards")) / n,
        "avg_max_reward": sum(joined("max_rewards")) / n,
        "pc_success": 100 * sum(joined("successes")) / n,
        "n_episodes": n,
        "video_paths": joined("video_paths"),
        "predicted_video_paths": [],
    }


def _as_planned(info: EvalInfo, shard: Shard) -> EvalInfo:
    """Return a shard's result under the names of the undivided evaluation, or say that it is another's."""
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
    def compare(kind: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
        return [
            f"{kind}{key} was {old.get(key, 'not given')}, now {new.get(key, 'not given')}"
            for key in sorted(old.keys() | new.keys())
            if old.get(key) != new.get(key)
        ]

    differences = compare("--", begun.arguments, asked.arguments)
    differences += compare("version of ", begun.versions, asked.versions)
    if not differences and begun.policy != asked.policy:
        differences.append(f"the files of the policy in {asked.arguments['policy.path']} have changed")
    if not differences and begun.shards != asked.shards:
        sizes = [max(shard.n_episodes for shard in one.shards) for one in (begun, asked)]
        differences.append(f"a shard had up to {sizes[0]} episodes, now {sizes[1]} (--episodes-per-shard)")
    return differences


def describe_policy(path: str) -> dict[str, Any]:
    """Return what identifies a policy and what its answers are.

    Args:
        path: ``--policy.path``: a folder, or a repo on the Hub, about which nothing is known here.
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
    said = {key: config[key] for key in ("type", "chunk_size", "n_action_steps", "n_bins") if key in config}
    return {"fingerprint": fingerprint(folder), "config": said | ({"action_dim": shape[0]} if shape else {})}


def fingerprint(folder: Path) -> str:
    """Return a digest of a folder's files, names included, times not.

    Files up to 64 MiB are read whole, of larger ones the size and 64 samples of 64 KiB.
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
    """Return the versions of the packages an outcome depends on."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
