"""Reads what a VLA-0 checkpoint says about itself: its protocol, the range of its actions, its repetition penalty.

Every value is checked here, so that nothing behind has to. Knows these files' contents, not where they are
(`official_layout`) nor what becomes of them (`official`).
"""

from __future__ import annotations

import ast
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lerobot_policy_vla0.errors import CheckpointError, StatsError
from lerobot_policy_vla0.tools.importing.restricted_pickle import load_array_pickle


@dataclass(frozen=True)
class StatedProtocol:
    """What a checkpoint says about its own prompt, images and answers; None where it says nothing.

    Attributes:
        chunk_size: steps per answer ``H``.
        n_bins: top integer ``B``.
        action_dim: numbers per step ``D``.
        image_size: (height, width) of one camera in pixels.
        crop_ratio: side of the crop as a fraction.
        tile_images: cameras side by side in one image.
        cameras: the cameras' names there, in the model's order.
    """

    chunk_size: int | None = None
    n_bins: int | None = None
    action_dim: int | None = None
    image_size: tuple[int, int] | None = None
    crop_ratio: float | None = None
    tile_images: bool | None = None
    cameras: tuple[str, ...] | None = None


# ---------------------------------------------------------------------- the paper's config.yaml


def read_paper_config(file: Path) -> StatedProtocol:
    """Read the protocol out of the paper's ``config.yaml``.

    ``add_vision_id`` is ignored: the file says True, but the software that trained the weights dropped it.

    Raises:
        CheckpointError: naming the key whose value cannot be used, with the value and what was expected.
    """
    try:
        # The safe loader builds plain values only.
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{file} cannot be read as YAML: {' '.join(str(error).split())}") from error
    model = _section(config, file, "MODEL", "QWEN")
    image = _parse_options(_section(config, file, "DATALOADER", "ROBOVERSE").get("cfg_opts"), file)

    history = _number(model, "history", file, "MODEL.QWEN.", int)
    if history is not None and history > 1:
        raise CheckpointError(
            f"{file}: MODEL.QWEN.history is {history}, but this policy sees one observation per camera. Only "
            "checkpoints with history 1 can be imported."
        )
    cameras = _names_of_cameras(image.get("IMAGE.cam_list"), file)
    n_cameras = _number(model, "num_cam", file, "MODEL.QWEN.", int)
    if cameras is not None and n_cameras is not None and n_cameras != len(cameras):
        raise CheckpointError(
            f"{file}: MODEL.QWEN.num_cam is {n_cameras}, but IMAGE.cam_list names {len(cameras)} cameras: "
            f"{list(cameras)}."
        )
    tiled = model.get("tiled_rgb_imgs")
    if tiled is not None and not isinstance(tiled, bool):
        raise CheckpointError(f"{file}: MODEL.QWEN.tiled_rgb_imgs is {tiled!r}, expected true or false.")
    return StatedProtocol(
        chunk_size=_number(model, "horizon", file, "MODEL.QWEN.", int),
        n_bins=_number(model, "num_bins_actions", file, "MODEL.QWEN.", int),
        action_dim=_number(model, "original_action_dim", file, "MODEL.QWEN.", int),
        image_size=_image_size(model.get("rgb_img_size"), image.get("IMAGE.img_size"), file),
        crop_ratio=_number(image, "IMAGE.crop_img", file, "", float),
        tile_images=tiled,
        cameras=cameras,
    )


def _section(config: Any, file: Path, *names: str) -> dict[str, Any]:
    section: dict[str, Any] = {"": config}
    for depth, name in enumerate(("", *names)):
        found = section.get(name)
        if not isinstance(found, dict):
            raise CheckpointError(
                f"{file} has no section {'.'.join(names[:depth]) or names[0]}; expected the paper's layout with "
                "MODEL.QWEN and DATALOADER.ROBOVERSE."
            )
        section = found
    return section


def _parse_options(text: Any, file: Path) -> dict[str, Any]:
    """Read ``KEY:VALUE:KEY:VALUE``; values are numbers or tuples where they look like it, text otherwise."""
    if text is None:
        return {}
    parts = str(text).split(":")
    if len(parts) % 2:
        raise CheckpointError(
            f"{file}: DATALOADER.ROBOVERSE.cfg_opts is {text!r}, expected KEY:VALUE pairs joined by colons."
        )
    return {key.strip(): _literal(value.strip()) for key, value in zip(parts[::2], parts[1::2], strict=True)}


def _literal(text: str) -> Any:
    """Read a number, string or tuple; anything else stays text. Evaluates nothing."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _number[T: (int, float)](
    section: dict[str, Any], name: str, file: Path, prefix: str, kind: type[T]
) -> T | None:
    value = section.get(name)
    if value is None:
        return None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or (kind is int and value != int(value)):
        raise CheckpointError(
            f"{file}: {prefix}{name} is {value!r}, expected {'an integer' if kind is int else 'a number'}."
        )
    return kind(value)


def _names_of_cameras(value: Any, file: Path) -> tuple[str, ...] | None:
    if value is None:
        return None
    names = (value,) if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not names or not all(isinstance(name, str) for name in names):
        raise CheckpointError(
            f"{file}: IMAGE.cam_list is {value!r}, expected camera names such as ('3p1','3p2')."
        )
    return tuple(names)


def _image_size(of_model: Any, of_loader: Any, file: Path) -> tuple[int, int] | None:
    """Return one camera's size, stated in two places that have to agree."""
    sizes = {
        name: _size(value, name, file)
        for name, value in (("MODEL.QWEN.rgb_img_size", of_model), ("IMAGE.img_size", of_loader))
        if value is not None
    }
    if len(set(sizes.values())) > 1:
        raise CheckpointError(f"{file}: the image sizes {sizes} (height, width) disagree. Correct the file.")
    return next(iter(sizes.values()), None)


def _size(value: Any, name: str, file: Path) -> tuple[int, int]:
    pair = _literal(value) if isinstance(value, str) else value
    pair = (pair, pair) if isinstance(pair, int) and not isinstance(pair, bool) else pair
    if (
        not isinstance(pair, list | tuple)
        or len(pair) != 2
        or not all(isinstance(side, int) and not isinstance(side, bool) for side in pair)
    ):
        raise CheckpointError(f"{file}: {name} is {value!r}, expected pixels, e.g. 224 or [224, 224].")
    return (pair[0], pair[1])


# ---------------------------------------------------------------------- statistics


def read_action_range(file: Path) -> tuple[list[float], list[float]]:
    """Return lowest and highest action per dimension, in the robot's units.

    Args:
        file: the paper's pickle or vla0-trl's JSON; both hold ``{"out_ori_act": {"min": ..., "max": ...}}``.

    Raises:
        CheckpointError: if the file cannot be read, or holds a pickle that could run code.
        StatsError: if the range is missing, not numbers, not finite, or upside down; says what the file has.
    """
    if file.suffix == ".pkl":
        content = load_array_pickle(file)
    else:
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise CheckpointError(f"{file} cannot be read as JSON ({error}). Download it again.") from error
    try:
        stored = content["out_ori_act"]
        low, high = ([float(v) for v in stored[name]] for name in ("min", "max"))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise StatsError(
            f"{file} holds {_outline(content)}, expected {{'out_ori_act': {{'min': ..., 'max': ...}}}} with one "
            "number per action dimension."
        ) from error
    usable = len(low) == len(high) > 0 and all(
        math.isfinite(a) and math.isfinite(b) and a <= b for a, b in zip(low, high, strict=False)
    )
    if not usable:
        raise StatsError(
            f"{file}: the action range is unusable: min={low}, max={high}; expected as many finite numbers in both, "
            "min <= max."
        )
    return low, high


def _outline(content: Any) -> str:
    """Describe a value by its keys."""
    if isinstance(content, dict):
        return (
            "{" + ", ".join(f"{key!r}: {_outline(value)}" for key, value in list(content.items())[:8]) + "}"
        )
    return type(content).__name__


def read_repetition_penalty(model: Path) -> float | None:
    """Return the repetition penalty that ``generate`` would have applied; None if the file is absent.

    Raises:
        CheckpointError: if ``generation_config.json`` cannot be read.
    """
    file = model / "generation_config.json"
    if not file.is_file():
        return None
    try:
        # transformers' default where the file says nothing
        return float(json.loads(file.read_text(encoding="utf-8")).get("repetition_penalty", 1.0))
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file} cannot be read ({error}). Download it again.") from error
