"""`vla0 merge` from files, a layer at a time, against PEFT's merging of the whole policy in memory."""

from __future__ import annotations

import gc
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.adapters import save_adapter
from helpers.backbones import save_backbone
from helpers.tiny import make_config
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file, save_file

from lerobot_policy_vla0 import VLA0Config, VLA0Policy
from lerobot_policy_vla0.backbone.tiny import build_tiny_tokenizer
from lerobot_policy_vla0.checkpoints.adapters import default_targets
from lerobot_policy_vla0.checkpoints.weight_stream import TensorSource, write_stream
from lerobot_policy_vla0.errors import CheckpointError
from lerobot_policy_vla0.tools import merging
from lerobot_policy_vla0.tools.merging import merge_adapter

peft = pytest.importorskip("peft", reason="adapters need the [lora] extra")

UP = "vlm.model.model.language_model.layers.0.mlp.up_proj.weight"
MERGER = "vlm.model.model.visual.merger.mlp.0.weight"


def save_base(folder: Path, kind: str) -> tuple[VLA0Config, Path | str]:
    """Make what an adapter is trained on; returns the config of the policy, and the base's name."""
    if kind == "tiny":
        return make_config(), "tiny"
    tokenizer = build_tiny_tokenizer()
    backbone = save_backbone(folder / "backbone", tokenizer, len(tokenizer))
    config = make_config(vlm_model_name=str(backbone))
    if kind == "backbone":
        return config, backbone
    if kind == "sharded backbone":
        weights = load_file(backbone / "model.safetensors")
        (backbone / "model.safetensors").unlink()
        save_torch_state_dict(weights, backbone, max_shard_size=100_000)
        assert len(list(backbone.glob("model-*.safetensors"))) > 2
        return config, backbone
    policy = VLA0Policy(replace(config, save_dtype="bfloat16" if kind == "bfloat16 policy" else None))
    with torch.no_grad():
        policy.get_parameter(UP).mul_(1.5)  # trained
    policy.save_pretrained(folder / "policy")
    return config, folder / "policy"


def open_base(config: VLA0Config, base: Path | str) -> VLA0Policy:
    """Return the policy an adapter is put on."""
    if base in ("tiny", Path(config.vlm_model_name)):
        return VLA0Policy(config)
    return VLA0Policy.from_pretrained(base, config=config)


def assert_merged_as_in_memory(adapter: Path, out: Path, save_dtype: str | None) -> dict[str, torch.Tensor]:
    """Merge both ways and compare bit for bit; returns the tensors of the file."""
    merge_adapter(adapter, out, save_dtype=save_dtype)
    expected = VLA0Policy.from_pretrained(adapter)
    written = load_file(out / "model.safetensors")
    dtype = getattr(torch, save_dtype or "float32")
    state = expected.state_dict()
    assert written.keys() == state.keys() - {"vlm.model.model.language_model.embed_tokens.weight"}
    for name, tensor in written.items():
        want = state[name].to(dtype) if tensor.is_floating_point() else state[name]
        assert tensor.dtype == want.dtype and torch.equal(tensor, want), name
    expected.save_pretrained(out.with_name("in_memory"))
    for name in ("config.json", "vlm/config.json"):
        ours, theirs = (json.loads((path / name).read_text()) for path in (out, out.with_name("in_memory")))
        assert ours == theirs, name
    return written


@pytest.mark.parametrize("save_dtype", [None, "bfloat16"])
@pytest.mark.parametrize("kind", ["tiny", "backbone", "sharded backbone", "policy", "bfloat16 policy"])
def test_any_base_is_merged_as_in_memory(tmp_path: Path, kind: str, save_dtype: str | None) -> None:
    config, base = save_base(tmp_path, kind)
    adapter = save_adapter(open_base(config, base), tmp_path / "adapter", base)
    written = assert_merged_as_in_memory(adapter, tmp_path / "out", save_dtype)
    plain = open_base(config, base).state_dict()
    assert not torch.equal(written[UP].float(), plain[UP])
    norm = "vlm.model.model.language_model.norm.weight"
    assert torch.equal(written[norm].float(), plain[norm])


def lora(policy: VLA0Policy, **options: Any) -> Any:
    targets = default_targets(policy.vlm, vision=False)
    return peft.LoraConfig(**{"target_modules": targets, "r": 4, "lora_alpha": 8, **options})


KINDS: dict[str, Any] = {
    "vision": lambda p: lora(p, target_modules=default_targets(p.vlm, vision=True)),
    "rslora": lambda p: lora(p, use_rslora=True),
    "dora": lambda p: lora(p, use_dora=True),
    "pissa": lambda p: lora(p, init_lora_weights="pissa"),
    "patterns": lambda p: lora(p, rank_pattern={"up_proj": 2}, alpha_pattern={r"layers\.0.*": 32}),
    "trained whole": lambda p: lora(p, modules_to_save=["merger"]),
    "biases": lambda p: lora(p, bias="all"),
    "bias of the adapter": lambda p: lora(p, target_modules=["q_proj"], lora_bias=True),
}


@pytest.mark.parametrize("kind", KINDS)
def test_any_adapter_is_merged_as_in_memory(tmp_path: Path, kind: str) -> None:
    config, base = save_base(tmp_path, "backbone")
    policy = VLA0Policy(config)
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    adapter = save_adapter(policy, tmp_path / "adapter", base, KINDS[kind](policy))
    written = assert_merged_as_in_memory(adapter, tmp_path / "out", None)
    changed = {name for name in written if not torch.equal(written[name], before[name])}
    expected = {
        "vision": "vlm.model.model.visual.blocks.0.mlp.up_proj.weight",
        "trained whole": MERGER,
        "biases": "vlm.model.model.visual.blocks.0.attn.qkv.bias",
        "bias of the adapter": "vlm.model.model.language_model.layers.0.self_attn.q_proj.bias",
    }.get(kind, UP)
    assert expected in changed


@pytest.mark.parametrize("kind", ["LoHa", "Miss"])
def test_other_methods_are_merged_as_peft_merges_each_layer(tmp_path: Path, kind: str) -> None:
    """Their ``merge_and_unload`` stumbles over the augmentation state, which is saved whole; their layers do not."""
    config, base = save_base(tmp_path, "backbone")
    described = getattr(peft, f"{kind}Config")(target_modules=["up_proj", "q_proj"], r=2)
    policy = VLA0Policy(config)
    adapter = save_adapter(policy, tmp_path / "adapter", base, described)
    merge_adapter(adapter, tmp_path / "out")
    written = load_file(tmp_path / "out/model.safetensors")
    layers = {name: layer for name, layer in policy.named_modules() if hasattr(layer, "base_layer")}
    assert len(layers) == 5  # two layers of language, one of vision
    for name, layer in layers.items():
        before = layer.base_layer.weight.clone()
        layer.merge(safe_merge=True)
        assert torch.equal(written[f"{name}.weight"], layer.base_layer.weight), name
        assert not torch.equal(before, layer.base_layer.weight), name


def test_an_adapter_on_an_adapter_is_merged_as_in_memory(tmp_path: Path) -> None:
    config, base = save_base(tmp_path, "policy")
    below = save_adapter(open_base(config, base), tmp_path / "below", base)
    top = save_adapter(VLA0Policy.from_pretrained(below), tmp_path / "top", below)
    written = assert_merged_as_in_memory(top, tmp_path / "out", None)
    assert not torch.equal(written[UP], VLA0Policy.from_pretrained(below).state_dict()[UP])


def test_the_policy_is_never_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, base = save_base(tmp_path, "backbone")
    adapter = save_adapter(VLA0Policy(config), tmp_path / "adapter", base)

    def held() -> int:
        gc.collect()
        tensors = (x for x in gc.get_objects() if type(x) in (torch.Tensor, torch.nn.Parameter))
        return sum(tensor.nbytes for tensor in tensors if tensor.device.type != "meta")

    before = held()
    more = []

    def write(file: Path, tensors: Mapping[str, TensorSource], metadata: Mapping[str, str]) -> None:
        more.append(held() - before)
        write_stream(file, tensors, metadata)

    monkeypatch.setattr(merging, "write_stream", write)
    merge_adapter(adapter, tmp_path / "out")
    whole = (tmp_path / "out/model.safetensors").stat().st_size
    assert more[0] < 2 * (adapter / "adapter_model.safetensors").stat().st_size < whole / 4


def test_adapters_that_share_between_layers_are_refused_by_name(tmp_path: Path) -> None:
    config, base = save_base(tmp_path, "backbone")
    shared = peft.VeraConfig(target_modules=["q_proj"], r=2)
    adapter = save_adapter(VLA0Policy(config), tmp_path / "adapter", base, shared)
    with pytest.raises(
        CheckpointError, match=r"of type VERA, whose tensor base_model\.vera_A belongs to no single layer"
    ):
        merge_adapter(adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", ["missing", "extra", "shape", "infinite", "truncated"])
def test_a_damaged_adapter_is_named_and_nothing_is_left(tmp_path: Path, damage: str) -> None:
    config, base = save_base(tmp_path, "backbone")
    adapter = save_adapter(VLA0Policy(config), tmp_path / "adapter", base)
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    key = f"base_model.model.{UP.removesuffix('weight')}lora_B.weight"
    expected = {
        "missing": r"lacks 2 of its tensors, the first are .*up_proj\.lora_A",
        "extra": r"Unexpected tensors: base_model\.model\.nowhere\.lora_A\.weight\.",
        "shape": r"up_proj\.lora_B\.weight is \(128, 3\), expected \(128, 4\)",
        "infinite": r"the adapter \(LORA\) on vlm\..*layers\.0\.mlp\.up_proj cannot be merged: NaNs detected",
        "truncated": r"the adapter's weights in .* cannot be read",
    }[damage]
    if damage == "missing":  # a layer without any adapter would go unnoticed by PEFT
        del tensors[key], tensors[key.replace("lora_B", "lora_A")]
    elif damage == "extra":
        tensors["base_model.model.nowhere.lora_A.weight"] = torch.zeros(2)
    elif damage == "shape":
        tensors[key] = tensors[key][:, :3].contiguous()
    elif damage == "infinite":
        tensors[key][0, 0] = torch.inf
    save_file(tensors, file)
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match=expected):
        merge_adapter(adapter, tmp_path / "made" / "out")
    assert not (tmp_path / "made").exists() or not any((tmp_path / "made").iterdir())


def test_a_backbone_that_moved_is_named(tmp_path: Path) -> None:
    config, base = save_base(tmp_path, "backbone")
    adapter = save_adapter(VLA0Policy(config), tmp_path / "adapter", base)
    Path(base).rename(tmp_path / "new")
    with pytest.raises(
        CheckpointError, match=r"trained on the backbone .*backbone.*base_model_name_or_path.*vlm_model_name"
    ):
        merge_adapter(adapter, tmp_path / "out")
    for name, key in (
        ("adapter_config.json", "base_model_name_or_path"),
        ("config.json", "vlm_model_name"),
    ):
        described = json.loads((adapter / name).read_text())
        (adapter / name).write_text(json.dumps({**described, key: str(tmp_path / "new")}))
    assert_merged_as_in_memory(adapter, tmp_path / "out", None)
