"""Which images of a batch the policy reads, and whether they can be read: names, shapes, pixel values."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from lerobot_policy_vla0.errors import CameraError, ImageError
from lerobot_policy_vla0.observations.batches import image_problems, raise_for_problems, select_cameras
from lerobot_policy_vla0.observations.images import (
    ImageSettings,
    encode_images,
)

TOP, WRIST = "observation.images.top", "observation.images.wrist"


# --- cameras --------------------------------------------------------------------------------------------------


def frames(*keys: str, size: int = 32) -> dict[str, Any]:
    return {key: torch.rand(2, 3, size, size) for key in keys}


def test_cameras_come_in_the_policys_order_and_everything_else_is_ignored() -> None:
    batch = frames(WRIST, TOP, "observation.image", "observation.images.side")
    batch |= {f"{TOP}_is_pad": torch.zeros(2, 1, dtype=torch.bool), "observation.state": torch.zeros(2, 6)}
    batch["task"] = ["pick", "place"]
    known = {"observation.images.side"}
    picked = select_cameras(batch, [TOP, "observation.image", WRIST], known)
    assert [image is batch[key] for image, key in zip(picked, [TOP, "observation.image", WRIST], strict=True)]
    assert picked[0] is batch[TOP] and picked[1] is batch["observation.image"] and picked[2] is batch[WRIST]


def test_cameras_of_different_sizes_are_fine() -> None:
    batch = frames(TOP, size=64) | frames(WRIST, size=90)
    assert [image.shape[-1] for image in select_cameras(batch, [TOP, WRIST])] == [64, 90]
    assert encode_images(select_cameras(batch, [TOP, WRIST]), ImageSettings((56, 56)), None)[1].shape == (
        2,
        3,
    )


@pytest.mark.parametrize(
    ("given_keys", "wanted", "known", "said"),
    [
        (
            [TOP],
            [TOP, WRIST],
            [WRIST],
            f"The policy reads the cameras ['{TOP}', '{WRIST}'] and the batch has ['{TOP}'] "
            f"(missing: ['{WRIST}'], unexpected: []). What to do: add ['{WRIST}'] to --robot.cameras, or use data or "
            "an environment with all cameras of the training; for fewer cameras train a new policy.",
        ),
        (
            [TOP, WRIST],
            [TOP],
            [TOP],
            f"(missing: [], unexpected: ['{WRIST}']). Let the policy ignore what it does not read, "
            f"--policy.cameras='[\"{TOP}\"]', or take ['{WRIST}'] out of --robot.cameras.",
        ),
        (
            [WRIST],
            [TOP],
            [],
            f"(missing: ['{TOP}'], unexpected: ['{WRIST}']). If they are the same cameras, rename them: "
            f'--rename_map=\'{{"{WRIST}": "{TOP}"}}\' (if a --rename_map is given already, it made these names out of '
            f"others: name those). Otherwise: add ['{TOP}'] to --robot.cameras, or use data",
        ),
        (
            ["observation.image", "observation.image2"],
            [TOP, WRIST],
            [],
            f'--rename_map=\'{{"<key>": "{TOP}", "<key>": "{WRIST}"}}\', where each <key> is one of '
            "['observation.image', 'observation.image2']",
        ),
        ([], [TOP], [], f"the batch has [] (missing: ['{TOP}'], unexpected: [])"),
        ([], [], [], "The policy reads the cameras []"),
    ],
    ids=["missing", "unexpected", "renamed", "two_renamed", "no_images", "no_cameras"],
)
def test_a_camera_mismatch_names_both_sets_and_the_fix(
    given_keys: list[str], wanted: list[str], known: list[str], said: str
) -> None:
    with pytest.raises(CameraError) as caught:
        select_cameras(frames(*given_keys), wanted, known)
    assert said in str(caught.value)


def test_cameras_that_were_chosen_leave_the_others_alone() -> None:
    batch = frames(TOP, WRIST)
    assert select_cameras(batch, [TOP], [TOP], ignore_others=True)[0] is batch[TOP]
    with pytest.raises(CameraError, match=r"missing: \['observation.images.top'\]"):
        select_cameras(frames(WRIST), [TOP], [TOP], ignore_others=True)


FLOATS = "expected (B, 3, H, W), float in [0, 1] or uint8"


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (
            torch.rand(3, 8, 9),
            f"given (3, 8, 9) float32, {FLOATS}: add the batch dimension with image.unsqueeze(0).",
        ),
        (
            torch.rand(2, 1, 3, 8, 9),
            f"given (2, 1, 3, 8, 9) float32, {FLOATS}: the policy looks at one frame per camera; "
            "use n_obs_steps=1.",
        ),
        (
            torch.zeros(2, 8, 9, 3, dtype=torch.uint8),
            f"given (2, 8, 9, 3) uint8, {FLOATS}: move the channels with image.permute(0, 3, 1, 2).",
        ),
        (
            torch.rand(2, 4, 8, 9),
            f"given (2, 4, 8, 9) float32, {FLOATS}: give RGB images, without depth or alpha.",
        ),
        (torch.rand(2, 8), f"given (2, 8) float32, {FLOATS}: give RGB images, without depth or alpha."),
        (torch.rand(2, 3, 0, 9), f"given (2, 3, 0, 9) float32, {FLOATS}: the image is empty."),
        (
            torch.zeros(2, 3, 8, 9, dtype=torch.int64),
            f"given (2, 3, 8, 9) int64, {FLOATS}: convert 0..255 integers with image.to(torch.uint8).",
        ),
        ([[0.0]], f"given list, {FLOATS}: convert it to a tensor."),
    ],
    ids=["no_batch", "time", "channels_last", "rgba", "flat", "empty", "int64", "list"],
)
def test_a_misshapen_image_is_named_with_what_was_given_expected_and_the_fix(image: Any, said: str) -> None:
    with pytest.raises(ImageError) as caught:
        select_cameras({TOP: image}, [TOP])
    assert str(caught.value) == f"{TOP}: {said}"


def test_cameras_with_different_batch_sizes_are_refused() -> None:
    batch = {TOP: torch.rand(2, 3, 8, 8), WRIST: torch.rand(1, 3, 8, 8)}
    with pytest.raises(ImageError) as caught:
        select_cameras(batch, [TOP, WRIST])
    assert f"different batch sizes: {{'{TOP}': 2, '{WRIST}': 1}}. Every camera needs one image" in str(
        caught.value
    )


# --- pixel values ---------------------------------------------------------------------------------------------


def test_sound_images_raise_nothing_and_rounding_errors_are_forgiven() -> None:
    sound = [
        torch.rand(2, 3, 8, 8),
        torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8),
        torch.rand(2, 3, 4, 4, dtype=torch.float64) * 1.001 - 0.0005,
        torch.rand(1, 3, 4, 4).half(),
    ]
    problems = image_problems(sound)
    assert problems.shape == (4, 2) and problems.dtype == torch.float32
    assert problems[0].tolist() == [sound[0].min().item(), sound[0].max().item()]
    raise_for_problems(problems.tolist(), ["a", "b", "c", "d"])


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            [0.0, 255.0],
            "pixel values lie in [0, 255], expected [0, 1]. The image looks like 0..255 in floating point: "
            "divide it by 255, or pass it as uint8.",
        ),
        (
            [-1.5, 2.25],
            "pixel values lie in [-1.5, 2.25], expected [0, 1]. The image looks normalised by mean and standard "
            "deviation already: turn that off (normalization_mapping: VISUAL: IDENTITY), the policy normalises "
            "images itself.",
        ),
        (
            [0.0, 1.25],
            "pixel values lie in [0, 1.25], expected [0, 1]. An earlier transform overshoots: clamp its result "
            "to [0, 1].",
        ),
        (
            [0.5, math.nan],
            "pixel values contain NaN, expected [0, 1]. Look for a frame that was never filled or a division by "
            "zero in an earlier step.",
        ),
        (
            [0.5, math.inf],
            "pixel values lie in [0.5, inf], expected [0, 1]. Look for a division by zero in an earlier step.",
        ),
    ],
    ids=["0..255", "normalised", "overshoot", "nan", "inf"],
)
def test_bad_values_name_the_camera_the_range_and_the_likely_cause(values: list[float], said: str) -> None:
    bad = torch.full((2, 3, 4, 4), values[0])
    bad[1, 2, 3, 3] = values[1]
    problems = image_problems([torch.rand(2, 3, 8, 8), bad]).tolist()
    with pytest.raises(ImageError) as caught:
        raise_for_problems(problems, [TOP, WRIST])
    assert str(caught.value) == f"{WRIST}: {said}"
