"""The weights of linear layers as decoding uses them: layers with one input fused, cast, and adapters merged.

Several layers that read the same input (queries, keys and values) become one matrix product. No number changes, and no
second set of weights is held where the precision already fits: the model's parameters become views of the fused matrix.
The same holds for weights in 8 bits, whose rows have scales of their own; torchao multiplies by them.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lerobot_policy_vla0.backbone.quantization import is_quantized, stored_tensors, with_tensors


class Projection:
    """A matrix product with the rows of one or several linear layers.

    Layers that do more than multiply by their weight (in 4 bits, sharded, with hooks, or with an adapter that cannot be
    merged) are called as they are, which is slower. So are layers that were made in PyTorch's inference mode and would
    have to be fused in place, because nothing counts the changes of such weights.

    Args:
        modules: layers with the same input; their outputs are joined.
        dtype: to compute in. Weights of another precision are copied once.
    """

    def __init__(self, *modules: nn.Module, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.modules: tuple[nn.Module, ...] = modules
        #: ``(in, out)``, a transposed view; None if the modules are called or the weight is quantised.
        self.weight: Tensor | None = None
        #: ``(out, in)``, one of torchao's tensors; None if the weight is not quantised or the modules are called.
        self.quantized: Tensor | None = None
        self.bias: Tensor | None = None
        if all(_is_quantized_linear(module) for module in modules):
            self.quantized = _fuse_quantized([module.get_parameter("weight") for module in modules])
            if self.quantized is not None:
                self.bias = _fuse_biases(modules, dtype)
            return
        plain = [plain_linear(module, dtype) for module in modules]
        layers = [layer for layer in plain if layer is not None]
        in_place = len(layers) > 1 and all(layer.weight.dtype == dtype for layer in layers)
        if len(layers) < len(modules) or (in_place and any(layer.weight.is_inference() for layer in layers)):
            return
        self.weight = _fuse([layer.get_parameter("weight") for layer in layers], dtype).t()
        self.bias = _fuse_biases(layers, dtype)

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return ``(N, out)`` of ``(N, in)``."""
        if self.quantized is not None:
            return functional.linear(inputs.to(self.dtype), self.quantized, self.bias)
        if self.weight is None:
            return self._call_modules(inputs)
        if inputs.dtype is not self.dtype:
            inputs = inputs.to(self.dtype)
        if self.bias is None:
            return torch.mm(inputs, self.weight)
        return torch.addmm(self.bias, inputs, self.weight)

    def add_to(self, states: Tensor, inputs: Tensor) -> None:
        """Add the product to ``states`` ``(N, out)``, in place."""
        if self.weight is not None and self.bias is None and states.dtype is inputs.dtype is self.dtype:
            states.addmm_(inputs, self.weight)
        else:
            states.add_(self(inputs))

    def _call_modules(self, inputs: Tensor) -> Tensor:
        # The caller computes without autocast, which layers with weights of several precisions need.
        with torch.autocast(inputs.device.type, self.dtype, enabled=self.dtype != torch.float32):
            outputs = [module(inputs).to(self.dtype) for module in self.modules]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1)


def plain_linear(module: Any, dtype: torch.dtype | None = None) -> nn.Linear | None:
    """Return a layer that only multiplies by its weight and gives what ``module`` gives; None if there is none.

    A layer of PEFT is merged into a copy of its base. PEFT merges all kinds of adapters that can be.

    Args:
        module: a layer of the model.
        dtype: the copy's precision; None keeps the base's.
    """
    if type(module) is nn.Linear:
        return None if _has_hooks(module) or type(module.weight.data) is not Tensor else module
    if not hasattr(module, "get_base_layer") or type(module.get_base_layer()) is not nn.Linear:
        return None
    if module.disable_adapters:
        return None if module.merged_adapters else plain_linear(module.get_base_layer())
    if set(module.active_adapters) - set(module.merged_adapters):
        module = copy.deepcopy(module)  # one layer at a time
        try:
            module.merge()
        except (AttributeError, NotImplementedError, RuntimeError, ValueError):
            return None
        merged = plain_linear(module.get_base_layer())
        return merged if merged is None or dtype is None else merged.to(dtype)
    return plain_linear(module.get_base_layer())


def _fuse(weights: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Return ``(out, in)`` of all weights' rows.

    Where a copy is needed anyway, because the precision differs, the fused weight is that copy. Otherwise a copy would
    double the memory (5.5 GB for the 3B model's layers), so the parameters themselves move: they keep their identity,
    name, values and gradients, and their memory is now a part of the fused weight's. An optimizer's step is then seen
    without a copy. `.to()` and saving treat the parameters as before.
    """
    first = weights[0]
    if len(weights) == 1:
        return first.detach().to(dtype)
    if any(weight.dtype != dtype for weight in weights):
        return torch.cat([weight.detach().to(dtype) for weight in weights])
    rows = [len(weight) for weight in weights]
    shape, start = (sum(rows), first.shape[1]), first.storage_offset()
    offsets = [start + sum(rows[:k]) * first.shape[1] for k in range(len(rows))]
    moved = all(
        weight.is_contiguous()
        and weight.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        and weight.storage_offset() == offset
        for weight, offset in zip(weights, offsets, strict=True)
    )
    if moved:  # by an earlier call
        return first.detach().as_strided(shape, (shape[1], 1), start)
    fused = torch.cat([weight.detach() for weight in weights])
    for weight, part in zip(weights, torch.split(fused, rows), strict=True):
        weight.data = part
    return fused


def _fuse_quantized(weights: list[nn.Parameter]) -> Tensor | None:
    """Return a quantised weight ``(out, in)`` of all weights' rows, which moves them as `_fuse` does.

    None for a format that does not store its rows one after the other (``int4``), and for weights made in inference
    mode (see `Projection`).
    """
    parts = [stored_tensors(weight) for weight in weights]
    for weight, part in zip(weights, parts, strict=True):
        in_rows = all(tensor.ndim == 2 and len(tensor) == len(weight) for tensor in part.values())
        if len(weights) > 1 and (not in_rows or any(tensor.is_inference() for tensor in part.values())):
            return None
    # `_fuse` gives tensors other memory in place, which reaches the layer's weight: it holds these very tensors.
    fused = {name: _fuse([part[name] for part in parts], first.dtype) for name, first in parts[0].items()}
    rows = sum(len(weight) for weight in weights)
    return with_tensors(weights[0], fused, torch.Size([rows, weights[0].shape[1]]))


def _fuse_biases(layers: Sequence[Any], dtype: torch.dtype) -> Tensor | None:
    """Return the biases ``(out,)`` of all layers, zeros for a layer without; None if no layer has one."""
    if all(layer.bias is None for layer in layers):
        return None
    parts: list[Tensor] = []
    for layer in layers:
        weight, bias = layer.get_parameter("weight"), layer.bias
        parts.append(torch.zeros(len(weight), device=weight.device) if bias is None else bias.detach())
    return torch.cat([part.to(dtype) for part in parts])


def _is_quantized_linear(module: nn.Module) -> bool:
    """Return whether a layer only multiplies by its weight, and that is one of torchao's tensors."""
    return type(module) is nn.Linear and not _has_hooks(module) and is_quantized(module.weight)


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)
