"""A client's names become the policy's; what does not fit is named with what was sent."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny import make_config

from lerobot_policy_vla0.errors import CameraError, ConfigError, ImageError, PromptError, StateError
from lerobot_policy_vla0.tools.serving.observations import ObservationReader

TOP = "observation.images.top"
PICTURE = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)


def message(**changes: Any) -> dict[str, Any]:
    values = {"observation.images.top": PICTURE, "observation.state": [0.5, 1.0], "task": "push"} | changes
    return {name: value for name, value in values.items() if value is not None}


@pytest.mark.parametrize(
    "given",
    [
        message(),
        {"observation/top": PICTURE, "observation/state": np.array([0.5, 1.0]), "prompt": "push"},
        {"images": {"top": PICTURE}, "states": (0.5, 1), "task_description": "push"},
        {"images": {"front": PICTURE}, "state": [0.5, 1.0], "task": "push"},
    ],
)
def test_every_clients_names_are_read(given: dict[str, Any]) -> None:
    reader = ObservationReader(make_config(cameras=(TOP,)), {"front": TOP})
    read = reader.read(given)
    assert sorted(read) == [TOP, "observation.state", "task"]
    assert torch.equal(read[TOP], torch.from_numpy(PICTURE).permute(2, 0, 1)[None])
    assert torch.equal(read["observation.state"], torch.tensor([[0.5, 1.0]]))
    assert read["task"] == "push"


def test_a_state_is_not_needed_and_liberos_cameras_are_known() -> None:
    cameras = ("observation.images.image", "observation.images.image2")
    reader = ObservationReader(make_config(cameras=cameras))
    other = PICTURE + 1
    read = reader.read({"images": {"wrist": other, "agentview": PICTURE}, "task": ""})
    assert sorted(read) == [*cameras, "task"]
    assert read[cameras[1]][0, 0, 0, 0] == 1


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        (
            {TOP: None, "front": PICTURE},
            CameraError,
            r"has no picture of the policy's camera 'observation.images.top'; it has \['front'\]\. Send it as one of "
            r".*--camera NAME=observation.images.top",
        ),
        (
            {"top": PICTURE},
            CameraError,
            r"has several pictures of .*: \['observation.images.top', 'top'\]\. Send one",
        ),
        ({"images": {"side": PICTURE}}, CameraError, r"the pictures \['images.side'\], which are none of"),
        ({TOP: PICTURE.astype(np.float32)}, ImageError, r"is float32 \(4, 5, 3\), expected uint8"),
        (
            {TOP: PICTURE.transpose(2, 0, 1)},
            ImageError,
            r"is uint8 \(3, 4, 5\), expected uint8 \(height, width, 3\)",
        ),
        ({"state": [1.0]}, StateError, r"has the states \['observation.state', 'state'\], expected one"),
        ({"observation.state": [[1.0, 2.0]]}, StateError, "expected finite numbers in one row"),
        ({"observation.state": [1.0, float("nan")]}, StateError, "expected finite numbers"),
        ({"observation.state": "up"}, StateError, "'observation.state' is 'up'"),
        ({"task": None}, PromptError, r"the message has the tasks {}, expected one text"),
        ({"task": 3}, PromptError, r"the message has the tasks {'task': 3}"),
        ({"prompt": "pull"}, PromptError, "expected one text under one of"),
    ],
)
def test_what_does_not_fit_is_named(changes: dict[str, Any], error: type[Exception], text: str) -> None:
    reader = ObservationReader(make_config(cameras=(TOP,)))
    with pytest.raises(error, match=text):
        reader.read(message(**changes))


def test_other_cameras_can_be_ignored_and_unknown_keys_are_refused() -> None:
    config = make_config(cameras=(TOP, "observation.images.side"))
    config.cameras = [TOP]
    read = ObservationReader(config).read(message(side=PICTURE))
    assert "side" not in read and "observation.images.side" not in read
    with pytest.raises(ConfigError, match=r"--camera names \['observation.images.left'\]"):
        ObservationReader(config, {"left": "observation.images.left"})
