"""From what a camera sees to the model's input at inference, and from the text it answers to the robot's actions.

The answers are given texts, so every action is known by hand: ``min + integer / 1000 * (max - min)`` with LIBERO's
statistics, averaged as the protocol says. See `libero_protocol`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.libero_policy import Libero, Scribe
from helpers.libero_policy import libero as libero_of
from helpers.libero_protocol import (
    ACTION_MAX,
    ACTION_MIN,
    DECODED,
    IMAGE,
    PROMPT,
    STEPS,
    TASK,
    WRIST,
    crop_and_shrink,
    levels,
    scene,
    side_by_side,
    text_of,
    third_person,
    wrist,
)

from lerobot_policy_vla0 import modeling_vla0
from lerobot_policy_vla0.errors import AnswerError

#: Builds a policy that answers given texts: its options and the texts in; policy, processors and scribe out.
Play = Callable[..., tuple[Any, Any, Any, Scribe]]


@pytest.fixture
def libero(qwen_folder: Path, qwen_tokenizer: Any) -> Libero:
    return libero_of(qwen_folder, qwen_tokenizer)


@pytest.fixture
def play(libero: Libero, monkeypatch: pytest.MonkeyPatch) -> Play:
    def build(texts: list[str], **options: Any) -> tuple[Any, Any, Any, Scribe]:
        policy, pre, post = libero.build(**options)
        scribe = Scribe(libero.tokenizer, texts)
        monkeypatch.setattr(modeling_vla0, "build_decoder", lambda *_: scribe)
        policy._decoder = None  # the next query asks for one
        return policy, pre, post, scribe

    return build


def observation(image: Any, wrist_image: Any) -> dict[str, Any]:
    """One observation as LeRobot's evaluation gives it: float pixels in [0, 1]."""
    pictures = {IMAGE: image, WRIST: wrist_image}
    return {
        **{key: torch.from_numpy(p).permute(2, 0, 1)[None].float() / 255 for key, p in pictures.items()},
        "observation.state": torch.zeros(1, 8),
        "task": [TASK],
    }


LIBERO_VIEW = observation(third_person(), wrist())


# ---------------------------------------------------------------- what the decoder is asked


def test_inference_asks_with_the_prompt_and_the_pixels_of_training(play: Play, libero: Libero) -> None:
    policy, pre, _, scribe = play([text_of(list(range(8)))])
    policy.predict_action_chunk(dict(pre(LIBERO_VIEW)))
    (request,) = scribe.requests
    assert request.ids.tolist() == [[id_ for _, id_ in PROMPT]]
    assert request.mask.tolist() == [[True] * 209]
    assert request.grid_thw.tolist() == [[1, 16, 32]]
    picture = side_by_side([crop_and_shrink(p, 16, 16, (224, 224)) for p in (third_person(), wrist())])
    theirs = libero.processor.image_processor(images=[picture], return_tensors="pt")["pixel_values"]
    assert torch.equal(levels(request.pixel_values), levels(theirs))


@pytest.mark.parametrize(
    ("height", "width", "top", "left", "crop", "share"),
    [
        (
            360,
            360,
            22,
            22,
            (315, 315),
            0.002,
        ),  # lerobot-eval's LIBERO default; half a pixel goes to the even side
        (480, 640, 30, 40, (420, 560), 0.002),  # a webcam
        (240, 320, 15, 20, (210, 280), 0.002),
        (128, 128, 8, 8, (112, 112), 0.002),  # enlarged twofold
    ],
)
def test_resized_pixels_differ_from_pillows_by_one_level_in_two_of_a_thousand_at_most(
    play: Play,
    libero: Libero,
    height: int,
    width: int,
    top: int,
    left: int,
    crop: tuple[int, int],
    share: float,
) -> None:
    """Pillow interpolates in float64 and truncates; the policy in float32, with a thousandth of a level of slack."""
    pictures = [scene(height, width, seed) for seed in (1, 2)]
    policy, pre, _, scribe = play([text_of(list(range(8)))])
    policy.predict_action_chunk(dict(pre(observation(*pictures))))
    tiled = side_by_side([crop_and_shrink(picture, top, left, crop) for picture in pictures])
    theirs = libero.processor.image_processor(images=[tiled], return_tensors="pt")["pixel_values"]
    difference = (levels(scribe.requests[0].pixel_values) - levels(theirs)).abs()
    assert difference.max() <= 1
    assert (difference > 0).double().mean() <= share


# ---------------------------------------------------------------- from text to actions


def test_a_chunk_of_text_becomes_the_actions_worked_out_by_hand(play: Play) -> None:
    policy, pre, post, _ = play([text_of(list(range(8)))])
    actions = post(policy.predict_action_chunk(dict(pre(LIBERO_VIEW))))
    assert actions.shape == (1, 8, 7)
    np.testing.assert_allclose(actions[0].numpy(), DECODED, atol=1e-6)
    # Half a level of each dimension's range is the most that is lost.
    original = np.array([action for action, _, _ in STEPS])
    half = (np.array(ACTION_MAX) - np.array(ACTION_MIN)) / 2000
    assert (np.abs(actions[0].numpy() - original) <= half + 1e-6).all()


def test_the_whole_range_of_integers_becomes_the_statistics_ends_and_middle(play: Play) -> None:
    zeros, halves, tops = ("0 " * 7).strip(), ("500 " * 7).strip(), ("1000 " * 7).strip()
    policy, pre, post, _ = play([" ".join([zeros, halves, tops, *[zeros] * 5])])
    actions = post(policy.predict_action_chunk(dict(pre(LIBERO_VIEW))))[0]
    np.testing.assert_allclose(actions[0].numpy(), ACTION_MIN, atol=1e-7)
    np.testing.assert_allclose(actions[2].numpy(), ACTION_MAX, atol=1e-7)
    np.testing.assert_allclose(actions[1].numpy(), [0, 0, 0, 0.04875, 0, 0.00375, 0], atol=1e-6)


#: Rows no step of the tests below may look at.
FAR = "1000 0 1000 0 1000 0 1000"
QUERIES = [
    ["500 700 300 0 1000 0 1000", "800 500 0 1000 400 1000 0", "0 1000 500 500 0 500 100", *[FAR] * 5],
    ["200 500 1000 0 600 1000 900", "600 400 500 500 500 500 100", *[FAR] * 6],
    ["900 100 500 500 700 500 1000", *[FAR] * 7],
]
# Moment 0 was predicted once. Moment 1 twice, in the robot's units:
#   earlier  0.5625  0 -0.9375  0.355714 -0.075  0.375  gripper -1
#   newest  -0.5625  0  0.9375 -0.258214  0.075  0.375  gripper  0.8
# Moment 2 three times:
#   earlier -0.9375  0.9375 0 0.04875 -0.375 0.00375  gripper -0.8
#   earlier  0.1875 -0.1875 0 0.04875  0     0.00375  gripper -0.8
#   newest   0.75   -0.75   0 0.04875  0.15  0.00375  gripper  1
FIRST = [0.0, 0.375, -0.375, -0.258214, 0.375, -0.3675, 1.0]
PAPERS_MEAN = [
    FIRST,
    [0.0, 0.0, 0.0, 0.04875, 0.0, 0.375, -1.0],  # the gripper's mean is -0.1
    [0.0, 0.0, 0.0, 0.04875, -0.075, 0.00375, -1.0],  # -0.2
]
CODES_WEIGHTS = [
    FIRST,
    # (0.5 * earlier + newest) / 1.5; the gripper: (-0.5 + 0.8) / 1.5 = 0.2
    [-0.1875, 0.0, 0.3125, -0.0535713, 0.025, 0.375, 1.0],
    # (0.5 * earlier + 0.5 * earlier + newest) / 2; the gripper: (-0.4 - 0.4 + 1) / 2 = 0.1
    [0.1875, -0.1875, 0.0, 0.04875, -0.01875, 0.00375, 1.0],
]


@pytest.mark.parametrize(
    ("old_weight", "expected"), [(1.0, PAPERS_MEAN), (0.5, CODES_WEIGHTS)], ids=["paper", "code"]
)
def test_overlapping_answers_are_averaged_and_the_gripper_snapped_afterwards(
    play: Play, old_weight: float, expected: list[list[float]]
) -> None:
    """Snapping before averaging would turn moment 1's gripper into (-1 + 1) / 2."""
    policy, pre, post, scribe = play(
        [" ".join(rows) for rows in QUERIES],
        n_action_steps=1,
        ensemble_n_chunks=8,
        ensemble_old_weight=old_weight,
        binary_action_indices=[6],
    )
    policy.reset()
    actions = [post(policy.select_action(dict(pre(LIBERO_VIEW))))[0].numpy() for _ in range(3)]
    assert scribe.texts == []
    np.testing.assert_allclose(actions, expected, atol=1e-6)


def test_a_whole_chunk_is_executed_before_the_next_query_on_a_real_robot(play: Play) -> None:
    policy, pre, post, scribe = play([text_of(list(range(8)))])
    policy.reset()
    actions = [post(policy.select_action(dict(pre(LIBERO_VIEW))))[0].numpy() for _ in range(8)]
    assert len(scribe.requests) == 1
    np.testing.assert_allclose(actions, DECODED, atol=1e-6)


def test_the_gripper_snaps_by_its_sign_and_zero_counts_as_positive(play: Play) -> None:
    levels_ = [0, 1, 499, 500, 501, 700, 999, 1000]
    text = " ".join(f"500 500 500 500 500 500 {level}" for level in levels_)
    policy, pre, post, _ = play([text], binary_action_indices=[6])
    actions = post(policy.predict_action_chunk(dict(pre(LIBERO_VIEW))))[0]
    assert actions[:, 6].tolist() == [-1, -1, -1, 1, 1, 1, 1, 1]
    assert actions[:, 0].abs().max() < 1e-6  # nothing else is snapped


@pytest.mark.parametrize("text", ["", "500 500", "grasp the mug", "1001 " + "0 " * 54 + "0"], ids=repr)
def test_text_that_is_no_chunk_moves_nothing(play: Play, text: str) -> None:
    """The paper's code would execute the middle of every range."""
    policy, pre, _, _ = play([text])
    with pytest.raises(AnswerError, match=r"row 0 is not 56 integers in \[0, 1000\]"):
        policy.predict_action_chunk(dict(pre(LIBERO_VIEW)))


# ---------------------------------------------------------------- from actions to integers


def test_integers_differ_from_the_papers_formula_at_ties_only(play: Play) -> None:
    """200,000 actions: LeRobot's normaliser and the codec in float32, the formula in float64."""
    policy, pre, _, _ = play([])
    rng = np.random.default_rng(0)
    low, high = np.array(ACTION_MIN, np.float32), np.array(ACTION_MAX, np.float32)  # as stored
    actions = (low + rng.random((3572, 8, 7), dtype=np.float32) * (high - low)).clip(low, high)
    normalised = pre({**LIBERO_VIEW, "action": torch.from_numpy(actions), "task": [TASK]})["action"]
    ours, clipped = policy.codec.actions_to_bins(normalised)
    exact = (actions.astype(np.float64) - low) / (high.astype(np.float64) - low) * 1000
    theirs = np.round(exact)
    different = ours.numpy() != theirs
    assert not clipped.any()
    assert np.abs(ours.numpy() - theirs).max() <= 1
    assert different.mean() <= 1e-3
    assert (np.abs(np.abs(exact - np.floor(exact)) - 0.5)[different] < 1e-3).all()
