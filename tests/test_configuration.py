"""configuration_vla0.py: the paper's defaults, every refusal's text, and the two ways options come in."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import draccus
import pytest
from lerobot.configs.policies import PreTrainedConfig
from lerobot.configs.types import FeatureType, NormalizationMode, PolicyFeature
from lerobot.optim.schedulers import (
    ConstantWithWarmupSchedulerConfig,
    CosineAnnealingWithWarmupSchedulerConfig,
)

from lerobot_policy_vla0.configuration_vla0 import TinyVLMConfig, VLA0Config
from lerobot_policy_vla0.errors import CameraError, ConfigError
from lerobot_policy_vla0.optimizers import FusedAdamWConfig
from lerobot_policy_vla0.text.codec import ActionTokens
from lerobot_policy_vla0.text.prompt import PromptSettings

TOP, WRIST = "observation.images.top", "observation.images.wrist"


def config(**options: Any) -> VLA0Config:
    return VLA0Config(**{"device": "cpu", **options})


def with_features(action_dim: int = 7, cameras: tuple[str, ...] = (TOP, WRIST), **options: Any) -> VLA0Config:
    return config(
        input_features={
            "observation.state": PolicyFeature(FeatureType.STATE, (8,)),
            **{key: PolicyFeature(FeatureType.VISUAL, (3, 256, 256)) for key in cameras},
        },
        output_features={"action": PolicyFeature(FeatureType.ACTION, (action_dim,))},
        **options,
    )


def cli(*arguments: str) -> VLA0Config:
    parsed = draccus.parse(VLA0Config, args=["--device=cpu", *arguments])
    assert isinstance(parsed, VLA0Config)
    return parsed


# ---------------------------------------------------------------- defaults


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("vlm_model_name", "Qwen/Qwen2.5-VL-3B-Instruct"),
        ("chunk_size", 8),
        ("n_bins", 1000),
        ("crop_ratio", 0.875),
        ("crop_box", None),
        ("image_size", (224, 224)),
        ("antialias", False),
        ("brightness", 0.2),
        ("contrast", 0.2),
        ("saturation", 0.2),
        ("hue", 0.05),
        ("tile_images", True),
        ("add_vision_id", False),
        ("state_in_prompt", False),
        ("use_relative_actions", False),
        ("action_mask_max_ratio", 0.4),
        ("action_mask_skip_prob", 0.1),
        ("action_mask_unit", "char"),
        ("loss_on_padding", True),
        ("ensemble_old_weight", 1.0),
        ("temperature", 0.0),
        ("repetition_penalty", 1.0),
        ("dtype", "bfloat16"),
        ("optimizer_lr", 4e-5),
        ("optimizer_weight_decay", 1e-10),
        ("scheduler_name", "constant"),
        ("freeze_vision_encoder", False),
    ],
)
def test_defaults_are_the_papers(option: str, value: object) -> None:
    assert getattr(config(), option) == value


def test_actions_are_min_max_normalised_by_default() -> None:
    assert config().normalization_mapping["ACTION"] is NormalizationMode.MIN_MAX
    assert config().normalization_mapping["VISUAL"] is NormalizationMode.IDENTITY


def test_the_papers_simulation_protocol_is_a_valid_config() -> None:
    simulation = config(n_action_steps=1, ensemble_n_chunks=8, ensemble_old_weight=0.5)
    assert (simulation.n_action_steps, simulation.ensemble_n_chunks) == (1, 8)


def test_a_libero_policy_derives_the_papers_prompt_and_128_image_tokens() -> None:
    libero = with_features()
    assert libero.action_dim == 7
    assert libero.camera_keys == [TOP, WRIST]
    assert libero.image_tokens(14, 2) == [128]
    assert (
        "sequence of 56 integers (0-1000 each), representing the 8 timesteps" in libero.filled_system_prompt
    )
    assert with_features(tile_images=False).image_tokens(14, 2) == [64, 64]


def test_prompts_and_the_codec_are_set_up_from_the_options() -> None:
    settings = with_features(state_in_prompt=True, add_vision_id=True, max_prompt_length=99, n_bins=10)
    assert settings.prompt_settings(14, 2, pad_token_id=5) == PromptSettings(
        system_prompt=settings.filled_system_prompt,
        image_tokens=(128,),
        pad_token_id=5,
        add_vision_id=True,
        max_length=99,
        state_dim=8,
        n_bins=10,
    )
    assert with_features().prompt_settings(14, 2, pad_token_id=5).state_dim == 0
    tokens = ActionTokens(tuple(range(10)), space=10, end=11, newline=12, mask=13, pad=14)
    codec = with_features(action_dim=3, chunk_size=9, n_bins=10).codec(tokens)
    assert (codec.tokens, codec.n_bins, codec.chunk_size, codec.action_dim) == (tokens, 10, 9, 3)


def test_dimensions_stay_absolute_by_name() -> None:
    names = ["shoulder.pos", "elbow.pos", "gripper.pos"]
    assert with_features(action_dim=3, action_feature_names=names).absolute_dimensions == [2]


def test_lerobot_asks_for_one_observation_and_the_chunk() -> None:
    assert config().observation_delta_indices is None
    assert config().reward_delta_indices is None
    assert config(chunk_size=4, n_action_steps=4).action_delta_indices == [0, 1, 2, 3]
    assert config().type == "vla0"


def test_the_optimizer_is_adamw_with_the_policys_values() -> None:
    preset = config(
        optimizer_lr=1e-4, optimizer_grad_clip_norm=0.0, optimizer_betas=(0.8, 0.9)
    ).get_optimizer_preset()
    assert preset == FusedAdamWConfig(
        lr=1e-4, betas=(0.8, 0.9), eps=1e-8, weight_decay=1e-10, grad_clip_norm=0.0
    )


def test_the_schedule_is_constant_or_cosine_after_the_warm_up() -> None:
    assert config().get_scheduler_preset() == ConstantWithWarmupSchedulerConfig(num_warmup_steps=0)
    cosine = config(scheduler_name="cosine", scheduler_warmup_steps=100).get_scheduler_preset()
    assert cosine == CosineAnnealingWithWarmupSchedulerConfig(num_warmup_steps=100)


# ---------------------------------------------------------------- refusals

MAPPING = {"VISUAL": NormalizationMode.IDENTITY, "STATE": NormalizationMode.MIN_MAX}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_obs_steps": 2}, "n_obs_steps=2, but VLA-0 sees one observation. Set it to 1."),
        ({"chunk_size": 0}, "chunk_size=0 must be at least 1 (the paper uses 8)."),
        ({"chunk_size": -8}, "chunk_size=-8 must be at least 1 (the paper uses 8)."),
        ({"n_bins": 0}, "n_bins=0 must be an integer in [1, 99999] (the paper uses 1000)."),
        ({"n_bins": -1}, "n_bins=-1 must be an integer in [1, 99999] (the paper uses 1000)."),
        ({"n_bins": 100_000}, "n_bins=100000 must be an integer in [1, 99999] (the paper uses 1000)."),
        (
            {"n_action_steps": 9},
            "n_action_steps=9 must lie in [1, chunk_size=8]: only predicted steps can be executed. Lower "
            "n_action_steps or raise chunk_size.",
        ),
        (
            {"n_action_steps": 0},
            "n_action_steps=0 must lie in [1, chunk_size=8]: only predicted steps can be executed. Lower "
            "n_action_steps or raise chunk_size.",
        ),
        ({"ensemble_n_chunks": 0}, "ensemble_n_chunks=0 must be at least 1 (1 is off)."),
        ({"ensemble_old_weight": 0.0}, "ensemble_old_weight=0.0 must lie in (0, 1]."),
        ({"ensemble_old_weight": 1.5}, "ensemble_old_weight=1.5 must lie in (0, 1]."),
        (
            {"ensemble_n_chunks": 8},
            "ensemble_n_chunks=8 would silently do less than it says: with chunk_size=8 and n_action_steps=8 only 1 "
            "chunk(s) overlap. Set ensemble_n_chunks to at most 1, or lower n_action_steps (the paper's simulation: "
            "n_action_steps=1, ensemble_n_chunks=8).",
        ),
        (
            {"ensemble_n_chunks": 4, "n_action_steps": 3},
            "ensemble_n_chunks=4 would silently do less than it says: with chunk_size=8 and n_action_steps=3 only 3 "
            "chunk(s) overlap. Set ensemble_n_chunks to at most 3, or lower n_action_steps (the paper's simulation: "
            "n_action_steps=1, ensemble_n_chunks=8).",
        ),
        (
            {"ensemble_old_weight": 0.5},
            "ensemble_old_weight=0.5 has no effect with ensemble_n_chunks=1. Raise ensemble_n_chunks or leave "
            "ensemble_old_weight at 1.0.",
        ),
        ({"max_prompt_length": 0}, "max_prompt_length=0 must be at least 1."),
        ({"temperature": -0.1}, "temperature=-0.1 must be finite and at least 0 (0 is greedy)."),
        ({"repetition_penalty": 0.0}, "repetition_penalty=0.0 must be finite and positive (1.0 is none)."),
        ({"action_mask_max_ratio": 1.1}, "action_mask_max_ratio=1.1 must lie in [0, 1]."),
        ({"action_mask_max_ratio": -0.1}, "action_mask_max_ratio=-0.1 must lie in [0, 1]."),
        ({"action_mask_skip_prob": 1.1}, "action_mask_skip_prob=1.1 must lie in [0, 1]."),
        ({"action_mask_skip_prob": float("nan")}, "action_mask_skip_prob=nan must lie in [0, 1]."),
        ({"action_mask_unit": "word"}, "action_mask_unit='word' must be 'char' or 'number'."),
        (
            {"normalization_mapping": {**MAPPING, "ACTION": NormalizationMode.MEAN_STD}},
            "normalization_mapping['ACTION'] is MEAN_STD, but integers need actions in a bounded range. Use one of "
            "['MIN_MAX', 'QUANTILES', 'QUANTILE10'] (the paper: MIN_MAX).",
        ),
        (
            {"normalization_mapping": {**MAPPING, "ACTION": NormalizationMode.IDENTITY}},
            "normalization_mapping['ACTION'] is IDENTITY, but integers need actions in a bounded range. Use one of "
            "['MIN_MAX', 'QUANTILES', 'QUANTILE10'] (the paper: MIN_MAX).",
        ),
        (
            {"normalization_mapping": MAPPING},
            "normalization_mapping['ACTION'] is None, but integers need actions in a bounded range. Use one of "
            "['MIN_MAX', 'QUANTILES', 'QUANTILE10'] (the paper: MIN_MAX).",
        ),
        (
            {
                "normalization_mapping": {
                    "VISUAL": NormalizationMode.MEAN_STD,
                    "ACTION": NormalizationMode.MIN_MAX,
                }
            },
            "normalization_mapping['VISUAL'] is MEAN_STD, but the backbone normalises pixels itself. Use IDENTITY.",
        ),
        (
            {"dtype": "int8"},
            "dtype='int8' must be one of ('float32', 'bfloat16', 'float16', 'autocast_bfloat16').",
        ),
        ({"param_dtype": "float16"}, "param_dtype='float16' must be 'float32' or 'bfloat16'."),
        (
            {"param_dtype": "bfloat16", "dtype": "float32"},
            "param_dtype='bfloat16' computes in bfloat16, but dtype='float32'. Set both to bfloat16, or param_dtype to "
            "float32.",
        ),
        (
            {"param_dtype": "bfloat16", "dtype": "float16"},
            "param_dtype='bfloat16' computes in bfloat16, but dtype='float16'. Set both to bfloat16, or param_dtype to "
            "float32.",
        ),
        ({"n_bins": 10.5}, "n_bins=10.5 must be an integer in [1, 99999] (the paper uses 1000)."),
        ({"temperature": float("nan")}, "temperature=nan must be finite and at least 0 (0 is greedy)."),
        ({"image_size": [224]}, "image_size=[224] must be 2 numbers, e.g. (224, 224)."),
        ({"image_size": 224}, "image_size=224 must be 2 numbers, e.g. (224, 224)."),
        ({"crop_box": [0, 0, 1]}, "crop_box=[0, 0, 1] must be 4 numbers, e.g. (0.2, 0.1, 0.8, 0.9)."),
        ({"optimizer_lr": -1e-5}, "optimizer_lr=-1e-05 must be finite and at least 0."),
        ({"optimizer_grad_clip_norm": -1.0}, "optimizer_grad_clip_norm=-1.0 must be finite and at least 0."),
        ({"scheduler_warmup_steps": -1}, "scheduler_warmup_steps=-1 must be finite and at least 0."),
        (
            {"attn_implementation": "magic"},
            "attn_implementation='magic' must be one of ('sdpa', 'eager', 'flash_attention_2', 'flash_attention_3').",
        ),
        ({"scheduler_name": "linear"}, "scheduler_name='linear' must be 'constant' or 'cosine'."),
    ],
    ids=str,
)
def test_an_option_that_is_wrong_contradictory_or_inert_is_refused(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as error:
        config(**options)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("options", "beginning"),
    [
        ({"system_prompt": "{T}"}, "system_prompt '{T}' has a field that cannot be filled"),
        ({"crop_ratio": 0.0}, "crop_ratio=0.0"),
        ({"crop_box": (0.5, 0.0, 0.5, 1.0)}, "crop_box=(0.5, 0.0, 0.5, 1.0)"),
        ({"image_size": (224, 0)}, "image_size=(224, 0)"),
        ({"hue": 0.6}, "hue=0.6"),
        ({"brightness": -0.1}, "brightness=-0.1"),
    ],
    ids=str,
)
def test_options_of_prompt_and_images_are_checked_at_construction_too(
    options: dict[str, Any], beginning: str
) -> None:
    with pytest.raises(ConfigError) as error:
        config(**options)
    assert str(error.value).startswith(beginning)


@pytest.mark.parametrize("n_chunks_and_steps", [(8, 1), (4, 2), (3, 3), (2, 4), (2, 7), (1, 8)], ids=str)
def test_the_largest_useful_number_of_chunks_is_allowed(n_chunks_and_steps: tuple[int, int]) -> None:
    n_chunks, n_action_steps = n_chunks_and_steps
    assert config(ensemble_n_chunks=n_chunks, n_action_steps=n_action_steps).ensemble_n_chunks == n_chunks
    with pytest.raises(ConfigError, match="would silently do less than it says"):
        config(ensemble_n_chunks=n_chunks + 1, n_action_steps=n_action_steps)


@pytest.mark.parametrize("cameras", [[], [TOP, TOP], [TOP, WRIST, TOP]], ids=str)
def test_a_camera_list_that_is_empty_or_repeats_itself_is_refused(cameras: list[str]) -> None:
    with pytest.raises(CameraError) as error:
        config(cameras=cameras)
    assert str(error.value) == (
        f"cameras={cameras} must list at least one image key and no key twice; leave it unset to use the dataset's "
        "cameras in the dataset's order."
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_layers": 0}, "tiny.num_layers=0 must be at least 1."),
        ({"vision_layers": -1}, "tiny.vision_layers=-1 must be at least 1."),
        (
            {"vision_hidden_size": 20, "vision_heads": 2},
            "tiny.vision_hidden_size=20 must be a multiple of 4 * tiny.vision_heads=2 (rotary positions split each "
            "head).",
        ),
        ({"num_kv_heads": 3}, "tiny.num_kv_heads=3 must divide tiny.num_heads=4."),
    ],
    ids=str,
)
def test_tiny_sizes_that_cannot_be_built_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        TinyVLMConfig(**options)
    assert str(error.value) == message


def test_a_tiny_width_that_its_heads_do_not_divide_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^tiny\.hidden_size=100 must be a multiple of 4 \* "):
        TinyVLMConfig(hidden_size=100, num_heads=8, num_kv_heads=8)


# ---------------------------------------------------------------- features


def test_cameras_choose_and_order_the_images() -> None:
    assert with_features(cameras=(TOP, WRIST)).camera_keys == [TOP, WRIST]
    chosen = with_features()
    chosen.cameras = [WRIST]
    chosen.validate_features()
    assert chosen.camera_keys == [WRIST]
    assert chosen.image_tokens(14, 2) == [64]


def test_a_camera_that_does_not_exist_is_refused() -> None:
    unknown = with_features()
    unknown.cameras = [TOP, "observation.images.left"]
    with pytest.raises(CameraError) as error:
        unknown.validate_features()
    assert str(error.value) == (
        f"cameras=['{TOP}', 'observation.images.left'] names ['observation.images.left'], but the dataset, "
        f"environment or checkpoint has ['{TOP}', '{WRIST}']. Give some of these, such as "
        f'--policy.cameras=\'["{TOP}", "{WRIST}"]\' for all, or leave the option out.'
    )


def test_a_dataset_without_cameras_is_refused() -> None:
    with pytest.raises(CameraError) as error:
        with_features(cameras=()).validate_features()
    assert str(error.value) == (
        "the dataset or environment has no camera: VLA-0 acts on images. Expected at least one 'observation.image...' "
        "feature, got ['observation.state']."
    )


@pytest.mark.parametrize("shape", [(), (2, 7), (0,)], ids=str)
def test_actions_that_are_no_vector_are_refused(shape: tuple[int, ...]) -> None:
    odd = with_features()
    odd.output_features = {"action": PolicyFeature(FeatureType.ACTION, shape)}
    with pytest.raises(
        ConfigError, match=r"^the policy needs one 'action' feature of shape \(action_dim,\); the dataset"
    ):
        odd.validate_features()


def test_a_dataset_without_actions_is_refused() -> None:
    empty = with_features()
    empty.output_features = {}
    with pytest.raises(ConfigError) as error:
        empty.validate_features()
    assert str(error.value) == (
        "the policy needs one 'action' feature of shape (action_dim,); the dataset or environment has {}."
    )
    empty.output_features = {"actions": PolicyFeature(FeatureType.ACTION, (6,))}
    with pytest.raises(ConfigError) as error:
        empty.validate_features()
    assert str(error.value) == (
        "the policy needs one 'action' feature of shape (action_dim,); the dataset or environment has "
        "{'actions': (6,)}. --rename_map does not rename actions (LeRobot 0.6.1): rename this one in the data set."
    )


@pytest.mark.parametrize("indices", [[7], [-1], [6, 6]], ids=str)
def test_binary_dimensions_outside_the_action_are_refused(indices: list[int]) -> None:
    with pytest.raises(ConfigError) as error:
        with_features(binary_action_indices=indices).validate_features()
    assert str(error.value) == (
        f"binary_action_indices={indices} must be distinct dimensions in [0, 7) of the action."
    )


# ---------------------------------------------------------------- command line and JSON


def test_the_command_line_sets_nested_tuple_and_list_options() -> None:
    parsed = cli(
        "--crop_box=[0.2,0.1,0.8,0.9]",
        f"--cameras=[{WRIST},{TOP}]",
        "--tiny.hidden_size=32",
        "--image_size=[56,84]",
        "--binary_action_indices=[6]",
        "--optimizer_betas=[0.9,0.95]",
        '--normalization_mapping={"ACTION": "QUANTILES", "STATE": "IDENTITY"}',
        "--n_action_steps=1",
        "--ensemble_n_chunks=8",
    )
    assert parsed.crop_box == (0.2, 0.1, 0.8, 0.9)
    assert parsed.image_settings().crop_box == (0.2, 0.1, 0.8, 0.9)
    assert parsed.cameras == [WRIST, TOP]
    assert parsed.tiny == TinyVLMConfig(hidden_size=32)
    assert parsed.image_size == (56, 84)
    assert parsed.binary_action_indices == [6]
    assert tuple(parsed.optimizer_betas) == (0.9, 0.95)
    assert parsed.normalization_mapping["ACTION"] is NormalizationMode.QUANTILES
    assert (parsed.n_action_steps, parsed.ensemble_n_chunks) == (1, 8)


def test_camera_names_may_be_quoted_as_json() -> None:
    """The one spelling that works with --policy.type and with --policy.path."""
    assert cli(f'--cameras=["{WRIST}","{TOP}"]').cameras == [WRIST, TOP]


def test_the_command_line_leaves_the_other_options_at_their_defaults() -> None:
    assert cli() == config()


def test_a_wrong_option_on_the_command_line_reaches_the_user() -> None:
    with pytest.raises(Exception, match="VLA0Config") as error:  # draccus wraps it, the traceback shows both
        cli("--n_bins=0")
    cause: BaseException | None = error.value
    while cause is not None and not isinstance(cause, ConfigError):
        cause = cause.__cause__
    assert str(cause) == "n_bins=0 must be an integer in [1, 99999] (the paper uses 1000)."


def test_a_saved_config_loads_as_it_was(tmp_path: Path) -> None:
    saved = with_features(
        cameras=(WRIST, TOP),
        crop_box=(0.2, 0.1, 0.8, 0.9),
        image_size=(56, 84),
        tiny=TinyVLMConfig(hidden_size=32, num_heads=2, num_kv_heads=1),
        vlm_model_name="tiny",
        n_action_steps=2,
        ensemble_n_chunks=4,
        ensemble_old_weight=0.5,
        binary_action_indices=[6],
        normalization_mapping={**MAPPING, "ACTION": NormalizationMode.QUANTILE10},
        dtype="float32",
    )
    saved.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["type"] == "vla0"
    loaded = PreTrainedConfig.from_pretrained(tmp_path)
    assert isinstance(loaded, VLA0Config)
    assert dataclasses.asdict(loaded) == dataclasses.asdict(saved)
    assert loaded.camera_keys == [WRIST, TOP]


def test_a_saved_config_takes_overrides_from_the_command_line(tmp_path: Path) -> None:
    with_features().save_pretrained(tmp_path)
    loaded = PreTrainedConfig.from_pretrained(
        tmp_path,
        cli_overrides=["--crop_box=[0.2,0.1,0.8,0.9]", f'--cameras=["{WRIST}"]', "--tiny.hidden_size=64"],
    )
    assert isinstance(loaded, VLA0Config)
    assert loaded.crop_box == (0.2, 0.1, 0.8, 0.9)
    assert loaded.camera_keys == [WRIST]
    assert loaded.tiny.hidden_size == 64
    assert loaded.n_bins == 1000
