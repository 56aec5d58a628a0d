"""Writes a LoRA adapter alone, in PEFT's layout, for engines that put adapters on a model they already serve.

Engines take plain LoRA on the language model's linear layers. They leave out what they do not know, some without an
error, and the robot would move by another model. So everything else is refused here.
"""

from __future__ import annotations

import dataclasses
import logging
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lerobot_policy_vla0.backbone.loading import VLM_FOLDER
from lerobot_policy_vla0.checkpoints import adapters
from lerobot_policy_vla0.checkpoints.exported import OWN_TENSORS, ROBOT_FOLDER
from lerobot_policy_vla0.checkpoints.files import check_fixed_options, read_config, resolve_checkpoint
from lerobot_policy_vla0.checkpoints.weight_stream import TensorSource, shown, write_stream
from lerobot_policy_vla0.configuration_vla0 import TINY, VLA0Config
from lerobot_policy_vla0.errors import CheckpointError, ExportError
from lerobot_policy_vla0.output_files import new_folder, refuse_existing
from lerobot_policy_vla0.tools.exporting.export import write_client_files
from lerobot_policy_vla0.tools.exporting.model_files import write_generation_config, write_processor
from lerobot_policy_vla0.tools.merging import converted, copy_processors, open_merged, require_processors

logger = logging.getLogger(__name__)

ADAPTER_WEIGHTS = "adapter_model.safetensors"

_PEFT = "base_model.model."
#: Where the engine's model is in a policy; the names in it are those of the loaded transformers model.
_BACKBONE = f"{_PEFT}vlm.model."
_LANGUAGE_LAYERS = f"{_BACKBONE}model.language_model.layers."

#: Options of PEFT's LoRA that an engine takes, or that say only which layers were chosen or how training began.
_TAKEN = {
    *(
        "r",
        "lora_alpha",
        "use_rslora",
        "target_modules",
        "exclude_modules",
        "layers_to_transform",
        "layers_pattern",
    ),
    *("lora_dropout", "inference_mode", "base_model_name_or_path", "revision", "auto_mapping", "task_type"),
    *("peft_type", "peft_version", "megatron_core", "qalora_group_size"),
}
#: Other ways to begin change the base's weights, which an engine does not.
_STARTS = (True, False, "gaussian")


def export_adapter(source: str | Path, out: Path, *, dtype: str | None = None) -> VLA0Config:
    """Write an adapter for an engine that serves its base.

    Args:
        source: a checkpoint folder or Hub repo with an adapter.
        out: the folder to make.
        dtype: ``float32`` or ``bfloat16``; None keeps what is stored.

    Returns:
        The policy's config.

    Raises:
        OutputError: if ``out`` is taken, or the disk is not writable.
        CheckpointError: if the source is no adapter, incomplete, or does not fit its base.
        ExportError: naming the parts of the adapter that engines do not take.
    """
    refuse_existing(out)
    folder = resolve_checkpoint(source)
    stored: Any = read_config(folder)
    check_fixed_options(stored, stored)  # it is of a VLA-0 policy
    if not adapters.is_adapter(folder):
        raise CheckpointError(
            f"{source} has no {adapters.ADAPTER_CONFIG}: it is no adapter but a policy with all weights. Leave "
            "--adapter out."
        )
    require_processors(folder)
    base, revision = adapters.base_of(folder)
    described = _plain_lora(folder, base)
    with ExitStack() as files:
        config, skeleton, _ = open_merged(folder, files)  # also checks that the adapter fits its base
    layers, own = _split(adapters.adapter_tensors(folder), folder)
    tensors = {name: _source(tensor) for name, tensor in layers.items()}
    if dtype is not None:
        tensors = {name: converted(tensor, getattr(torch, dtype)) for name, tensor in tensors.items()}
    described.target_modules = sorted({name.removeprefix(_PEFT).rsplit(".lora_", 1)[0] for name in layers})
    with new_folder(out) as partial:
        robot = partial / ROBOT_FOLDER
        robot.mkdir()
        copy_processors(folder, robot)
        config._save_pretrained(robot)
        skeleton.vlm.save_description(robot / VLM_FOLDER)
        write_stream(robot / OWN_TENSORS, {name: _source(tensor) for name, tensor in own.items()}, {})
        bare = base == config.vlm_model_name
        serve = "the base as it is, with the adapter" if bare else "an export of the base, with the adapter"
        note = {"base": base, "revision": revision, "serve": serve}
        write_client_files(partial, skeleton, config, adapter=note)
        write_generation_config(partial, skeleton, config)
        write_processor(partial, skeleton, config)
        described.save_pretrained(str(partial))
        write_stream(partial / ADAPTER_WEIGHTS, tensors, {"format": "pt"})
    logger.info("exported the adapter %s to %s", source, out)
    return config


def _plain_lora(folder: Path, base: str) -> Any:
    """Return PEFT's config of an adapter as an engine takes it; it still names no layers.

    Raises:
        ExportError: naming the options that an engine does not take.
    """
    from peft import LoraConfig, PeftConfig

    config: Any = PeftConfig.from_pretrained(str(folder))
    fix = "Leave --adapter out: the adapter is then merged into its base."
    if base == TINY:
        raise ExportError(
            f"{folder} is an adapter on vlm_model_name={TINY!r}, which is made from a seed: there are no files of it "
            f"that an engine could serve. {fix}"
        )
    if not isinstance(config, LoraConfig):
        raise ExportError(
            f"{folder} is an adapter of type {config.peft_type.value}, and engines take LoRA only. {fix}"
        )
    plain = LoraConfig()
    other = {
        item.name: getattr(config, item.name)
        for item in dataclasses.fields(config)
        if item.name not in _TAKEN | {"modules_to_save", "init_lora_weights"}
        and getattr(config, item.name) != getattr(plain, item.name)
    }
    whole = [name for name in config.modules_to_save or () if name != adapters.AUGMENTATION]
    if whole:
        other["modules_to_save"] = whole
    if config.init_lora_weights not in _STARTS:
        other["init_lora_weights"] = config.init_lora_weights
    if other:
        given = ", ".join(f"{name}={value!r}" for name, value in sorted(other.items()))
        raise ExportError(f"the adapter in {folder} has {given}, which engines do not take. {fix}")
    return LoraConfig(
        r=config.r,
        lora_alpha=config.lora_alpha,
        use_rslora=config.use_rslora,
        base_model_name_or_path=config.base_model_name_or_path,
        revision=config.revision,
        inference_mode=True,
    )


def _split(tensors: dict[str, Tensor], folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Separate an adapter's layers, by the names that fit the backbone alone, from the policy's own tensors.

    Raises:
        ExportError: naming layers outside the language model, which engines leave out.
    """
    own_prefix = f"{_PEFT}{adapters.AUGMENTATION}."
    own = {
        name.removeprefix(_PEFT): tensor for name, tensor in tensors.items() if name.startswith(own_prefix)
    }
    rest = {name: tensor for name, tensor in tensors.items() if not name.startswith(own_prefix)}
    outside = [name for name in rest if not name.startswith(_LANGUAGE_LAYERS)]
    if outside:
        raise ExportError(
            f"the adapter in {folder} has layers outside the language model: {shown(outside, 3)}. Engines leave such "
            "layers out, and the robot would move by another model. Leave --adapter out: the adapter is then merged "
            "into its base."
        )
    return {f"{_PEFT}{name.removeprefix(_BACKBONE)}": tensor for name, tensor in rest.items()}, own


def _source(tensor: Tensor) -> TensorSource:
    return TensorSource(tuple(tensor.shape), tensor.dtype, lambda: tensor)
