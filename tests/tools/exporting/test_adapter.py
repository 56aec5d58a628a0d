"""LoRA goes out merged, or alone for engines that put it on its base; both give the adapter's answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.adapters import save_adapter
from helpers.backbones import save_backbone
from helpers.exports import save_policy
from helpers.tiny import make_config
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from lerobot_policy_vla0 import VLA0Policy
from lerobot_policy_vla0.backbone.tiny import build_tiny_tokenizer
from lerobot_policy_vla0.checkpoints.adapters import default_targets
from lerobot_policy_vla0.errors import CheckpointError, ExportError
from lerobot_policy_vla0.tools.commands import main
from lerobot_policy_vla0.tools.exporting.adapter import export_adapter
from lerobot_policy_vla0.tools.exporting.export import export_policy
from lerobot_policy_vla0.tools.exporting.weights import split_tensors
from lerobot_policy_vla0.tools.importing.tensors import policy_name

peft = pytest.importorskip("peft", reason="adapters need the [lora] extra")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = build_tiny_tokenizer()
    return save_backbone(tmp_path_factory.mktemp("base") / "backbone", tokenizer, len(tokenizer))


def on_backbone(folder: Path, backbone: Path, **options: Any) -> Path:
    """Save an adapter on a bare backbone; the options are those of PEFT's ``LoraConfig``."""
    policy = VLA0Policy(make_config(vlm_model_name=str(backbone)))
    described = None
    if options:
        targets = default_targets(policy.vlm, vision=False)
        described = peft.LoraConfig(**{"target_modules": targets, "r": 4, "lora_alpha": 8, **options})
    return save_adapter(policy, folder, backbone, described)


def logits(model: Any) -> torch.Tensor:
    """Return what a model says after a few tokens."""
    with torch.no_grad():
        return model(input_ids=torch.arange(20)[None]).logits


def test_an_adapter_goes_out_merged(tmp_path: Path, backbone: Path) -> None:
    adapter = on_backbone(tmp_path / "adapter", backbone)
    assert main(["export", str(adapter), "--out", str(tmp_path / "out")]) == 0
    expected = VLA0Policy.from_pretrained(adapter)
    for name, tensor in load_file(tmp_path / "out/model.safetensors").items():
        assert torch.equal(tensor, expected.state_dict()[policy_name(name)]), name
    config = json.loads((tmp_path / "out/robot/config.json").read_text())
    assert (config["use_peft"], config["pretrained_path"]) == (False, None)

    assert main(["import", str(tmp_path / "out"), "--out", str(tmp_path / "back")]) == 0
    back = VLA0Policy.from_pretrained(tmp_path / "back").state_dict()
    assert all(torch.equal(tensor, back[name]) for name, tensor in expected.state_dict().items())


def test_an_adapter_alone_fits_its_base_and_says_what_the_merged_one_says(
    tmp_path: Path, backbone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = on_backbone(tmp_path / "adapter", backbone, use_rslora=True)
    assert main(["export", str(adapter), "--out", str(tmp_path / "out"), "--adapter"]) == 0
    assert f"--lora-modules vla0={tmp_path / 'out'}" in capsys.readouterr().out
    base: Any = AutoModelForImageTextToText.from_pretrained(backbone)
    bare = logits(base)
    served = peft.PeftModel.from_pretrained(base, tmp_path / "out")
    merged = VLA0Policy.from_pretrained(adapter).vlm.model
    assert torch.allclose(logits(served), logits(merged), atol=1e-5)
    assert (logits(served) - bare).abs().max() > 1e-2
    names = load_file(tmp_path / "out/adapter_model.safetensors").keys()
    assert "base_model.model.model.language_model.layers.0.mlp.up_proj.lora_A.weight" in names
    described = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert (described["modules_to_save"], described["base_model_name_or_path"]) == (None, str(backbone))
    note = json.loads((tmp_path / "out/vla0.json").read_text())["adapter"]
    assert note == {
        "base": str(backbone),
        "revision": None,
        "serve": "the base as it is, with the adapter",
    }
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"chat_template.jinja", "generation_config.json", "grammar.regex", "robot"} <= files
    assert "config.json" not in files  # an engine must not take the folder for a model
    assert main(["import", str(tmp_path / "out"), "--out", str(tmp_path / "back")]) == 2
    assert "is the export of an adapter alone" in capsys.readouterr().err


def test_an_adapter_alone_fits_the_export_of_the_policy_it_was_trained_on(
    tmp_path: Path, backbone: Path
) -> None:
    config = make_config(vlm_model_name=str(backbone))
    base = save_policy(VLA0Policy(config), tmp_path / "base")
    adapter = save_adapter(VLA0Policy.from_pretrained(base), tmp_path / "adapter", base)
    export_policy(base, tmp_path / "served")
    export_adapter(adapter, tmp_path / "out", dtype="bfloat16")
    tensors = load_file(tmp_path / "out/adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    served = peft.PeftModel.from_pretrained(
        AutoModelForImageTextToText.from_pretrained(tmp_path / "served"), tmp_path / "out"
    )
    merged = VLA0Policy.from_pretrained(adapter).vlm.model
    assert torch.allclose(logits(served), logits(merged), atol=2e-2)  # the adapter is rounded
    note = json.loads((tmp_path / "out/vla0.json").read_text())["adapter"]
    assert note["serve"] == "an export of the base, with the adapter"


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "trained whole": (
        {"modules_to_save": ["merger"]},
        "has modules_to_save=['merger'], which engines do not take",
    ),
    "dora": ({"use_dora": True}, "has use_dora=True, which"),
    "biases": ({"bias": "lora_only"}, "has bias='lora_only', which"),
    "patterns": ({"rank_pattern": {"up_proj": 2}}, "has rank_pattern={'up_proj': 2}, which"),
    "pissa": ({"init_lora_weights": "pissa"}, "has init_lora_weights='pissa', which"),
    "vision": (
        {"target_modules": ["qkv", "q_proj"]},
        "has layers outside the language model: base_model.model.vlm",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_engines_do_not_take_is_named(tmp_path: Path, backbone: Path, kind: str) -> None:
    options, message = REFUSED[kind]
    adapter = on_backbone(tmp_path / "adapter", backbone, **options)
    with pytest.raises(ExportError) as refused:
        export_adapter(adapter, tmp_path / "out")
    assert message in str(refused.value)
    assert "Leave --adapter out: the adapter is then merged into its base." in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_other_kinds_and_bases_are_refused(tmp_path: Path, backbone: Path) -> None:
    policy = VLA0Policy(make_config(vlm_model_name=str(backbone)))
    loha = save_adapter(policy, tmp_path / "loha", backbone, peft.LoHaConfig(target_modules=["up_proj"], r=2))
    with pytest.raises(ExportError, match="is an adapter of type LOHA, and engines take LoRA only"):
        export_adapter(loha, tmp_path / "out")
    tiny = save_adapter(VLA0Policy(make_config()), tmp_path / "tiny", "tiny")
    with pytest.raises(ExportError, match="there are no files of it that an engine could serve"):
        export_adapter(tiny, tmp_path / "out")
    full = save_policy(VLA0Policy(make_config()), tmp_path / "full")
    with pytest.raises(
        CheckpointError, match=r"it is no adapter but a policy with all weights. Leave --adapter out"
    ):
        export_adapter(full, tmp_path / "out")


def test_a_tied_tensor_has_the_embeddings_name(backbone: Path) -> None:
    policy = VLA0Policy(make_config(vlm_model_name=str(backbone)))
    names, own = split_tensors(policy, dict.fromkeys(["vlm.model.lm_head.weight", "augmentation.state"]))  # type: ignore[arg-type]
    assert (list(names), list(own)) == (["model.embed_tokens.weight"], ["augmentation.state"])
