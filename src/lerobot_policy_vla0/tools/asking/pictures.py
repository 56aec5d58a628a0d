"""Pictures for a policy's cameras from image files, and the batch of a question about pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lerobot.processor.converters import create_transition, transition_to_batch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image

from lerobot_policy_vla0.errors import CameraError, ImageError
from lerobot_policy_vla0.processor_vla0 import VLA0PromptProcessorStep
from lerobot_policy_vla0.text.question import QUERY_KIND, QUERY_TEXT

#: Stands for every camera that is not named.
EVERY = "*"

#: ``(1, 3, H, W)`` for each camera of a policy, float32 in [0, 1] or uint8.
Pictures = dict[str, Tensor]


def question_batch(
    preprocess: Any, pictures: Pictures, kind: str, text: str, task: str = ""
) -> dict[str, Any]:
    """Return the batch of a question.

    Only the prompt step of the pre-processor runs: a question needs neither state nor statistics, and LeRobot 0.6.1
    would drop the question on the way into the whole pre-processor.

    Args:
        preprocess: the policy's pre-processor.
        pictures: of all its cameras.
        kind: `question.VQA` or `question.NEXT_SUBTASK`.
        text: the question, or the goal.
        task: the instruction that the robot has now.

    Raises:
        PromptError: if the question is empty or too long.
    """
    step = next(step for step in preprocess.steps if isinstance(step, VLA0PromptProcessorStep))
    asked = {"task": task, QUERY_KIND: kind, QUERY_TEXT: text}
    batch: dict[str, Any] = transition_to_batch(
        step(create_transition(observation=dict(pictures), complementary_data=asked))
    )
    return batch


def assign_files(given: Sequence[str], cameras: Sequence[str]) -> dict[str, str]:
    """Return the file of each camera.

    Args:
        given: ``FILE`` for the only camera, or for the cameras in their order; or ``CAMERA=FILE``, where a camera is
            its key or the last part of it, and ``*`` stands for all that are not named.
        cameras: the policy's, in the model's order.

    Raises:
        CameraError: naming the cameras, if a camera has no file or several, or there is no such camera.

    >>> assign_files(["a.png"], ["observation.images.top"])
    {'observation.images.top': 'a.png'}
    >>> assign_files(["*=a.png", "wrist=b.png"], ["observation.images.top", "observation.images.wrist"])
    {'observation.images.top': 'a.png', 'observation.images.wrist': 'b.png'}
    """
    keys = {EVERY: EVERY, **{key.rpartition(".")[2]: key for key in cameras}, **{key: key for key in cameras}}
    named: dict[str, str] = {}
    bare: list[str] = []
    for text in given:
        name, equals, file = text.partition("=")
        if not equals or (name not in keys and Path(text).exists()):
            bare.append(text)
        elif name not in keys:
            raise CameraError(f"{text!r} names no camera of the policy, which has {list(cameras)}.")
        elif keys[name] in named:
            raise CameraError(f"two files for {name!r}: {named[keys[name]]!r} and {file!r}. Give one.")
        else:
            named[keys[name]] = file
    if bare and not named and len(bare) == len(cameras):
        return dict(zip(cameras, bare, strict=True))
    files = {key: named.get(key, named.get(EVERY)) for key in cameras}
    if bare or None in files.values():
        raise CameraError(
            f"got {list(given)} for the cameras {list(cameras)}. Give one file for each, in this order or as "
            f"CAMERA=FILE; {EVERY}=FILE is for all that are not named."
        )
    return {key: file for key, file in files.items() if file is not None}


def read_files(files: dict[str, str], folder: Path = Path()) -> Pictures:
    """Read the picture of each camera.

    Args:
        files: by camera.
        folder: relative names are relative to it.

    Raises:
        ImageError: naming a file that is missing or no picture.
    """
    pictures = {}
    for camera, name in files.items():
        path = folder / name
        try:
            pixels = decode_image(str(path), mode=ImageReadMode.RGB, apply_exif_orientation=True)
        except (OSError, RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ImageError(
                f"{path} cannot be read as a picture ({reason}). Give a PNG or JPEG file for {camera}."
            ) from error
        pictures[camera] = pixels.unsqueeze(0)
    return pictures
