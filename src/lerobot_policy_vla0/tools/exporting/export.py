"""Writes a policy as a folder that inference engines load, with the robot's part beside it.

The weights are copied one tensor at a time. The folder appears whole or not at all.
"""

from __future__ import annotations

import logging
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.constants import SAFETENSORS_SINGLE_FILE

from lerobot_policy_vla0.backbone.loading import VLM_FOLDER
from lerobot_policy_vla0.checkpoints import adapters
from lerobot_policy_vla0.checkpoints.exported import OWN_TENSORS, ROBOT_FOLDER
from lerobot_policy_vla0.checkpoints.files import (
    check_fixed_options,
    current_name,
    read_config,
    resolve_checkpoint,
)
from lerobot_policy_vla0.checkpoints.policy_folder import build_skeleton, match_tensors, total_bytes
from lerobot_policy_vla0.checkpoints.saved_normalizers import check_normalizers, read_normalizers
from lerobot_policy_vla0.checkpoints.weight_stream import ShardReader, TensorSource, find_shards, write_stream
from lerobot_policy_vla0.configuration_vla0 import VLA0Config
from lerobot_policy_vla0.modeling_vla0 import VLA0Policy
from lerobot_policy_vla0.output_files import new_folder, refuse_existing, require_space
from lerobot_policy_vla0.tools.exporting.model_files import write_model_files
from lerobot_policy_vla0.tools.exporting.protocol import write_protocol
from lerobot_policy_vla0.tools.exporting.weights import split_tensors
from lerobot_policy_vla0.tools.importing.tensors import plan_weights
from lerobot_policy_vla0.tools.merging import converted, copy_processors, open_merged, require_processors

logger = logging.getLogger(__name__)

#: Of a policy folder, besides the processors and the backbone's description.
_COPIED = ("config.json", "train_config.json", "README.md")


def export_policy(source: str | Path, out: Path, *, dtype: str | None = None) -> VLA0Config:
    """Write a policy for inference engines; an adapter is merged into its base.

    Args:
        source: a policy folder or Hub repo.
        out: the folder to make.
        dtype: ``float32`` or ``bfloat16``; None keeps what is stored (of a merged adapter: float32).

    Returns:
        The exported policy's config.

    Raises:
        OutputError: if ``out`` is taken, or the disk is too small or not writable.
        CheckpointError: if the source is no policy or incomplete, or cannot be merged; if what was written does not
            fit together. Nothing is left at ``out`` then.
    """
    refuse_existing(out)
    folder = resolve_checkpoint(source)
    stored: Any = read_config(folder)
    check_fixed_options(stored, stored)  # it is of a VLA-0 policy
    require_processors(folder)
    with ExitStack() as files:
        merged = adapters.is_adapter(folder)
        config, skeleton, tensors = open_merged(folder, files) if merged else _open(folder, stored, files)
        wanted = getattr(torch, dtype or "float32") if dtype or merged else None
        backbone, own = split_tensors(skeleton, tensors)
        if wanted is not None:
            backbone = {name: converted(tensor, wanted) for name, tensor in backbone.items()}
        require_space(out, total_bytes(backbone))
        with new_folder(out) as partial:
            robot = partial / ROBOT_FOLDER
            robot.mkdir()
            copy_processors(folder, robot)
            if merged:
                config._save_pretrained(robot)
                skeleton.vlm.save_description(robot / VLM_FOLDER)
            else:
                for name in _COPIED:
                    if (folder / name).is_file():
                        shutil.copyfile(folder / name, robot / name)
                shutil.copytree(folder / VLM_FOLDER, robot / VLM_FOLDER)
            write_stream(robot / OWN_TENSORS, own, {})
            write_client_files(partial, skeleton, config)
            precision = backbone["model.embed_tokens.weight"].dtype
            write_model_files(partial, skeleton, config, robot / VLM_FOLDER, precision)
            write_stream(partial / SAFETENSORS_SINGLE_FILE, backbone, {"format": "pt"})
            _check_complete(partial, config)
    logger.info("exported %s to %s", source, out)
    return config


def _open(
    folder: Path, config: VLA0Config, files: ExitStack
) -> tuple[VLA0Config, VLA0Policy, dict[str, TensorSource]]:
    """Open a policy folder with all weights; returns as `open_merged` does."""
    shards = find_shards(folder)
    skeleton = build_skeleton(VLA0Policy, config, folder / VLM_FOLDER)
    reader = files.enter_context(ShardReader(shards))
    return config, skeleton, match_tensors(skeleton, reader, folder, rename=current_name)


def write_client_files(
    folder: Path, skeleton: VLA0Policy, config: VLA0Config, *, adapter: dict[str, Any] | None = None
) -> None:
    """Write what a client has to know, from the processors in the robot's folder, which are checked.

    ``adapter`` says what has to be served with an adapter that is exported alone.
    """
    before, after = read_normalizers(folder / ROBOT_FOLDER)
    check_normalizers(config, before, after)
    stats = {**(before.stats if before else {}), **(after.stats if after else {})}
    tokens = config.image_tokens(skeleton.vlm.patch_size, skeleton.vlm.merge_size)
    write_protocol(folder, config, stats, image_tokens=tokens, adapter=adapter)


def _check_complete(folder: Path, config: VLA0Config) -> None:
    """Check that the written weights are exactly those of the model that the written config describes."""
    skeleton = build_skeleton(VLA0Policy, config, folder)
    with ShardReader([folder / SAFETENSORS_SINGLE_FILE]) as reader:
        plan_weights(skeleton, reader, folder)
