"""Finds and reads the files of a saved policy: its config and its weights.

It is stricter than LeRobot's own loader: a tensor that is missing, unexpected or of another shape is an error that
names it, because otherwise a robot would run on random weights.
"""

from __future__ import annotations

import json
import logging
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from draccus.utils import DraccusException
from huggingface_hub import snapshot_download
from huggingface_hub.constants import CONFIG_NAME
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from lerobot.configs.policies import PreTrainedConfig
from safetensors import safe_open
from torch import Tensor, nn

from lerobot_policy_vla0.checkpoints.exported import ROBOT_FOLDER, is_export
from lerobot_policy_vla0.checkpoints.weight_stream import find_tensors, shown
from lerobot_policy_vla0.errors import CheckpointError

logger = logging.getLogger(__name__)


def resolve_checkpoint(name_or_path: str | Path, *, weights: bool = True, **download: Any) -> Path:
    """Return the local folder of a checkpoint, downloading it if it is a Hub repo id.

    Args:
        name_or_path: the folder or repo id.
        weights: download the weights too.
        **download: options of ``snapshot_download``.

    Raises:
        CheckpointError: if there is no such folder or repo.
    """
    folder = Path(name_or_path)
    if folder.is_dir():
        return folder
    try:
        # These are the files LeRobot uploads for a policy; the optimizer's state is not needed.
        return Path(
            snapshot_download(
                str(name_or_path),
                allow_patterns=["*.json", "*.safetensors" if weights else "policy_*.safetensors"],
                **download,
            )
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, ValueError) as error:
        raise CheckpointError(
            f"no checkpoint at {str(name_or_path)!r}: it is neither a local folder nor a Hub repo that could be "
            f"downloaded ({type(error).__name__}: {error}). Check the path, the network, or HF_HUB_OFFLINE."
        ) from error


#: Options that are fixed by training: the weights and the saved prompt step depend on them.
_FIXED_BY_TRAINING = (
    "chunk_size",
    "n_bins",
    "action_dim",
    "camera_keys",
    "image_size",
    "tile_images",
    "system_prompt",
    "add_vision_id",
    "state_in_prompt",
    "use_relative_actions",
    "relative_exclude_joints",
)


def check_fixed_options(stored: PreTrainedConfig, given: PreTrainedConfig) -> None:
    """Refuse options that contradict those a checkpoint was trained with.

    The saved pre-processor writes the prompt the weights were trained with ("the next 8 timesteps ... integers
    (0-1000)"). If such an option changed after training, prompt and decoder would disagree.

    Raises:
        CheckpointError: naming each option with both values, or the type if a config is not of a VLA-0 policy.
    """
    for what, config in (("the checkpoint", stored), ("the given config", given)):
        if config.type != "vla0":
            raise CheckpointError(
                f"{what} is of a {config.type!r} policy, expected 'vla0'. Load it with the class of its type."
            )
    clashes = [
        f"{name} is {_plain(getattr(given, name))}, the checkpoint has {_plain(getattr(stored, name))}"
        for name in _FIXED_BY_TRAINING
        if _plain(getattr(given, name)) != _plain(getattr(stored, name))
    ]
    if clashes:
        raise CheckpointError(
            "the options do not fit the checkpoint: "
            + "; ".join(clashes)
            + ". Leave them as the checkpoint has "
            "them, or train a new policy with --policy.type=vla0."
        )


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def read_config(folder: Path) -> PreTrainedConfig:
    """Read a checkpoint's ``config.json``; options that it lacks take this version's defaults.

    Raises:
        CheckpointError: if it cannot be read or is no policy's, or naming the options this version does not accept.
    """
    file = folder / CONFIG_NAME
    try:
        written = json.loads(file.read_text())
        kind = written.get("type")
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{file} cannot be read ({error}). Point to a folder such as .../checkpoints/last/pretrained_model."
        ) from error
    if kind is None and is_export(folder):
        raise CheckpointError(
            f"{folder} is an export for inference engines, not a policy folder. The robot's part of it is "
            f"{folder / ROBOT_FOLDER}; a policy with all weights is made by vla0 import {folder} --out DIR."
        )
    if kind is None and "model_type" in written:
        raise CheckpointError(
            f"{folder} is a backbone ({written['model_type']}), not a trained policy. Start from it with "
            "--policy.type=vla0 --policy.vlm_model_name=..."
        )
    if kind == "vla0":
        known = {item.name for item in fields(PreTrainedConfig.get_choice_class(kind))}
        unknown = sorted(written.keys() - known - {"type"})
        if unknown:
            raise CheckpointError(
                f"{file} has the option(s) {unknown}, which this version of lerobot_policy_vla0 does not know: it was "
                "written by another version. Install that version, or, if you can do without what they did, delete "
                "them from the file."
            )
        absent = sorted(known - written.keys())
        if absent:
            logger.info("%s was written before the options %s existed: defaults are used", file, absent)
    try:
        config: PreTrainedConfig = PreTrainedConfig.from_pretrained(folder)
    except (DraccusException, ValueError) as error:
        reasons = " <- ".join(str(cause).strip() for cause in causes(error))
        raise CheckpointError(f"{file} has an option this version does not accept: {reasons}") from error
    return config


def causes(error: BaseException) -> list[BaseException]:
    """Return an error and the chain of its causes; draccus hides the reason for a refused value in them."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None:
        chain.append(cause)
        cause = cause.__cause__
    return chain


# ------------------------------------------------------------------ weights


def tied_names(model: nn.Module) -> dict[str, str]:
    """Return the names of tied parameters (the same object under several names), each with the name that is kept.

    This is about a model in memory; `policy_folder.left_out` decides which of the names a file has.
    """
    first: dict[int, str] = {}
    tied = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        kept = first.setdefault(id(parameter), name)
        if kept != name:
            tied[name] = kept
    return tied


def load_weights(
    model: nn.Module, folder: Path, *, strict: bool = True, device: str | torch.device = "cpu"
) -> None:
    """Load ``model.safetensors``, or the shards of ``model.safetensors.index.json``, into a model.

    Names and shapes are checked before any memory is allocated or overwritten. Tensors are read in parts straight to
    their device and precision, so the extra memory is one part.

    Args:
        model: the model to fill; its parameters may be on the ``meta`` device.
        folder: the checkpoint.
        strict: refuse missing and unexpected tensors; False only logs them, and then no parameter may be on ``meta``.
        device: where parameters on ``meta`` are allocated; others stay where they are.

    Raises:
        CheckpointError: naming missing, unexpected or misshapen tensors, absent shards, or tied tensors that differ.
    """
    stored = find_tensors(folder)
    state = model.state_dict()
    tied = tied_names(model)
    stored_as = {_RENAMED.get(name, name): name for name in stored}
    covered = {tied.get(name, name) for name in stored_as}
    missing = {name for name in state if tied.get(name, name) not in covered}
    unexpected = stored_as.keys() - state.keys()
    _check_shapes(state, stored, stored_as, folder)
    if missing or unexpected:
        problem = (
            f"{folder} does not fit the model. Missing tensors: {shown(missing)}. Unexpected tensors: "
            f"{shown(unexpected)}. The file is incomplete, or was saved by another model or version."
        )
        if strict:
            raise CheckpointError(problem)
        logger.warning("%s", problem)
    for name, kept in tied.items():
        if name in stored_as and kept in stored_as:
            one, two = (_read(stored, stored_as[key]) for key in (name, kept))
            if not torch.equal(one, two):
                raise CheckpointError(
                    f"{folder} stores different values for {name} and {kept}, which are one tensor in this model "
                    "(tie_word_embeddings in vlm/config.json). It was saved by another model."
                )
    _allocate(model, device)
    state = model.state_dict()
    with torch.no_grad():
        # Read one file after the other, and each tensor once: if both names of a tied one are stored, the kept one.
        for name in sorted(
            stored_as.keys() & state.keys(), key=lambda name: (stored[stored_as[name]].name, stored_as[name])
        ):
            if name not in tied or tied[name] not in stored_as:
                _read_into(state[name], stored[stored_as[name]], stored_as[name])


#: Tensors that an earlier version saved under another name.
_RENAMED = {"augmentation_state": "augmentation.state"}


def current_name(name: str) -> str:
    """Return this version's name for a stored tensor."""
    return _RENAMED.get(name, name)


def _read(stored: dict[str, Path], name: str) -> Tensor:
    with safe_open(stored[name], framework="pt") as tensors:
        tensor: Tensor = tensors.get_tensor(name)
        return tensor


#: Bytes of a file that are memory-mapped at once.
_PART = 2**26


def _read_into(target: Tensor, file: Path, name: str) -> None:
    """Copy a stored tensor into one of the same shape, of any precision, on any device.

    safetensors maps the file, and the pages that were read count as memory of this process until the file is closed. A
    file that stays open would therefore cost a second copy of the weights, so it is opened anew for each part.
    """
    if target.ndim == 0:
        with safe_open(file, framework="pt") as tensors:
            target.copy_(tensors.get_tensor(name))
        return
    for_row = max(1, target[:1].numel() * target.element_size())
    step = max(1, _PART // for_row)
    for start in range(0, target.shape[0], step):
        with safe_open(file, framework="pt") as tensors:
            target[start : start + step].copy_(tensors.get_slice(name)[start : start + step])


def _allocate(model: nn.Module, device: str | torch.device) -> None:
    """Allocate parameters that are on ``meta``, without values; tied parameters stay tied."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, empty in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if not empty.is_meta:
                continue
            if id(empty) not in made:
                made[id(empty)] = nn.Parameter(
                    torch.empty_like(empty, device=device), requires_grad=empty.requires_grad
                )
            setattr(module, name, made[id(empty)])


def _check_shapes(
    state: dict[str, Tensor], stored: dict[str, Path], stored_as: dict[str, str], folder: Path
) -> None:
    wrong = []
    for file in sorted(set(stored.values())):
        with safe_open(file, framework="pt") as tensors:
            for name, written in stored_as.items():
                if stored[written] != file or name not in state:
                    continue
                shape = tuple(tensors.get_slice(written).get_shape())
                if shape != tuple(state[name].shape):
                    wrong.append(f"{name} is {shape}, expected {tuple(state[name].shape)}")
    if wrong:
        raise CheckpointError(f"{folder} does not fit the model: {shown(wrong)}.")
