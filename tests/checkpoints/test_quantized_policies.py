"""A policy is quantised for inference when it is loaded; what cannot work is refused with the fix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.adapters import save_adapter
from helpers.tiny import make_batch, make_config
from lerobot.configs.policies import PreTrainedConfig

from lerobot_policy_vla0 import TinyVLMConfig, VLA0Policy
from lerobot_policy_vla0.backbone.quantization import (
    check_inference_quantization,
    is_quantized,
    stored_tensors,
)
from lerobot_policy_vla0.configuration_vla0 import INFERENCE_QUANTIZATIONS
from lerobot_policy_vla0.errors import CheckpointError, ConfigError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy")
    VLA0Policy(make_config()).save_pretrained(folder)
    return folder


def load(folder: Path, **options: Any) -> VLA0Policy:
    """Load a policy with some options changed, as LeRobot's commands do."""
    config: Any = PreTrainedConfig.from_pretrained(folder)
    for name, value in options.items():
        setattr(config, name, value)
    config.__post_init__()
    return VLA0Policy.from_pretrained(folder, config=config)


def weights_of(policy: VLA0Policy) -> dict[str, torch.Tensor]:
    """Return a policy's tensors, quantised ones by their parts."""
    found: dict[str, torch.Tensor] = {}
    for name, tensor in policy.named_parameters():
        parts = stored_tensors(tensor) if is_quantized(tensor) else {"": tensor}
        found |= {f"{name} {part}": value for part, value in parts.items()}
    return found


@pytest.mark.parametrize(("kind", "dtype"), [("int8", "float32"), ("int8_dynamic", "bfloat16")])
def test_a_loaded_policy_is_near_the_full_one(folder: Path, kind: str, dtype: str) -> None:
    pytest.importorskip("torchao", reason="weights in 8 bits need the [quantize] extra")
    policy, full = load(folder, quantization=kind, dtype=dtype, param_dtype=dtype), load(folder)
    layer: Any = policy.vlm.model.model.language_model.layers[1].mlp.up_proj.weight
    expected = full.vlm.model.model.language_model.layers[1].mlp.up_proj.weight
    steps = (layer.qdata - expected / layer.scale).abs()
    assert steps.max() <= (0.51 if dtype == "float32" else 1.5)  # bfloat16 has eight digits, too
    assert layer.qdata.float().abs().amax(1).min() >= 126, "a row does not use its range"
    actions = policy.predict_action_chunk(make_batch(policy.config, 2))
    assert torch.isfinite(actions).all()


def test_an_adapter_is_merged_before(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("torchao", reason="weights in 8 bits need the [quantize] extra")
    pytest.importorskip("peft", reason="adapters need the [lora] extra")
    adapter = save_adapter(load(folder), tmp_path / "adapter", folder)
    policy = load(adapter, quantization="int8")
    merged = load(adapter)
    assert merged.config.quantization is None
    merged.config.quantization = "int8"
    merged.vlm.quantize(merged.config)
    expected = weights_of(merged)
    for name, tensor in weights_of(policy).items():
        assert torch.equal(tensor, expected[name]), name
    with pytest.raises(
        ConfigError, match=r"quantization='int8' needs merged weights, .*stays beside.*vla0 merge"
    ):
        VLA0Policy.from_pretrained(adapter, config=policy.config, merge_adapter=False)


def test_it_neither_trains_nor_is_saved(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("torchao", reason="weights in 8 bits need the [quantize] extra")
    policy = load(folder, quantization="int8")
    with pytest.raises(
        ConfigError, match=r"quantization='int8' is for inference.*quantization='nf4' and --peft"
    ):
        policy.get_optim_params()
    with pytest.raises(ConfigError, match=r"quantization='int8' is for inference"):
        policy.wrap_with_peft(peft_cli_overrides={"method_type": "LORA"})
    with pytest.raises(CheckpointError, match=r"quantization='int8' replaced.*Load it without quantization"):
        policy.save_pretrained(tmp_path / "out")
    assert not any((tmp_path / "out").iterdir())


def test_a_layer_that_stays_in_full_precision_is_an_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torchao", reason="weights in 8 bits need the [quantize] extra")
    monkeypatch.setattr("torchao.quantization.quantize_", lambda layer, how: None)
    with pytest.raises(ConfigError, match=r"does not fit the layer 0\..* of shape \(64, 64\)\. Use .*'int8'"):
        load(folder, quantization="int8_dynamic")


@pytest.mark.gpu
@pytest.mark.parametrize("kind", INFERENCE_QUANTIZATIONS)
def test_every_kind_acts_on_a_gpu(tmp_path: Path, kind: str) -> None:
    pytest.importorskip("torchao", reason="weights in 8 bits need the [quantize] extra")
    VLA0Policy(make_config(tiny=TinyVLMConfig())).save_pretrained(tmp_path)  # wide enough for int4
    half = {"device": "cuda", "dtype": "bfloat16", "param_dtype": "bfloat16"}
    try:
        policy = load(tmp_path, quantization=kind, **half)
    except ConfigError as error:
        pytest.skip(str(error))
    assert is_quantized(policy.vlm.model.model.language_model.layers[0].mlp.up_proj.weight)
    for decoder in ("reference", "fast", "speculative"):
        policy.config.decoder, policy._decoder = decoder, None
        assert torch.isfinite(policy.predict_action_chunk(make_batch(policy.config))).all()


def test_what_cannot_work_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    # The rest of the message names the fix.
    with pytest.raises(
        ConfigError, match=r"quantization='int3' must be None, 'nf4' \(training.*'int8', 'int8_dyn"
    ):
        make_config(quantization="int3")
    for kind in ("int4", "fp8"):
        with pytest.raises(
            ConfigError, match=rf"'{kind}' computes in bfloat16, but param_dtype='float32'\. Set"
        ):
            make_config(quantization=kind)
    with pytest.raises(ConfigError, match=r"this one is new \(vlm_model_name='tiny'\)\. Load a checkpoint"):
        VLA0Policy(make_config(quantization="int8"))
    place = "lerobot_policy_vla0.backbone.quantization.find_spec"
    monkeypatch.setattr(place, lambda name: None)
    with pytest.raises(ConfigError, match=r"needs torchao, .*pip install 'lerobot_policy_vla0\[quantize\]'"):
        check_inference_quantization(make_config(quantization="int8"))
    monkeypatch.setattr(place, lambda name: name)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (8, 6))
    half = {"dtype": "bfloat16", "param_dtype": "bfloat16"}
    for kind in INFERENCE_QUANTIZATIONS:
        config = make_config(quantization=kind, **half)
        if kind.startswith("int8"):
            check_inference_quantization(config)
            config.device = "mps"
            with pytest.raises(
                ConfigError, match=r"runs on a CPU or an NVIDIA GPU, but device='mps'\. Leave"
            ):
                check_inference_quantization(config)
            continue
        with pytest.raises(
            ConfigError, match=r"capability 8\.\d or more, but device='cpu'\. Use .*'int8_dynamic'"
        ):
            check_inference_quantization(config)
    config.device = "cuda"
    with pytest.raises(
        ConfigError, match=r"'fp8' needs .* 8\.9 or more, but device='cuda', whose .* is 8\.6\. Use"
    ):
        check_inference_quantization(config)
