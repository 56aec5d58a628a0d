"""Checks that statistics can normalise actions and state, and fit the options.

LeRobot's normaliser leaves a key without statistics unchanged, and never compares statistics with options. Here a
mistake of this kind is an error, or a warning if it is not certain. The statistics are a data set's, or those that a
checkpoint's processors were saved with.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lerobot.configs.types import NormalizationMode
from lerobot.utils.constants import ACTION, DEFAULT_FEATURES, OBS_STATE
from torch import Tensor

from lerobot_policy_vla0.errors import StatsError

if TYPE_CHECKING:
    from lerobot_policy_vla0.configuration_vla0 import VLA0Config

logger = logging.getLogger(__name__)

Stats = Mapping[str, Mapping[str, Any]]

#: The two statistics that become -1 and 1, by bounded mode.
ENDS_OF_MODE = {
    NormalizationMode.MIN_MAX: ("min", "max"),
    NormalizationMode.QUANTILES: ("q01", "q99"),
    NormalizationMode.QUANTILE10: ("q10", "q90"),
}
#: LeRobot's command that computes a data set's statistics anew, into a copy.
RECOMPUTE = "lerobot-edit-dataset --repo_id=NAME --new_repo_id=NAME_stats --operation.type=recompute_stats"
_ADD_QUANTILES = "python -m lerobot.scripts.augment_dataset_quantile_stats"


@dataclass(frozen=True)
class ActionRange:
    """The robot's actions that are normalised to -1 and to 1, ``(D,)`` float32 each, in the robot's units."""

    low: Tensor
    high: Tensor

    @property
    def span(self) -> Tensor:
        """Width of the range, at least 0."""
        return self.high - self.low


def check_stats(config: VLA0Config, stats: Stats | None) -> ActionRange:
    """Check every statistic the options need; for the result see `check_action_stats`.

    Raises:
        StatsError: naming the statistics that are missing, of the wrong shape, NaN, out of order, or of absolute
            actions with ``use_relative_actions``.
    """
    actions = check_action_stats(config, stats)
    if config.state_in_prompt:
        check_state_stats(config, stats)
    check_relative_stats(config, stats)
    return actions


def check_action_stats(config: VLA0Config, stats: Stats | None, saved_in: Path | None = None) -> ActionRange:
    """Check that statistics can normalise actions.

    Args:
        config: with its features.
        stats: by feature and name.
        saved_in: the file of the checkpoint that has them; None for a data set's.

    Returns:
        The range that becomes [-1, 1].

    Raises:
        StatsError: naming the statistics that are missing, of the wrong shape, NaN, or out of order; or if no
            dimension ever changes.
    """
    mode = config.normalization_mapping["ACTION"]
    low, high = _check_range(stats, ACTION, mode, config.action_dim, saved_in)
    if low == high:
        low_key, high_key = ENDS_OF_MODE[mode]
        raise StatsError(
            f"the action statistics say that nothing ever moves: {low_key} and {high_key} are both {low}, so the robot "
            f"would be sent these numbers whatever the policy answers. {_repair(saved_in)} If they are right, "
            "record data in which the robot moves."
        )
    return ActionRange(torch.tensor(low), torch.tensor(high))


def warn_about_constant_actions(config: VLA0Config, actions: ActionRange) -> None:
    """Name the dimensions of an action that the policy can never move."""
    if constant := [i for i, width in enumerate(actions.span.tolist()) if width == 0]:
        logger.warning(
            "action: dimension(s) %s never change in the training data, so the policy will never move them",
            name_dimensions(constant, config.action_feature_names),
        )


def check_state_stats(config: VLA0Config, stats: Stats | None, saved_in: Path | None = None) -> None:
    """Check that the statistics can normalise the state in the prompt, and log its dimensions that never change.

    Raises:
        StatsError: naming the statistics that are missing, of the wrong shape, NaN, or out of order.
    """
    mode = config.normalization_mapping["STATE"]
    low, high = _check_range(stats, OBS_STATE, mode, config.prompt_state_dim, saved_in)
    if constant := [i for i, (a, b) in enumerate(zip(low, high, strict=True)) if a == b]:
        logger.warning(
            "state_in_prompt: dimension(s) %s of observation.state never change in the dataset; where a robot differs "
            "in them, the prompt will say 0 or %d",
            constant,
            config.n_bins,
        )


def _check_range(
    stats: Stats | None, key: str, mode: NormalizationMode, size: int, saved_in: Path | None
) -> tuple[list[float], list[float]]:
    """Return the two ends of a key's range, each with ``size`` finite values."""
    one = key.rpartition(".")[2]
    low_key, high_key = ENDS_OF_MODE[mode]
    given = (stats or {}).get(key)
    if given is None or low_key not in given or high_key not in given:
        raise StatsError(
            f"{one}s cannot be normalised: {mode.value} needs the statistics {low_key!r} and {high_key!r} of {key!r}, "
            f"got {missing_stats(stats, key)}. {_add_missing(stats, key, mode, saved_in)}"
        )
    low = torch.as_tensor(given[low_key], dtype=torch.float32).flatten().tolist()
    high = torch.as_tensor(given[high_key], dtype=torch.float32).flatten().tolist()
    if len(low) != size or len(high) != size:
        raise StatsError(
            f"the {one} statistics {low_key!r}/{high_key!r} have {len(low)}/{len(high)} values, but the {one} has "
            f"{size} dimensions: they are of another robot, or out of date. {_repair(saved_in)}"
        )
    bad = [
        i
        for i, (a, b) in enumerate(zip(low, high, strict=True))
        if not (math.isfinite(a) and math.isfinite(b)) or a > b
    ]
    if bad:
        raise StatsError(
            f"the {one} statistics are unusable in dimensions {bad}: {low_key}={low}, "
            f"{high_key}={high}; expected finite values with {low_key} <= {high_key} (NaN in the data?). "
            f"{_repair(saved_in)}"
        )
    return low, high


def missing_stats(stats: Stats | None, key: str) -> str:
    """Say which statistics there are instead of those of ``key``."""
    if not stats:
        return "no statistics at all"
    return (
        str(sorted(stats[key]))
        if key in stats
        else f"none of {key!r}, only of {sorted(stats.keys() - DEFAULT_FEATURES.keys())}"
    )


def similar_keys(stats: Stats | None, key: str) -> list[str]:
    """Return the keys that look like another spelling of ``key``, such as ``actions`` or ``so100.buffer.action``."""
    one = key.rpartition(".")[2]
    return sorted(k for k in stats or {} if k != key and k.rpartition(".")[2].lower() in (one, f"{one}s"))


def _add_missing(stats: Stats | None, key: str, mode: NormalizationMode, saved_in: Path | None) -> str:
    """Say how statistics that are missing are added."""
    if saved_in is None and not stats:
        return f"Load a trained policy with --policy.path=..., or compute the data set's: `{RECOMPUTE}`."
    if saved_in is None and key in (stats or {}) and mode is not NormalizationMode.MIN_MAX:
        return f"Add them: `{_ADD_QUANTILES}`."
    similar = similar_keys(stats, key) if key not in (stats or {}) else []
    rename = f"If {similar[0]!r} is meant, rename it to {key!r} there. " if len(similar) == 1 else ""
    state = (
        " A state of another name has to be renamed in the data set, because --rename_map renames no statistics "
        "(LeRobot 0.6.1); or train a policy with state_in_prompt=false."
        if key == OBS_STATE and saved_in is None
        else ""
    )
    return f"{rename}{_repair(saved_in)}{state}"


def _repair(saved_in: Path | None) -> str:
    """Say how statistics that are wrong are made right."""
    if saved_in is None:
        return f"Recompute the data set's statistics: `{RECOMPUTE}`."
    return f"They are in the state_file of {saved_in}: copy the whole checkpoint again, as its training wrote it."


def name_dimensions(dimensions: Iterable[int], names: list[str] | None) -> str:
    """Return dimensions with their names, if they have any.

    >>> name_dimensions([0, 2], ["x.pos", "y.pos", "gripper.pos"])
    '0 (x.pos), 2 (gripper.pos)'
    """
    return ", ".join(f"{i} ({names[i]})" if names and i < len(names) else str(i) for i in dimensions)


def check_relative_stats(config: VLA0Config, stats: Stats | None) -> None:
    """Check that the action's statistics are of relative actions exactly if the policy's actions are relative.

    Their counts show the difference. Statistics of absolute actions count every frame once, as those of the state do.
    LeRobot's statistics of relative actions count ``chunk_size`` values for every frame that is followed by a whole
    chunk. Without counts, and for chunks of one step, nothing is checked.

    Raises:
        StatsError: with ``use_relative_actions`` and statistics of absolute actions.
    """
    actions, states = (_count(stats, key) for key in (ACTION, OBS_STATE))
    if actions is None or states is None or config.chunk_size == 1:
        return
    if config.use_relative_actions and actions == states:
        raise StatsError(
            f"use_relative_actions=True, but the dataset's action statistics are of absolute actions (they count "
            f"{actions} actions for {states} states, every frame once). Train on a copy with those of relative "
            f"actions: {recompute_command(config)}"
        )
    if not config.use_relative_actions and actions != states:
        logger.warning(
            "the dataset's action statistics count %d actions for %d states: they look like those of relative actions, "
            "but use_relative_actions=False. Set it, or recompute the statistics without --operation.relative_action.",
            actions,
            states,
        )


def check_relative_horizon(config: VLA0Config, stats: Stats | None, dataset_meta: Any) -> None:
    """Warn if statistics of relative actions were computed for chunks of another length.

    Offsets grow along a chunk: the range of longer chunks wastes bins, and that of shorter ones clamps actions.
    Nothing is checked if ``dataset_meta`` (LeRobot's) does not hold the episodes' lengths.
    """
    episodes = getattr(dataset_meta, "episodes", None)
    counted = _count(stats, ACTION)
    if not config.use_relative_actions or episodes is None or counted is None:
        return
    chunk = config.chunk_size
    expected = chunk * sum(max(0, int(length) - chunk + 1) for length in episodes["length"])
    if counted != expected:
        logger.warning(
            "the dataset's statistics of relative actions count %d offsets, where chunks of chunk_size=%d make %d: "
            "they were computed for another length or other episodes, so bins are wasted or actions clamped. "
            "Recompute: %s",
            counted,
            chunk,
            expected,
            recompute_command(config),
        )


def recompute_command(config: VLA0Config) -> str:
    """Return the LeRobot command that computes the statistics of this policy's relative actions."""
    return (
        "lerobot-edit-dataset --repo_id=NAME --new_repo_id=NAME_relative --operation.type=recompute_stats "
        f"--operation.relative_action=true --operation.chunk_size={config.chunk_size} "
        f"--operation.relative_exclude_joints='{json.dumps(config.relative_exclude_joints)}'"
    )


def _count(stats: Stats | None, key: str) -> int | None:
    given = (stats or {}).get(key, {}).get("count")
    return None if given is None else int(torch.as_tensor(given).flatten()[0])
