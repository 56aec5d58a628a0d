"""The twelve rows of the vocabulary projection that an answer can hold, in float32.

The last digits of a fine number have almost equal scores. A bfloat16 score near 16 is 0.125 from the next one, so the
choice would depend on rounding. All decoders therefore score in float32, the reference decoder too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from lerobot_policy_vla0.decoding.weights import plain_linear

if TYPE_CHECKING:
    from lerobot_policy_vla0.backbone.vlm import VLM


class AnswerHead:
    """Scores the answer's symbols.

    Args:
        vlm: the backbone; its rows are copied as they are now.
        token_ids: ``(12,)`` ids of the answer's symbols, on the device.
    """

    def __init__(self, vlm: VLM, token_ids: Tensor) -> None:
        self._vlm = vlm
        self._token_ids = token_ids
        layer = plain_linear(vlm.model.lm_head)
        self._rows = None if layer is None else layer.weight.detach()[token_ids].float()
        bias = None if layer is None else layer.bias
        self._bias = None if bias is None else bias.detach()[token_ids].float()

    def project(self, hidden: Tensor) -> Tensor:
        """Return the logits ``(..., 12)`` of hidden states ``(..., hidden)``, in float32."""
        if self._rows is None:  # an adapted or quantised projection does more than multiply by its weight
            return self._vlm.logits(hidden)[..., self._token_ids].float()
        with torch.autocast(hidden.device.type, enabled=False):
            return functional.linear(hidden.float(), self._rows, self._bias)

    @contextmanager
    def replacing_logits(self) -> Iterator[None]:
        """Let the model's own projection return these scores at the answer's tokens, for a while."""

        def replace(_: Any, inputs: tuple[Tensor], logits: Tensor) -> Tensor:
            logits = logits.float()
            logits[..., self._token_ids] = self.project(inputs[0])
            return logits

        handle = None if self._rows is None else self._vlm.model.lm_head.register_forward_hook(replace)
        try:
            yield
        finally:
            if handle is not None:
                handle.remove()
