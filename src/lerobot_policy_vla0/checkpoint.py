"""Reading a saved policy: find its files, load its weights, and say what does not fit.

Strict where LeRobot's own loader is not: a tensor that is missing, left over or of another shape is an
error that names it, because the alternative is random weights on a robot.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import snapshot_download
from huggingface_hub.constants import SAFETENSORS_SINGLE_FILE
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_model
from torch import nn

from lerobot_policy_vla0.errors import CheckpointError

if TYPE_CHECKING:
    from lerobot_policy_vla0.configuration_vla0 import VLA0Config


def resolve_checkpoint(name_or_path: str | Path, **download: Any) -> Path:
    """Return the local folder of a checkpoint, downloading it if it is a Hub repo id.

    Raises:
        CheckpointError: if there is no such folder or repo.
    """
    folder = Path(name_or_path)
    if folder.is_dir():
        return folder
    try:
        # Only what LeRobot uploads for a policy: no optimizer state.
        return Path(
            snapshot_download(str(name_or_path), allow_patterns=["*.json", "*.safetensors"], **download)
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, ValueError) as error:
        raise CheckpointError(
            f"no checkpoint at {str(name_or_path)!r}: it is neither a local folder nor a Hub repo that could be "
            f"downloaded ({type(error).__name__}: {error}). Check the path, the network, or HF_HUB_OFFLINE."
        ) from error


#: Options that the weights and the saved prompt step were made for.
_BAKED = (
    "chunk_size",
    "n_bins",
    "action_dim",
    "camera_keys",
    "image_size",
    "tile_images",
    "system_prompt",
    "add_vision_id",
)


def check_same_answer(stored: VLA0Config, given: VLA0Config) -> None:
    """Refuse options that contradict what a checkpoint was trained to answer.

    The saved pre-processor writes the prompt the weights were trained with ("the next 8 timesteps ...
    integers (0-1000)"), so changing such an option after training would make prompt and decoder disagree.

    Raises:
        CheckpointError: naming each option with both values.
    """
    clashes = [
        f"{name} is {_plain(getattr(given, name))}, the checkpoint has {_plain(getattr(stored, name))}"
        for name in _BAKED
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


def load_weights(model: nn.Module, folder: Path, *, strict: bool = True) -> None:
    """Load ``model.safetensors`` into a model, strictly.

    Args:
        model: the model to fill; tied weights are stored once.
        folder: the checkpoint.
        strict: refuse missing and unexpected tensors.

    Raises:
        CheckpointError: naming what is missing, unexpected or misshapen.
    """
    file = folder / SAFETENSORS_SINGLE_FILE
    if not file.is_file():
        raise CheckpointError(
            f"{folder} has no {SAFETENSORS_SINGLE_FILE}; it holds {sorted(p.name for p in folder.iterdir())}. "
            "Point to a folder such as .../checkpoints/last/pretrained_model."
        )
    _check_shapes(model, file)
    missing, unexpected = load_model(model, file, strict=False)
    if strict and (missing or unexpected):
        raise CheckpointError(
            f"{file} does not fit the model. Missing tensors: {_shown(missing)}. Unexpected tensors: "
            f"{_shown(unexpected)}. The file is incomplete, or was saved by another model or version."
        )


def _check_shapes(model: nn.Module, file: Path) -> None:
    """Compare shapes before anything is overwritten."""
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    try:
        with safe_open(file, framework="pt") as stored:
            wrong = [
                f"{name} is {tuple(stored.get_slice(name).get_shape())}, expected {expected[name]}"
                for name in stored.keys()  # noqa: SIM118 - not a dict
                if name in expected and tuple(stored.get_slice(name).get_shape()) != expected[name]
            ]
    except SafetensorError as error:
        raise CheckpointError(
            f"{file} cannot be read ({error}); it is truncated or damaged. Download or copy it again."
        ) from error
    if wrong:
        raise CheckpointError(f"{file} does not fit the model: {_shown(wrong)}.")


def _shown(names: Any, limit: int = 8) -> str:
    listed = sorted(names)
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return (", ".join(listed[:limit]) or "none") + more
