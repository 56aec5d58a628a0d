"""The backbone's weights as passes use them: a head of twelve rows, and copies in the computing precision.

Both are copied from the weights, and copied again when a fingerprint of the weights says that they changed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from lerobot_policy_vla0.backbone.vlm import VLM


class AnswerWeights:
    """What passes need of the backbone's weights besides its modules.

    Args:
        vlm: the backbone.
        token_ids: ``(12,)`` ids of the answer's symbols, on the device.
    """

    def __init__(self, vlm: VLM, token_ids: Tensor) -> None:
        self._vlm = vlm
        self._token_ids = token_ids
        self._language_model: Any = vlm.model.model.language_model
        self._parameters_seen: int | None = None
        self._adapter_layers: list[Any] = []
        self._head: Tensor | None = None
        self._head_bias: Tensor | None = None
        #: Copies of linear layers' weights in autocast's precision, by their names in the language model.
        self.cast: dict[str, Tensor] = {}

    def fingerprint(self) -> int:
        """Return a number that changes when a weight is replaced or modified in place, or an adapter switched."""
        # Optimizers and load_state_dict raise a tensor's version; `.to()` gives it other memory.
        weights = hash(
            tuple((0 if p.is_inference() else p._version, p.data_ptr()) for p in self._vlm.parameters())
        )
        if weights != self._parameters_seen:  # PEFT's layers come and go with their parameters
            self._parameters_seen = weights
            self._adapter_layers = [m for m in self._vlm.modules() if hasattr(m, "merged_adapters")]
        # These change an adapted layer's result without a parameter's version: adapters may be switched off, replaced
        # by others, merged (PEFT then writes past autograd) or scaled.
        adapters = tuple(
            (
                layer.disable_adapters,
                tuple(layer.active_adapters),
                tuple(layer.merged_adapters),
                tuple(getattr(layer, "scaling", {}).values()),
            )
            for layer in self._adapter_layers
        )
        return hash((weights, adapters))

    def refresh(self, *, cast: bool) -> None:
        """Copy the weights as they are now.

        Args:
            cast: also copy the linear layers' weights in autocast's precision, for `with_cast_weights`; there are none
                where autocast is off.
        """
        head = self._vlm.model.lm_head
        plain = type(head) is torch.nn.Linear
        self._head = head.weight.detach()[self._token_ids] if plain else None
        self._head_bias = head.bias.detach()[self._token_ids] if plain and head.bias is not None else None
        kind = self._token_ids.device.type
        self.cast = {}
        if cast and torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
            self.cast = {
                f"{name}.{key}": weight.detach().to(dtype)
                for name, module in self._language_model.named_modules()
                if isinstance(module, torch.nn.Linear)
                for key, weight in module.named_parameters(recurse=False)
                if weight.is_floating_point() and weight.dtype != dtype  # weights of 4 bits are no floats
            }

    def project(self, hidden: Tensor) -> Tensor:
        """Return the logits ``(..., 12)`` of hidden states ``(..., hidden)``."""
        if self._head is None:  # an adapted or quantised projection does more than multiply by its weight
            return self._vlm.logits(hidden)[..., self._token_ids]
        return functional.linear(hidden, self._head, self._head_bias)

    def with_cast_weights(self, run: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """Run a function while the language model uses the copies of `refresh` in place of its weights.

        Under autocast every pass would read the float32 weights and write them in bfloat16 before it uses them, which
        is three times the memory traffic. A captured pass uses a copy that was made once.
        """
        if not self.cast:
            return run(*inputs)
        replaced = {f"module.{name}": weight for name, weight in self.cast.items()}
        out: Tensor = torch.func.functional_call(_Call(self._language_model, run), replaced, inputs)
        return out


class _Call(torch.nn.Module):
    """A function as a module, so that `torch.func.functional_call` can replace a submodule's weights while it runs."""

    def __init__(self, module: torch.nn.Module, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.module = module
        self._function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self._function(*inputs)
