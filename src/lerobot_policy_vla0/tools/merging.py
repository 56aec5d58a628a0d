"""Adapters merged into a policy of their own: read from files, added and written one tensor at a time.

Neither the base nor the merged policy is ever in memory, so that a policy of any size is merged on a small machine. The
arithmetic is PEFT's, a layer at a time and in float32 (`adapters.merged_tensors`).
"""

from __future__ import annotations

import json
import logging
import shutil
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.constants import SAFETENSORS_SINGLE_FILE
from huggingface_hub.errors import StrictDataclassError
from lerobot.utils.constants import POLICY_POSTPROCESSOR_DEFAULT_NAME, POLICY_PREPROCESSOR_DEFAULT_NAME
from torch import Tensor

from lerobot_policy_vla0.backbone.loading import VLM_FOLDER
from lerobot_policy_vla0.checkpoints import adapters
from lerobot_policy_vla0.checkpoints.files import (
    check_fixed_options,
    current_name,
    read_config,
    resolve_checkpoint,
)
from lerobot_policy_vla0.checkpoints.model_card import build_model_card
from lerobot_policy_vla0.checkpoints.policy_folder import (
    build_skeleton,
    check_written,
    left_out,
    match_tensors,
    plan_tensors,
    total_bytes,
)
from lerobot_policy_vla0.checkpoints.weight_stream import ShardReader, TensorSource, find_shards, write_stream
from lerobot_policy_vla0.configuration_vla0 import TINY, VLA0Config
from lerobot_policy_vla0.errors import CheckpointError
from lerobot_policy_vla0.modeling_vla0 import VLA0Policy
from lerobot_policy_vla0.output_files import new_folder, refuse_existing, require_space
from lerobot_policy_vla0.tools.importing.tensors import plan_weights

logger = logging.getLogger(__name__)

_PIPELINES = (POLICY_PREPROCESSOR_DEFAULT_NAME, POLICY_POSTPROCESSOR_DEFAULT_NAME)


def merge_adapter(source: str | Path, out: Path, *, save_dtype: str | None = None) -> Path:
    """Write an adapter and its base as one ordinary policy, which needs neither PEFT nor the base.

    Merged in float32 on the CPU, from the base in full precision even if the adapter was trained on 4 bits.

    Args:
        source: a checkpoint folder or Hub repo with an adapter.
        out: the folder to make.
        save_dtype: ``float32`` (as None) or ``bfloat16``, which rounds the merged weights.

    Returns:
        ``out``.

    Raises:
        OutputError: if ``out`` is taken, or the disk is too small or not writable.
        CheckpointError: if the source is no adapter or incomplete, or of a kind that cannot be merged; if what was
            written does not read back. Nothing is left at ``out`` then.
    """
    refuse_existing(out)
    folder = resolve_checkpoint(source)
    if not adapters.is_adapter(folder):
        raise CheckpointError(
            f"{source} has no {adapters.ADAPTER_CONFIG}: it is no adapter, so there is nothing to merge. It holds "
            f"{sorted(p.name for p in folder.iterdir())}."
        )
    require_processors(folder)
    with ExitStack() as files:
        written, skeleton, merged = open_merged(folder, files)
        dtype = getattr(torch, save_dtype or "float32")
        tensors = {name: converted(source, dtype) for name, source in merged.items()}
        require_space(out, total_bytes(tensors))
        with new_folder(out) as partial:
            written._save_pretrained(partial)
            skeleton.vlm.save_description(partial / VLM_FOLDER)
            copy_processors(folder, partial)
            build_model_card(
                written, dataset=_dataset_of(folder), license=written.license, tags=written.tags
            ).save(partial / "README.md")
            write_stream(partial / SAFETENSORS_SINGLE_FILE, tensors, left_out(skeleton))
            check_written(VLA0Policy, partial, tensors, out=out, processors=True)
    logger.info("merged %s into %s", source, out)
    return out


def open_merged(folder: Path, files: ExitStack) -> tuple[VLA0Config, VLA0Policy, dict[str, TensorSource]]:
    """Open an adapter merged into its base; nothing is computed before a tensor is read.

    Args:
        folder: the adapter's.
        files: keeps the files open.

    Returns:
        The config of the merged policy, the policy on the ``meta`` device, and its tensors: float32, and those that no
        adapter changed as they are stored.

    Raises:
        CheckpointError: as `merge_adapter`.
    """
    stored: Any = read_config(folder)
    config = replace(
        stored,
        device="cpu",
        param_dtype="float32",
        pretrained_path=None,
        use_peft=False,
        quantization=None,
        lora_vision=False,
    )
    description, tensors = _open_merged(folder, config, files)
    skeleton = build_skeleton(VLA0Policy, config, description)
    return replace(config, device=stored.device, param_dtype=stored.param_dtype), skeleton, tensors


def _open_merged(
    folder: Path, config: VLA0Config, files: ExitStack
) -> tuple[Path | None, dict[str, TensorSource]]:
    """Open an adapter and its base, which may be an adapter on a base, too.

    Args:
        folder: the adapter's.
        config: of the policy that comes out.
        files: keeps the files open.

    Returns:
        The folder with the backbone's description (None for the tiny one), and the tensors of the merged policy.
    """
    own: Any = read_config(folder)
    name, revision = adapters.base_of(folder)
    if name == own.vlm_model_name:
        description, tensors = _open_backbone(name, revision, config, files)
    else:
        base = resolve_checkpoint(name, revision=revision)
        check_fixed_options(read_config(base), config)
        if adapters.is_adapter(base):
            description, tensors = _open_merged(base, config, files)
        else:
            description = base / VLM_FOLDER
            reader = files.enter_context(ShardReader(find_shards(base)))
            skeleton = build_skeleton(VLA0Policy, config, description)
            tensors = match_tensors(skeleton, reader, base, rename=current_name)
    return description, adapters.merged_tensors(
        build_skeleton(VLA0Policy, config, description), tensors, folder
    )


def _open_backbone(
    name: str, revision: str | None, config: VLA0Config, files: ExitStack
) -> tuple[Path | None, dict[str, TensorSource]]:
    """Open the backbone that an adapter was trained on without a policy around it; returns as `_open_merged` does."""
    if name == TINY:  # has no files: it is made from its seed
        return None, plan_tensors(VLA0Policy(config), None, None)
    try:
        model = resolve_checkpoint(name, revision=revision)
        skeleton = build_skeleton(VLA0Policy, config, model)
    except (OSError, ValueError, TypeError, KeyError, StrictDataclassError) as error:
        raise CheckpointError(
            f"the adapter was trained on the backbone {name!r}, which could not be opened ({error}). If it is a folder "
            f"that moved, write where it is now into {adapters.ADAPTER_CONFIG} (base_model_name_or_path) and "
            "config.json (vlm_model_name) of the adapter; otherwise check the network and HF_HUB_OFFLINE."
        ) from error
    reader = files.enter_context(ShardReader(find_shards(model)))
    return model, plan_weights(skeleton, reader, model)


def converted(source: TensorSource, dtype: torch.dtype) -> TensorSource:
    """Return a weight in another precision; what is no weight stays as it is."""
    if not source.dtype.is_floating_point:
        return source

    def read() -> Tensor:
        return source.read().to(dtype)

    return TensorSource(source.shape, dtype, read)


def require_processors(folder: Path) -> None:
    """Refuse a checkpoint without its processors.

    Raises:
        CheckpointError: naming the files that are absent.
    """
    absent = [f"{name}.json" for name in _PIPELINES if not (folder / f"{name}.json").is_file()]
    if absent:
        raise CheckpointError(
            f"{folder} lacks {absent}, which hold the statistics a policy acts by. Use a checkpoint that "
            "lerobot-train saved."
        )


def copy_processors(folder: Path, out: Path) -> None:
    """Copy the files of a checkpoint's processors."""
    for name in _PIPELINES:
        for file in folder.glob(f"{name}*"):
            shutil.copyfile(file, out / file.name)


def _dataset_of(folder: Path) -> str | None:
    """Return the data set named by a checkpoint's training config, if there is one."""
    try:
        name = json.loads((folder / "train_config.json").read_text())["dataset"]["repo_id"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return str(name)
