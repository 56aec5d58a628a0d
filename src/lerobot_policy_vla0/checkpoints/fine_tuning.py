"""Checks that a data set fits the checkpoint that is trained further on it.

LeRobot keeps the inputs of a checkpoint and takes the statistics of the data set. It compares the cameras' names, and
nothing else.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
from lerobot.utils.constants import ACTION, OBS_STATE

from lerobot_policy_vla0.checkpoints.saved_normalizers import SavedNormalizer
from lerobot_policy_vla0.dataset_stats import ENDS_OF_MODE, RECOMPUTE, Stats
from lerobot_policy_vla0.errors import CameraError, StateError, StatsError
from lerobot_policy_vla0.observations.batches import rename_option

if TYPE_CHECKING:
    from lerobot_policy_vla0.configuration_vla0 import VLA0Config

logger = logging.getLogger(__name__)

#: Ranges that share less than this part of their union are other ranges.
_OVERLAP = 0.25


def check_dataset(config: VLA0Config, stats: Stats | None, meta: Any) -> None:
    """Check a data set against the features of a policy, before its weights are loaded.

    LeRobot does not say here whether ``--rename_map`` will rename the cameras. Only what no renaming can repair is an
    error; a renaming that is needed is logged.

    Args:
        config: with the checkpoint's features. For a new policy they are the data set's own.
        stats: the data set's.
        meta: LeRobot's ``LeRobotDatasetMetadata``.

    Raises:
        StatsError: if the data set has no statistics at all. LeRobot would go on with the checkpoint's.
        StateError: if its state has another size.
        CameraError: if it has fewer cameras than the policy reads.
    """
    if not stats:
        raise StatsError(
            "the data set has no statistics (meta/stats.json), and a checkpoint's are of other data. Compute them: "
            f"`{RECOMPUTE}`."
        )
    state, trained = meta.features.get(OBS_STATE), config.robot_state_feature
    if state is not None and trained is not None and tuple(state["shape"]) != tuple(trained.shape):
        raise StateError(
            f"the data set's {OBS_STATE} has {state['shape'][0]} values {state.get('names') or ''}, the checkpoint was "
            f"trained with {trained.shape[0]}: they are of different robots, and the policy could not be run on the "
            "data set's. Use data of the robot it was trained for, or train a new policy with --policy.type=vla0."
        )
    there = list(meta.camera_keys)
    missing = [key for key in config.camera_keys if key not in there]
    if len(there) < len(config.camera_keys):
        raise CameraError(
            f"the checkpoint reads the cameras {config.camera_keys}, and the data set has only {there}. Use data with "
            "all of its cameras, or train a new policy with --policy.type=vla0."
        )
    if missing:
        others = [key for key in there if key not in config.camera_keys]
        logger.info(
            "the checkpoint reads the cameras %s, and the data set has %s: this needs %s",
            config.camera_keys,
            there,
            rename_option(missing, others),
        )


def warn_about_other_ranges(config: VLA0Config, saved: SavedNormalizer, stats: Stats) -> None:
    """Warn if a data set's actions have other ranges than those a checkpoint was trained on.

    Args:
        config: of the policy.
        saved: the checkpoint's un-normaliser.
        stats: the data set's, already checked.
    """
    ends = ENDS_OF_MODE[config.normalization_mapping["ACTION"]]
    before = [saved.stats.get(ACTION, {}).get(end) for end in ends]
    if before[0] is None or before[1] is None or before[0].numel() != config.action_dim:
        return
    old_low, old_high = (torch.as_tensor(value, dtype=torch.float32).flatten().cpu() for value in before)
    new_low, new_high = (torch.as_tensor(stats[ACTION][end], dtype=torch.float32).flatten() for end in ends)
    shared = (torch.minimum(old_high, new_high) - torch.maximum(old_low, new_low)).clamp_min(0)
    union = torch.maximum(old_high, new_high) - torch.minimum(old_low, new_low)
    other = (union > 0) & (shared < _OVERLAP * union)
    if 2 * int(other.sum()) > config.action_dim:
        names = config.action_feature_names or [f"dimension {i}" for i in range(config.action_dim)]
        logger.warning(
            "the data set's actions have other ranges than those the checkpoint was trained on: %s. The same number "
            "then means another position, and the policy has to learn it anew. If this is the same robot, check units "
            "(SO-100: --robot.use_degrees) and calibration.",
            ", ".join(
                f"{names[i]} {float(new_low[i]):.4g} to {float(new_high[i]):.4g} (checkpoint: {float(old_low[i]):.4g} "
                f"to {float(old_high[i]):.4g})"
                for i in other.nonzero()[:, 0].tolist()
            ),
        )
