"""Notices that a model's weights changed between two queries, so that nothing computed from the old ones is used.

A policy may go on training after an evaluation, take over averaged weights, move to another device, or get an adapter.
Looking takes well under 1 % of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from lerobot_policy_vla0.backbone.quantization import is_quantized, stored_tensors


class WeightWatch:
    """Compares a model's weights with those of the last look.

    Args:
        model: is watched with all modules and parameters it has at each look.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._children: list[dict[str, nn.Module | None]] = []
        self._owned: list[dict[str, nn.Parameter | None]] = []
        self._adapted: list[Any] = []
        self._modules_seen: list[nn.Module | None] | None = None
        self._seen: list[Any] = []
        self._probes: list[Tensor] = []
        self._sample: Tensor | None = None

    def changed(self) -> bool:
        """Return whether a weight was replaced or modified, or an adapter switched, since the last call."""
        modules = list(chain.from_iterable(map(dict.values, self._children)))
        if modules != self._modules_seen:  # at first, and when PEFT wraps layers
            everything = list(self._model.modules())
            self._children = [module._modules for module in everything]
            self._owned = [module._parameters for module in everything]
            self._adapted = [module for module in everything if hasattr(module, "merged_adapters")]
            self._modules_seen = list(chain.from_iterable(map(dict.values, self._children)))
        parameters = [p for p in chain.from_iterable(map(dict.values, self._owned)) if p is not None]
        weights = list(chain.from_iterable(map(_plain_tensors, parameters)))
        # Optimizers and `load_state_dict` raise a tensor's version; `.to()` gives it other memory.
        seen: list[Any] = [(0 if p.is_inference() else p._version, p.data_ptr()) for p in weights]
        # These change an adapted layer's result without a parameter's version: adapters may be switched off, replaced
        # by others, merged (PEFT then writes past autograd) or scaled.
        seen += [
            (
                layer.disable_adapters,
                tuple(layer.active_adapters),
                tuple(layer.merged_adapters),
                tuple(getattr(layer, "scaling", {}).values()),
            )
            for layer in self._adapted
        ]
        same = seen == self._seen
        if not same:
            self._seen = seen
            self._probes = [_first_number(p) for p in weights]
        # `parameter.data.copy_()`, which averaging libraries use, raises no version. It shows in the values: the first
        # number of every weight is compared.
        sample = torch.cat(self._probes) if self._probes else torch.empty(0)
        same = same and self._sample is not None and torch.equal(sample, self._sample)
        self._sample = sample
        return not same

    def let_go(self) -> None:
        """Forget the weights seen, whose memory would otherwise stay although they move; the next look is the first."""
        self._seen, self._probes, self._sample = [], [], None


def _plain_tensors(parameter: nn.Parameter) -> Iterable[Tensor]:
    """Return the tensors whose memory a parameter lives in: itself, unless it is quantised."""
    return stored_tensors(parameter).values() if is_quantized(parameter) else (parameter,)


def _first_number(weight: Tensor) -> Tensor:
    """Return a view ``(1,)`` of a weight's first number; empty if it has none."""
    values = weight.detach()
    return values.as_strided((min(values.numel(), 1),), (1,))
