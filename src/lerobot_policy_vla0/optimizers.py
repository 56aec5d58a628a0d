"""Two more optimizers for LeRobot's registry: PyTorch's fused AdamW, and bitsandbytes' AdamW with moments in 8 bits.

In 8 bits the moments take two bytes per parameter instead of eight: 7.5 GB instead of 30 for the 3B model.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from lerobot.optim.optimizers import AdamWConfig, OptimizerConfig

from lerobot_policy_vla0.errors import ConfigError


@OptimizerConfig.register_subclass("adamw_fused")
@dataclass
class FusedAdamWConfig(AdamWConfig):
    """`AdamWConfig` that reads and writes each weight once per step instead of once per operation."""

    def build(self, params: Any) -> torch.optim.Optimizer:
        """Return PyTorch's optimizer for the parameters."""
        return torch.optim.AdamW(
            params, lr=self.lr, betas=self.betas, eps=self.eps, weight_decay=self.weight_decay, fused=True
        )


@OptimizerConfig.register_subclass("adamw_8bit")
@dataclass
class AdamW8bitConfig(AdamWConfig):
    """`AdamWConfig` with moments in 8 bits (``optimizer_8bit=true``, or ``--optimizer.type=adamw_8bit``)."""

    def build(self, params: Any) -> torch.optim.Optimizer:
        """Return bitsandbytes' optimizer for the parameters.

        Raises:
            ConfigError: if bitsandbytes is not installed, or weights are not on a CUDA device.
        """
        params = list(params)
        devices = sorted({str(p.device) for p in params if p.device.type != "cuda"})
        if devices:
            raise ConfigError(
                f"optimizer_8bit=true needs CUDA, but the policy has weights on {devices}. Leave it at false here, for "
                "moments in float32."
            )
        if find_spec("bitsandbytes") is None:
            raise ConfigError(
                "optimizer_8bit=true needs bitsandbytes: pip install bitsandbytes. Or leave it at false, for moments "
                "in float32."
            )
        optimizer: torch.optim.Optimizer = import_module("bitsandbytes").optim.AdamW8bit(
            params, lr=self.lr, betas=self.betas, eps=self.eps, weight_decay=self.weight_decay
        )
        return optimizer
