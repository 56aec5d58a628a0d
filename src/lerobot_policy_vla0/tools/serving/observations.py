"""Reads a robot's observation from a client's message, whatever its client calls cameras, state and task.

openpi's clients send flat names (``observation/image``, ``observation/state``, ``prompt``), vla-eval's nested ones
(``images.agentview``, ``states``, ``task_description``), LeRobot's data sets ``observation.images.<camera>``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from lerobot.utils.constants import OBS_STATE

from lerobot_policy_vla0.configuration_vla0 import VLA0Config
from lerobot_policy_vla0.errors import CameraError, ConfigError, ImageError, PromptError, StateError

_TASKS = ("prompt", "task", "task_description")
_STATES = ("state", "states")
#: LIBERO's cameras in LeRobot, and what openpi's and vla-eval's clients call them.
_LIBERO = {
    "observation.images.image": ("image", "agentview"),
    "observation.images.image2": ("wrist_image", "wrist"),
}


class ObservationReader:
    """Turns messages into observations of one policy.

    Args:
        config: the policy's.
        cameras: the policy's image key by the client's name of a camera, where they differ.

    Raises:
        ConfigError: if ``cameras`` names an image key that the policy does not have.
    """

    def __init__(self, config: VLA0Config, cameras: Mapping[str, str] | None = None) -> None:
        self._config = config
        self._keys = config.camera_keys
        unknown = sorted(set((cameras or {}).values()) - set(self._keys))
        if unknown:
            raise ConfigError(f"--camera names {unknown}, and the policy's cameras are {self._keys}.")
        # The client's names of each camera. Two names of one camera are alternatives.
        self._names = {
            key: (
                *(name for name, mapped in (cameras or {}).items() if mapped == key),
                key,
                key.rpartition(".")[2],
                *(_LIBERO.get(key, ()) if set(self._keys) <= set(_LIBERO) else ()),
            )
            for key in self._keys
        }

    def read(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Return a LeRobot observation with one row: images uint8 ``(1, 3, H, W)``, the state ``(1, S)``, the task.

        Raises:
            CameraError: if a camera is missing or unknown.
            ImageError: if a picture is not uint8 ``(H, W, 3)``.
            StateError: if there are several states, or one that is not a list of numbers.
            PromptError: if there is no task, or there are several.
        """
        values = dict(_flat(message))
        pictures = {
            name: value for name, value in values.items() if isinstance(value, np.ndarray) and value.ndim >= 3
        }
        observation: dict[str, Any] = {}
        used = set()
        for key, names in self._names.items():
            found = [name for name in pictures if name in names or _last(name) in names]
            if not found:
                raise CameraError(
                    f"the message has no picture of the policy's camera {key!r}; it has {sorted(pictures)}. Send it as "
                    f"one of {list(names)}, or start the server with --camera NAME={key}."
                )
            if len(found) > 1:
                raise CameraError(
                    f"the message has several pictures of the policy's camera {key!r}: {found}. Send one of them."
                )
            used.add(found[0])
            observation[key] = _picture(found[0], pictures[found[0]])
        others = sorted(pictures.keys() - used)
        if others and self._config.cameras is None:
            raise CameraError(
                f"the message has the pictures {others}, which are none of the policy's cameras {self._keys}. Leave "
                f"them out, or start the server with --policy.cameras to ignore what it does not read."
            )
        states = [name for name in values if _last(name) in _STATES]
        if len(states) > 1:
            raise StateError(
                f"the message has the states {sorted(states)}, expected one. Leave the others out."
            )
        if states:
            observation[OBS_STATE] = _state(states[0], values[states[0]])
        tasks = {name: value for name, value in values.items() if _last(name) in _TASKS}
        if len(tasks) != 1 or not isinstance(next(iter(tasks.values())), str):
            raise PromptError(
                f"the message has the tasks {tasks}, expected one text under one of {list(_TASKS)}. VLA-0 needs the "
                "instruction; an empty text is allowed."
            )
        return {**observation, "task": next(iter(tasks.values()))}


def _flat(message: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of nested messages with their names, joined by dots.

    >>> dict(_flat({"images": {"wrist": 1}, "observation/state": 2}))
    {'images.wrist': 1, 'observation/state': 2}
    """
    for name, value in message.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


def _last(name: str) -> str:
    """Return the last part of a name.

    >>> _last("observation/image"), _last("images.wrist")
    ('image', 'wrist')
    """
    return name.replace("/", ".").rpartition(".")[2]


def _picture(name: str, value: np.ndarray[Any, Any]) -> torch.Tensor:
    if value.dtype != np.uint8 or value.ndim != 3 or value.shape[2] != 3:
        raise ImageError(
            f"the picture {name!r} is {value.dtype} {value.shape}, expected uint8 (height, width, 3). Send RGB as the "
            "camera gives it."
        )
    return torch.from_numpy(np.ascontiguousarray(value.transpose(2, 0, 1)))[None]


def _state(name: str, value: Any) -> torch.Tensor:
    try:
        numbers = np.array(value, dtype=np.float32)
    except (TypeError, ValueError):
        numbers = np.empty((0, 0), dtype=np.float32)
    if numbers.ndim != 1 or not np.isfinite(numbers).all():
        raise StateError(f"{name!r} is {value!r:.200}, expected finite numbers in one row.")
    return torch.from_numpy(numbers)[None]
