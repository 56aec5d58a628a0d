"""A policy never decodes with weights it had before: whatever changes them, the next answer is a fresh decoder's."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from helpers.tiny import make_batch, make_config, make_restless
from torch import nn

from lerobot_policy_vla0 import VLA0Policy
from lerobot_policy_vla0.decoding import weights
from lerobot_policy_vla0.decoding.weight_watch import WeightWatch

Change = Callable[[VLA0Policy], None]


def _other(policy: VLA0Policy) -> VLA0Policy:
    """Return a policy of the same shape with other weights."""
    other = copy.deepcopy(policy)
    with torch.no_grad():
        for index, parameter in enumerate(other.parameters()):
            if parameter.ndim > 1:
                parameter.copy_(parameter.roll(1 + index % 3, 0))
    return other


def optimizer_step(policy: VLA0Policy) -> None:
    optimizer = torch.optim.AdamW(policy.parameters(), lr=0.05)
    policy(make_batch(policy.config, 2))[0].backward()
    optimizer.step()


def load_state_dict(policy: VLA0Policy) -> None:
    policy.load_state_dict(_other(policy).state_dict())


def assigned_state_dict(policy: VLA0Policy) -> None:
    policy.load_state_dict(_other(policy).state_dict(), assign=True)


@torch.no_grad()
def averaged_weights(policy: VLA0Policy) -> None:
    for parameter, other in zip(policy.parameters(), _other(policy).parameters(), strict=True):
        parameter.copy_(other)


def averaged_weights_past_autograd(policy: VLA0Policy) -> None:
    for parameter, other in zip(policy.parameters(), _other(policy).parameters(), strict=True):
        parameter.data.copy_(other.data)


def averaged_weights_by_pointer(policy: VLA0Policy) -> None:
    for parameter, other in zip(policy.parameters(), _other(policy).parameters(), strict=True):
        parameter.data = other.data


@torch.inference_mode()
def copied_in_inference_mode(policy: VLA0Policy) -> None:
    for parameter, other in zip(policy.parameters(), _other(policy).parameters(), strict=True):
        parameter.copy_(other)


def one_layer_replaced(policy: VLA0Policy) -> None:
    mlp = policy.vlm.model.model.language_model.layers[0].mlp
    layer = nn.Linear(mlp.down_proj.in_features, mlp.down_proj.out_features, bias=False)
    nn.init.normal_(layer.weight, std=0.3, generator=torch.Generator().manual_seed(0))
    mlp.down_proj = layer


def moved_and_back(policy: VLA0Policy) -> None:
    policy.to(torch.float64)
    load_state_dict(policy)
    policy.to(torch.float32)


@torch.no_grad()
def one_norm(policy: VLA0Policy) -> None:
    policy.vlm.model.model.language_model.layers[0].input_layernorm.weight.mul_(-3.0)


@torch.no_grad()
def the_head(policy: VLA0Policy) -> None:
    head = policy.vlm.model.lm_head.weight
    head.copy_(head.roll(1, 0))


@torch.no_grad()
def the_picture_encoder(policy: VLA0Policy) -> None:
    weight = policy.vlm.model.model.visual.blocks[0].mlp.down_proj.weight
    weight.copy_(5 * weight.flip(0))


CHANGES: list[Change] = [
    optimizer_step,
    load_state_dict,
    assigned_state_dict,
    averaged_weights,
    averaged_weights_past_autograd,
    averaged_weights_by_pointer,
    copied_in_inference_mode,
    one_layer_replaced,
    moved_and_back,
    one_norm,
    the_head,
    the_picture_encoder,
]


def scores(policy: VLA0Policy, batch: dict[str, Any]) -> torch.Tensor:
    """Return the answer and the scores of its first symbol."""
    chunk = policy.predict_action_chunk(batch)
    assert policy.last_decode is not None
    traces = policy.last_decode.traces
    first = [torch.from_numpy(trace.scores[0]) for trace in traces if trace.scores[0] is not None]
    return torch.cat([chunk.flatten(), *first]).nan_to_num(neginf=0.0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_the_next_answer_uses_the_new_weights(change: Change, dtype: str) -> None:
    """Under ``eval()`` throughout: nothing but the weights themselves tells that they changed."""
    policy = make_restless(VLA0Policy(make_config(dtype=dtype, draft_width=8, crop_ratio=1.0)))
    batch = make_batch(policy.config, 2)
    before = scores(policy, batch)
    change(policy)
    policy.decoder.reset()
    after = scores(policy, batch)
    fresh = copy.deepcopy(policy)
    fresh._decoder = None
    assert torch.equal(after, scores(fresh, batch))
    assert (after - before).abs().max() > 0.1, "the change made no difference: nothing is tested"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_adapters_are_noticed_when_they_come_change_and_go(dtype: str) -> None:
    pytest.importorskip("peft", reason="adapters need the [lora] extra")
    policy = make_restless(VLA0Policy(make_config(dtype=dtype, draft_width=8, crop_ratio=1.0)))
    batch = make_batch(policy.config, 2)
    plain = scores(policy, batch)
    wrapped = policy.wrap_with_peft(peft_cli_overrides={"method_type": "LORA", "r": 4}).eval()
    seen = [plain]

    def check(new: bool) -> None:
        policy.decoder.reset()
        got = scores(policy, batch)
        kept, policy._decoder = policy._decoder, None
        assert torch.equal(got, scores(policy, batch)), "a fresh decoder answers otherwise"
        policy._decoder = kept
        assert new is all((got - other).abs().max() > 0.1 for other in seen)
        seen.append(got)

    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    check(new=True)
    with wrapped.disable_adapter():
        check(new=False)
    assert torch.equal(seen[-1], plain)
    check(new=False)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            parameter.data.mul_(-1)
    check(new=True)
    wrapped.merge_adapter()
    policy.decoder.reset()
    merged = scores(policy, batch)
    if dtype == "float32":
        torch.testing.assert_close(merged, seen[-1], rtol=1e-3, atol=1e-3)
    wrapped.unmerge_adapter()


def test_layers_trained_whole_beside_an_adapter_are_used() -> None:
    """PEFT keeps the old module beside its trained copy."""
    pytest.importorskip("peft", reason="adapters need the [lora] extra")
    from peft import LoraConfig

    policy = make_restless(VLA0Policy(make_config(draft_width=8, crop_ratio=1.0)))
    batch = make_batch(policy.config, 2)
    wrapped = policy.wrap_with_peft(
        LoraConfig(
            target_modules=["q_proj"], modules_to_save=["input_layernorm", "mlp", "k_proj", "merger", "norm2"]
        )
    ).eval()
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "modules_to_save.default" in name and parameter.is_floating_point():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    fast = scores(policy, batch)
    policy.config.decoder = "reference"
    policy._decoder = None
    torch.testing.assert_close(fast, scores(policy, batch), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("mode", [nullcontext, torch.inference_mode, torch.no_grad])
def test_nothing_is_seen_where_nothing_changed(mode: Callable[[], AbstractContextManager[Any]]) -> None:
    with mode():
        model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
        watch = WeightWatch(model)
        assert [watch.changed() for _ in range(3)] == [True, False, False]
        model(torch.zeros(2, 3))
        assert not watch.changed()
        model[0].weight.data[0, 0] += 1
        assert [watch.changed() for _ in range(2)] == [True, False]
        model[1] = nn.Identity()
        assert watch.changed()


def test_fusing_frees_each_layers_memory_before_it_takes_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a bfloat16 3B, of which 4.3 GB are fused, would need them twice while its first query is prepared."""
    policy = VLA0Policy(make_config()).eval()
    layers = policy.vlm.model.model.language_model.layers
    before = [weakref.ref(layer.mlp.gate_proj.weight.untyped_storage()) for layer in layers]
    alive: list[int] = []
    fuse = weights._fuse

    def counting(*arguments: Any) -> torch.Tensor:
        fused = fuse(*arguments)
        alive.append(sum(storage() is not None for storage in before))
        return fused

    monkeypatch.setattr(weights, "_fuse", counting)
    policy.select_action(make_batch(policy.config, 1))
    assert alive[0] == len(layers) == 2
    assert [count for count, last in zip(alive, [None, *alive], strict=False) if count != last] == [2, 1, 0]
