"""Imports VLA-0 checkpoints of the paper's and vla0-trl's layout, and exports, to a policy folder.

The folder is what `VLA0Policy.save_pretrained` and the processors' ``save_pretrained`` write, so LeRobot's commands
use it like any other checkpoint. The weights are copied as they are, one tensor at a time. The folder appears whole or
not at all.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.constants import SAFETENSORS_SINGLE_FILE
from huggingface_hub.errors import StrictDataclassError
from lerobot.configs.types import FeatureType, PolicyFeature
from torch import Tensor

from lerobot_policy_vla0.backbone.loading import VLM_FOLDER
from lerobot_policy_vla0.checkpoints.policy_folder import (
    build_skeleton,
    check_written,
    left_out,
    total_bytes,
)
from lerobot_policy_vla0.checkpoints.weight_stream import ShardReader, find_shards, write_stream
from lerobot_policy_vla0.configuration_vla0 import VLA0Config
from lerobot_policy_vla0.errors import CameraError, CheckpointError, ConfigError, Vla0Error
from lerobot_policy_vla0.observations.batches import CAMERA_PREFIX
from lerobot_policy_vla0.output_files import new_folder, refuse_existing, require_space
from lerobot_policy_vla0.processor_vla0 import make_vla0_pre_post_processors
from lerobot_policy_vla0.tools.importing.card import LICENSE, write_card
from lerobot_policy_vla0.tools.importing.exported import import_export
from lerobot_policy_vla0.tools.importing.layout import (
    Export,
    Layout,
    StatedProtocol,
    locate,
    read_action_range,
    read_paper_config,
    read_repetition_penalty,
)
from lerobot_policy_vla0.tools.importing.tensors import plan_weights

logger = logging.getLogger(__name__)

#: The paper's simulation averages this many chunks, each of as many steps.
_ENSEMBLED = 8
#: LIBERO's cameras in LeRobot, in the order the paper's model sees them: third person, wrist.
_LIBERO_CAMERAS = ("observation.images.image", "observation.images.image2")
_LIBERO_IMAGE = (3, 256, 256)  # as in LeRobot's LIBERO data sets; the policy takes any size
_LIBERO_DIM, _LIBERO_GRIPPER = 7, 6
_MODEL_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True)
class ImportOptions:
    """What the person importing a checkpoint can say about it.

    Whatever the checkpoint states may be left out, and has to agree if it is given. The first five fields are
    those of `VLA0Config`.

    Attributes:
        cameras: image key in LeRobot by the camera's name in the checkpoint, or by its LIBERO name (``image``,
            ``image2``). A checkpoint that names no cameras gets these, in this order.
        repetition_penalty: None takes that of ``generation_config.json``.
        binary_action_indices: None is LIBERO's gripper, ``(6,)``, for seven dimensions, and otherwise no dimension.
        paper_ensemble: average chunks equally, as the paper says, instead of giving older ones weight 0.5, as
            its code does.
        base_model: the backbone the weights were fine-tuned from, for ``vlm_model_name`` and the model card.
        subfolder: the model folder inside the checkpoint.
        revision: Hub revision.
    """

    chunk_size: int | None = None
    n_bins: int | None = None
    image_size: tuple[int, int] | None = None
    crop_ratio: float | None = None
    tile_images: bool | None = None
    cameras: Mapping[str, str] = field(default_factory=dict)
    repetition_penalty: float | None = None
    binary_action_indices: tuple[int, ...] | None = None
    paper_ensemble: bool = False
    base_model: str = "Qwen/Qwen2.5-VL-3B-Instruct"
    subfolder: str | None = None
    revision: str | None = None


# What a checkpoint may leave unsaid: the option, its flag, and the paper's value for LIBERO.
_NEEDED = (
    ("chunk_size", "--chunk-size", "8"),
    ("n_bins", "--n-bins", "1000"),
    ("image_size", "--image-size", "224"),
    ("crop_ratio", "--crop-ratio", "0.875"),
    ("tile_images", "--tile", ""),
)


def import_checkpoint(
    source: str | Path, out: str | Path, options: ImportOptions | None = None
) -> VLA0Config:
    """Turn a checkpoint of the paper's or vla0-trl's layout, or an export, into a LeRobot policy folder.

    Args:
        source: a folder or a Hub repo id.
        out: the folder to make; must be empty or new.
        options: what the checkpoint does not say.

    Returns:
        The config that was written.

    Raises:
        OutputError: if ``out`` is taken.
        CheckpointError: if the checkpoint lacks files, tensors or settings, or they do not fit
            together; names them. Nothing is left at ``out`` then.
        StatsError, ConfigError, CameraError, TokenizerError: if a setting cannot be used.
    """
    options = options or ImportOptions()
    out = Path(out)
    refuse_existing(out)
    layout = locate(source, subfolder=options.subfolder, revision=options.revision)
    if isinstance(layout, Export):
        _refuse_options(options, layout)
        return import_export(layout.folder, out)
    low, high = read_action_range(layout.stats)
    stated = StatedProtocol() if layout.config is None else read_paper_config(layout.config)
    config = build_config(layout, stated, options, action_dim=len(low))
    stats = {"action": {"min": torch.tensor(low), "max": torch.tensor(high)}}
    with new_folder(out) as folder:
        _write_policy(folder, layout, config, stats, out)
        write_card(folder / "README.md", str(source), layout, config, options.base_model)
    return config


def _refuse_options(options: ImportOptions, export: Export) -> None:
    """Refuse options that an export has no use for: it says everything itself."""
    given = [
        f"{item.name}={getattr(options, item.name)!r}"
        for item in dataclasses.fields(options)
        if item.name not in ("subfolder", "revision")
        and getattr(options, item.name) != getattr(ImportOptions(), item.name)
    ]
    if given:
        raise CheckpointError(
            f"{export.folder} is an export, which says everything about its policy, and {', '.join(given)} would be "
            "ignored. Leave these options out; an option of the policy can be changed in the config.json that is made."
        )


# ---------------------------------------------------------------------- settings


def build_config(
    layout: Layout, stated: StatedProtocol, options: ImportOptions, *, action_dim: int
) -> VLA0Config:
    """Return the policy config of a checkpoint whose action statistics have ``action_dim`` dimensions.

    Raises:
        CheckpointError: if a setting is stated nowhere, or stated twice and differently.
        ConfigError, CameraError: if a value is out of range.
    """
    values = _settle(layout, stated, options)
    if stated.action_dim not in (None, action_dim):
        raise CheckpointError(
            f"{layout.config} has MODEL.QWEN.original_action_dim {stated.action_dim}, but {layout.stats} has "
            f"statistics of {action_dim} dimensions. They belong to different checkpoints."
        )
    keys = _camera_keys(stated.cameras, options.cameras)
    penalty = read_repetition_penalty(layout.model)
    penalty = penalty if options.repetition_penalty is None else options.repetition_penalty
    if penalty is None:
        raise CheckpointError(
            f"{layout.model} has no generation_config.json, which holds the repetition penalty that the weights were "
            "evaluated with. Download it, or say --repetition-penalty (Qwen2.5-VL's is 1.05; 1.0 is none)."
        )
    snapped = options.binary_action_indices
    if snapped is None:
        snapped = (_LIBERO_GRIPPER,) if action_dim == _LIBERO_DIM else ()
    n_chunks = min(_ENSEMBLED, values["chunk_size"])
    config = VLA0Config(
        **values,
        vlm_model_name=options.base_model,
        cameras=keys,
        n_action_steps=1,
        ensemble_n_chunks=n_chunks,
        ensemble_old_weight=1.0 if options.paper_ensemble or n_chunks == 1 else 0.5,
        binary_action_indices=list(snapped),
        repetition_penalty=penalty,
        device="cpu",  # while importing
        push_to_hub=False,
        license=LICENSE,
        tags=["vla-0"],
    )
    config.input_features = {key: PolicyFeature(FeatureType.VISUAL, _LIBERO_IMAGE) for key in keys}
    config.output_features = {"action": PolicyFeature(FeatureType.ACTION, (action_dim,))}
    config.validate_features()
    return config


def _settle(layout: Layout, stated: StatedProtocol, options: ImportOptions) -> dict[str, Any]:
    """Return the settings of `_NEEDED`, from the checkpoint or the options."""
    values: dict[str, Any] = {}
    missing = []
    for name, flag, example in _NEEDED:
        said, given = getattr(stated, name), getattr(options, name)
        if said is not None and given is not None and said != given:
            raise CheckpointError(
                f"{flag} is {given}, but {layout.config} says {said}: the weights were trained with that. Leave "
                f"{flag} out."
            )
        values[name] = given if said is None else said
        if values[name] is None:
            missing.append(f"{flag} {example}".strip())
    if stated.cameras is None and not options.cameras:
        missing += [f"--camera {key.rpartition('.')[2]}={key}" for key in _LIBERO_CAMERAS]
    if missing:
        raise CheckpointError(
            f"the checkpoint in {layout.name} layout ({layout.model}) does not say how it was trained, and "
            "guessing would give a policy that acts wrongly. Say it as it was; with the paper's LIBERO settings: "
            f"{' '.join(missing)}"
        )
    return values


def _camera_keys(stated: tuple[str, ...] | None, given: Mapping[str, str]) -> list[str]:
    """Return the image keys in LeRobot, in the model's order."""
    if stated is None:
        keys = list(given.values())
    else:
        libero = dict(zip(("image", "image2"), _LIBERO_CAMERAS, strict=True))
        aliases = dict(zip(stated, libero, strict=False))  # 3p1 is LIBERO's image, ...
        unknown = [name for name in given if name not in stated and name not in aliases.values()]
        if unknown:
            raise CameraError(
                f"--camera names {unknown}, which the checkpoint does not have; it has {list(stated)}, in LIBERO "
                f"{list(aliases.values())}."
            )
        found = {name: given.get(name) or given.get(aliases.get(name, "")) for name in stated}
        unmapped = [name for name, key in found.items() if key is None and len(stated) > len(libero)]
        if unmapped:
            raise CameraError(
                f"the checkpoint has the cameras {list(stated)}, LIBERO only {list(libero)}. Say which image key in "
                f"LeRobot belongs to {unmapped}: --camera NAME=KEY, once per camera."
            )
        keys = [key or libero[aliases[name]] for name, key in found.items()]
    for key in keys:
        if not key.startswith(CAMERA_PREFIX):
            raise CameraError(
                f"--camera ...={key}: LeRobot's image keys begin with {CAMERA_PREFIX!r}, as in {_LIBERO_CAMERAS[0]}."
            )
    return keys


# ---------------------------------------------------------------------- writing


def _write_policy(
    folder: Path, layout: Layout, config: VLA0Config, stats: dict[str, dict[str, Tensor]], out: Path
) -> None:
    """Write config, backbone description, processors and weights to ``folder``, which will become ``out``."""
    from lerobot_policy_vla0.modeling_vla0 import VLA0Policy

    absent = [name for name in _MODEL_FILES if not (layout.model / name).is_file()]
    if absent:
        raise CheckpointError(
            f"{layout.model} lacks {absent}; it holds {sorted(p.name for p in layout.model.iterdir())}. Download the "
            "missing files."
        )
    try:
        # Processors look the tokenizer up by the backbone's name.
        pre, post = make_vla0_pre_post_processors(
            dataclasses.replace(config, vlm_model_name=str(layout.model)), stats
        )
        skeleton = build_skeleton(VLA0Policy, config, layout.model)
    except Vla0Error:
        raise
    except (OSError, ValueError, TypeError, KeyError, StrictDataclassError) as error:
        raise CheckpointError(
            f"{layout.model} cannot be read as a Qwen-VL model ({type(error).__name__}: {error}). Its config.json or "
            "tokenizer.json is damaged, or it is another kind of model."
        ) from error
    _check_image_processor(layout.model, skeleton)
    with ShardReader(find_shards(layout.model)) as reader:
        tensors = plan_weights(skeleton, reader, layout.model)
        require_space(out, total_bytes(tensors))
        skeleton.vlm.save_description(folder / VLM_FOLDER)
        pre.save_pretrained(folder)
        post.save_pretrained(folder)
        # The machine that loads the policy chooses the device. The one that imports it may have no accelerator.
        config.device = None
        config._save_pretrained(folder)
        logger.info("copying %d tensors from %s", len(tensors), layout.model)
        write_stream(folder / SAFETENSORS_SINGLE_FILE, tensors, left_out(skeleton))
        check_written(VLA0Policy, folder, tensors, out=out, processors=True)


def _check_image_processor(model: Path, skeleton: Any) -> None:
    """Refuse pixel statistics other than those this package's image pipeline has."""
    file = model / "preprocessor_config.json"
    if not file.is_file():
        return
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{file} cannot be read as JSON ({error}). Download it again.") from error
    for name in ("image_mean", "image_std"):
        expected = list(getattr(skeleton.image_settings, name))
        given = stored.get(name, expected)
        if len(given) != 3 or any(abs(a - b) > 1e-6 for a, b in zip(given, expected, strict=False)):
            raise ConfigError(
                f"{file}: {name} is {given}, but this package normalises pixels with {expected}, as every Qwen2.5-VL. "
                "Such a checkpoint cannot be imported."
            )
