"""Checks that a data set's statistics can normalise actions and state, and fit the options.

LeRobot's normaliser leaves a key without statistics unchanged, and never compares statistics with options. Here a
mistake of this kind is an error, or a warning if it is not certain.
"""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lerobot.configs.types import NormalizationMode
from lerobot.processor import PolicyProcessorPipeline, UnnormalizerProcessorStep
from lerobot.utils.constants import ACTION, OBS_STATE, POLICY_POSTPROCESSOR_DEFAULT_NAME
from torch import Tensor

from lerobot_policy_vla0.errors import StatsError

if TYPE_CHECKING:
    from lerobot_policy_vla0.configuration_vla0 import VLA0Config

logger = logging.getLogger(__name__)

_STATS_OF_MODE = {
    NormalizationMode.MIN_MAX: ("min", "max"),
    NormalizationMode.QUANTILES: ("q01", "q99"),
    NormalizationMode.QUANTILE10: ("q10", "q90"),
}


def check_stats(config: VLA0Config, stats: dict[str, dict[str, Any]] | None) -> Tensor:
    """Check every statistic the options need; for the result see `check_action_stats`.

    Raises:
        StatsError: naming the statistics that are missing, of the wrong shape, NaN, out of order, or of absolute
            actions with ``use_relative_actions``.
    """
    span = check_action_stats(config, stats)
    if config.state_in_prompt:
        check_state_stats(config, stats)
    check_relative_stats(config, stats)
    return span


def check_action_stats(config: VLA0Config, stats: dict[str, dict[str, Any]] | None) -> Tensor:
    """Check that the dataset's statistics can normalise actions.

    Returns:
        ``(D,)`` float32: width of the normalised range [-1, 1] in the robot's units, at least 0.

    Raises:
        StatsError: naming the statistics that are missing, of the wrong shape, NaN, or out of order.
    """
    low, high = _check_range(
        stats,
        ACTION,
        config.normalization_mapping["ACTION"],
        config.action_dim,
        names=("actions", "action"),
        otherwise=", or load a trained checkpoint with --policy.path=...",
    )
    return torch.tensor(high) - torch.tensor(low)


def read_action_stats(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the statistics with which a checkpoint's post-processor converts actions to the robot's units.

    Raises:
        StatsError: if the checkpoint has no post-processor.
    """
    name = f"{POLICY_POSTPROCESSOR_DEFAULT_NAME}.json"
    if not (folder / name).is_file():
        raise StatsError(
            f"{folder} has no {name}, so the range of its actions in the robot's units is not known; it holds "
            f"{sorted(path.name for path in folder.iterdir())}. Copy the whole checkpoint, or give max_action_step as "
            "fractions with max_action_step_unit='range'."
        )
    pipeline: PolicyProcessorPipeline[Any, Any] = PolicyProcessorPipeline.from_pretrained(
        folder, config_filename=name
    )
    stats: dict[str, dict[str, Any]] = {}
    for step in pipeline.steps:
        if isinstance(step, UnnormalizerProcessorStep):
            stats = dict(step.stats or {})
    return stats


def check_state_stats(config: VLA0Config, stats: dict[str, dict[str, Any]] | None) -> None:
    """Check that the statistics can normalise the state in the prompt, and log its dimensions that never change.

    Raises:
        StatsError: as `check_action_stats`.
    """
    low, high = _check_range(
        stats,
        OBS_STATE,
        config.normalization_mapping["STATE"],
        config.prompt_state_dim,
        names=("states", "state"),
        otherwise=", or set state_in_prompt=false",
    )
    if constant := [i for i, (a, b) in enumerate(zip(low, high, strict=True)) if a == b]:
        logger.warning(
            "state_in_prompt: dimension(s) %s of observation.state never change in the dataset; where a robot differs "
            "in them, the prompt will say 0 or %d",
            constant,
            config.n_bins,
        )


def _check_range(
    stats: dict[str, dict[str, Any]] | None,
    key: str,
    mode: NormalizationMode,
    size: int,
    *,
    names: tuple[str, str],
    otherwise: str,
) -> tuple[list[float], list[float]]:
    """Return the two ends of a key's range, each with ``size`` finite values."""
    several, one = names
    low_key, high_key = _STATS_OF_MODE[mode]
    given = (stats or {}).get(key)
    if given is None or low_key not in given or high_key not in given:
        have = sorted(given) if given is not None else "no statistics at all"
        raise StatsError(
            f"{several} cannot be normalised: {mode.value} needs the {one} statistics {low_key!r} and "
            f"{high_key!r}, got {have}. Train or load with a dataset whose meta/stats.json has them"
            + (
                " (`python -m lerobot.scripts.augment_dataset_quantile_stats` adds quantiles)."
                if mode is not NormalizationMode.MIN_MAX
                else otherwise
            )
        )
    low = torch.as_tensor(given[low_key], dtype=torch.float32).flatten().tolist()
    high = torch.as_tensor(given[high_key], dtype=torch.float32).flatten().tolist()
    if len(low) != size or len(high) != size:
        raise StatsError(
            f"the {one} statistics {low_key!r}/{high_key!r} have {len(low)}/{len(high)} values, but the {one} has "
            f"{size} dimensions. Recompute the dataset's statistics."
        )
    bad = [
        i
        for i, (a, b) in enumerate(zip(low, high, strict=True))
        if not (math.isfinite(a) and math.isfinite(b)) or a > b
    ]
    if bad:
        raise StatsError(
            f"the {one} statistics are unusable in dimensions {bad}: {low_key}={low}, "
            f"{high_key}={high}; expected finite values with {low_key} <= {high_key}. Repair the dataset "
            f"(NaN {several}?) and recompute its statistics."
        )
    return low, high


def check_relative_stats(config: VLA0Config, stats: dict[str, dict[str, Any]] | None) -> None:
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


def check_relative_horizon(
    config: VLA0Config, stats: dict[str, dict[str, Any]] | None, dataset_meta: Any
) -> None:
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


def _count(stats: dict[str, dict[str, Any]] | None, key: str) -> int | None:
    given = (stats or {}).get(key, {}).get("count")
    return None if given is None else int(torch.as_tensor(given).flatten()[0])
