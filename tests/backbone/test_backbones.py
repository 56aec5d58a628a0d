"""Every supported family of backbones, small and random: trains, decodes alike, saves and loads; others are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.backbones import (
    FAMILIES,
    qwen2_5_vl,
    save_random_backbone,
    special_ids,
    text_sizes,
    wake_up,
)
from helpers.decoding_cases import (
    Problem,
    fast,
    make_request,
    near_ties,
    reference,
    speculative,
)
from helpers.tiny import make_batch, make_config
from torch.nn.functional import cross_entropy

from lerobot_policy_vla0 import VLA0Policy
from lerobot_policy_vla0.errors import ConfigError
from lerobot_policy_vla0.text.prompt import rope_positions


def qwen3_vl() -> Any:
    from transformers import Qwen3VLConfig

    vision = {
        "depth": 2,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_heads": 2,
        "out_hidden_size": 64,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0],
    }
    return Qwen3VLConfig(
        text_config=text_sizes(head_dim=32), vision_config=vision, tie_word_embeddings=True, **special_ids()
    )


@pytest.fixture(scope="module", params=list(FAMILIES))
def policy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> VLA0Policy:
    folder = save_random_backbone(tmp_path_factory.mktemp("base"), FAMILIES[request.param]())
    policy = VLA0Policy(make_config(vlm_model_name=str(folder), crop_ratio=1.0)).eval()
    wake_up(policy)
    return policy


def test_the_loss_is_the_plain_models_on_the_same_tokens(policy: VLA0Policy) -> None:
    """transformers' own forward, with its own positions and full logits, is the oracle."""
    from lerobot_policy_vla0.observations.images import encode_images

    batch = make_batch(policy.config)
    loss, metrics = policy(batch)
    prompt, mask = batch["observation.language.tokens"], batch["observation.language.attention_mask"]
    chunk = policy.codec.encode_bins(policy.codec.actions_to_bins(batch["action"])[0])
    ids = torch.cat([prompt, chunk.ids], dim=1)
    pixels, grid = encode_images(
        [batch[key] for key in policy.config.camera_keys], policy.image_settings, None
    )
    logits = policy.vlm.model(
        input_ids=ids,
        attention_mask=torch.cat([mask, chunk.is_token], dim=1).long(),
        pixel_values=pixels,
        image_grid_thw=grid,
        mm_token_type_ids=(ids == policy.vlm.image_token_id).int(),
    ).logits
    labels = chunk.ids.masked_fill(~chunk.is_token, -100)
    expected = cross_entropy(logits[:, prompt.shape[1] - 1 : -1].flatten(0, 1), labels.flatten())
    torch.testing.assert_close(loss, expected)
    assert metrics["loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_gradients_reach_every_weight(policy: VLA0Policy) -> None:
    policy.zero_grad()
    policy(make_batch(policy.config))[0].backward()
    without = [name for name, p in policy.named_parameters() if p.grad is None or not p.grad.any()]
    policy.zero_grad()
    assert without == []


def test_positions_are_the_familys_own(policy: VLA0Policy) -> None:
    request = make_request(policy, seed=3, batch=4)
    merge = policy.vlm.merge_size
    _, height, width = request.grid_thw[0].tolist()
    ours, following = rope_positions(
        request.ids,
        request.mask,
        image_token_id=policy.vlm.image_token_id,
        grid=(height // merge, width // merge),
    )
    theirs, deltas = policy.vlm.model.model.get_rope_index(
        request.ids,
        mm_token_type_ids=(request.ids == policy.vlm.image_token_id).int(),
        image_grid_thw=request.grid_thw,
        attention_mask=request.mask.long(),
    )
    seen = request.mask.expand(3, -1, -1)
    assert torch.equal(ours[seen], theirs[seen])
    assert torch.equal(following, request.mask.sum(1) + deltas.flatten())


def test_all_decoders_write_the_reference_decoders_answer(policy: VLA0Policy) -> None:
    for seed, batch in ((0, 1), (1, 3)):
        problem = Problem(make_request(policy, seed, batch), shape=(3, 2), n_bins=1000, penalty=1.0)
        expected, report = reference(policy, problem)
        for decoder in (fast(policy, problem), speculative(policy, problem)):
            answer = decoder.decode(problem.request)
            assert decoder.last is not None
            if near_ties(report, decoder.last) == 0:
                assert torch.equal(answer, expected), (decoder.name, seed)
    assert len({tuple(row) for row in expected.tolist()}) > 1  # the pictures matter


def test_a_checkpoint_stands_alone(policy: VLA0Policy, tmp_path: Path) -> None:
    batch = make_batch(policy.config)
    policy.save_pretrained(tmp_path)
    name, policy.config.vlm_model_name = policy.config.vlm_model_name, "gone"
    try:
        again = VLA0Policy.from_pretrained(tmp_path, config=policy.config)
    finally:
        policy.config.vlm_model_name = name
    assert torch.equal(again.predict_action_chunk(batch), policy.predict_action_chunk(batch))
    assert type(again.vlm.model) is type(policy.vlm.model)


def test_fsdp_is_told_the_familys_own_layers(policy: VLA0Policy) -> None:
    classes = {type(module).__name__ for module in policy.modules()}
    assert set(policy._fsdp_wrap_modules) <= classes
    assert set(policy._fsdp_wrap_modules) == set(policy.vlm.model._no_split_modules)


def test_a_family_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    folder = save_random_backbone(tmp_path, qwen3_vl())
    with pytest.raises(ConfigError, match=r"'qwen3_vl' model.*expected Qwen2-VL and Qwen2\.5-VL"):
        VLA0Policy(make_config(vlm_model_name=str(folder)))


def test_sliding_window_attention_is_refused(tmp_path: Path) -> None:
    config = qwen2_5_vl(tied=True, use_sliding_window=True, sliding_window=16, max_window_layers=1)
    folder = save_random_backbone(tmp_path, config)
    with pytest.raises(ConfigError, match="sliding-window attention"):
        VLA0Policy(make_config(vlm_model_name=str(folder)))


def test_flash_attention_that_is_not_there_is_refused() -> None:
    from transformers.utils import is_flash_attn_2_available

    if is_flash_attn_2_available():
        pytest.skip("flash attention is installed")
    with pytest.raises(ConfigError, match=r"'flash_attention_2' cannot be used here.*'sdpa'"):
        VLA0Policy(make_config(attn_implementation="flash_attention_2"))


def test_decoding_passes_do_not_use_flash_attention(policy: VLA0Policy) -> None:
    """Its kernels take no mask. The configuration is set by hand: flash attention itself needs an accelerator."""
    problem = Problem(make_request(policy, 0, 2), shape=(3, 2), n_bins=100, penalty=1.0)
    expected = fast(policy, problem).decode(problem.request)
    config = policy.vlm.model.model.language_model.config
    config._attn_implementation = "flash_attention_2"
    try:
        answer = fast(policy, problem).decode(problem.request)
        assert config._attn_implementation == "flash_attention_2"
    finally:
        config._attn_implementation = "sdpa"
    assert torch.equal(answer, expected)
