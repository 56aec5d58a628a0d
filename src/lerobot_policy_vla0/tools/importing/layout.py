"""The layouts of VLA-0 checkpoints that LeRobot did not write: where their files are, and what they say.

- An export's: ``vla0 export`` wrote it, and ``robot/`` in it says everything.
- The paper's: ``config.yaml`` (a yacs dump), ``dataset_stats.pkl``, and a Hugging Face model in ``model_last/``.
- vla0-trl's: a Hugging Face model, and ``dataset_stats.json`` in the folder above it. The prompt's numbers and the
  image settings are not stored.

Every value is checked when it is read.
"""

from __future__ import annotations

import ast
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from lerobot_policy_vla0.checkpoints.exported import ROBOT_FOLDER, is_export
from lerobot_policy_vla0.errors import CheckpointError, StatsError
from lerobot_policy_vla0.tools.importing.restricted_pickle import load_array_pickle

# ---------------------------------------------------------------------- places

PAPER_CONFIG = "config.yaml"
PAPER_STATS = "dataset_stats.pkl"
PAPER_MODEL = "model_last"
TRL_STATS = "dataset_stats.json"

# What is fetched from the Hub. `model_last.pth`, beside `model_last/`, is 15 GB of optimizer state.
_DESCRIPTION_FILES = ["*.json", "*.txt", "*.jinja", PAPER_CONFIG, PAPER_STATS, f"{ROBOT_FOLDER}/README.md"]


@dataclass(frozen=True)
class Export:
    """A folder that ``vla0 export`` wrote."""

    folder: Path


@dataclass(frozen=True)
class Layout:
    """Where the parts of a checkpoint are."""

    model: Path  # the Hugging Face model folder
    stats: Path  # the file with the action range
    config: Path | None  # the paper's config.yaml; None in vla0-trl's layout

    @property
    def name(self) -> str:
        """The layout's name in messages."""
        return "vla0-trl's" if self.config is None else "the paper's"


def locate(
    source: str | Path, *, subfolder: str | None = None, revision: str | None = None
) -> Layout | Export:
    """Find the parts of a checkpoint, and download it if ``source`` is a Hub repo id.

    The download takes descriptions, and the safetensors files of one model folder.

    Args:
        source: a folder (the checkpoint's, or the model folder in it) or a Hub repo id.
        subfolder: the model folder inside it; None looks for ``model_last``, or the only one there is.
        revision: Hub revision.

    Raises:
        CheckpointError: if there is no such folder or repo, it has neither layout, or several models.
    """
    folder = Path(source)
    if folder.is_dir():
        if revision is not None:
            raise CheckpointError(
                f"{folder} is a local folder, which has no revision {revision!r}. Leave it out."
            )
        return find_layout(folder, subfolder)
    try:
        root = Path(snapshot_download(str(source), revision=revision, allow_patterns=_DESCRIPTION_FILES))
        layout = find_layout(root, subfolder)
        model = layout.folder if isinstance(layout, Export) else layout.model
        inside = model.relative_to(root).as_posix()
        weights = "*.safetensors" if inside == "." else f"{inside}/*.safetensors"
        snapshot_download(str(source), revision=revision, allow_patterns=[weights])
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise CheckpointError(
            f"no checkpoint at {str(source)!r}: it is neither a local folder nor a Hub repo that could be downloaded "
            f"({type(error).__name__}: {error}). Check the path, the network, or HF_HUB_OFFLINE."
        ) from error
    except ValueError as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"no checkpoint at {str(source)!r}: there is no such folder, and it is no Hub repo id ({error})."
        ) from error
    return layout


def find_layout(folder: Path, subfolder: str | None = None) -> Layout | Export:
    """Recognise the layout of a local folder; see `locate`."""
    inside = folder if subfolder is None else folder / subfolder
    if is_export(inside):
        return Export(inside)
    if (folder / "config.json").is_file() and subfolder is None:  # the model folder itself
        beside = any((folder / name).is_file() for name in (PAPER_CONFIG, PAPER_STATS, TRL_STATS))
        root, model = (folder if beside else folder.parent), folder
    else:
        root, model = folder, _model_folder(folder, subfolder)
    config, stats = root / PAPER_CONFIG, root / PAPER_STATS
    if config.is_file() or stats.is_file():
        absent = [file.name for file in (config, stats) if not file.is_file()]
        if absent:
            raise CheckpointError(
                f"{root} lacks {absent}, which the paper's layout needs beside {model.name}/; it holds "
                f"{_names(root)}. Download it."
            )
        return Layout(model, stats, config)
    if (root / TRL_STATS).is_file():
        return Layout(model, root / TRL_STATS, None)
    raise CheckpointError(
        f"{root} has the model {model.name}/ and neither {PAPER_CONFIG} with {PAPER_STATS} (the paper's layout) nor "
        f"{TRL_STATS} (vla0-trl's); it holds {_names(root)}. Without the range of the actions the numbers that the "
        "model writes have no unit: add the file."
    )


def _model_folder(root: Path, subfolder: str | None) -> Path:
    """Return the Hugging Face model folder inside a checkpoint."""
    if subfolder is not None:
        if not (root / subfolder / "config.json").is_file():
            raise CheckpointError(
                f"{root / subfolder} has no config.json, so it is no model. {root} has {_names(root)}."
            )
        return root / subfolder
    if (root / PAPER_MODEL).is_dir():
        return root / PAPER_MODEL
    models = sorted(path.parent for path in root.glob("*/config.json"))
    if len(models) == 1:
        return models[0]
    if models:
        raise CheckpointError(
            f"{root} has several models: {[path.name for path in models]}. Choose one with --subfolder."
        )
    raise CheckpointError(
        f"{root} is no VLA-0 checkpoint: no {PAPER_MODEL}/ (the paper's layout) and no other folder with a config.json "
        f"(vla0-trl's). It holds {_names(root)}. For a policy folder written by LeRobot no import is needed: "
        "use --policy.path."
    )


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---------------------------------------------------------------------- settings


@dataclass(frozen=True)
class StatedProtocol:
    """What a checkpoint says about its own prompt, images and answers; None where it says nothing.

    The names are those of `VLA0Config`, but ``cameras`` are named as in the checkpoint, in the model's order.
    """

    chunk_size: int | None = None
    n_bins: int | None = None
    action_dim: int | None = None
    image_size: tuple[int, int] | None = None
    crop_ratio: float | None = None
    tile_images: bool | None = None
    cameras: tuple[str, ...] | None = None


def read_paper_config(file: Path) -> StatedProtocol:
    """Read the protocol out of the paper's ``config.yaml``.

    ``add_vision_id`` is ignored: the file says True, but the software that trained the weights dropped it.

    Raises:
        CheckpointError: naming the key whose value cannot be used, with the value and what was expected.
    """
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{file} cannot be read as YAML: {' '.join(str(error).split())}") from error
    model = _section(config, file, "MODEL", "QWEN")
    image = _parse_options(_section(config, file, "DATALOADER", "ROBOVERSE").get("cfg_opts"), file)

    def integer(name: str) -> int | None:
        return _number(model, name, file, "MODEL.QWEN.", int)

    history = integer("history")
    if history is not None and history > 1:
        raise CheckpointError(
            f"{file}: MODEL.QWEN.history is {history}, but this policy sees one observation per camera. Only "
            "checkpoints with history 1 can be imported."
        )
    cameras = _names_of_cameras(image.get("IMAGE.cam_list"), file)
    n_cameras = integer("num_cam")
    if cameras is not None and n_cameras is not None and n_cameras != len(cameras):
        raise CheckpointError(
            f"{file}: MODEL.QWEN.num_cam is {n_cameras}, but IMAGE.cam_list names {len(cameras)} cameras: "
            f"{list(cameras)}."
        )
    tiled = model.get("tiled_rgb_imgs")
    if tiled is not None and not isinstance(tiled, bool):
        raise CheckpointError(f"{file}: MODEL.QWEN.tiled_rgb_imgs is {tiled!r}, expected true or false.")
    return StatedProtocol(
        chunk_size=integer("horizon"),
        n_bins=integer("num_bins_actions"),
        action_dim=integer("original_action_dim"),
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
    """Read ``KEY:VALUE:KEY:VALUE``. A value is a number, a tuple, or otherwise text."""
    if text is None:
        return {}
    parts = str(text).split(":")
    if len(parts) % 2:
        raise CheckpointError(
            f"{file}: DATALOADER.ROBOVERSE.cfg_opts is {text!r}, expected KEY:VALUE pairs joined by colons."
        )
    return {key.strip(): _literal(value.strip()) for key, value in zip(parts[::2], parts[1::2], strict=True)}


def _literal(text: str) -> Any:
    """Read a number, string or tuple. Anything else stays text; no code is run."""
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
    """Return one camera's size, which is stated in two places that have to agree."""
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
    height, width = pair if isinstance(pair, list | tuple) and len(pair) == 2 else (pair, pair)
    if type(height) is not int or type(width) is not int:  # a bool is an int, too
        raise CheckpointError(f"{file}: {name} is {value!r}, expected pixels, e.g. 224 or [224, 224].")
    return height, width


def read_action_range(file: Path) -> tuple[list[float], list[float]]:
    """Return lowest and highest action per dimension, in the robot's units, from the paper's pickle or vla0-trl's JSON.

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
    if not isinstance(content, dict):
        return type(content).__name__
    shown = list(content.items())[:8]
    return "{" + ", ".join(f"{key!r}: {_outline(value)}" for key, value in shown) + "}"


def read_repetition_penalty(model: Path) -> float | None:
    """Return the repetition penalty of ``generation_config.json``; None if there is no such file."""
    file = model / "generation_config.json"
    if not file.is_file():
        return None
    try:
        # 1.0 is transformers' default where the file says nothing.
        return float(json.loads(file.read_text(encoding="utf-8")).get("repetition_penalty", 1.0))
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file} cannot be read ({error}). Download it again.") from error
