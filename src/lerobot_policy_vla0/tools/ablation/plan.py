"""Reads an ablation's YAML file: the trainings and evaluations it needs, and the tables that compare them.

Variants with the same training arguments share a training, and those with the same evaluation an evaluation. Both are
named after the first variant that needs them and a digest of their arguments. So results of an older version of the
file are never taken for those of the new one.
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

#: Distance between the first seeds that evaluations of different training seeds play, so that pooling them counts no
#: start twice.
SEED_SPACING = 10_000

_KEYS = {"seeds", "first_eval_seed", "episodes_per_shard", "train", "eval", "factors"}
#: Arguments that the sweep sets itself.
_SET_BY_US = {
    "train": ("output_dir", "seed", "resume", "job_name"),
    "eval": ("output_dir", "seed", "policy.path", "config_path"),
}


@dataclass(frozen=True)
class Training:
    """One run of ``lerobot-train``."""

    name: str  # of its folder
    seed: int
    arguments: dict[str, str]  # of lerobot-train, by name, without output folder and seed


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of one training's last checkpoint."""

    name: str  # of its folder
    training: Training  # the one that makes the checkpoint
    arguments: dict[str, str]  # of lerobot-eval, by name, without output folder and policy


@dataclass(frozen=True)
class Variant:
    """A row of a factor's table: its name in the file, and one evaluation per seed."""

    name: str
    evaluations: tuple[Evaluation, ...]


@dataclass(frozen=True)
class Factor:
    """One choice that is varied: a table. The other variants are compared with the first one."""

    name: str
    variants: tuple[Variant, ...]


@dataclass(frozen=True)
class Plan:
    """An ablation."""

    seeds: tuple[int, ...]  # of training
    factors: tuple[Factor, ...]  # the choices that are varied
    episodes_per_shard: int | None = None  # see `evaluation.plan.plan_shards`

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


def read_plan(path: Path, only: list[str] | None = None, only_seeds: list[int] | None = None) -> Plan:
    """Read an ablation.

    Args:
        path: the YAML file, see ``docs/ablations.md``.
        only: names of factors; None takes all.
        only_seeds: some of the file's seeds; None takes all. Each keeps the starts that it has in the whole plan.

    Raises:
        EvaluationError: the file cannot be read, or something in it is missing, unknown or contradictory.
    """
    # 1. The file as a whole.
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
    unknown = sorted(set(only or ()) - content["factors"].keys())
    if unknown:
        raise EvaluationError(f"{path} has no factor {unknown}; it has {list(content['factors'])}")
    strange = sorted(set(only_seeds or ()) - set(seeds))
    if strange:
        raise EvaluationError(f"{path} has no seed {strange}; it has {seeds}")
    chosen = [(i, seed) for i, seed in enumerate(seeds) if only_seeds is None or seed in only_seeds]
    common_train = _arguments(content.get("train"), "train", str(path))
    common_eval = _arguments(content["eval"], "eval", str(path))

    # 2. What each variant changes. Equal arguments have one name.
    names: dict[str, str] = {}

    def name_of(arguments: dict[str, str], proposal: str) -> str:
        digest = hashlib.sha256(json.dumps(arguments, sort_keys=True).encode()).hexdigest()[:8]
        proposal = re.sub(r"[^A-Za-z0-9.]+", "-", proposal).strip("-")
        return names.setdefault(digest, f"{proposal}-{digest}")

    factors = []
    for factor, changes_by_label in content["factors"].items():
        if only is not None and factor not in only:
            continue
        variants = []
        for label, changes in (changes_by_label or {}).items():
            where = f"{path}: {factor}: {label}"
            changes = {} if changes is None else changes
            if not isinstance(changes, dict) or not changes.keys() <= {"train", "eval"}:
                raise EvaluationError(f"{where} may change 'train' and 'eval', and has {changes}")
            train = common_train | _arguments(changes.get("train"), "train", where)
            play = common_eval | _arguments(changes.get("eval"), "eval", where)
            trained = name_of(train, f"{factor}-{label}")
            played = name_of({"trained": trained, **play}, f"{factor}-{label}")
            evaluations = []
            for i, seed in chosen:
                training = Training(f"{trained}/seed{seed}", seed, train)
                first_seed = content.get("first_eval_seed", 0) + i * SEED_SPACING
                arguments = play | {"seed": str(first_seed)}
                evaluations.append(Evaluation(f"{played}/seed{seed}", training, arguments))
            variants.append(Variant(str(label), tuple(evaluations)))
        factors.append(Factor(factor, tuple(variants)))
    return Plan(tuple(seed for _, seed in chosen), tuple(factors), content.get("episodes_per_shard"))


def _arguments(values: Any, kind: str, where: str) -> dict[str, str]:
    """Return the arguments of ``train`` or ``eval`` as a command line has them.

    Raises:
        EvaluationError: it is no mapping, or holds an argument that the sweep sets itself.
    """
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise EvaluationError(f"{where}: {kind}: {values!r} is not a mapping of arguments to values")
    for name in _SET_BY_US[kind]:
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
