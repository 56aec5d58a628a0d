"""The optimizer's moments in 8 bits: what reaches bitsandbytes, and what is said without it."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lerobot.optim.optimizers import AdamWConfig, OptimizerConfig
from tiny import make_config

from lerobot_policy_vla0.errors import ConfigError
from lerobot_policy_vla0.optimizers import AdamW8bitConfig


class OnCuda:
    """Looks like a weight on an accelerator."""

    device = torch.device("cuda", 0)


def test_the_preset_is_float32_adamw_unless_asked() -> None:
    assert type(make_config().get_optimizer_preset()) is AdamWConfig
    preset = make_config(optimizer_8bit=True, optimizer_lr=3e-4).get_optimizer_preset()
    assert type(preset) is AdamW8bitConfig
    assert (preset.type, preset.lr, preset.grad_clip_norm) == ("adamw_8bit", 3e-4, 1.0)
    assert OptimizerConfig.get_choice_class("adamw_8bit") is AdamW8bitConfig


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
