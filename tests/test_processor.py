"""processor_vla0.py: the prompt step inside LeRobot's pipelines, saved and loaded offline, and units that survive."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.processors import override_name
from lerobot.configs.types import FeatureType, NormalizationMode, PipelineFeatureType, PolicyFeature
from lerobot.lerobot_types import TransitionKey
from lerobot.policies.factory import make_pre_post_processors
from lerobot.processor import PolicyProcessorPipeline
from lerobot.processor.converters import batch_to_transition, create_transition, transition_to_batch

from lerobot_policy_vla0.backbone.tiny import build_tiny_tokenizer
from lerobot_policy_vla0.configuration_vla0 import VLA0Config
from lerobot_policy_vla0.dataset_stats import check_action_stats, warn_about_constant_actions
from lerobot_policy_vla0.errors import CheckpointError, PromptError, StatsError
from lerobot_policy_vla0.processor_vla0 import (
    VLA0PromptProcessorStep,
    make_vla0_pre_post_processors,
)
from lerobot_policy_vla0.text.codec import ActionCodec, ActionTokens

TOP = "observation.images.top"
TOKENS, MASK = "observation.language.tokens", "observation.language.attention_mask"
PRE, POST = "policy_preprocessor.json", "policy_postprocessor.json"

# A wide, a narrow, a one-sided and two constant dimensions (one of them zero).
LOW = [-0.9375, -0.258214, 0.0, 0.3, 0.0]
HIGH = [0.9375, 0.355714, 90.0, 0.3, 0.0]
CONSTANT = {3: 0.3, 4: 0.0}


def config(mode: NormalizationMode = NormalizationMode.MIN_MAX, **options: Any) -> VLA0Config:
    return VLA0Config(
        **{
            "vlm_model_name": "tiny",
            "device": "cpu",
            "chunk_size": 2,
            "n_action_steps": 2,
            "n_bins": 100,
            "image_size": (28, 56),
            "system_prompt": "{N} of 0-{B}",
            "normalization_mapping": {"VISUAL": NormalizationMode.IDENTITY, "ACTION": mode},
            "input_features": {TOP: PolicyFeature(FeatureType.VISUAL, (3, 8, 8))},
            "output_features": {"action": PolicyFeature(FeatureType.ACTION, (len(LOW),))},
            **options,
        }
    )


def stats(low: Any = LOW, high: Any = HIGH) -> dict[str, dict[str, Any]]:
    low, high = torch.tensor(low), torch.tensor(high)
    return {"action": {"min": low, "max": high, "q01": low, "q99": high, "q10": low, "q90": high}}


def train_batch(tasks: list[str], actions: torch.Tensor | None = None) -> dict[str, Any]:
    n = len(tasks)
    return {
        TOP: torch.full((n, 3, 8, 8), 0.5),
        "action": torch.zeros(n, 2, len(LOW)) if actions is None else actions,
        "action_is_pad": torch.zeros(n, 2, dtype=torch.bool),
        "task": tasks,
    }


@pytest.fixture(scope="module")
def pipelines() -> tuple[Any, Any]:
    return make_vla0_pre_post_processors(config(), stats())


# ---------------------------------------------------------------- the prompt step


def test_the_pipelines_keep_the_step_names_lerobot_overrides(pipelines: tuple[Any, Any]) -> None:
    pre, post = pipelines
    assert [override_name(step) for step in pre.steps] == [
        "rename_observations_processor",
        "to_batch_processor",
        "vla0_prompt",
        "device_processor",
        "normalizer_processor",
    ]
    assert [override_name(step) for step in post.steps] == [
        "unnormalizer_processor",
        "device_processor",
    ]


def test_a_training_batch_gains_the_prompt_and_keeps_the_rest(pipelines: tuple[Any, Any]) -> None:
    batch = train_batch(["push", "push it"])
    out = pipelines[0](batch)
    text = "<|im_start|>system\n10 of 0-100<|im_end|>\n<|im_start|>user\n<|vision_start|>{}<|vision_end|>{}<|im_end|>\n"
    pads = "<|image_pad|>" * 2  # 28 x 56 pixels
    tokenizer = build_tiny_tokenizer()
    longest = tokenizer.encode(
        text.format(pads, "push it") + "<|im_start|>assistant\n", add_special_tokens=False
    )
    shorter = tokenizer.encode(
        text.format(pads, "push") + "<|im_start|>assistant\n", add_special_tokens=False
    )
    assert out[TOKENS].tolist() == [[tokenizer.pad_token_id] * 3 + shorter, longest]
    assert out[MASK].tolist() == [[False] * 3 + [True] * len(shorter), [True] * len(longest)]
    assert out[TOKENS].dtype == torch.int64
    assert out[MASK].dtype == torch.bool
    assert torch.equal(out[TOP], batch[TOP])
    assert torch.equal(out["action_is_pad"], batch["action_is_pad"])
    assert out["task"] == ["push", "push it"]


def test_the_prompt_step_adds_two_keys_and_leaves_its_input_alone(pipelines: tuple[Any, Any]) -> None:
    step = pipelines[0].steps[2]
    observation = {TOP: torch.zeros(1, 3, 8, 8)}
    transition = create_transition(observation=observation, complementary_data={"task": ["push"]})
    out = step(transition)
    assert set(out[TransitionKey.OBSERVATION]) == {TOP, TOKENS, MASK}
    assert set(observation) == {TOP}
    assert set(transition[TransitionKey.OBSERVATION]) == {TOP}
    assert transition[TransitionKey.COMPLEMENTARY_DATA] == {"task": ["push"]}


def test_a_whole_batch_is_not_changed_by_the_pre_processor(pipelines: tuple[Any, Any]) -> None:
    batch = train_batch(["push"], torch.full((1, 2, 5), 0.25))
    copy = {
        key: value.clone() if isinstance(value, torch.Tensor) else list(value) for key, value in batch.items()
    }
    pipelines[0](batch)
    assert set(batch) == set(copy)
    for key, value in copy.items():
        assert torch.equal(batch[key], value) if isinstance(value, torch.Tensor) else batch[key] == value


def test_one_observation_of_a_robot_is_batched_and_given_its_prompt(pipelines: tuple[Any, Any]) -> None:
    out = pipelines[0]({TOP: torch.zeros(3, 8, 8), "task": "push"})
    assert out[TOP].shape == (1, 3, 8, 8)
    assert torch.equal(out[TOKENS], pipelines[0](train_batch(["push"]))[TOKENS])


def test_an_empty_task_is_allowed_and_said_once(
    pipelines: tuple[Any, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("WARNING"):
        pipelines[0](train_batch(["push"]))
        assert not caplog.messages
        out = pipelines[0](train_batch([""]))
        pipelines[0](train_batch(["push", ""]))
    assert [message.split(".")[0] for message in caplog.messages] == [
        "the task is empty, so the model gets no instruction"
    ]
    assert (
        build_tiny_tokenizer()
        .decode(out[TOKENS][0])
        .endswith("<|vision_end|><|im_end|>\n<|im_start|>assistant\n")
    )


@pytest.mark.parametrize("task", [None, [], 3], ids=repr)
def test_a_batch_without_a_task_is_refused(pipelines: tuple[Any, Any], task: Any) -> None:
    batch = {**train_batch(["push"]), "task": task}
    if task is None:
        del batch["task"]
    with pytest.raises(PromptError) as error:
        pipelines[0](batch)
    assert str(error.value) == (
        f"task is {task!r}, expected a string or one string per sample. VLA-0 needs the instruction text (an empty "
        "string is allowed): pass --task=... to lerobot-rollout, or record it with --dataset.single_task=..."
    )


def test_a_task_that_is_no_string_is_refused(pipelines: tuple[Any, Any]) -> None:
    with pytest.raises(PromptError, match=r"^task is 3 \(int\), expected a string\."):
        pipelines[0]({**train_batch(["push", "push"]), "task": ["push", 3]})


def test_the_prompt_step_declares_the_keys_it_adds() -> None:
    step = VLA0PromptProcessorStep(system_prompt="S", image_tokens=[1], pad_token_id=0, max_length=77)
    features = {PipelineFeatureType.OBSERVATION: {TOP: PolicyFeature(FeatureType.VISUAL, (3, 8, 8))}}
    out = step.transform_features(features)
    assert set(out[PipelineFeatureType.OBSERVATION]) == {TOP, TOKENS, MASK}
    assert out[PipelineFeatureType.OBSERVATION][TOKENS] == PolicyFeature(FeatureType.LANGUAGE, (77,))
    assert set(features[PipelineFeatureType.OBSERVATION]) == {TOP}


def test_an_option_of_the_prompt_changes_the_prompt() -> None:
    plain = make_vla0_pre_post_processors(config(), stats())[0](train_batch(["push"]))[TOKENS]
    tokenizer = build_tiny_tokenizer()
    for options, expected in (
        ({"add_vision_id": True}, "Picture 1: <|vision_start|><|image_pad|><|image_pad|><|vision_end|>push"),
        ({"image_size": (28, 28)}, "user\n<|vision_start|><|image_pad|><|vision_end|>push"),
        ({"chunk_size": 1, "n_action_steps": 1}, "system\n5 of 0-100<"),
        ({"n_bins": 7}, "system\n10 of 0-7<"),
    ):
        ids = make_vla0_pre_post_processors(config(**options), stats())[0](train_batch(["push"]))[TOKENS]
        assert expected in tokenizer.decode(ids[0])
        assert expected not in tokenizer.decode(plain[0])


# ---------------------------------------------------------------- saving and loading


@pytest.fixture
def saved(pipelines: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Both pipelines on disk, and nowhere to read a tokenizer from."""
    for pipeline in pipelines:
        pipeline.save_pretrained(tmp_path)

    def unreachable(*args: object, **kwargs: object) -> None:
        raise AssertionError("the base model was looked for")

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", unreachable)
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", unreachable)
    monkeypatch.setattr("lerobot_policy_vla0.backbone.loading.load_description", unreachable)
    return tmp_path


def test_only_files_that_lerobot_uploads_are_written(saved: Path) -> None:
    assert {path.suffix for path in saved.iterdir()} == {".json", ".safetensors"}


def test_reloaded_pipelines_write_the_same_ids_without_the_base_tokenizer(
    saved: Path, pipelines: tuple[Any, Any]
) -> None:
    pre = PolicyProcessorPipeline.from_pretrained(
        saved,
        PRE,
        overrides={
            "device_processor": {"device": "cpu"},
            "rename_observations_processor": {"rename_map": {"observation.images.front": TOP}},
            "normalizer_processor": {
                "stats": stats(),
                "features": {**config().input_features, **config().output_features},
                "norm_map": config().normalization_mapping,
            },
        },
        to_transition=batch_to_transition,
        to_output=transition_to_batch,
    )
    batch = train_batch(["push", "päck 日本"], torch.full((2, 2, 5), 0.2))
    expected = pipelines[0](batch)
    renamed = {"observation.images.front" if key == TOP else key: value for key, value in batch.items()}
    out = pre(renamed)
    for key in (TOKENS, MASK, TOP, "action"):
        assert torch.equal(out[key], expected[key]), key


def test_lerobots_own_factory_loads_them_as_lerobot_eval_does(
    saved: Path, pipelines: tuple[Any, Any]
) -> None:
    pre, post = make_pre_post_processors(
        config(),
        pretrained_path=str(saved),
        preprocessor_overrides={
            "device_processor": {"device": "cpu"},
            "rename_observations_processor": {"rename_map": {}},
        },
    )
    batch = train_batch(["push"], torch.full((1, 2, 5), 0.2))
    out, expected = pre(batch), pipelines[0](batch)
    assert torch.equal(out[TOKENS], expected[TOKENS])
    assert torch.equal(out["action"], expected["action"])
    assert torch.equal(post(out["action"]), pipelines[1](expected["action"]))


def test_new_statistics_replace_the_saved_ones(saved: Path) -> None:
    doubled = stats([2 * x for x in LOW], [2 * x for x in HIGH])
    _, post = make_pre_post_processors(
        config(),
        pretrained_path=str(saved),
        postprocessor_overrides={"unnormalizer_processor": {"stats": doubled}},
    )
    torch.testing.assert_close(post(torch.ones(1, 5))[0, :3], 2 * torch.tensor(HIGH[:3]))


def test_a_step_saved_with_the_real_tokenizer_writes_the_same_ids(qwen_folder: Path, tmp_path: Path) -> None:
    step = VLA0PromptProcessorStep(
        system_prompt="S",
        image_tokens=[2],
        pad_token_id=151643,
        tokenizer_json=(qwen_folder / "tokenizer.json").read_text(encoding="utf-8"),
    )
    again = VLA0PromptProcessorStep(**step.get_config())
    again.load_state_dict(step.state_dict())
    ids, _ = again.encoder.encode_batch(["push 日本 it"])
    assert torch.equal(ids, step.encoder.encode_batch(["push 日本 it"])[0])
    assert ids[0, -3:].tolist() == [151644, 77091, 198]


def test_a_step_whose_tokenizer_was_not_loaded_says_so() -> None:
    step = VLA0PromptProcessorStep(system_prompt="S", image_tokens=[1], pad_token_id=0)
    assert step.state_dict() == {}
    with pytest.raises(CheckpointError) as error:
        step.encoder  # noqa: B018
    assert str(error.value) == (
        "the vla0_prompt processor step has no tokenizer: its saved state "
        "(policy_preprocessor_step_*_vla0_prompt.safetensors) was not loaded. Re-download the checkpoint, or rebuild "
        "the processors from the policy config."
    )
    with pytest.raises(CheckpointError) as error:
        step.load_state_dict({"other": torch.zeros(1)})
    assert str(error.value) == (
        "the saved vla0_prompt step holds ['other'], expected 'tokenizer_json'. The checkpoint is damaged: "
        "re-download it."
    )


def test_the_file_named_in_that_message_exists(saved: Path) -> None:
    assert len(list(saved.glob("policy_preprocessor_step_*_vla0_prompt.safetensors"))) == 1


# ---------------------------------------------------------------- action statistics

MIN_MAX, QUANTILES = NormalizationMode.MIN_MAX, NormalizationMode.QUANTILES


RECOMPUTE = (
    "Recompute the data set's statistics: `lerobot-edit-dataset --repo_id=NAME --new_repo_id=NAME_stats "
    "--operation.type=recompute_stats`."
)
LOAD = (
    "Load a trained policy with --policy.path=..., or compute the data set's: `lerobot-edit-dataset --repo_id=NAME "
    "--new_repo_id=NAME_stats --operation.type=recompute_stats`."
)


@pytest.mark.parametrize(
    ("given", "have"),
    [
        (None, f"no statistics at all. {LOAD}"),
        ({}, f"no statistics at all. {LOAD}"),
        (
            {"observation.state": {"min": [0], "max": [1]}, "timestamp": {}},
            f"none of 'action', only of ['observation.state']. {RECOMPUTE}",
        ),
        ({"action": {"mean": LOW, "std": HIGH}}, f"['mean', 'std']. {RECOMPUTE}"),
        ({"action": {"min": LOW}}, f"['min']. {RECOMPUTE}"),
        (
            {"actions": {"min": LOW, "max": HIGH}},
            "none of 'action', only of ['actions']. If 'actions' is meant, rename it to 'action' there. "
            + RECOMPUTE,
        ),
        (
            {"so100.buffer.action": {}, "so100-red.buffer.action": {}},
            f"none of 'action', only of ['so100-red.buffer.action', 'so100.buffer.action']. {RECOMPUTE}",
        ),
    ],
    ids=str,
)
def test_missing_action_statistics_are_refused(given: Any, have: str) -> None:
    with pytest.raises(StatsError) as error:
        make_vla0_pre_post_processors(config(), given)
    assert str(error.value) == (
        f"actions cannot be normalised: MIN_MAX needs the statistics 'min' and 'max' of 'action', got {have}"
    )


def test_statistics_of_a_checkpoint_are_repaired_in_the_checkpoint() -> None:
    file = Path("folder/policy_postprocessor.json")
    with pytest.raises(StatsError) as error:
        check_action_stats(config(), {"so100.action": {"min": LOW, "max": HIGH}}, file)
    assert str(error.value) == (
        "actions cannot be normalised: MIN_MAX needs the statistics 'min' and 'max' of 'action', got none of 'action', "
        "only of ['so100.action']. If 'so100.action' is meant, rename it to 'action' there. They are in the state_file "
        "of folder/policy_postprocessor.json: copy the whole checkpoint again, as its training wrote it."
    )


def test_statistics_in_which_nothing_moves_are_refused() -> None:
    with pytest.raises(StatsError) as error:
        check_action_stats(config(), stats([0.0] * 5, [0.0] * 5))
    assert str(error.value) == (
        "the action statistics say that nothing ever moves: min and max are both [0.0, 0.0, 0.0, 0.0, 0.0], so the "
        f"robot would be sent these numbers whatever the policy answers. {RECOMPUTE} If they are right, record data in "
        "which the robot moves."
    )


def test_dimensions_that_never_change_are_named_at_construction(caplog: pytest.LogCaptureFixture) -> None:
    names = ["pan.pos", "lift.pos", "elbow.pos", "wrist.pos", "gripper.pos"]
    with caplog.at_level("WARNING"):
        warn_about_constant_actions(config(action_feature_names=names), check_action_stats(config(), stats()))
    assert caplog.messages == [
        "action: dimension(s) 3 (wrist.pos), 4 (gripper.pos) never change in the training data, so the policy will "
        "never move them"
    ]


@pytest.mark.parametrize(
    ("mode", "keys"), [(QUANTILES, ("q01", "q99")), (NormalizationMode.QUANTILE10, ("q10", "q90"))], ids=str
)
def test_missing_quantiles_are_refused_with_the_command_that_adds_them(
    mode: NormalizationMode, keys: tuple[str, str]
) -> None:
    with pytest.raises(StatsError) as error:
        check_action_stats(config(mode), {"action": {"min": LOW, "max": HIGH}})
    assert str(error.value) == (
        f"actions cannot be normalised: {mode.value} needs the statistics {keys[0]!r} and {keys[1]!r} of 'action', got "
        "['max', 'min']. Add them: `python -m lerobot.scripts.augment_dataset_quantile_stats`."
    )
    check_action_stats(config(mode), stats())


def test_the_command_that_adds_quantiles_exists() -> None:
    import importlib.util

    assert importlib.util.find_spec("lerobot.scripts.augment_dataset_quantile_stats") is not None


def test_statistics_of_another_action_size_are_refused() -> None:
    with pytest.raises(StatsError) as error:
        check_action_stats(config(), {"action": {"min": LOW[:4], "max": HIGH}})
    assert str(error.value) == (
        "the action statistics 'min'/'max' have 4/5 values, but the action has 5 dimensions: they are of another "
        f"robot, or out of date. {RECOMPUTE}"
    )


@pytest.mark.parametrize(
    ("dimension", "low", "high"),
    [(1, float("nan"), 1.0), (2, 0.0, float("inf")), (0, 1.0, 0.5)],
    ids=["NaN", "infinite", "swapped"],
)
def test_statistics_that_cannot_normalise_are_refused(dimension: int, low: float, high: float) -> None:
    lows, highs = list(LOW), list(HIGH)
    lows[dimension], highs[dimension] = low, high
    with pytest.raises(StatsError) as error:
        check_action_stats(config(), stats(lows, highs))
    message = str(error.value)
    assert message.startswith(f"the action statistics are unusable in dimensions [{dimension}]: min=[")
    assert message.endswith(f"expected finite values with min <= max (NaN in the data?). {RECOMPUTE}")


# ---------------------------------------------------------------- units

MODES = [MIN_MAX, QUANTILES, NormalizationMode.QUANTILE10]


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_actions_come_back_in_the_robots_units_within_half_a_bin(mode: NormalizationMode) -> None:
    settings_ = config(mode, n_bins=1000)
    pre, post = make_vla0_pre_post_processors(settings_, stats())
    codec = ActionCodec(
        ActionTokens.from_tokenizer(build_tiny_tokenizer()), n_bins=1000, chunk_size=2, action_dim=5
    )
    low, high = torch.tensor(LOW), torch.tensor(HIGH)
    share = torch.rand(16, 2, 5, generator=torch.Generator().manual_seed(0))
    share[0], share[1] = 0.0, 1.0
    actions = low + share * (high - low)

    normalised = pre(train_batch(["push"] * 16, actions))["action"]
    bins, clipped = codec.actions_to_bins(normalised)
    chunk = codec.bins_to_actions(codec.decode_ids(codec.encode_bins(bins).ids))
    assert not clipped.any()
    assert torch.isfinite(chunk).all()

    half_a_bin = (high - low) / 1000 / 2
    back = post(chunk)
    assert torch.isfinite(back).all()
    assert ((back - actions).abs() <= half_a_bin * 1.001 + 1e-6).all()
    for dimension, value in CONSTANT.items():
        assert torch.equal(back[..., dimension], torch.full((16, 2), value))  # exactly
    # select_action hands over single steps, real-time chunking whole chunks: the same numbers.
    assert torch.equal(post(chunk[:, 0]), back[:, 0])


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_the_extreme_bins_are_the_statistics_themselves(mode: NormalizationMode) -> None:
    _, post = make_vla0_pre_post_processors(config(mode), stats())
    codec = ActionCodec(
        ActionTokens.from_tokenizer(build_tiny_tokenizer()), n_bins=100, chunk_size=1, action_dim=5
    )
    ends = codec.bins_to_actions(torch.tensor([[[0] * 5], [[100] * 5]]))
    torch.testing.assert_close(post(ends)[0, 0], torch.tensor(LOW), rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(post(ends)[1, 0], torch.tensor(HIGH), rtol=1e-6, atol=1e-7)


def test_whatever_a_model_says_about_a_constant_dimension_it_stays_put() -> None:
    _, post = make_vla0_pre_post_processors(config(), stats())
    for action in torch.linspace(-1, 1, 11):
        out = post(torch.full((1, 5), float(action)))
        assert out[0, 3] == torch.tensor(0.3)
        assert abs(float(out[0, 4])) <= 1e-8


def test_values_outside_the_quantiles_are_clamped_before_binning() -> None:
    pre, post = make_vla0_pre_post_processors(config(QUANTILES), stats())
    beyond = torch.tensor([[HIGH, LOW]]) * torch.tensor([1.5, 1.5, 1.5, 1.0, 1.0])
    codec = ActionCodec(
        ActionTokens.from_tokenizer(build_tiny_tokenizer()), n_bins=100, chunk_size=2, action_dim=5
    )
    bins, clipped = codec.actions_to_bins(pre(train_batch(["push"], beyond))["action"])
    assert bins.tolist() == [[[100, 100, 100, 0, 0], [0, 0, 0, 0, 0]]]
    # 1.5 * 0 is still the lower end of the third dimension
    assert clipped.tolist() == [[[True, True, True, False, False], [True, True, False, False, False]]]
    torch.testing.assert_close(post(codec.bins_to_actions(bins))[0, 0, :3], torch.tensor(HIGH[:3]))
