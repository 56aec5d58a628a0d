"""A client that reads nothing but ``vla0.json`` sends the policy's picture and prompt, and makes its actions."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.exports import CAMERAS, TASK, messages, save_policy, sent_pictures, two_cameras
from helpers.tiny import make_stats
from torch import Tensor

from lerobot_policy_vla0 import VLA0Config, VLA0Policy, make_vla0_pre_post_processors
from lerobot_policy_vla0.text.grammar_languages import answer_gbnf, answer_lark, answer_regex
from lerobot_policy_vla0.tools.exporting.export import export_policy


def export(folder: Path, config: VLA0Config) -> dict[str, Any]:
    """Export a random policy; returns what its ``vla0.json`` says."""
    export_policy(save_policy(VLA0Policy(config), folder / "policy"), folder / "out")
    said: dict[str, Any] = json.loads((folder / "out/vla0.json").read_text())
    return said


# ------------------------------------------------------------------ what a reader makes of it


def read_picture(said: dict[str, Any], frames: dict[str, np.ndarray]) -> np.ndarray:
    """Follow the steps of ``picture`` for frames ``(H, W, 3)`` uint8; returns the tiled picture."""
    settings, tiles = said["picture"], []
    for camera in said["cameras"]:
        frame = frames[camera["key"]]
        height, width = frame.shape[:2]
        x0, y0, x1, y1 = settings["crop_box"] or (0, 0, 1, 1)
        frame = frame[round(y0 * height) : round(y1 * height), round(x0 * width) : round(x1 * width)]
        height, width = frame.shape[:2]
        kept_h, kept_w = (round(settings["crop_ratio"] * side) for side in (height, width))
        top, left = round((height - kept_h) / 2), round((width - kept_w) / 2)
        frame = frame[top : top + kept_h, left : left + kept_w]
        pixels = torch.tensor(frame).permute(2, 0, 1)[None].float() / 255
        size = settings["camera_size"]
        pixels = F.interpolate(pixels, size, mode="bilinear", antialias=settings["antialias"])
        tiles.append((pixels[0] * 255 + 0.001).to(torch.uint8).permute(1, 2, 0).numpy())
    return np.concatenate(tiles, axis=1)


def read_actions(said: dict[str, Any], answer: str) -> np.ndarray:
    """Follow ``answer`` and ``actions``: the text of integers becomes ``(T, D)`` in the robot's units."""
    shape = said["answer"]["chunk_size"], said["answer"]["action_dim"]
    bins = np.array([int(word) for word in answer.split(" ")]).reshape(shape)
    low, high = (np.array(said["actions"][end]) for end in ("low", "high"))
    return np.asarray(low + (high - low) * bins / said["answer"]["n_bins"])


@pytest.mark.parametrize(
    "options",
    [{}, {"crop_box": (0.1, 0.2, 0.75, 0.9), "crop_ratio": 0.9, "antialias": True, "image_size": (56, 84)}],
)
def test_a_reader_sends_the_policys_picture(tmp_path: Path, options: dict[str, Any]) -> None:
    config = two_cameras(image=97, **options)
    said = export(tmp_path, config)
    generator = torch.Generator().manual_seed(0)
    frames = {
        key: torch.randint(0, 256, (97, 97, 3), dtype=torch.uint8, generator=generator) for key in CAMERAS
    }
    batch: dict[str, Tensor] = {key: frame.permute(2, 0, 1)[None] for key, frame in frames.items()}
    [[expected]] = sent_pictures(config, batch)
    picture = read_picture(said, {key: frame.numpy() for key, frame in frames.items()})
    assert list(picture.shape[:2]) == said["picture"]["sent_size"]
    assert np.array_equal(picture, expected.permute(1, 2, 0).numpy())


def test_a_reader_makes_the_policys_actions(tmp_path: Path) -> None:
    config = two_cameras()
    said = export(tmp_path, config)
    _, postprocess = make_vla0_pre_post_processors(config, make_stats())
    bins = torch.tensor([[[0, 100], [37, 5]]])
    actions = postprocess((2 * bins - 100).float() / 100)
    assert np.allclose(read_actions(said, "0 100 37 5"), actions[0].numpy(), atol=1e-6)


def test_a_reader_sends_the_policys_prompt(tmp_path: Path) -> None:
    config = two_cameras(tile_images=False, add_vision_id=True, state_in_prompt=True)
    said = export(tmp_path, config)
    template = json.dumps(said["prompt"]["messages"])
    place = {"type": "image_url", "image_url": {"url": "data:image/png;base64,{PICTURE}"}}
    filled = template.replace(json.dumps(place), json.dumps({"type": "image"}))
    filled = filled.replace("{STATE}", "50 50").replace("{TASK}", TASK)
    ours = messages(config, 2, state="50 50")
    ours[0]["content"] = ours[0]["content"][0]["text"]  # one part of text is the text
    assert json.loads(filled) == ours
    assert said["prompt"]["tokens_of_each_picture"] == [4, 4]
    state = said["state"]
    assert (state["low"], state["high"], state["n_bins"]) == ([-1.0, -1.0], [1.0, 1.0], 100)


# ------------------------------------------------------------------ the rest of it


def test_grammars_are_files_that_engines_take_as_they_are(tmp_path: Path) -> None:
    said = export(tmp_path, two_cameras())["answer"]
    files = {language: (tmp_path / "out" / name).read_text() for language, name in said["grammar"].items()}
    assert files == {"regex": answer_regex(100, 4), "gbnf": answer_gbnf(100, 4), "lark": answer_lark(100, 4)}
    begun = re.compile(f"( {said['number']}){{2}}")
    assert begun.fullmatch(" 7 100") and not begun.fullmatch(" 7 101")
    assert said["longest_in_tokens"] == len("100 100 100 100") + 1


def test_execution_and_units_are_the_configs(tmp_path: Path) -> None:
    from lerobot.configs.types import NormalizationMode

    config = two_cameras(
        n_action_steps=1,
        ensemble_n_chunks=2,
        ensemble_old_weight=0.5,
        binary_action_indices=[1],
        max_action_step=0.2,
        action_feature_names=["joint", "gripper"],
        repetition_penalty=1.05,
        normalization_mapping={
            "VISUAL": "IDENTITY",
            "STATE": "IDENTITY",
            "ACTION": NormalizationMode.MIN_MAX,
        },
        license="cc-by-nc-4.0",
    )
    said = export(tmp_path, config)
    assert said["license"] == "cc-by-nc-4.0"
    assert said["state"] is None
    assert said["prompt"]["repetition_penalty"] == 1.05
    assert said["actions"]["names"] == ["joint", "gripper"]
    assert said["actions"]["statistics"] == ["min", "max"]
    assert (said["actions"]["low"], said["actions"]["high"]) == ([-2.0, -2.0], [6.0, 6.0])
    assert said["actions"]["binary_dimensions"] == [1]
    assert said["actions"]["relative_dimensions"] == []
    execution = {key: value for key, value in said["execution"].items() if key != "text"}
    assert execution == {
        "n_action_steps": 1,
        "ensemble_n_chunks": 2,
        "ensemble_old_weight": 0.5,
        "max_action_step": [0.2, None],
        "max_action_step_unit": "range",
        "min_gripper_height": None,
    }


def test_relative_actions_are_said(tmp_path: Path) -> None:
    config = two_cameras(
        use_relative_actions=True,
        action_feature_names=["joint", "gripper"],
        relative_exclude_joints=["gripper"],
    )
    said = export(tmp_path, config)
    assert said["actions"]["relative_dimensions"] == [0]
