"""Reads an ablation's YAML file: which trainings and evaluations it takes, and which of them answer which question.

Pure functions: starts nothing, writes nothing. Variants that train alike share a training, and those that evaluate
alike an evaluation; both are named after the variant that asks first and a digest of their arguments, so that
results of a file that was edited since are never taken for those of the new one.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lerobot_policy_vla0.errors import EvaluationError

#: Evaluations of different training seeds play starts this far apart, so that pooling them counts no start twice.
SEED_SPACING = 10_000

_KEYS = {"seeds", "first_eval_seed", "episodes_per_shard", "train", "eval", "factors"}
_OURS = {
    "train": ("output_dir", "seed", "resume", "job_name"),
    "eval": ("output_dir", "seed", "policy.path", "config_path"),
}


@dataclass(frozen=True)
class Training:
    """One run of ``lerobot-train``.

    Attributes:
        name: of its folder.
        seed: of the run.
        arguments: of ``lerobot-train``, by name, without output folder and seed.
    """

    name: str
    seed: int
    arguments: dict[str, str]


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of one training's last checkpoint.

    Attributes:
        name: of its folder.
        training: whose checkpoint.
        arguments: of ``lerobot-eval``, by name, without output folder and policy.
    """

    name: str
    training: Training
    arguments: dict[str, str]


@dataclass(frozen=True)
class Variant:
    """One answer to a question: a row of the table.

    Attributes:
        name: as written in the file.
        evaluations: one per seed.
    """

    name: str
    evaluations: tuple[Evaluation, ...]


@dataclass(frozen=True)
class Factor:
    """One question: a table. The first variant is the one that the others are compared with."""

    name: str
    variants: tuple[Variant, ...]


@dataclass(frozen=True)
class Plan:
    """An ablation.

    Attributes:
        seeds: of training.
        factors: the questions.
        episodes_per_shard: an evaluation's episodes are divided among processes this way; None by task only.
    """

    seeds: tuple[int, ...]
    factors: tuple[Factor, ...]
    episodes_per_shard: int | None = None

    def evaluations(self, seed: int) -> list[Evaluation]:
        """Return the distinct evaluations of a seed, in the order of the file."""
        found = {
            evaluation.name: evaluation
            for factor in self.factors
            for variant in factor.variants
            for evaluation in variant.evaluations
            if evaluation.training.seed == seed
        }
        return list(found.values())

    def trainings(self, seed: int) -> list[Training]:
        """Return the distinct trainings of a seed, in the order of the file."""
        return list({e.training.name: e.training for e in self.evaluations(seed)}.values())


def read_plan(path: Path, only: list[str] | None = None) -> Plan:
    """Read an ablation.

    Args:
        path: the YAML file, see ``docs/ablations.md``.
        only: names of factors; None takes all.

    Raises:
        EvaluationError: the file cannot be read, or something in it is missing, unknown or contradictory.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise EvaluationError(f"{path} cannot be read as YAML: {error}") from None
    if not isinstance(content, dict) or not content.keys() <= _KEYS:
        unknown = sorted(content.keys() - _KEYS) if isinstance(content, dict) else content
        raise EvaluationError(f"{path} has {unknown}; an ablation has {', '.join(sorted(_KEYS))}")
    for key in ("seeds", "eval", "factors"):
        if not content.get(key):
            raise EvaluationError(f"{path} has no {key!r}, or nothing in it")
    seeds = content["seeds"]
    if not isinstance(seeds, list) or len(set(seeds)) != len(seeds) or not all(type(s) is int for s in seeds):
        raise EvaluationError(f"{path}: seeds: {seeds} is not a list of different whole numbers")
    factors = content["factors"]
    unknown = sorted(set(only or ()) - factors.keys())
    if unknown:
        raise EvaluationError(f"{path} has no factor {unknown}; it has {list(factors)}")
    common = {
        "train": _arguments(content.get("train"), "train", str(path)),
        "eval": _arguments(content["eval"], "eval", str(path)),
    }
    first = content.get("first_eval_seed", 0)
    names = _Names()
    return Plan(
        tuple(seeds),
        tuple(
            Factor(
                name,
                tuple(
                    _variant(f"{path}: {name}: ", name, str(label), changes, common, seeds, first, names)
                    for label, changes in (variants or {}).items()
                ),
            )
            for name, variants in factors.items()
            if only is None or name in only
        ),
        content.get("episodes_per_shard"),
    )


class _Names:
    """Gives equal arguments one name: that of who asked first."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    def name(self, wish: str, arguments: dict[str, str]) -> str:
        digest = hashlib.sha256(json.dumps(arguments, sort_keys=True).encode()).hexdigest()[:8]
        return self._known.setdefault(digest, f"{re.sub(r'[^A-Za-z0-9.]+', '-', wish).strip('-')}-{digest}")


def _variant(
    where: str,
    factor: str,
    label: str,
    changes: Any,
    common: dict[str, dict[str, str]],
    seeds: list[int],
    first_eval_seed: int,
    names: _Names,
) -> Variant:
    if changes is not None and (not isinstance(changes, dict) or not changes.keys() <= {"train", "eval"}):
        raise EvaluationError(f"{where}{label} may change 'train' and 'eval', and has {changes}")
    own = changes or {}
    train = common["train"] | _arguments(own.get("train"), "train", f"{where}{label}")
    play = common["eval"] | _arguments(own.get("eval"), "eval", f"{where}{label}")
    evaluations = []
    for place, seed in enumerate(seeds):
        run = f"seed{seed}"
        training = Training(f"{names.name(f'{factor}-{label}', train)}/{run}", seed, train)
        arguments = play | {"seed": str(first_eval_seed + place * SEED_SPACING)}
        name = names.name(f"{factor}-{label}", {"trained": training.name.partition("/")[0], **play})
        evaluations.append(Evaluation(f"{name}/{run}", training, arguments))
    return Variant(label, tuple(evaluations))


def _arguments(values: Any, kind: str, where: str) -> dict[str, str]:
    """Return arguments as a command line has them.

    Raises:
        EvaluationError: it is no mapping, or holds what the sweep sets itself.
    """
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise EvaluationError(f"{where}: {kind}: {values!r} is not a mapping of arguments to values")
    for name in _OURS[kind]:
        if name in values:
            raise EvaluationError(f"{where}: {kind}: {name} is set by the ablation itself; leave it out")
    return {str(name): _as_text(value) for name, value in values.items()}


def _as_text(value: Any) -> str:
    """Return a YAML value as LeRobot's command line takes it: as YAML, strings bare where that means the same.

    >>> _as_text(False), _as_text([0.3, 1]), _as_text(None), _as_text("a b"), _as_text("{N} integers")
    ('false', '[0.3, 1]', 'null', 'a b', '"{N} integers"')
    """
    if not isinstance(value, str):
        return json.dumps(value)
    try:
        bare = yaml.safe_load(value) == value
    except yaml.YAMLError:
        bare = False
    return value if bare else json.dumps(value)
