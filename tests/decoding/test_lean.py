"""The lean pass and vision tower compute what transformers' modules compute from the same weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.backbones import FAMILIES, save_random_backbone, wake_up
from helpers.decoding_cases import make_request
from helpers.operations import Operations
from helpers.tiny import make_config
from torch import Tensor, nn

from lerobot_policy_vla0 import VLA0Policy
from lerobot_policy_vla0.decoding.lean import LeanModel
from lerobot_policy_vla0.decoding.transformer import RMSNorm, Transformer
from lerobot_policy_vla0.decoding.vision import VisionTower
from lerobot_policy_vla0.decoding.weights import plain_linear
from lerobot_policy_vla0.text.grammar import AnswerGrammar
from lerobot_policy_vla0.text.prompt import rope_positions

#: float32 sums in another order. States are of order 1 after the last norm; a wrong mask or position moves them by 0.1.
CLOSE = {"rtol": 0.0, "atol": 1e-4}


@pytest.fixture(scope="module", params=list(FAMILIES))
def policy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> VLA0Policy:
    folder = save_random_backbone(tmp_path_factory.mktemp("base"), FAMILIES[request.param]())
    policy = VLA0Policy(make_config(vlm_model_name=str(folder), crop_ratio=1.0)).eval()
    wake_up(policy)
    return policy.requires_grad_(False)


def adapted(policy: VLA0Policy, **options: Any) -> VLA0Policy:
    """Return a copy of a policy with a LoRA adapter whose numbers are not zero."""
    pytest.importorskip("peft", reason="adapters need the [lora] extra")
    wrapped = copy.deepcopy(policy).wrap_with_peft(
        peft_cli_overrides={"method_type": "LORA", "r": 4, **options}
    )
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.2)
    return wrapped.base_model.model.eval().requires_grad_(False)  # type: ignore[no-any-return]


@torch.no_grad()
def oracle(policy: VLA0Policy, ids: Tensor, mask: Tensor, positions: Tensor, pixels: Any) -> Tensor:
    """Return transformers' hidden states ``(B, L, hidden)`` of whole sequences; ``mask`` is ``(B, L, L)`` bool."""
    model = policy.vlm.model.model
    embeddings = policy.vlm.embed(ids, ids == policy.vlm.image_token_id, *pixels)
    lowest = torch.finfo(embeddings.dtype).min
    added = torch.zeros(mask.shape, dtype=embeddings.dtype).masked_fill(~mask, lowest).unsqueeze(1)
    out = model.language_model(
        inputs_embeds=embeddings,
        position_ids=positions,
        attention_mask={"full_attention": added},
        use_cache=False,
    )
    return out.last_hidden_state  # type: ignore[no-any-return]


@pytest.mark.parametrize("lora", [False, True], ids=["plain", "LoRA"])
@pytest.mark.parametrize("batch", [1, 3])
@torch.no_grad()
def test_states_and_logits_are_transformers(policy: VLA0Policy, batch: int, lora: bool) -> None:
    """A left-padded prompt, then two passes: all rows at one place, and a tree with every row at its own place."""
    policy = adapted(policy) if lora else policy
    vlm = policy.vlm
    request = make_request(policy, seed=batch, batch=batch)
    pixels = (request.pixel_values, request.grid_thw)
    grammar = AnswerGrammar(n_bins=1000, n_numbers=8, tokens=vlm.tokens)
    model = LeanModel(vlm, grammar.token_ids)
    model.refresh()
    length = request.ids.shape[1]
    frames, height, width = request.grid_thw[0].tolist()
    is_image = request.ids == vlm.image_token_id
    positions, following = rope_positions(
        request.ids,
        request.mask,
        image_token_id=vlm.image_token_id,
        grid=(height // vlm.merge_size, width // vlm.merge_size),
    )
    # 1. What every token attends to, in all three passes together. Rows: 4 answer tokens, then a tree of 5.
    source = torch.Generator().manual_seed(0)
    answer = grammar.token_ids[torch.randint(12, (batch, 9), generator=source)]
    first = torch.arange(batch) % 4 + 1  # answer tokens of each row that stay before the tree
    depths = torch.tensor([0, 1, 1, 2, 2])
    parents = (None, 0, 0, 1, 2)
    tree = torch.eye(5, dtype=torch.bool)
    for index, parent in enumerate(parents):
        if parent is not None:
            tree[index] |= tree[parent]
    total = length + 9
    mask = torch.ones(total, total).tril().bool().repeat(batch, 1, 1)
    mask[:, :, :length] &= request.mask.unsqueeze(1)
    mask |= torch.eye(total, dtype=torch.bool)
    mask[:, length + 4 :, length:] = False
    for row in range(batch):
        mask[row, length + 4 :, length : length + int(first[row])] = True
    mask[:, length + 4 :, length + 4 :] = tree
    text = torch.cat([torch.arange(4).expand(batch, -1), first.unsqueeze(1) + depths], 1)
    everywhere = torch.cat([positions, (following.unsqueeze(1) + text).expand(3, -1, -1)], 2)
    expected = oracle(policy, torch.cat([request.ids, answer], 1), mask, everywhere, pixels)
    # 2. The same in the lean model: prefill, chain, tree over what the chain wrote and the row does not keep.
    cache = model.new_cache(batch, total + 20)
    pictures = model.encode_images(request.pixel_values, (frames, height, width))
    inputs = model.embed_prompt(request.ids, is_image, pictures)
    cache.place(torch.arange(length).expand(batch, -1), start=0)
    transformer = model._transformer
    assert transformer is not None
    states = [transformer(inputs, positions, mask[:, :length, :length], cache)]
    cache.place(torch.arange(length, length + 4).expand(batch, -1), start=length)
    places = following.unsqueeze(1) + text
    seen = mask[:, length : length + 4, : length + 4]
    states.append(transformer(model.embed(answer[:, :4]), places[:, :4], seen, cache))
    columns = length + first.unsqueeze(1) + torch.arange(5)  # each row's own
    cache.place(columns, start=None)
    seen = torch.zeros(batch, 5, length + 9, dtype=torch.bool)
    for row in range(batch):
        end = length + int(first[row])
        seen[row, :, :end] = mask[row, length + 4 :, :end]
        seen[row, :, end : end + 5] = tree
    states.append(transformer(model.embed(answer[:, 4:]), places[:, 4:], seen, cache))
    got = torch.cat(states, 1)
    real = torch.cat([request.mask, torch.ones(batch, 9, dtype=torch.bool)], 1)
    torch.testing.assert_close(got[real], expected[real], **CLOSE)
    logits = vlm.logits(expected)[..., grammar.token_ids]
    assert model._head is not None
    torch.testing.assert_close(model._head.project(got)[real], logits[real], rtol=1e-4, atol=1e-3)
    assert logits[real].std() > 1, "the model hardly answers: nothing is compared"
    # 3. States that are not asked for are left out, and what is returned stays.
    cache.place(torch.arange(length).expand(batch, -1), start=0)
    few = transformer(inputs, positions, mask[:, :length, :length], cache, keep=2)
    torch.testing.assert_close(few, got[:, length - 2 : length], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(1, 4, 4), (1, 8, 16), (1, 6, 10), (1, 2, 14)])
@pytest.mark.parametrize("pictures", [1, 3])
@torch.no_grad()
def test_pictures_are_encoded_as_by_transformers(
    policy: VLA0Policy, size: tuple[int, int, int], pictures: int
) -> None:
    model = policy.vlm.model.model
    tower = VisionTower(model.visual, torch.float32)
    patches = size[1] * size[2]
    pixels = torch.randn(pictures * patches, 3 * 2 * 14 * 14, generator=torch.Generator().manual_seed(1))
    grid = torch.tensor([size]).expand(pictures, -1)
    expected = model.visual(pixels, grid_thw=grid).pooler_output
    torch.testing.assert_close(tower(pixels, size), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(tower(pixels, size), expected, rtol=1e-4, atol=1e-4)  # now from the table
    assert len(tower._grids) == 1


def test_fused_weights_are_the_models_own_memory(policy: VLA0Policy) -> None:
    """No number, name or gradient changes, and there is no second set of weights."""
    policy = copy.deepcopy(policy)
    language_model = policy.vlm.model.model.language_model
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    transformer = Transformer(language_model, torch.float32)
    for name, value in policy.state_dict().items():
        assert torch.equal(value, before[name]), name
    for layer, module in zip(transformer.layers, language_model.layers, strict=True):
        attention, mlp = module.self_attn, module.mlp
        for fused, parts in (
            (layer.qkv, (attention.q_proj, attention.k_proj, attention.v_proj)),
            (layer.gate_up, (mlp.gate_proj, mlp.up_proj)),
            (layer.output, (attention.o_proj,)),
            (layer.down, (mlp.down_proj,)),
        ):
            assert fused.weight is not None
            assert {p.weight.untyped_storage().data_ptr() for p in parts} == {
                fused.weight.untyped_storage().data_ptr()
            }
    # A second transformer finds them fused.
    again = Transformer(language_model, torch.float32)
    for one, other in zip(transformer.layers, again.layers, strict=True):
        assert one.qkv.weight is not None and other.qkv.weight is not None
        assert one.qkv.weight.data_ptr() == other.qkv.weight.data_ptr()
        assert torch.equal(one.qkv.weight, other.qkv.weight)


def test_another_precision_is_copied_and_the_model_stays(policy: VLA0Policy) -> None:
    policy = copy.deepcopy(policy)
    memory = [parameter.data_ptr() for parameter in policy.parameters()]
    transformer = Transformer(policy.vlm.model.model.language_model, torch.bfloat16)
    assert [parameter.data_ptr() for parameter in policy.parameters()] == memory
    for layer in transformer.layers:
        for projection in (layer.qkv, layer.output, layer.gate_up, layer.down):
            assert projection.weight is not None and projection.weight.dtype == torch.bfloat16


def test_a_layer_with_a_hook_is_called(policy: VLA0Policy) -> None:
    layer = nn.Linear(4, 4)
    assert plain_linear(layer) is layer
    layer.register_forward_hook(lambda *_: None)
    assert plain_linear(layer) is None


@pytest.mark.parametrize("scale", [1e-4, 1.0, 30.0])
def test_the_norm_is_pytorchs(scale: float) -> None:
    x = scale * torch.randn(7, 128, generator=torch.Generator().manual_seed(0))
    weight = torch.randn(128, generator=torch.Generator().manual_seed(1))
    expected = nn.functional.rms_norm(x.double(), (128,), weight.double(), 1e-6).float()
    torch.testing.assert_close(RMSNorm(weight, 1e-6)(x), expected, rtol=1e-5, atol=1e-6)


def count(run: Callable[[], Any]) -> int:
    """Return how many operations that compute or copy something a function starts."""
    with Operations() as counted:
        run()
    return counted.total


@pytest.mark.parametrize(("norm", "most"), [("one kernel, as on a GPU", 16), ("as on a CPU", 22)])
@torch.no_grad()
def test_a_layer_is_few_operations(
    policy: VLA0Policy, monkeypatch: pytest.MonkeyPatch, norm: str, most: int
) -> None:
    """Each is a kernel on a GPU; transformers starts about 45."""
    if norm.startswith("one"):
        monkeypatch.setattr(RMSNorm, "__call__", lambda _, x: x.neg())
    model = policy.vlm.model.model.language_model
    width = 4
    inputs = torch.randn(1, width, model.config.hidden_size)
    positions = torch.arange(width).expand(1, -1)
    visible = torch.ones(1, width, width).tril().bool()
    transformer = Transformer(model, torch.float32)
    cache = transformer.new_cache(1, 16)
    cache.place(torch.arange(width).expand(1, -1), start=None)  # captured passes write by index

    def run() -> Tensor:
        return transformer(inputs, positions, visible, cache)

    whole = count(run)
    transformer.layers = transformer.layers[:1]
    assert (whole - count(run)) / (len(model.layers) - 1) <= most
    theirs = count(
        lambda: model(inputs_embeds=inputs, position_ids=positions.expand(3, -1, -1), use_cache=True)
    )
    assert theirs / len(model.layers) > 40


def test_the_reference_scores_in_float32_too(policy: VLA0Policy, tmp_path: Path) -> None:
    """Scores of a bfloat16 projection lie on a coarse grid; those of all decoders do not."""
    from helpers.decoding_cases import Problem, fast, reference

    problem = Problem(make_request(policy, 1, 2), shape=(1, 2), n_bins=1000, penalty=1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, oracle_report = reference(policy, problem)
        decoder = fast(policy, problem)
        decoder.decode(problem.request)
    assert decoder.last is not None
    for report in (oracle_report, decoder.last):
        scores = torch.tensor([s for s in report.traces[0].scores[0].tolist() if s > -1e9])  # type: ignore[union-attr]
        assert not torch.equal(scores, scores.bfloat16().float())
