"""normalization.py: what LeRobot's steps would pass on unchanged is refused, with overrides as LeRobot applies them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny import make_config, make_raw_batch, make_stats
from lerobot.configs.types import FeatureType, NormalizationMode
from lerobot.policies.factory import make_pre_post_processors
from lerobot.processor import NormalizerProcessorStep, UnnormalizerProcessorStep, hotswap_stats

from lerobot_policy_vla0 import VLA0Config, make_vla0_pre_post_processors
from lerobot_policy_vla0.errors import StatsError
from lerobot_policy_vla0.normalization import normalizer_processor, unnormalizer_processor

ACTIONS = torch.tensor([[[-1.0, 1.0], [0.0, 0.5], [0.25, -0.5]]])
STATS = make_stats()  # actions in [-2, 6], states in [-1, 1]
RENAMED = {"so100.action": STATS["action"], "so100.observation.state": STATS["observation.state"]}


@pytest.fixture(scope="module")
def config() -> VLA0Config:
    return make_config(state_in_prompt=True)


@pytest.fixture(scope="module")
def saved(config: VLA0Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processors")
    for pipeline in make_vla0_pre_post_processors(config, STATS):
        pipeline.save_pretrained(folder)
    return folder


def load(saved: Path, config: VLA0Config, **overrides: Any) -> tuple[Any, Any]:
    """Load the processors; ``pre`` and ``post`` override the (un)normaliser."""
    return make_pre_post_processors(
        config,
        pretrained_path=str(saved),
        preprocessor_overrides={"normalizer_processor": overrides.get("pre", {})},
        postprocessor_overrides={"unnormalizer_processor": overrides.get("post", {})},
    )


def test_converted_values_are_lerobots(saved: Path, config: VLA0Config) -> None:
    pre, post = load(saved, config)
    features, modes = {**config.input_features, **config.output_features}, config.normalization_mapping
    batch = make_raw_batch(config)
    theirs = NormalizerProcessorStep(features=features, norm_map=modes, stats=STATS)
    out = pre(batch)
    assert torch.equal(out["action"], theirs._normalize_action(batch["action"], inverse=False))
    assert torch.equal(post(ACTIONS), 4 * ACTIONS + 2)
    back = UnnormalizerProcessorStep(features=config.output_features, norm_map=modes, stats=STATS)
    assert torch.equal(post(ACTIONS), back._normalize_action(ACTIONS, inverse=True))


def test_lerobot_finds_the_steps_by_its_own_classes_and_names(saved: Path, config: VLA0Config) -> None:
    pre, post = load(saved, config, post={"stats": make_stats(low=0.0, high=2.0)})
    assert [type(s) for s in pre.steps if isinstance(s, NormalizerProcessorStep)] == [normalizer_processor]
    assert isinstance(post.steps[0], UnnormalizerProcessorStep)
    assert type(post.steps[0]) is unnormalizer_processor
    assert torch.equal(post(ACTIONS), ACTIONS + 1)  # the override's statistics
    assert pre.steps[2].required == ["action", "observation.state"]


LEAVE_OUT = "Leave the override of 'unnormalizer_processor' out, so that the checkpoint's own are used"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            {"stats": RENAMED},
            "unnormalizer_processor would leave 'action' as it is: MIN_MAX needs its statistics ['min', 'max'], and "
            "there are none of 'action', only of ['so100.action', 'so100.observation.state']. "
            f"{LEAVE_OUT}, or override its stats with those of the data set the policy was trained on "
            "(dataset.meta.stats). Rename 'so100.action' to 'action' if it is meant.",
        ),
        (
            {"norm_map": {FeatureType.STATE: NormalizationMode.IDENTITY}},
            "unnormalizer_processor would leave 'action' as it is: its mode for ACTION is IDENTITY, from the norm_map "
            f"{{'STATE': 'IDENTITY'}}. {LEAVE_OUT}, or override it with the policy's normalization_mapping.",
        ),
        (
            {"norm_map": {FeatureType.ACTION: NormalizationMode.QUANTILES}},
            "QUANTILES needs its statistics ['q01', 'q99'], and there are ['max', 'min'].",
        ),
        (
            {"stats": {"action": {"min": [0.0], "max": [1.0]}}},
            "unnormalizer_processor has statistics of 'action' of shape {'min': (1,), 'max': (1,)}, and 'action' has 2 "
            f"dimensions: they are of another robot. {LEAVE_OUT}.",
        ),
    ],
    ids=["another key", "no mode", "another mode", "another size"],
)
def test_actions_that_would_stay_as_they_are_are_refused(
    saved: Path, config: VLA0Config, override: dict[str, Any], said: str
) -> None:
    _, post = load(saved, config, post=override)
    for actions in (ACTIONS, ACTIONS[:, 0]):  # a chunk, as for Real-Time Chunking; a step
        with pytest.raises(StatsError) as error:
            post(actions)
        assert said in str(error.value)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ({"stats": RENAMED}, "only of ['so100.action', 'so100.observation.state']"),
        ({"features": {}}, "would leave 'observation.state' as it is: it converts only the features []"),
        ({"normalize_observation_keys": set()}, "it converts only the features []"),
        ({"norm_map": {FeatureType.ACTION: NormalizationMode.MIN_MAX}}, "its mode for STATE is IDENTITY"),
    ],
    ids=["another key", "no feature", "no key", "no mode"],
)
def test_a_state_that_would_stay_as_it_is_is_refused_before_the_model_reads_it(
    saved: Path, config: VLA0Config, override: dict[str, Any], said: str
) -> None:
    pre, _ = load(saved, config, pre=override)
    observation = {k: v for k, v in make_raw_batch(config).items() if not k.startswith("action")}
    with pytest.raises(StatsError) as error:
        pre(observation)
    assert said in str(error.value)


def test_statistics_that_are_exchanged_later_are_checked_too(saved: Path, config: VLA0Config) -> None:
    _, post = load(saved, config)
    post(ACTIONS)
    post = hotswap_stats(post, RENAMED)
    with pytest.raises(StatsError, match="would leave 'action' as it is"):
        post(ACTIONS)


def test_a_state_that_is_not_in_the_prompt_needs_no_statistics() -> None:
    config = make_config()
    pre, _ = make_vla0_pre_post_processors(config, {"action": STATS["action"]})
    batch = make_raw_batch(config)
    assert torch.equal(pre(batch)["observation.state"], batch["observation.state"])
