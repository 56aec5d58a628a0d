"""Reads how a checkpoint's processors normalise, and checks that it fits the policy's options.

LeRobot's steps leave a value as it is if its statistics are missing, and take their modes from their own file, not from
the policy's options. Both would send a robot wrong numbers in silence, so they are found when the policy is loaded.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lerobot.configs.types import NormalizationMode
from lerobot.utils.constants import (
    ACTION,
    OBS_STATE,
    POLICY_POSTPROCESSOR_DEFAULT_NAME,
    POLICY_PREPROCESSOR_DEFAULT_NAME,
)
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lerobot_policy_vla0.dataset_stats import ENDS_OF_MODE, ActionRange, check_action_stats, check_state_stats
from lerobot_policy_vla0.errors import CheckpointError, StatsError

if TYPE_CHECKING:
    from lerobot_policy_vla0.configuration_vla0 import VLA0Config


@dataclass(frozen=True)
class SavedNormalizer:
    """The normaliser or un-normaliser of a saved processor.

    Attributes:
        file: the processor's JSON file.
        features: the keys that it converts, besides the action.
        modes: by kind of feature, ``ACTION`` or ``STATE``.
        stats: by feature and name.
    """

    file: Path
    features: list[str]
    modes: dict[str, NormalizationMode]
    stats: dict[str, dict[str, Tensor]]

    def mode(self, kind: str) -> NormalizationMode:
        """Return the mode of a kind of feature; IDENTITY if it has none."""
        return self.modes.get(kind, NormalizationMode.IDENTITY)


def read_normalizers(folder: Path) -> tuple[SavedNormalizer | None, SavedNormalizer | None]:
    """Return the normaliser of a checkpoint's pre-processor and the un-normaliser of its post-processor.

    Each is None if the checkpoint does not have that processor.

    Raises:
        CheckpointError: if a file cannot be read, or a processor does not normalise exactly once.
    """
    return (
        _read(folder / f"{POLICY_PREPROCESSOR_DEFAULT_NAME}.json", "normalizer_processor"),
        _read(folder / f"{POLICY_POSTPROCESSOR_DEFAULT_NAME}.json", "unnormalizer_processor"),
    )


def _read(file: Path, name: str) -> SavedNormalizer | None:
    if not file.is_file():
        return None
    try:
        entries = [
            entry for entry in json.loads(file.read_text(encoding="utf-8"))["steps"] if _key(entry) == name
        ]
        if len(entries) != 1:
            raise CheckpointError(
                f"{file} has {len(entries)} steps {name!r}, expected one. Copy the whole checkpoint again."
            )
        options: dict[str, Any] = entries[0]["config"]
        stored = load_file(file.parent / entries[0]["state_file"]) if "state_file" in entries[0] else {}
        modes = {kind: NormalizationMode(mode) for kind, mode in options["norm_map"].items()}
        features = list(options["features"])
    except (OSError, json.JSONDecodeError, KeyError, SafetensorError) as error:
        raise CheckpointError(
            f"the step {name!r} of {file} cannot be read ({type(error).__name__}: {error}). Copy the whole checkpoint "
            "again."
        ) from error
    stats: dict[str, dict[str, Tensor]] = {}
    for flat, tensor in stored.items():
        key, _, statistic = flat.rpartition(".")
        stats.setdefault(key, {})[statistic] = tensor
    return SavedNormalizer(file, features, modes, stats)


def _key(entry: dict[str, Any]) -> str:
    """Return the name by which LeRobot overrides a step."""
    return str(entry.get("registry_name") or entry.get("class", "").rpartition(".")[2])


def check_normalizers(
    config: VLA0Config, before: SavedNormalizer | None, after: SavedNormalizer | None
) -> ActionRange | None:
    """Check that saved processors convert what this policy needs, the way its options say.

    Args:
        config: the options the policy acts with.
        before: the pre-processor's normaliser.
        after: the post-processor's un-normaliser.

    Returns:
        As `check_action_stats`; None without ``after``.

    Raises:
        CheckpointError: if a mode is not that of the options, or the processors do not belong together.
        StatsError: if statistics are missing, of another key or another size, or unusable.
    """
    actions = None
    if after is not None:
        _check_mode(config, after, "ACTION", ACTION)
        actions = check_action_stats(config, after.stats, after.file)
    if before is None:
        return actions
    if config.state_in_prompt:
        _check_mode(config, before, "STATE", OBS_STATE)
        check_state_stats(config, before.stats, before.file)
        if OBS_STATE not in before.features:
            raise CheckpointError(
                f"{before.file} converts the features {before.features}, and state_in_prompt=True needs {OBS_STATE!r} "
                "among them. Copy the whole checkpoint again, as its training wrote it."
            )
    if config.use_relative_actions:
        _check_mode(config, before, "ACTION", ACTION)
        check_action_stats(config, before.stats, before.file)
        if after is not None and (differ := _differing(config, before, after)):
            raise StatsError(
                f"{before.file} and {after.file} have different statistics {differ} of {ACTION!r}, and "
                "use_relative_actions=True needs the same in both. They are of different checkpoints: copy the whole "
                "checkpoint again."
            )
    return actions


def _check_mode(config: VLA0Config, saved: SavedNormalizer, kind: str, key: str) -> None:
    wanted = config.normalization_mapping[kind]
    if saved.mode(kind) is not wanted:
        raise CheckpointError(
            f"{saved.file} converts {key!r} with {saved.mode(kind).value} (its norm_map has "
            f"{sorted(saved.modes)}), but normalization_mapping[{kind!r}] is {wanted.value}. LeRobot uses the file, so "
            "the numbers would mean something else than in training. Leave --policy.normalization_mapping as the "
            "checkpoint has it, or train with the other mode."
        )


def _differing(config: VLA0Config, before: SavedNormalizer, after: SavedNormalizer) -> list[str]:
    """Return which ends of the action's range differ."""
    ends = ENDS_OF_MODE[config.normalization_mapping["ACTION"]]
    return [end for end in ends if not torch.equal(before.stats[ACTION][end], after.stats[ACTION][end])]
