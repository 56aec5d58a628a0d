"""The optimizer's moments in 8 bits: what reaches bitsandbytes, and what is said without it."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.tiny import make_config
from lerobot.optim.optimizers import AdamWConfig, OptimizerConfig

from lerobot_policy_vla0.errors import ConfigError
from lerobot_policy_vla0.optimizers import AdamW8bitConfig, FusedAdamWConfig


class OnCuda:
    """Looks like a weight on an accelerator."""

    device = torch.device("cuda", 0)


def test_the_preset_is_fused_adamw_unless_asked() -> None:
    preset = make_config(optimizer_lr=2e-4, optimizer_betas=(0.8, 0.9)).get_optimizer_preset()
    assert type(preset) is FusedAdamWConfig
    weight = torch.nn.Parameter(torch.ones(3))
    built = preset.build([weight])
    assert type(built) is torch.optim.AdamW
    assert built.defaults["fused"] is True
    assert (built.defaults["lr"], built.defaults["betas"]) == (2e-4, (0.8, 0.9))
    preset = make_config(optimizer_8bit=True, optimizer_lr=3e-4).get_optimizer_preset()
    assert type(preset) is AdamW8bitConfig
    assert (preset.type, preset.lr, preset.grad_clip_norm) == ("adamw_8bit", 3e-4, 1.0)
    for name, kind in (("adamw_8bit", AdamW8bitConfig), ("adamw_fused", FusedAdamWConfig)):
        assert OptimizerConfig.get_choice_class(name) is kind


def test_it_steps_as_lerobots_adamw_does() -> None:
    torch.manual_seed(0)
    options = {"lr": 0.1, "betas": (0.8, 0.9), "eps": 1e-6, "weight_decay": 0.2}
    weights = [torch.nn.Parameter(torch.linspace(-1, 1, 7)) for _ in range(2)]
    built = [
        kind(**options).build([w]) for kind, w in zip((AdamWConfig, FusedAdamWConfig), weights, strict=True)
    ]
    for _ in range(5):
        gradient = torch.randn(7)
        for weight, optimizer in zip(weights, built, strict=True):
            weight.grad = gradient.clone()
            optimizer.step()
    torch.testing.assert_close(*weights, rtol=1e-6, atol=1e-6)


def test_bitsandbytes_gets_the_options(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def adamw(params: list[Any], **options: Any) -> str:
        seen.update(options, params=params)
        return "optimizer"

    module = SimpleNamespace(optim=SimpleNamespace(AdamW8bit=adamw), __spec__=object())
    monkeypatch.setitem(sys.modules, "bitsandbytes", module)
    weights = [OnCuda()]
    config = AdamW8bitConfig(lr=0.1, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.2, grad_clip_norm=3.0)
    assert config.build(iter(weights)) == "optimizer"
    assert seen == {"params": weights, "lr": 0.1, "betas": (0.8, 0.9), "eps": 1e-6, "weight_decay": 0.2}


def test_without_bitsandbytes_the_fix_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lerobot_policy_vla0.optimizers.find_spec", lambda _name: None)
    with pytest.raises(ConfigError, match="pip install bitsandbytes"):
        AdamW8bitConfig().build([OnCuda()])


def test_weights_on_a_cpu_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"needs CUDA, but the policy has weights on \['cpu'\]"):
        AdamW8bitConfig().build([torch.nn.Parameter(torch.zeros(2))])
