"""Makes a policy folder of an export again, bit for bit: the backbone's weights, and what the robot's folder has."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub.constants import SAFETENSORS_SINGLE_FILE

from lerobot_policy_vla0.backbone.loading import VLM_FOLDER
from lerobot_policy_vla0.checkpoints.exported import OWN_TENSORS, ROBOT_FOLDER
from lerobot_policy_vla0.checkpoints.files import read_config
from lerobot_policy_vla0.checkpoints.policy_folder import (
    build_skeleton,
    check_written,
    left_out,
    match_tensors,
    total_bytes,
)
from lerobot_policy_vla0.checkpoints.weight_stream import ShardReader, find_shards, write_stream
from lerobot_policy_vla0.configuration_vla0 import VLA0Config
from lerobot_policy_vla0.errors import CheckpointError
from lerobot_policy_vla0.modeling_vla0 import VLA0Policy
from lerobot_policy_vla0.output_files import new_folder, require_space
from lerobot_policy_vla0.tools.importing.tensors import policy_name

logger = logging.getLogger(__name__)


def import_export(export: Path, out: Path) -> VLA0Config:
    """Write the policy folder that an export was made from.

    Args:
        export: a folder that ``vla0 export`` wrote.
        out: the folder to make.

    Returns:
        The policy's config.

    Raises:
        OutputError: if ``out`` is taken, or the disk is too small or not writable.
        CheckpointError: if the export lacks files or tensors, or is of an adapter alone.
    """
    robot = export / ROBOT_FOLDER
    if (export / "adapter_config.json").is_file():
        raise CheckpointError(
            f"{export} is the export of an adapter alone, without the weights of its base, so it makes no policy. "
            "Import an export that was made without --adapter, or use the adapter's own checkpoint."
        )
    if not (robot / OWN_TENSORS).is_file():
        raise CheckpointError(
            f"{robot} has no {OWN_TENSORS}; it holds {sorted(path.name for path in robot.iterdir())}. Copy or download "
            "the whole export again."
        )
    config: Any = read_config(robot)
    skeleton = build_skeleton(VLA0Policy, config, robot / VLM_FOLDER)
    own = skeleton.state_dict().keys()  # the backbone's names in a file are others
    with ShardReader([*find_shards(export), robot / OWN_TENSORS]) as reader:
        tensors = match_tensors(
            skeleton, reader, export, rename=lambda name: name if name in own else policy_name(name)
        )
        require_space(out, total_bytes(tensors))
        with new_folder(out) as folder:
            shutil.copytree(robot, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(OWN_TENSORS))
            logger.info("copying %d tensors from %s", len(tensors), export)
            write_stream(folder / SAFETENSORS_SINGLE_FILE, tensors, left_out(skeleton))
            check_written(VLA0Policy, folder, tensors, out=out, processors=True)
    assert isinstance(config, VLA0Config)
    return config
