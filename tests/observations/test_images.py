"""images.py and color_jitter.py against hand-computed pixels, torchvision sample by sample, and Qwen's processor."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torchvision.transforms.v2.functional as TF
from helpers.paths import REPO
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lerobot_policy_vla0.errors import ConfigError, ImageError
from lerobot_policy_vla0.observations import color_jitter
from lerobot_policy_vla0.observations.batches import image_problems
from lerobot_policy_vla0.observations.images import (
    ImageSettings,
    encode_images,
    grid_size,
    patchify,
    tile,
    transform,
)

TOP, WRIST = "observation.images.top", "observation.images.wrist"
REAL_SETTINGS = REPO.parent / "shared" / "qwen2_5_vl_processor" / "preprocessor_config.json"
NO_JITTER: dict[str, Any] = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
# One patch per image token and one pixel per patch: every image size is allowed.
PIXEL: dict[str, Any] = {"patch_size": 1, "merge_size": 1, "temporal_patch_size": 1}
PLAIN: dict[str, Any] = {**NO_JITTER, **PIXEL, "crop_ratio": 1.0}


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    """The test's own random images; the code under test never uses the global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def seed(value: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(value)


def scene(batch: int, height: int, width: int) -> Tensor:
    """Random colourful images with smooth regions and clipped values, like a scene rather than noise."""
    coarse = torch.rand(batch, 3, max(2, height // 16), max(2, width // 16)) * 1.2 - 0.1
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear").clamp(0, 1)


def levels_in(image: Tensor) -> list[int]:
    """The distinct levels of a uint8 image."""
    return sorted(set(image.flatten().tolist()))


def rows(*values: list[float]) -> Tensor:
    """One three-channel image from rows of grey levels."""
    return torch.tensor(values).expand(1, 3, -1, -1)


# --- truncation, crops, tiling: by hand ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pixel", "level"),
    [(0.0, 0), (1.0, 255), (0.9999, 254), (0.5, 127), (128 / 255, 128), (0.9 / 255, 0), (1.0005, 255)],
)
def test_pixels_are_truncated_not_rounded(pixel: float, level: int) -> None:
    (out,) = transform([torch.full((1, 3, 2, 2), pixel)], ImageSettings((2, 2), **PLAIN), None)
    assert out.dtype == torch.uint8
    assert levels_in(out) == [level]


def test_every_uint8_level_survives_the_round_trip_through_float() -> None:
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, -1, -1)
    pipeline = ImageSettings((16, 16), **PLAIN)
    for image in (levels, levels.float() / 255, levels.double() / 255):
        assert torch.equal(transform([image], pipeline, None)[0], levels)


@pytest.mark.parametrize("level", [1, 77, 128, 254])
@pytest.mark.parametrize("size", [(30, 50), (240, 320), (97, 131)])
def test_a_constant_image_keeps_its_level_through_resize_and_jitter_of_zero_strength(
    level: int, size: tuple[int, int]
) -> None:
    image = torch.full((1, 3, *size), level / 255)
    for antialias in (False, True):
        pipeline = ImageSettings((112, 112), antialias=antialias, **NO_JITTER)
        for generator in (None, seed()):
            assert levels_in(transform([image], pipeline, generator)[0]) == [level]


def test_the_centre_crop_keeps_the_middle_pixels() -> None:
    image = rows([0.0, 0.1, 0.2, 0.3], [0.4, 0.5, 0.6, 0.7], [0.8, 0.9, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0])
    (out,) = transform([image], ImageSettings((2, 2), **{**PLAIN, "crop_ratio": 0.5}), None)
    assert out[0, 0].tolist() == [[127, 153], [229, 255]]


def test_crop_box_is_cut_in_fractions_left_top_right_bottom() -> None:
    image = rows([0.0, 0.1, 0.2, 0.3], [0.4, 0.5, 0.6, 0.7])
    (out,) = transform([image], ImageSettings((1, 2), crop_box=(0.5, 0.0, 1.0, 0.5), **PLAIN), None)
    assert out[0, 0].tolist() == [[51, 76]]


def test_crop_box_comes_before_the_crop_and_is_the_same_in_training() -> None:
    image = scene(4, 100, 200)
    box = ImageSettings((28, 28), crop_box=(0.25, 0.5, 0.75, 1.0), **NO_JITTER)
    whole = ImageSettings((28, 28), **NO_JITTER)
    for value in (None, 1, 2):
        with_box = transform([image], box, None if value is None else seed(value))
        by_hand = transform([image[..., 50:100, 50:150]], whole, None if value is None else seed(value))
        assert torch.equal(with_box[0], by_hand[0])


def test_a_crop_box_thinner_than_a_pixel_leaves_one_pixel() -> None:
    image = rows([0.0, 0.2], [0.4, 0.6])
    (out,) = transform([image], ImageSettings((1, 1), crop_box=(0.999, 0.0, 1.0, 0.001), **PLAIN), None)
    assert out[0, 0].tolist() == [[51]]


def test_bilinear_resize_by_hand_has_half_pixel_centres_and_no_antialias() -> None:
    image = rows([0.0, 1.0, 0.0, 1.0])
    (halved,) = transform([image], ImageSettings((1, 2), **PLAIN), None)
    assert halved[0, 0].tolist() == [[127, 127]]
    wide = rows([0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0])  # output centres fall between pixels 1|2 and 5|6
    (quartered,) = transform([wide], ImageSettings((1, 2), **PLAIN), None)
    assert quartered[0, 0].tolist() == [[0, 0]]  # the bright pixels fall through: no antialias
    (smooth,) = transform([wide], ImageSettings((1, 2), **{**PLAIN, "antialias": True}), None)
    assert min(smooth[0, 0, 0].tolist()) > 0


@pytest.mark.parametrize("training", [False, True])
def test_pixels_outside_the_crop_never_bleed_into_it(training: bool) -> None:
    """A crop that is resized after being cut; sampling from the full frame would mix in the border."""
    image = torch.ones(8, 3, 64, 64)
    image[..., 8:56, 8:56] = 0.5
    # crop_box cuts the grey square exactly; any crop inside it must be pure grey after resizing.
    pipeline = ImageSettings((112, 112), crop_box=(0.125, 0.125, 0.875, 0.875), **NO_JITTER)
    (out,) = transform([image], pipeline, seed() if training else None)
    assert levels_in(out) == [127]
    centre = ImageSettings((112, 112), crop_ratio=0.75, **NO_JITTER)
    assert levels_in(transform([image], centre, None)[0]) == [127]


def coordinates(batch: int, side: int) -> Tensor:
    """Images whose red is the row and green the column, so that a crop tells where it was taken."""
    levels = torch.arange(side) / 255
    red, green = levels.view(-1, 1).expand(side, side), levels.expand(side, side)
    return torch.stack([red, green, torch.zeros(side, side)]).expand(batch, -1, -1, -1)


def test_a_random_crop_is_an_exact_window_and_every_offset_occurs() -> None:
    pipeline = ImageSettings((28, 28), **{**NO_JITTER, "crop_ratio": 0.875})
    (out,) = transform([coordinates(2000, 32)], pipeline, seed())
    whole = (coordinates(1, 32)[0] * 255).round().to(torch.uint8)
    tops, lefts = out[:, 0, 0, 0].tolist(), out[:, 1, 0, 0].tolist()
    for sample, top, left in zip(out, tops, lefts, strict=True):
        assert torch.equal(sample, whole[:, top : top + 28, left : left + 28])
    counts = dict.fromkeys(itertools.product(range(5), repeat=2), 0)
    for place in zip(tops, lefts, strict=True):
        counts[place] += 1
    assert 40 < min(counts.values()) <= max(counts.values()) < 130  # 80 expected, standard deviation 9


def test_samples_and_cameras_get_their_own_crops_and_colours() -> None:
    same = scene(1, 64, 64).expand(4, -1, -1, -1)
    for pipeline in (ImageSettings((56, 56)), ImageSettings((56, 56), **NO_JITTER)):
        out = torch.cat(transform([same, same], pipeline, seed()))
        assert len({tuple(picture.flatten().tolist()) for picture in out}) == 8


def test_crops_do_not_move_when_jitter_is_switched_off() -> None:
    images = [coordinates(6, 64), coordinates(6, 64)]
    plain = transform(images, ImageSettings((56, 56), **NO_JITTER), seed(3))
    faint = transform(
        images, ImageSettings((56, 56), brightness=1e-9, contrast=0, saturation=0, hue=0), seed(3)
    )
    assert all(torch.equal(a, b) for a, b in zip(plain, faint, strict=True))


def test_tiles_stand_side_by_side_in_the_given_order() -> None:
    first, second = rows([1, 2], [3, 4]), rows([5, 6], [7, 8])
    assert tile([first, second])[0, 0].tolist() == [[1, 2, 5, 6], [3, 4, 7, 8]]
    assert tile([second, first])[0, 0].tolist() == [[5, 6, 1, 2], [7, 8, 3, 4]]


# --- randomness ---------------------------------------------------------------------------------------------


def test_one_seed_gives_one_result_and_another_seed_another() -> None:
    images = [scene(4, 100, 100), scene(4, 96, 128)]
    pipeline = ImageSettings((56, 56))
    first, again, other = (encode_images(images, pipeline, seed(value))[0] for value in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_evaluation_draws_nothing_and_does_not_jitter() -> None:
    images = [scene(2, 64, 80)]
    before = torch.random.get_rng_state()
    first = transform(images, ImageSettings((56, 56)), None)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first[0], transform(images, ImageSettings((56, 56), **NO_JITTER), None)[0])


def test_training_leaves_the_global_generator_and_the_given_images_alone() -> None:
    image = scene(2, 56, 56)
    before, state = image.clone(), torch.random.get_rng_state()
    for ratio in (1.0, 0.875):
        transform([image], ImageSettings((56, 56), crop_ratio=ratio), seed())
    encode_images([image], ImageSettings((56, 56), crop_ratio=1.0), None)
    assert torch.equal(image, before)
    assert torch.equal(torch.random.get_rng_state(), state)


# --- against torchvision, one sample at a time ----------------------------------------------------------------


def slow_transform(image: Tensor, pipeline: ImageSettings, draw: Tensor | None) -> Tensor:
    """Transform one ``(3, H, W)`` image with torchvision's own operations: the oracle.

    Args:
        image: float in [0, 1].
        pipeline: what to do.
        draw: the sample's six uniform numbers, or None for evaluation.
    """
    if pipeline.crop_box is not None:
        x0, y0, x1, y1 = pipeline.crop_box
        height, width = image.shape[-2:]
        top, left = round(y0 * height), round(x0 * width)
        image = TF.crop(image, top, left, round(y1 * height) - top, round(x1 * width) - left)
    height, width = image.shape[-2:]
    crop_h, crop_w = round(pipeline.crop_ratio * height), round(pipeline.crop_ratio * width)
    if draw is None:
        image = TF.center_crop(image, [crop_h, crop_w])
    else:
        top, left = math.floor(draw[0] * (height - crop_h + 1)), math.floor(draw[1] * (width - crop_w + 1))
        image = TF.crop(image, top, left, crop_h, crop_w)
    image = TF.resize(image, list(pipeline.image_size), antialias=pipeline.antialias)
    if draw is not None:
        u_brightness, u_contrast, u_saturation, u_hue = draw[2:].tolist()
        image = TF.adjust_brightness(image, 1 + pipeline.brightness * (2 * u_brightness - 1))
        image = TF.adjust_contrast(image, 1 + pipeline.contrast * (2 * u_contrast - 1))
        image = TF.adjust_saturation(image, 1 + pipeline.saturation * (2 * u_saturation - 1))
        image = TF.adjust_hue(image, pipeline.hue * (2 * u_hue - 1))
    return (image * 255).to(torch.uint8)


def assert_levels_agree(fast: Tensor, slow: Tensor, share: float = 0.005) -> None:
    """At most one level apart, and that for at most ``share`` of the values (the truncation's slack)."""
    difference = (fast.int() - slow.int()).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() <= share


@pytest.mark.parametrize(
    "pipeline",
    [
        ImageSettings((224, 224)),
        ImageSettings((112, 112), crop_box=(0.1, 0.2, 0.85, 0.9)),
        ImageSettings((112, 140), antialias=True),
        ImageSettings((112, 112), brightness=1.0, contrast=0.9, saturation=1.0, hue=0.5, crop_ratio=0.5),
        ImageSettings((28, 28), crop_ratio=1.0, contrast=0.0),
    ],
    ids=["protocol", "crop_box", "antialias", "strong_jitter", "no_crop"],
)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_transform_equals_torchvision_sample_by_sample(pipeline: ImageSettings, training: bool) -> None:
    cameras = [scene(2, 256, 256), scene(2, 120, 161)]
    fast = transform(cameras, pipeline, seed(7) if training else None)
    draws = torch.rand(2, 2, 6, generator=seed(7))
    for camera in range(2):
        slow = [
            slow_transform(image, pipeline, draws[camera, sample] if training else None)
            for sample, image in enumerate(cameras[camera])
        ]
        assert_levels_agree(fast[camera], torch.stack(slow))


@settings(max_examples=30, deadline=None)
@given(
    height=st.integers(28, 300),
    width=st.integers(28, 300),
    ratio=st.sampled_from([1.0, 0.875, 0.6]),
    value=st.integers(0, 2**31),
    training=st.booleans(),
)
def test_any_image_size_gives_what_torchvision_gives(
    height: int, width: int, ratio: float, value: int, training: bool
) -> None:
    pipeline = ImageSettings((56, 84), crop_ratio=ratio)
    image = scene(2, height, width)
    (fast,) = transform([image], pipeline, seed(value) if training else None)
    draws = torch.rand(1, 2, 6, generator=seed(value))[0]
    slow = [
        slow_transform(one, pipeline, draw if training else None)
        for one, draw in zip(image, draws, strict=True)
    ]
    assert_levels_agree(fast, torch.stack(slow), share=0.02)  # smaller images: a single value weighs more


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_each_colour_operation_equals_torchvisions(name: str) -> None:
    images = torch.cat(
        [scene(6, 40, 30), torch.rand(2, 3, 40, 30), torch.zeros(1, 3, 40, 30), torch.ones(1, 3, 40, 30)]
    )
    low, high = (-0.5, 0.5) if name == "hue" else (0.0, 2.0)
    factors = torch.linspace(low, high, len(images))
    fast = getattr(color_jitter, f"adjust_{name}")(images, factors)
    slow = [
        getattr(TF, f"adjust_{name}")(image, factor.item())
        for image, factor in zip(images, factors, strict=True)
    ]
    torch.testing.assert_close(fast, torch.stack(slow), rtol=0, atol=1e-5)


PRIMARIES = {
    "red": (1.0, 0.0, 0.0),
    "green": (0.0, 1.0, 0.0),
    "blue": (0.0, 0.0, 1.0),
    "grey": (0.4, 0.4, 0.4),
}


@pytest.mark.parametrize(
    ("colour", "turns", "becomes"),
    [
        ("red", 1 / 3, (0, 1, 0)),
        ("red", -1 / 3, (0, 0, 1)),
        ("red", 1 / 6, (1, 1, 0)),
        ("green", 0.5, (1, 0, 1)),
        ("blue", 1 / 3, (1, 0, 0)),
        ("grey", 0.3, (0.4, 0.4, 0.4)),
    ],
)
def test_hue_turns_the_colour_circle(colour: str, turns: float, becomes: tuple[float, ...]) -> None:
    pixel = torch.tensor(PRIMARIES[colour]).view(1, 3, 1, 1)
    turned = color_jitter.adjust_hue(pixel, torch.tensor([turns]))
    torch.testing.assert_close(
        turned.flatten(), torch.tensor(becomes, dtype=torch.float32), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_the_neutral_factor_changes_no_level(name: str) -> None:
    image = torch.randint(0, 256, (4, 3, 50, 50)).float() / 255
    neutral = torch.full((4,), 0.0 if name == "hue" else 1.0)
    changed = getattr(color_jitter, f"adjust_{name}")(image, neutral)
    pipeline = ImageSettings((50, 50), **PLAIN)
    assert torch.equal(transform([changed], pipeline, None)[0], (image * 255).round().to(torch.uint8))


def test_jitter_factors_fill_their_range_and_never_go_negative() -> None:
    grey = torch.full((4000, 3, 1, 1), 0.5)
    draws = torch.rand(4000, 4)
    out = color_jitter.jitter(grey, draws, brightness=0.2, contrast=0, saturation=0, hue=0)[:, 0, 0, 0] / 0.5
    assert 0.8 <= out.min() < 0.803 and 1.197 < out.max() <= 1.2
    assert abs(out.mean().item() - 1.0) < 0.01
    strong = color_jitter.jitter(grey, draws, brightness=1.5, contrast=0, saturation=0, hue=0)
    # Factors start at 0, not at -0.5: that would turn a fifth of all images black.
    assert (strong == 0).float().mean() < 0.01


def test_another_order_of_the_colour_operations_hardly_matters() -> None:
    """The measured half of the claim in `jitter`'s docstring."""
    images, draws = scene(8, 28, 28), torch.rand(8, 4)
    strengths = {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.05}
    fixed = color_jitter.jitter(images, draws, **strengths)
    off = dict.fromkeys(strengths, 0.0)
    moved = []
    for order in itertools.permutations(strengths):
        other = images
        for name in order:
            other = color_jitter.jitter(other, draws, **{**off, name: strengths[name]})
        moved.append((other - fixed).abs().mean().item() * 255)
    assert sum(moved) / len(moved) < 1.5 < (images - fixed).abs().mean().item() * 255


# --- input types and layouts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
def test_uint8_and_every_float_type_and_memory_layout_give_the_same_pixels(training: bool) -> None:
    levels = (scene(3, 64, 48) * 255).to(torch.uint8)
    pipeline = ImageSettings((56, 56))
    expected = encode_images([levels], pipeline, seed() if training else None)[0]
    channels_last = levels.contiguous(memory_format=torch.channels_last)
    for image in (levels.float() / 255, levels.double() / 255, channels_last, channels_last.float() / 255):
        given_pixels = encode_images([image], pipeline, seed() if training else None)[0]
        torch.testing.assert_close(
            given_pixels, expected, rtol=0, atol=0 if image.dtype == torch.uint8 else 0.02
        )


def test_mixed_precision_around_the_call_changes_nothing() -> None:
    images = [scene(2, 64, 48)]
    expected = encode_images(images, ImageSettings((56, 56)), seed())[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(encode_images(images, ImageSettings((56, 56)), seed())[0], expected)


def test_no_gradient_is_tracked() -> None:
    image = scene(1, 56, 56).requires_grad_()
    assert not encode_images([image], ImageSettings((56, 56)), seed())[0].requires_grad


# --- patches against transformers -----------------------------------------------------------------------------


def qwen_processor(**options: Any) -> Any:
    """The Qwen2-VL image processor with Qwen2.5-VL's limits.

    Given through ``size``: the constructor writes ``min_pixels`` and ``max_pixels`` into a dictionary that
    all later processors share.
    """
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

    return Qwen2VLImageProcessor(size={"shortest_edge": 3136, "longest_edge": 12845056}, **options)


@pytest.mark.parametrize("size", [(224, 448), (56, 56), (112, 84), (28, 112)])
def test_pixel_values_equal_qwens_image_processor(size: tuple[int, int]) -> None:
    image = torch.randint(0, 256, (3, 3, *size), dtype=torch.uint8)
    expected = qwen_processor()(images=list(image), return_tensors="pt")
    pixel_values = patchify(image, ImageSettings())
    assert pixel_values.shape == (3, size[0] * size[1] // 196, 1176)
    assert torch.equal(pixel_values.flatten(0, 1), expected["pixel_values"])


def test_other_patch_layouts_equal_qwens_image_processor() -> None:
    layout: dict[str, Any] = {"patch_size": 16, "merge_size": 3, "temporal_patch_size": 4}
    image = torch.randint(0, 256, (2, 3, 96, 144), dtype=torch.uint8)
    expected = qwen_processor(**layout)(images=list(image), return_tensors="pt")
    pixel_values = patchify(image, ImageSettings(image_size=(96, 144), **layout))
    assert torch.equal(pixel_values.flatten(0, 1), expected["pixel_values"])


@pytest.mark.parametrize("tiled", [True, False], ids=["tiled", "separate"])
def test_encoded_cameras_equal_what_qwens_processor_makes_of_the_pictures(tiled: bool) -> None:
    cameras = [scene(3, 256, 256), scene(3, 120, 160)]
    pipeline = ImageSettings((224, 224), tile=tiled)
    pictures = transform(cameras, pipeline, seed(1))
    per_sample = [tile(pictures)] if tiled else pictures
    in_order = [picture[sample] for sample in range(3) for picture in per_sample]  # by sample, then by image
    expected = qwen_processor()(images=in_order, return_tensors="pt")

    pixel_values, grid_thw = encode_images(cameras, pipeline, seed(1))
    assert pixel_values.dtype == torch.float32
    assert torch.equal(pixel_values, expected["pixel_values"])
    assert grid_thw.dtype == torch.int64
    assert torch.equal(grid_thw, expected["image_grid_thw"])
    assert [tuple(row) for row in grid_thw.tolist()] == grid_size(pipeline, 2) * 3


def test_the_default_patch_layout_is_the_one_in_the_published_settings() -> None:
    if not REAL_SETTINGS.exists():
        pytest.skip("the published preprocessor_config.json is not beside this checkout")
    published = json.loads(REAL_SETTINGS.read_text())
    ours = ImageSettings()
    for name in ("patch_size", "merge_size", "temporal_patch_size"):
        assert getattr(ours, name) == published[name]
    assert list(ours.image_mean) == published["image_mean"]
    assert list(ours.image_std) == published["image_std"]
    assert (published["min_pixels"], published["max_pixels"]) == (3136, 12845056)  # as in qwen_processor


def test_patches_of_a_tiny_image_by_hand() -> None:
    """4x4 pixels, patches of one pixel, merged 2x2: block by block, each row by row."""
    layout = ImageSettings((4, 4), patch_size=1, merge_size=2, image_mean=(0, 0, 0), image_std=(1, 1, 1))
    levels = torch.arange(16, dtype=torch.uint8).view(1, 1, 4, 4) + torch.tensor([0, 20, 40]).view(1, 3, 1, 1)
    patches = (patchify(levels.to(torch.uint8), layout) * 255).round().int()
    assert patches.shape == (1, 16, 6)
    assert patches[0, :, 0].tolist() == [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]
    assert patches[0, 1].tolist() == [1, 1, 21, 21, 41, 41]  # channel, then the repeated frame


def test_no_image_at_all_is_refused() -> None:
    with pytest.raises(ImageError, match="No image was given: the policy needs at least one camera"):
        encode_images([], ImageSettings(), None)


# --- settings -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"image_size": (224, 230)},
            "image_size=(224, 230), expected (height, width) in multiples of 28 pixels (patch_size 14 x "
            "merge_size 2): use e.g. (224, 224).",
        ),
        ({"image_size": (0, 224)}, "image_size=(0, 224), expected (height, width) in multiples of 28"),
        (
            {"crop_box": (0.5, 0.0, 0.4, 1.0)},
            "crop_box=(0.5, 0.0, 0.4, 1.0), expected (x0, y0, x1, y1) with 0 <= x0 < x1 <= 1 and "
            "0 <= y0 < y1 <= 1: give fractions of width and height, not pixels, left and top first.",
        ),
        ({"crop_box": (10.0, 10.0, 200.0, 200.0)}, "crop_box=(10.0, 10.0, 200.0, 200.0), expected"),
        ({"crop_box": (0.0, 0.5, 1.0, 0.5)}, "crop_box=(0.0, 0.5, 1.0, 0.5), expected"),
        ({"crop_box": (0.0, math.nan, 1.0, 1.0)}, "crop_box=(0.0, nan, 1.0, 1.0), expected"),
        (
            {"crop_ratio": 0.0},
            "crop_ratio=0.0, expected above 0 and at most 1: it is the share of each side that is kept; "
            "use 1.0 to switch the crop off.",
        ),
        ({"crop_ratio": 1.2}, "crop_ratio=1.2, expected above 0 and at most 1"),
        (
            {"brightness": -0.1},
            "brightness=-0.1, expected a finite number, at least 0: use 0 to switch it off.",
        ),
        ({"contrast": math.inf}, "contrast=inf, expected a finite number"),
        ({"saturation": math.nan}, "saturation=nan, expected a finite number"),
        (
            {"hue": 0.6},
            "hue=0.6, expected 0 to 0.5: it is a share of the colour circle, and 0.5 already reaches the "
            "opposite colour; use 0 to switch it off.",
        ),
        ({"hue": -0.1}, "hue=-0.1, expected 0 to 0.5"),
        ({"merge_size": 0}, "merge_size=0, expected at least 1: use the base model's."),
        (
            {"image_std": (0.2, 0.0, 0.2)},
            "image_std=(0.2, 0.0, 0.2), expected three numbers each and image_std above 0",
        ),
    ],
)
def test_settings_out_of_range_are_refused_with_the_value_the_limit_and_the_fix(
    options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        ImageSettings(**options)
    assert said in str(caught.value)


# --- on an accelerator ----------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("training", [True, False])
def test_an_accelerator_gives_the_same_levels_without_being_waited_for(training: bool) -> None:
    cameras = [scene(4, 240, 240), (scene(4, 96, 128) * 255).to(torch.uint8)]
    pipeline = ImageSettings((112, 112), crop_box=(0.1, 0.1, 0.9, 0.9), tile=True)
    expected = transform(cameras, pipeline, seed() if training else None)
    on_device = [camera.cuda() for camera in cameras]
    own = torch.Generator("cuda").manual_seed(0)
    encode_images(on_device, pipeline, own if training else None)  # warm up outside the check
    torch.cuda.set_sync_debug_mode("error")
    try:
        levels = transform(on_device, pipeline, seed() if training else None)
        encode_images(on_device, pipeline, own if training else None)
        image_problems(on_device)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for fast, slow in zip(levels, expected, strict=True):
        assert_levels_agree(fast.cpu(), slow)
