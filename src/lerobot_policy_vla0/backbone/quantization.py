"""Holds the language model's linear layers in 8 or 4 bits for inference, through torchao.

Vision tower, embeddings, norms and the vocabulary projection keep ``param_dtype``: they are small, and the last digits
of a number need exact scores. Every output channel has a scale of its own (``int4``: every 128 inputs), so layers that
read the same input can be joined without changing a number (see `decoding.weights`).

torchao is optional: it is imported on use.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from lerobot_policy_vla0.configuration_vla0 import INFERENCE_QUANTIZATIONS, VLA0Config
from lerobot_policy_vla0.errors import ConfigError

#: Lowest compute capability of an NVIDIA GPU that multiplies in this format.
_CAPABILITY = {"int4": (8, 0), "fp8": (8, 9)}


def quantizes_for_inference(config: VLA0Config) -> bool:
    """Return whether a policy's weights are quantised after loading; such a policy can neither train nor be saved."""
    return config.quantization in INFERENCE_QUANTIZATIONS


def refuse_training(config: VLA0Config) -> None:
    """Refuse to train weights that are quantised for inference.

    Raises:
        ConfigError: naming the option, and the one for training.
    """
    if quantizes_for_inference(config):
        raise ConfigError(
            f"quantization={config.quantization!r} is for inference: its weights take no gradients. Leave it unset to "
            "train, or train an adapter on 4 bits with quantization='nf4' and --peft.method_type=LORA."
        )


def check_inference_quantization(config: VLA0Config) -> None:
    """Refuse a quantisation that this installation or the config's device cannot run.

    Raises:
        ConfigError: naming what is missing, and the alternative.
    """
    what = f"quantization={config.quantization!r}"
    if find_spec("torchao") is None:
        raise ConfigError(
            f"{what} needs torchao, which is not installed: pip install 'lerobot_policy_vla0[quantize]'. Or leave "
            "quantization unset."
        )
    device = torch.device(str(config.device))
    needed = _CAPABILITY.get(config.quantization or "")
    if needed is None:
        if device.type not in ("cpu", "cuda"):
            raise ConfigError(
                f"{what} runs on a CPU or an NVIDIA GPU, but device={config.device!r}. Leave quantization unset."
            )
        return
    there = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    if there is None or there < needed:
        found = "" if there is None else f", whose compute capability is {there[0]}.{there[1]}"
        raise ConfigError(
            f"{what} needs an NVIDIA GPU of compute capability {needed[0]}.{needed[1]} or more, but "
            f"device={config.device!r}{found}. Use quantization='int8_dynamic' here, or leave it unset."
        )


def quantize_language_model(model: Any, config: VLA0Config) -> None:
    """Quantise the linear layers of a language model in place, one after the other.

    A layer's full weight is freed before the next one is quantised, so that both are never held for the whole model.

    Args:
        model: transformers' language model, with its weights, on the device it will run on.
        config: says how; see `check_inference_quantization`.

    Raises:
        ConfigError: naming a layer whose shape torchao does not quantise.
    """
    from torchao.quantization import quantize_

    how = _how(str(config.quantization), torch.device(str(config.device)))
    for name, layer in model.layers.named_modules():
        if type(layer) is not nn.Linear:
            continue
        quantize_(layer, how)
        if not is_quantized(layer.weight):  # torchao leaves out what does not fit, with a log line at most
            raise ConfigError(
                f"quantization={config.quantization!r} does not fit the layer {name} of shape "
                f"{tuple(layer.weight.shape)}. Use quantization='int8', which fits every layer, or leave it unset."
            )


def _how(name: str, device: torch.device) -> Any:
    """Return torchao's config of a quantisation."""
    from torchao.quantization import (
        Float8DynamicActivationFloat8WeightConfig,
        Int4WeightOnlyConfig,
        Int8DynamicActivationInt8WeightConfig,
        Int8WeightOnlyConfig,
        PerRow,
    )
    from torchao.utils import should_reduce_range

    # Otherwise torchao changes how the whole process compiles and multiplies in float32.
    quiet = {"set_inductor_config": False}
    if name == "int8":
        return Int8WeightOnlyConfig(**quiet)
    if name == "int8_dynamic":
        # Older CPUs add products of two 8-bit integers in 16 bits, which overflow unless the range is halved.
        return Int8DynamicActivationInt8WeightConfig(reduce_range=should_reduce_range(device), **quiet)
    if name == "int4":  # this layout's kernel is PyTorch's own
        return Int4WeightOnlyConfig(group_size=128, int4_packing_format="tile_packed_to_4d", **quiet)
    return Float8DynamicActivationFloat8WeightConfig(granularity=PerRow(), **quiet)


def is_quantized(weight: Tensor) -> bool:
    """Return whether a weight is one of torchao's tensors."""
    if "torchao" not in sys.modules:  # whoever quantised it has imported torchao
        return False
    from torchao.utils import TorchAOBaseTensor

    return isinstance(weight, TorchAOBaseTensor)


def stored_tensors(weight: Tensor) -> dict[str, Tensor]:
    """Return the plain tensors that hold a quantised weight, by the names that torchao gives them."""
    quantized: Any = weight
    names, _ = quantized.__tensor_flatten__()
    return {name: getattr(quantized, name) for name in names}


def with_tensors(weight: Tensor, tensors: dict[str, Tensor], shape: torch.Size) -> Tensor:
    """Return a quantised weight ``(out, in)`` of the kind of ``weight`` that is held in other tensors."""
    quantized: Any = weight
    _, context = quantized.__tensor_flatten__()
    made: Tensor = type(weight).__tensor_unflatten__(tensors, context, shape, (shape[1], 1))  # type: ignore[attr-defined]
    return made
