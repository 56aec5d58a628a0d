"""An attention function that lets all rows of a batch look at one copy of the prompts' common beginning.

It is registered with transformers' interface under a name of its own and computed by the attention it stands for, so
that gradient checkpointing, sharding and adapters see the layers they know. Knows nothing about prompts, ids or images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen2_vl.modeling_qwen2_vl import eager_attention_forward

if TYPE_CHECKING:
    from transformers import PretrainedConfig

#: What comes before the name of the attention that does the work.
_OWN = "vla0_prefix_"
_BASES = ("sdpa", "eager")


@dataclass(frozen=True)
class PrefixLayout:
    """How a packed sequence ``(1, P + B*S)`` is to be read: ``P`` tokens common to all rows, then ``B`` rows of ``S``.

    Attributes:
        prefix: P, at least 1.
        rows: B.
    """

    prefix: int
    rows: int


def base_attention(name: str) -> str:
    """Return the attention that does the work of this module's; any other's own name.

    >>> base_attention("vla0_prefix_eager"), base_attention("flash_attention_2")
    ('eager', 'flash_attention_2')
    """
    return name.removeprefix(_OWN)


def use_own_attention(text: PretrainedConfig) -> None:
    """Let a language model attend through this module if it uses ``sdpa`` or ``eager``; flash attention is left alone.

    Args:
        text: its config, changed in place.
    """
    if text._attn_implementation in _BASES:
        text._attn_implementation = _OWN + str(text._attn_implementation)


def can_share_prefix(text: PretrainedConfig) -> bool:
    """Tell whether a language model understands a `PrefixLayout`."""
    return str(text._attn_implementation).startswith(_OWN)


def _own_attention(base: str) -> Any:
    """Return an attention function that understands a `PrefixLayout`."""

    def attend(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        prefix_layout: PrefixLayout | None = None,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend as ``base`` does; with a layout, from each token ``(1, heads, P + B*S, head_dim)`` to those before."""
        function = ALL_ATTENTION_FUNCTIONS.get_interface(base, eager_attention_forward)
        if prefix_layout is None:
            result: tuple[Tensor, Tensor | None] = function(
                module, query, key, value, attention_mask, **options
            )
            return result
        n, rows = prefix_layout.prefix, prefix_layout.rows

        def whole(x: Tensor) -> Tensor:
            own = x[0, :, n:].reshape(x.shape[1], rows, -1, x.shape[3]).transpose(0, 1)
            return torch.cat(
                [x[:, :, :n].expand(rows, -1, -1, -1), own], dim=2
            )  # (B, heads, P + S, head_dim)

        # Whole rows, the prefix's queries too: kernels are fastest at plain causal attention without a mask, by more
        # than these queries cost. transformers' sdpa is causal when it gets no mask; eager adds what it gets.
        mask = None
        if base == "eager":
            length = n + (query.shape[2] - n) // rows
            mask = torch.full(
                (length, length), torch.finfo(query.dtype).min, dtype=query.dtype, device=query.device
            )
            mask = mask.triu(1)
        out = function(module, whole(query), whole(key), whole(value), mask, **options)[
            0
        ]  # (B, P + S, heads, d)
        return torch.cat([out[0, :n], out[:, n:].flatten(0, 1)]).unsqueeze(0), None

    return attend


for _base, _mask in zip(_BASES, (sdpa_mask, eager_mask), strict=True):
    AttentionInterface.register(_OWN + _base, _own_attention(_base))
    AttentionMaskInterface.register(_OWN + _base, _mask)
