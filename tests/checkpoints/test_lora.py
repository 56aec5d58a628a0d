"""Adapters through LeRobot's own commands, straight from the backbone: train, resume, evaluate, merge."""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import toy_env  # noqa: F401 - registers --env.type=toy
from helpers.backbones import save_backbone
from helpers.decoding_cases import Problem, make_request, near_ties, reference, speculative
from helpers.paths import REPO
from helpers.tiny import make_batch, make_config, make_dataset
from safetensors.torch import load_file, save_file

from lerobot_policy_vla0 import VLA0Config, VLA0Policy
from lerobot_policy_vla0.backbone.loading import quantization_options
from lerobot_policy_vla0.backbone.tiny import build_tiny_tokenizer
from lerobot_policy_vla0.backbone.vlm import VLM
from lerobot_policy_vla0.checkpoints.adapters import default_targets
from lerobot_policy_vla0.errors import CheckpointError, ConfigError, OutputError
from lerobot_policy_vla0.tools.commands import merge
from lerobot_policy_vla0.tools.merging import merge_adapter

pytest.importorskip("peft", reason="adapters need the [lora] extra")

DEBUG = f"--config_path={REPO / 'configs' / 'debug.yaml'}"
LORA = ["--peft.method_type=LORA", "--peft.r=4"]
LANGUAGE_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def run(command: str, arguments: list[str]) -> None:
    """Call a LeRobot command in this process, as its console script does."""
    from lerobot.scripts import lerobot_eval, lerobot_train

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["lerobot", *arguments])
        {"train": lerobot_train, "eval": lerobot_eval}[command].main()


def train(root: Path, output: Path, steps: int, *arguments: str) -> Path:
    """Train from the backbone and return the last checkpoint."""
    data = ["--dataset.repo_id=local/tiny", f"--dataset.root={root}"]
    run("train", [DEBUG, *data, f"--output_dir={output}", f"--steps={steps}", *arguments])
    return output / "checkpoints" / f"{steps:06d}" / "pretrained_model"


def evaluate(policy: Path, output: Path, *arguments: str) -> list[float]:
    """Evaluate in the toy environment and return the rewards of two episodes."""
    toy = ["--env.type=toy", "--eval.n_episodes=2", "--eval.batch_size=2", "--seed=3"]
    run("eval", [f"--policy.path={policy}", *toy, f"--output_dir={output}", *arguments])
    info = json.loads((output / "eval_info.json").read_text())
    rewards: list[float] = info["per_task"][0]["metrics"]["sum_rewards"]
    return rewards


@pytest.fixture(scope="module")
def dataset_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data") / "tiny")


@pytest.fixture(scope="module")
def adapter(dataset_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter trained for four steps at a rate that moves it."""
    return train(dataset_root, tmp_path_factory.mktemp("run") / "out", 4, *LORA, "--policy.optimizer_lr=0.02")


def adapted(policy: VLA0Policy, **overrides: Any) -> Any:
    """Return the policy with a LoRA adapter whose weights are not zero."""
    wrapped = policy.wrap_with_peft(peft_cli_overrides={"method_type": "LORA", "r": 4, **overrides})
    generator = torch.Generator().manual_seed(5)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.2, generator=generator)
    return wrapped


def test_training_starts_from_the_backbone_and_saves_the_adapter_alone(adapter: Path) -> None:
    described = json.loads((adapter / "adapter_config.json").read_text())
    assert described["base_model_name_or_path"] == "tiny"
    assert json.loads((adapter / "config.json").read_text())["use_peft"] is True
    tensors = load_file(adapter / "adapter_model.safetensors")
    state = tensors.pop("base_model.model.augmentation.state")
    assert state[1] == 4  # steps trained
    layers = {
        f"base_model.model.vlm.model.model.language_model.layers.{i}.{part}.{name}.lora_{side}.weight"
        for i in range(2)
        for name in LANGUAGE_LAYERS
        for part in [("self_attn" if name in LANGUAGE_LAYERS[:4] else "mlp")]
        for side in "AB"
    }
    assert tensors.keys() == layers
    assert all(t.abs().sum() > 0 for t in tensors.values())  # B starts at zero
    assert not (adapter / "model.safetensors").exists()


def test_a_resumed_adapter_equals_the_uninterrupted_one(
    adapter: Path, dataset_root: Path, tmp_path: Path
) -> None:
    half = train(dataset_root, tmp_path / "parts", 2, *LORA, "--policy.optimizer_lr=0.02")
    run("train", [f"--config_path={half / 'train_config.json'}", "--resume=true", "--steps=4"])
    whole = load_file(adapter / "adapter_model.safetensors")
    resumed = load_file(tmp_path / "parts/checkpoints/000004/pretrained_model/adapter_model.safetensors")
    assert whole.keys() == resumed.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name
    before = load_file(half / "adapter_model.safetensors")
    assert any(not torch.equal(tensor, before[name]) for name, tensor in whole.items())


def test_adapter_and_merged_policy_act_alike(adapter: Path, tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    merge.configure(parser)
    merge.run(parser.parse_args([str(adapter), "--out", str(tmp_path / "merged")]))
    names = {p.name for p in (tmp_path / "merged").iterdir()}
    assert {"config.json", "model.safetensors", "README.md", "policy_preprocessor.json", "vlm"} <= names
    assert not any("adapter" in name for name in names)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["merged"]  # nothing left over

    direct, merged = VLA0Policy.from_pretrained(adapter), VLA0Policy.from_pretrained(tmp_path / "merged")
    assert (merged.config.use_peft, merged.config.pretrained_path) == (False, None)
    for (name, a), (_, b) in zip(direct.state_dict().items(), merged.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    plain = VLA0Policy(merged.config)
    layer = "vlm.model.model.language_model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(merged.state_dict()[layer], plain.state_dict()[layer])
    assert evaluate(adapter, tmp_path / "a") == pytest.approx(
        evaluate(tmp_path / "merged", tmp_path / "m"), abs=1e-4
    )


def test_a_policy_merged_in_bfloat16_loads(adapter: Path, tmp_path: Path) -> None:
    merge_adapter(adapter, tmp_path / "merged", save_dtype="bfloat16")
    direct, merged = VLA0Policy.from_pretrained(adapter), VLA0Policy.from_pretrained(tmp_path / "merged")
    for (name, a), (_, b) in zip(direct.state_dict().items(), merged.state_dict().items(), strict=True):
        assert torch.equal(a.to(torch.bfloat16).to(a.dtype) if a.is_floating_point() else a, b), name
    assert merged.vlm.model.lm_head.weight is merged.vlm.model.get_input_embeddings().weight


def test_merging_overwrites_nothing_and_leaves_nothing_behind(adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "theirs").write_text("y")
    with pytest.raises(OutputError, match="exists already; nothing is overwritten"):
        merge_adapter(adapter, tmp_path / "taken")
    VLA0Policy(make_config()).save_pretrained(tmp_path / "full")
    with pytest.raises(CheckpointError, match="it is no adapter, so there is nothing to merge"):
        merge_adapter(tmp_path / "full", tmp_path / "out")
    bare = shutil.copytree(adapter, tmp_path / "bare")
    for file in bare.glob("policy_postprocessor*"):
        file.unlink()
    with pytest.raises(CheckpointError, match=r"lacks \['policy_postprocessor\.json'\], which hold the"):
        merge_adapter(bare, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bare", "full", "taken"]


def test_an_incomplete_adapter_is_refused(adapter: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(adapter, tmp_path / "broken")
    tensors = load_file(broken / "adapter_model.safetensors")
    victim = next(name for name in sorted(tensors) if "lora_B" in name)
    save_file({k: v for k, v in tensors.items() if k != victim}, broken / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"lacks 1 of its tensors.*lora_B"):
        evaluate(broken, tmp_path / "a")
    with pytest.raises(CheckpointError, match=r"lacks 1 of its tensors.*lora_B"):
        VLA0Policy.from_pretrained(broken)


def test_limits_in_the_robots_units_use_the_adapters_statistics(adapter: Path) -> None:
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.rollout.context import _load_pretrained_policy

    config = PreTrainedConfig.from_pretrained(adapter)
    assert isinstance(config, VLA0Config)
    config.max_action_step, config.max_action_step_unit = [0.5, None], "robot"
    config.pretrained_path = adapter
    stats = load_file(adapter / "policy_postprocessor_step_0.safetensors")
    span = float(stats["action.max"][0] - stats["action.min"][0])
    for policy in (
        _load_pretrained_policy(config).base_model.model,  # as lerobot-rollout loads it
        VLA0Policy.from_pretrained(adapter, config=config),  # merged
    ):
        batch = make_batch(config, batch=1)
        policy.select_action(dict(batch))
        assert policy.executor.limiter.limits.tolist() == pytest.approx([2 * 0.5 / span, math.inf])


def test_changing_the_chunk_size_of_an_adapter_is_refused(adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="chunk_size is 4, the checkpoint has 3"):
        evaluate(adapter, tmp_path, "--policy.chunk_size=4")


def test_an_adapter_on_a_trained_policy_names_that_policy(dataset_root: Path, tmp_path: Path) -> None:
    trained = train(dataset_root, tmp_path / "full", 1)
    output = tmp_path / "lora"
    run(
        "train",
        [
            f"--policy.path={trained}",
            "--policy.push_to_hub=false",
            "--dataset.repo_id=local/tiny",
            f"--dataset.root={dataset_root}",
            f"--output_dir={output}",
            "--steps=1",
            "--num_workers=0",
            "--env_eval_freq=0",
            *LORA,
        ],
    )
    saved = output / "checkpoints/000001/pretrained_model"
    assert json.loads((saved / "adapter_config.json").read_text())["base_model_name_or_path"] == str(trained)
    merged = VLA0Policy.from_pretrained(saved)
    base = load_file(trained / "model.safetensors")
    norm = "vlm.model.model.language_model.norm.weight"
    assert torch.equal(merged.state_dict()[norm], base[norm])
    assert not torch.equal(base[norm], torch.ones_like(base[norm]))  # a trained norm, not a fresh one


def test_a_base_that_moved_is_found_at_its_new_place(tmp_path: Path) -> None:
    tokenizer = build_tiny_tokenizer()
    folder = save_backbone(tmp_path / "old", tokenizer, len(tokenizer))
    wrapped = adapted(VLA0Policy(make_config(vlm_model_name=str(folder))))
    wrapped.save_pretrained(tmp_path / "adapter")
    wrapped.config.save_pretrained(tmp_path / "adapter")
    expected = wrapped.eval().predict_action_chunk(make_batch(wrapped.config))
    shutil.move(folder, tmp_path / "new")
    with pytest.raises(CheckpointError, match=r"trained on the backbone .*old.*--policy\.vlm_model_name"):
        VLA0Policy.from_pretrained(tmp_path / "adapter")
    moved = make_config(vlm_model_name=str(tmp_path / "new"))
    again = VLA0Policy.from_pretrained(tmp_path / "adapter", config=moved)
    torch.testing.assert_close(again.predict_action_chunk(make_batch(moved)), expected)


def test_fast_decoders_follow_the_adapter() -> None:
    torch.manual_seed(0)
    config = make_config(chunk_size=4, n_action_steps=4, action_dim=3, n_bins=1000, crop_ratio=1.0)
    wrapped = adapted(VLA0Policy(config)).eval()
    policy: VLA0Policy = wrapped.get_base_model()
    problem = Problem(make_request(policy, 0, batch=2, same_task=True), (4, 3), 1000, 1.0)
    decoder = speculative(policy, problem)

    def answers() -> np.ndarray:
        """Decode with the same decoder object, and check it against the oracle."""
        expected, report = reference(policy, problem)
        got = decoder.decode(problem.request)
        assert decoder.last is not None
        assert near_ties(report, decoder.last) == 0
        assert torch.equal(got, expected)
        return got.numpy()

    with_adapter = answers()
    assert decoder.last is not None
    for _ in range(2):  # a prompt prefix taken over from the pass before is the adapter's
        assert np.array_equal(answers(), with_adapter)
    with wrapped.disable_adapter():
        assert not np.array_equal(answers(), with_adapter)
    assert np.array_equal(answers(), with_adapter)
    wrapped.merge_adapter()
    assert np.array_equal(answers(), with_adapter)
    wrapped.unmerge_adapter()
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            with torch.no_grad():
                parameter.mul_(-1)
    assert not np.array_equal(answers(), with_adapter)


def test_the_vision_tower_gets_adapters_when_asked() -> None:
    policy = VLA0Policy(make_config(lora_vision=True))
    wrapped = adapted(policy)
    trained = {name for name, p in wrapped.named_parameters() if p.requires_grad}
    assert all("lora_" in name for name in trained)
    vision = {name for name in trained if ".visual.blocks.0." in name}
    assert {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in vision} == {
        "qkv",
        "proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    }
    loss, _ = wrapped.train()(make_batch(policy.config))
    loss.backward()
    assert all(p.grad is not None for name, p in wrapped.named_parameters() if name in trained)
    assert sum(p.numel() for p in policy.get_optim_params()) == sum(
        p.numel() for n, p in wrapped.named_parameters() if n in trained
    )


def test_default_targets_match_the_language_model_only() -> None:
    import re

    policy = VLA0Policy(make_config())
    pattern = re.compile(default_targets(policy.vlm, vision=False))
    found = {name for name, _ in policy.named_modules() if pattern.fullmatch(name)}
    assert len(found) == 2 * len(LANGUAGE_LAYERS)
    assert all(".language_model.layers." in name for name in found)


def test_gradients_reach_the_adapter_with_checkpointing_and_bf16_weights() -> None:
    policy = VLA0Policy(
        make_config(gradient_checkpointing=True, dtype="bfloat16", param_dtype="bfloat16", lora_vision=True)
    )
    wrapped = adapted(policy).train()
    loss, _ = wrapped(make_batch(policy.config))
    loss.backward()
    parameters = [p for p in wrapped.parameters() if p.requires_grad]
    assert {p.dtype for p in parameters} == {torch.float32}  # the adapter keeps master weights
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in parameters)


def test_full_training_modules_keep_the_augmentation_state() -> None:
    wrapped = adapted(VLA0Policy(make_config()), full_training_modules=["merger"])
    assert sorted(wrapped.peft_config["default"].modules_to_save) == ["augmentation", "merger"]


@pytest.mark.parametrize(
    "overrides", [{"target_modules": "all-linear"}, {"target_modules": ["embed_tokens"]}]
)
def test_adapters_on_the_vocabulary_are_refused(overrides: dict[str, Any]) -> None:
    with pytest.raises(
        ConfigError, match=r"would train \['(lm_head|embed_tokens)'\].*--peft\.target_modules"
    ):
        adapted(VLA0Policy(make_config()), **overrides)


def test_options_an_adapter_makes_inert_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"lora_vision=True chooses the default layers.*\['q_proj'\]"):
        adapted(VLA0Policy(make_config(lora_vision=True)), target_modules=["q_proj"])
    with pytest.raises(ConfigError, match=r"save_dtype='bfloat16' has no effect on an adapter"):
        adapted(VLA0Policy(make_config(save_dtype="bfloat16")))
    with pytest.raises(
        ConfigError, match=r"lora_vision=True is for training an adapter.*--peft\.method_type"
    ):
        VLA0Policy(make_config(lora_vision=True)).get_optim_params()
    with pytest.raises(ConfigError, match=r"lora_vision=True trains adapters.*freeze_vision_encoder=True"):
        make_config(lora_vision=True, freeze_vision_encoder=True)


# ------------------------------------------------------------------ 4 bits


def test_four_bits_say_what_they_need(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = make_config(quantization="nf4", vlm_model_name="Qwen/Qwen2.5-VL-3B-Instruct")
    with pytest.raises(ConfigError, match=r"needs CUDA, but device='cpu'"):
        VLM.from_config(config)
    with pytest.raises(ConfigError, match="these come from a trained policy"):
        quantization_options(config, tmp_path)
    with pytest.raises(ConfigError, match="vlm_model_name='tiny'"):
        VLA0Policy(make_config(quantization="nf4"))
    config.device = "cuda"
    monkeypatch.setattr("lerobot_policy_vla0.backbone.loading.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs bitsandbytes: pip install"):
        quantization_options(config)


@pytest.mark.gpu
def test_an_adapter_on_four_bits_trains_and_decodes(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    tokenizer = build_tiny_tokenizer()
    folder = save_backbone(tmp_path / "base", tokenizer, len(tokenizer))
    config = make_config(vlm_model_name=str(folder), quantization="nf4", dtype="bfloat16", device="cuda")
    wrapped = adapted(VLA0Policy(config)).to("cuda")
    policy: VLA0Policy = wrapped.get_base_model()
    layer = policy.vlm.model.model.language_model.layers[0].mlp.up_proj.base_layer
    assert type(layer).__name__ == "Linear4bit"
    assert not any("4bit" in type(m).__name__ for m in policy.vlm.vision_tower.modules())
    batch = make_batch(config)
    loss, _ = wrapped.train()(batch)
    loss.backward()
    assert all(p.grad is not None for p in wrapped.parameters() if p.requires_grad)
    assert torch.isfinite(wrapped.eval().predict_action_chunk(batch)).all()
    wrapped.save_pretrained(tmp_path / "adapter")
    config.save_pretrained(tmp_path / "adapter")
    merged = VLA0Policy.from_pretrained(tmp_path / "adapter")  # in full precision
    torch.testing.assert_close(merged(batch)[0], loss.detach(), rtol=0.1, atol=0.1)
