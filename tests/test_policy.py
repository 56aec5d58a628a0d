"""The policy as a whole: it learns, acts in the robot's units, and refuses bad input by name."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny import CAMERA, make_batch, make_config, make_raw_batch, make_stats
from torch import Tensor

from lerobot_policy_vla0 import VLA0Config, VLA0Policy, make_vla0_pre_post_processors
from lerobot_policy_vla0.errors import (
    ActionError,
    CameraError,
    CheckpointError,
    ConfigError,
    DecodeError,
    ImageError,
    PromptError,
    StatsError,
)

NO_AUGMENTATION: dict[str, Any] = {
    "crop_ratio": 1.0,
    "brightness": 0.0,
    "contrast": 0.0,
    "saturation": 0.0,
    "hue": 0.0,
    "action_mask_max_ratio": 0.0,
}


def train(policy: VLA0Policy, batch: dict[str, Any], steps: int, lr: float = 3e-3) -> dict[str, float]:
    """Fit one batch and return the last step's metrics."""
    policy.train()
    optimizer = torch.optim.AdamW(policy.get_optim_params(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    metrics: dict[str, float] = {}
    for _ in range(steps):
        loss, metrics = policy(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    policy.eval()
    return metrics


@pytest.fixture(scope="module")
def fitted() -> tuple[VLA0Policy, Any, Any, dict[str, Any]]:
    """A policy fitted to eight samples, its processors, and the samples in the robot's units."""
    torch.manual_seed(0)
    config = make_config(n_bins=1000, **NO_AUGMENTATION)
    preprocess, postprocess = make_vla0_pre_post_processors(config, make_stats())
    raw = make_raw_batch(config, batch=8)
    policy = VLA0Policy(config)
    metrics = train(policy, dict(preprocess(raw)), steps=300)
    assert metrics["token_accuracy"] > 0.99, metrics
    return policy, preprocess, postprocess, raw


def test_eight_samples_are_reproduced_in_the_robots_units(
    fitted: tuple[VLA0Policy, Any, Any, dict[str, Any]],
) -> None:
    policy, preprocess, postprocess, raw = fitted
    observation = {key: value for key, value in raw.items() if not key.startswith("action")}
    policy.reset()
    actions = [
        postprocess(policy.select_action(dict(preprocess(observation))))
        for _ in range(policy.config.n_action_steps)
    ]
    got = torch.stack(actions, dim=1)  # (B, T, D) in units of the dataset
    # Range [-2, 6] in 1001 levels: a demonstrated action is met to half a level, 0.004.
    assert (got - raw["action"]).abs().max() <= 8.0 / 1000 / 2 + 1e-5
    # And the levels themselves are the demonstrated ones, all of them.
    bins = torch.round((raw["action"] + 2.0) / 8.0 * 1000)
    assert torch.equal(torch.round((got + 2.0) / 8.0 * 1000), bins)


def test_batched_and_single_queries_agree(fitted: tuple[VLA0Policy, Any, Any, dict[str, Any]]) -> None:
    policy, preprocess, _, raw = fitted
    batch = dict(preprocess(raw))
    together = policy.predict_action_chunk(batch)
    for row in range(3):
        single = {k: v[row : row + 1] if isinstance(v, Tensor | list) else v for k, v in batch.items()}
        assert torch.equal(policy.predict_action_chunk(single)[0], together[row])


def test_prompts_of_different_length_do_not_disturb_each_other(
    fitted: tuple[VLA0Policy, Any, Any, dict[str, Any]],
) -> None:
    policy, preprocess, _, raw = fitted
    mixed = {**raw, "task": [*raw["task"][:7], "a much longer instruction than all the others in this batch"]}
    alone = policy.predict_action_chunk(dict(preprocess(raw)))
    beside = policy.predict_action_chunk(dict(preprocess(mixed)))
    assert torch.equal(alone[:7], beside[:7])


def test_two_scenes_are_told_apart_by_their_picture() -> None:
    torch.manual_seed(0)
    config = make_config(chunk_size=1, n_action_steps=1, n_bins=10)
    preprocess, _ = make_vla0_pre_post_processors(config, make_stats())
    raw = make_raw_batch(config, batch=8)
    pictures = torch.zeros(8, 3, 64, 64)
    pictures[::2, 0] = 0.9  # even rows: all red; odd rows: a blue lower half
    pictures[1::2, 2, 32:] = 0.9
    raw[CAMERA] = pictures
    raw["action"] = torch.where(torch.arange(8).view(8, 1, 1) % 2 == 0, 6.0, -2.0).expand(8, 1, 2).clone()
    policy = VLA0Policy(config)
    train(policy, dict(preprocess(raw)), steps=60)
    bins = policy.predict_action_chunk(dict(preprocess(raw)))[:, 0]
    assert torch.equal(bins[::2], torch.ones(4, 2))
    assert torch.equal(bins[1::2], -torch.ones(4, 2))


# ---------------------------------------------------------------------------- the contract


def test_forward_does_not_change_the_batch() -> None:
    config = make_config()
    policy = VLA0Policy(config).train()
    batch = make_batch(config)
    before = copy.deepcopy(batch)
    policy(batch)
    assert set(batch) == set(before)
    for key, value in before.items():
        assert torch.equal(batch[key], value) if isinstance(value, Tensor) else batch[key] == value


def test_per_sample_losses_average_to_the_mean_loss() -> None:
    policy = VLA0Policy(make_config()).eval()
    batch = make_batch(policy.config, batch=5)
    mean, _ = policy(batch)
    each, _ = policy(batch, reduction="none")
    assert each.shape == (5,)
    torch.testing.assert_close(each.mean(), mean)
    with pytest.raises(ConfigError, match=r"reduction='sum' must be 'mean' or 'none'"):
        policy(batch, reduction="sum")


def test_evaluation_is_deterministic_and_training_is_augmented() -> None:
    policy = VLA0Policy(make_config()).eval()
    batch = make_batch(policy.config)
    first, metrics = policy(batch)
    assert torch.equal(first, policy(batch)[0])
    assert metrics["masked_fraction"] == 0.0
    policy.train()
    assert policy(batch)[0] != policy(batch)[0]


def test_masked_fraction_is_near_its_expectation() -> None:
    config = make_config(action_mask_max_ratio=0.4, action_mask_skip_prob=0.1)
    policy = VLA0Policy(config).train()
    batch = make_batch(config, batch=16)
    mean = sum(policy(batch)[1]["masked_fraction"] for _ in range(10)) / 10
    assert 0.12 < mean < 0.24  # 0.9 * 0.2 = 0.18, less the rounding down


def test_a_reloaded_policy_draws_the_same_augmentation(tmp_path: Path) -> None:
    torch.manual_seed(7)
    policy = VLA0Policy(make_config()).train()
    batch = make_batch(policy.config)
    policy(batch)
    policy.save_pretrained(tmp_path)
    torch.manual_seed(8)  # a resumed process has another random state
    again = VLA0Policy.from_pretrained(tmp_path).train()
    torch.testing.assert_close(policy(batch)[0], again(batch)[0], rtol=0, atol=0)


def test_steps_past_the_episode_are_trained_on_unless_told_otherwise() -> None:
    batch = make_batch(make_config(), batch=2)
    batch["action_is_pad"][:, 1:] = True
    changed = {**batch, "action": batch["action"].clone()}
    changed["action"][:, 1:] = 0.25
    torch.manual_seed(0)
    keeps = VLA0Policy(make_config()).eval()
    assert keeps(batch)[0] != keeps(changed)[0]
    torch.manual_seed(0)
    drops = VLA0Policy(make_config(loss_on_padding=False)).eval()
    # The first step's text comes first, so nothing the loss sees depends on the padded steps, but the
    # end token does read them: compare the loss without it.
    assert drops(batch)[1]["first_step_accuracy"] == drops(changed)[1]["first_step_accuracy"]
    assert drops(batch)[1]["bin_error"] == drops(changed)[1]["bin_error"]
    del batch["action_is_pad"]
    with pytest.raises(ActionError, match="loss_on_padding=false needs 'action_is_pad'"):
        drops(batch)


def test_clipped_actions_are_counted_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    policy = VLA0Policy(make_config()).eval()
    batch = make_batch(policy.config)
    batch["action"][0, 0, 1] = 1.7
    with caplog.at_level("WARNING"):
        _, metrics = policy(batch)
        policy(batch)
    assert metrics["clipped_fraction"] == pytest.approx(1 / 12)
    assert [r.getMessage()[:25] for r in caplog.records if "clipped" in r.getMessage()] == [
        "1 of 12 action values lie"
    ]


def test_actions_are_queued_and_reset_forgets_them() -> None:
    policy = VLA0Policy(make_config()).eval()
    batch = make_batch(policy.config, batch=2)
    chunk = policy.predict_action_chunk(batch)
    policy.reset()
    for step in range(3):
        assert torch.equal(policy.select_action(batch), chunk[:, step])
    policy.select_action(batch)
    assert len(policy.executor.queue) == 2
    policy.reset()
    assert len(policy.executor.queue) == 0
    policy.select_action(batch)
    policy.drop_queued_actions()
    assert len(policy.executor.queue) == 0


def test_a_query_takes_as_long_as_asked_for_and_answers_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("lerobot_policy_vla0.modeling_vla0.time.sleep", slept.append)
    torch.manual_seed(0)
    policy = VLA0Policy(make_config()).eval()
    batch = make_batch(policy.config)
    chunk = policy.predict_action_chunk(batch)
    assert slept == []
    policy.config.min_query_ms = 1e6
    assert torch.equal(policy.predict_action_chunk(batch), chunk)
    policy.select_action(batch), policy.select_action(batch)  # two steps of one query
    assert len(slept) == 2 and all(900 < seconds < 1000 for seconds in slept)
    policy.config.min_query_ms = 1e-3  # over before it has begun
    policy.predict_action_chunk(batch)
    assert slept[2:] == [0.0]
    with pytest.raises(ConfigError, match="min_query_ms=-1 must be"):
        make_config(min_query_ms=-1)


def test_ensembling_averages_what_successive_queries_predict() -> None:
    torch.manual_seed(0)
    policy = VLA0Policy(make_config(n_action_steps=1, ensemble_n_chunks=3, ensemble_old_weight=0.5)).eval()
    batches = [make_batch(policy.config, batch=2, seed=seed) for seed in range(3)]
    chunks = [policy.predict_action_chunk(batch) for batch in batches]
    policy.reset()
    got = [policy.select_action(batch) for batch in batches]
    assert torch.equal(got[0], chunks[0][:, 0])
    torch.testing.assert_close(got[1], (chunks[1][:, 0] + 0.5 * chunks[0][:, 1]) / 1.5)
    torch.testing.assert_close(
        got[2], (chunks[2][:, 0] + 0.5 * chunks[1][:, 1] + 0.5 * chunks[0][:, 2]) / 2.0
    )


def test_binary_dimensions_leave_as_the_ends_of_their_range() -> None:
    policy = VLA0Policy(make_config(binary_action_indices=[1])).eval()
    batch = make_batch(policy.config, batch=4)
    for actions in (policy.select_action(batch), policy.predict_action_chunk(batch)):
        assert set(actions[..., 1].flatten().tolist()) <= {-1.0, 1.0}


def test_sampling_stays_inside_the_grammar() -> None:
    policy = VLA0Policy(make_config(temperature=2.0)).eval()
    torch.manual_seed(0)
    chunks = [policy.predict_action_chunk(make_batch(policy.config, batch=4)) for _ in range(2)]
    assert not torch.equal(chunks[0], chunks[1])
    assert max(chunk.abs().max() for chunk in chunks) <= 1.0


def test_repetition_penalty_changes_the_answer() -> None:
    torch.manual_seed(0)
    plain = VLA0Policy(make_config()).eval()
    torch.manual_seed(0)
    penalised = VLA0Policy(make_config(repetition_penalty=5.0)).eval()
    batch = make_batch(plain.config)
    assert not torch.equal(plain.predict_action_chunk(batch), penalised.predict_action_chunk(batch))


@pytest.mark.parametrize("tile", [True, False])
def test_two_cameras_tiled_or_separate(tile: bool) -> None:
    cameras = ("observation.images.front", "observation.images.wrist")
    policy = VLA0Policy(make_config(cameras=cameras, tile_images=tile)).eval()
    batch = make_batch(policy.config)
    swapped = {**batch, cameras[0]: batch[cameras[1]], cameras[1]: batch[cameras[0]]}
    loss, _ = policy(batch)
    assert loss != policy(swapped)[0]
    assert policy.predict_action_chunk(batch).shape == (2, 3, 2)


def test_camera_order_is_the_configs() -> None:
    front, wrist = "observation.images.front", "observation.images.wrist"
    torch.manual_seed(0)
    by_dataset = VLA0Policy(make_config(cameras=(front, wrist))).eval()
    torch.manual_seed(0)
    config = make_config(cameras=(front, wrist))
    config.cameras = [wrist, front]
    by_config = VLA0Policy(config).eval()
    batch = make_batch(by_dataset.config)
    swapped = {**batch, front: batch[wrist], wrist: batch[front]}
    assert torch.equal(by_dataset(batch)[0], by_config(swapped)[0])


def test_images_of_any_size_are_accepted_in_evaluation() -> None:
    policy = VLA0Policy(make_config()).eval()
    batch = make_batch(policy.config)
    batch[CAMERA] = torch.rand(2, 3, 90, 121)
    assert policy.predict_action_chunk(batch).shape == (2, 3, 2)


# ---------------------------------------------------------------------------- bad input


@pytest.fixture(scope="module")
def policy() -> VLA0Policy:
    """An untrained policy in evaluation mode."""
    return VLA0Policy(make_config()).eval()


def test_missing_and_extra_cameras_are_named(policy: VLA0Policy) -> None:
    batch = make_batch(policy.config)
    wrong = {("observation.images.wrist" if k == CAMERA else k): v for k, v in batch.items()}
    with pytest.raises(CameraError, match=r"observation\.images\.top.*observation\.images\.wrist"):
        policy.predict_action_chunk(wrong)
    with pytest.raises(CameraError, match=r"unexpected: \['observation\.images\.wrist'\]"):
        policy.predict_action_chunk({**batch, "observation.images.wrist": batch[CAMERA]})


def test_unknown_camera_in_the_config_is_named() -> None:
    config = make_config()
    config.cameras = ["observation.images.side"]
    with pytest.raises(CameraError, match=r"names \['observation\.images\.side'\].*observation\.images\.top"):
        VLA0Policy(config)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 255.0])
def test_unusable_pixels_are_refused(policy: VLA0Policy, value: float) -> None:
    batch = make_batch(policy.config)
    batch[CAMERA] = batch[CAMERA].clone()
    batch[CAMERA][0, 0, 0, 0] = value
    with pytest.raises(ImageError, match=r"observation\.images\.top: pixel values"):
        policy(batch)
    with pytest.raises(ImageError, match=r"observation\.images\.top: pixel values"):
        policy.select_action(batch)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_unusable_actions_are_refused(policy: VLA0Policy, value: float) -> None:
    batch = make_batch(policy.config)
    batch["action"][0, 1, 1] = value
    with pytest.raises(ActionError, match=r"1 NaN or infinite values in dimensions \[1\]"):
        policy(batch)


def test_wrong_action_shapes_are_refused(policy: VLA0Policy) -> None:
    batch = make_batch(policy.config)
    with pytest.raises(ActionError, match=r"\(2, 3, 3\), expected \(batch, chunk_size=3, action_dim=2\)"):
        policy({**batch, "action": torch.zeros(2, 3, 3)})
    del batch["action"]
    with pytest.raises(ActionError, match="the batch has no 'action'"):
        policy(batch)


def test_a_batch_that_skipped_the_preprocessor_is_refused(policy: VLA0Policy) -> None:
    with pytest.raises(PromptError, match="Run it through the policy's pre-processor"):
        policy.select_action(make_raw_batch(policy.config))


def test_one_task_for_several_images_is_refused(policy: VLA0Policy) -> None:
    batch = make_batch(policy.config, batch=2)
    for key in ("observation.language.tokens", "observation.language.attention_mask"):
        batch[key] = batch[key][:1]
    with pytest.raises(PromptError, match=r"1 task\(s\) and 2 image\(s\) per camera"):
        policy.predict_action_chunk(batch)
    with pytest.raises(PromptError, match=r"1 task\(s\) and 2 image\(s\) per camera"):
        policy(batch)


def test_missing_action_statistics_are_refused() -> None:
    config = make_config()
    with pytest.raises(StatsError, match="'min' and 'max' of 'action', got none of 'action', only of "):
        VLA0Policy(config, dataset_stats={"observation.state": make_stats()["observation.state"]})
    with pytest.raises(StatsError, match="no statistics at all"):
        make_vla0_pre_post_processors(config, None)


def test_a_batch_size_that_changes_within_an_episode_is_refused() -> None:
    policy = VLA0Policy(make_config()).eval()
    policy.select_action(make_batch(policy.config, batch=2))
    with pytest.raises(ActionError, match=r"3 rows, but the queued actions were predicted for 2"):
        policy.select_action(make_batch(policy.config, batch=3))


def test_damaged_weights_raise_instead_of_moving() -> None:
    policy = VLA0Policy(make_config()).eval()
    with torch.no_grad():
        policy.vlm.model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(DecodeError, match="logits are NaN or infinite in batch rows"):
        policy.select_action(make_batch(policy.config))


def test_unknown_inference_arguments_are_refused(policy: VLA0Policy) -> None:
    with pytest.raises(ConfigError, match=r"\['noise'\]"):
        policy.predict_action_chunk(make_batch(policy.config), noise=None)


# ---------------------------------------------------------------------------- checkpoints


def test_a_checkpoint_is_self_contained_and_exact(tmp_path: Path) -> None:
    torch.manual_seed(3)
    policy = VLA0Policy(make_config()).eval()
    policy.save_pretrained(tmp_path)
    uploaded = {".safetensors", ".json", ".yaml", ".md"}
    assert {p.suffix for p in tmp_path.rglob("*") if p.is_file()} <= uploaded
    loaded = VLA0Policy.from_pretrained(tmp_path)
    assert not loaded.training
    for (name, a), (_, b) in zip(policy.state_dict().items(), loaded.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    batch = make_batch(policy.config)
    assert torch.equal(policy.predict_action_chunk(batch), loaded.predict_action_chunk(batch))


def test_missing_and_misshapen_tensors_are_named(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    policy = VLA0Policy(make_config())
    policy.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    victim = "vlm.model.model.language_model.norm.weight"
    save_file({k: v for k, v in tensors.items() if k != victim}, file)
    with pytest.raises(CheckpointError, match=f"Missing tensors: {victim}"):
        VLA0Policy.from_pretrained(tmp_path)
    save_file({**tensors, victim: torch.ones(3)}, file)
    with pytest.raises(CheckpointError, match=rf"{victim} is \(3,\), expected \(64,\)"):
        VLA0Policy.from_pretrained(tmp_path)
    save_file({**tensors, "stray": torch.ones(3)}, file)
    with pytest.raises(CheckpointError, match="Unexpected tensors: stray"):
        VLA0Policy.from_pretrained(tmp_path)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        VLA0Policy.from_pretrained(tmp_path)
    file.unlink()
    with pytest.raises(CheckpointError, match=r"has neither model\.safetensors nor"):
        VLA0Policy.from_pretrained(tmp_path)


def test_options_that_contradict_the_weights_are_refused(tmp_path: Path) -> None:
    VLA0Policy(make_config()).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="chunk_size is 4, the checkpoint has 3"):
        VLA0Policy.from_pretrained(tmp_path, config=make_config(chunk_size=4))
    with pytest.raises(CheckpointError, match="action_dim is 3, the checkpoint has 2"):
        VLA0Policy.from_pretrained(tmp_path, config=make_config(action_dim=3))
    fine = make_config(n_action_steps=1, ensemble_n_chunks=2)
    assert VLA0Policy.from_pretrained(tmp_path, config=fine).config.ensemble_n_chunks == 2


def test_a_place_without_a_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="neither a local folder nor a Hub repo"):
        VLA0Policy.from_pretrained(str(tmp_path / "nowhere"))


def test_image_size_must_suit_the_backbones_patches() -> None:
    with pytest.raises(ConfigError, match=r"image_size=\(60, 60\).*multiples of 28"):
        VLA0Policy(make_config(image_size=(60, 60)))


def test_default_config_is_the_papers() -> None:
    config = VLA0Config(device="cpu")
    assert (config.chunk_size, config.n_bins, config.image_size) == (8, 1000, (224, 224))
