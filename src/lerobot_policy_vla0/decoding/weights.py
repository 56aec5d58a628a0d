"""The backbone's weights as passes use them: a head of twelve rows, copies in the computing precision.

Both are taken from the weights as they are, and have to be taken again when these change: a fingerprint tells. Knows
nothing about caches or positions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from lerobot_policy_vla0.checkpoints.adapters import adapter_layers, adapter_state

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
        if weights != self._parameters_seen:  # putting adapters in or out changes the parameters too
            self._parameters_seen = weights
            self._adapter_layers = adapter_layers(self._vlm)
        return hash((weights, adapter_state(self._adapter_layers)))

    def take(self, *, copies: bool) -> None:
        """Take the weights as they are now.

        Args:
            copies: keep linear layers' weights in autocast's precision too, for `lent`; nothing where it is off.
        """
        head = self._vlm.model.lm_head
        plain = type(head) is torch.nn.Linear
        self._head = head.weight.detach()[self._token_ids] if plain else None
        self._head_bias = head.bias.detach()[self._token_ids] if plain and head.bias is not None else None
        self.cast = self._copies() if copies else {}

    def project(self, hidden: Tensor) -> Tensor:
        """Return the logits ``(..., 12)`` of hidden states ``(..., hidden)``."""
        if self._head is None:  # an adapted or quantised projection is more than its weight
            return self._vlm.logits(hidden)[..., self._token_ids]
        return functional.linear(hidden, self._head, self._head_bias)

    def lent(self, run: Callable[[], Tensor]) -> Tensor:
        """Run a function while the language model has the copies for weights.

        Under autocast every pass would read the float32 weights and write them out in bfloat16 before it uses
        them, three times the memory traffic; a captured pass gets a copy made once.
        """
        if not self.cast:
            return run()
        # Modules are called through `functional_call`, which lends them the copies for this call.
        out: Tensor = torch.func.functional_call(
            _Call(self._language_model, run),
            {f"module.{name}": weight for name, weight in self.cast.items()},
            (),
        )
        return out

    def _copies(self) -> dict[str, Tensor]:
        kind = self._token_ids.device.type
        if not torch.is_autocast_enabled(kind):
            return {}
        dtype = torch.get_autocast_dtype(kind)
        return {
            f"{name}.{key}": weight.detach().to(dtype)
            for name, module in self._language_model.named_modules()
            if isinstance(module, torch.nn.Linear)
            for key, weight in module.named_parameters(recurse=False)
            if weight.is_floating_point() and weight.dtype != dtype  # not: layers in 4 bits
        }


class _Call(torch.nn.Module):
    """Wraps a function so that `torch.func.functional_call` can lend a module other weights while it runs."""

    def __init__(self, module: torch.nn.Module, function: Callable[[], Tensor]) -> None:
        super().__init__()
        self.module = module
        self._function = function

    def forward(self) -> Tensor:
        return self._function()
