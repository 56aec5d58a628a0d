"""Two attention functions for training, registered with transformers' interface and computed by its own kernels.

The language model's lets all rows of a batch look at one copy of the prompt's common beginning. The vision tower's
computes all windows of one size in one call, where transformers takes them one by one in a Python loop. Both give
what the attention they stand for gives, and are used by name, so that gradient checkpointing, sharding and adapters
see the layers they know. Knows nothing about prompts, ids or images.
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

#: What comes before the name of the attention that does the work (``sdpa``, ``eager``).
_PREFIX = "vla0_prefix_"
#: transformers hands the windows of all images over in one call to attentions that have ``flash`` in their name.
_WINDOWS = "vla0_windows_flash_"
_BASES = ("sdpa", "eager")


@dataclass(frozen=True)
class PrefixLayout:
    """How a packed sequence ``(1, P + B*S)`` is to be read: ``P`` tokens common to all rows, then ``B`` rows of ``S``.

    Attributes:
        prefix: P, at least 1.
        rows: B.
        visible: ``(B or 1, 1, S, P + S)`` bool, which tokens each one of a row looks at: of the prefix and its row.
    """

    prefix: int
    rows: int
    visible: Tensor


def base_attention(name: str) -> str:
    """Return the attention that does the work of one of this module's; any other's own name.

    >>> base_attention("vla0_prefix_eager"), base_attention("flash_attention_2")
    ('eager', 'flash_attention_2')
    """
    return name.removeprefix(_PREFIX).removeprefix(_WINDOWS)


def use_own_attention(text: PretrainedConfig, vision: PretrainedConfig) -> None:
    """Let a model attend through this module wherever it uses ``sdpa`` or ``eager``; flash attention is left alone.

    Args:
        text: the language model's config, changed in place.
        vision: the vision tower's, changed in place.
    """
    for config, kind in ((text, _PREFIX), (vision, _WINDOWS)):
        if config._attn_implementation in _BASES:
            config._attn_implementation = kind + str(config._attn_implementation)


def can_share_prefix(text: PretrainedConfig) -> bool:
    """Tell whether a language model understands a `PrefixLayout`."""
    return str(text._attn_implementation).startswith(_PREFIX)


def _attend(
    base: str,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    **options: Any,
) -> Tensor:
    """Attend with transformers' function; returns ``(B, S, heads, head_dim)``."""
    if base == "eager" and mask is not None and mask.dtype == torch.bool:  # adds its mask
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, torch.finfo(query.dtype).min)
    function = ALL_ATTENTION_FUNCTIONS.get_interface(base, eager_attention_forward)
    out: Tensor = function(module, query, key, value, mask, **options)[0]
    return out


def _prefix_attention(base: str) -> Any:
    """Return an attention function that understands a `PrefixLayout`."""

    def attend(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        prefix_layout: PrefixLayout | None = None,
        **options: Any,
    ) -> tuple[Tensor, None]:
        """Attend within the prefix, and from every row to the prefix and itself: ``(1, heads, P + B*S, head_dim)``."""
        if prefix_layout is None:
            return _attend(base, module, query, key, value, attention_mask, **options), None
        n, rows = prefix_layout.prefix, prefix_layout.rows
        causal = torch.ones(n, n, dtype=torch.bool, device=query.device).tril() if base == "eager" else None
        first = _attend(base, module, *(x[:, :, :n] for x in (query, key, value)), causal, **options)

        def by_row(x: Tensor) -> Tensor:
            return x[0, :, n:].unflatten(1, (rows, -1)).transpose(0, 1)  # (B, heads, S, head_dim)

        keys, values = (
            torch.cat([x[:, :, :n].expand(rows, -1, -1, -1), by_row(x)], dim=2) for x in (key, value)
        )
        rest = _attend(base, module, by_row(query), keys, values, prefix_layout.visible, **options)
        return torch.cat([first, rest.flatten(0, 1).unsqueeze(0)], dim=1), None

    return attend


def _window_attention(base: str) -> Any:
    """Return an attention function for sequences of several windows, none of which looks at another."""

    def attend(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *,
        cu_seq_lens_q: Tensor,
        scaling: float,
        dropout: float = 0.0,
        **_: Any,
    ) -> tuple[Tensor, None]:
        """Attend within windows of the given bounds: ``(1, heads, N, head_dim)``."""
        del attention_mask
        options = {"scaling": scaling, "dropout": dropout, "is_causal": False}
        lengths = cu_seq_lens_q.diff().tolist()
        if len(set(lengths)) == 1:
            parts = (x[0].unflatten(1, (len(lengths), -1)).transpose(0, 1) for x in (query, key, value))
            return _attend(base, module, *parts, None, **options).flatten(0, 1).unsqueeze(0), None
        windows = [x[0].split(lengths, dim=1) for x in (query, key, value)]  # each (heads, length, head_dim)
        out: list[Tensor] = [query] * len(lengths)
        for length in set(lengths):
            places = [place for place, other in enumerate(lengths) if other == length]
            parts = (torch.stack([x[place] for place in places]) for x in windows)
            for place, window in zip(places, _attend(base, module, *parts, None, **options), strict=True):
                out[place] = window  # (length, heads, head_dim)
        return torch.cat(out).unsqueeze(0), None

    return attend


for _base, _mask in zip(_BASES, (sdpa_mask, eager_mask), strict=True):
    AttentionInterface.register(_PREFIX + _base, _prefix_attention(_base))
    AttentionMaskInterface.register(_PREFIX + _base, _mask)
    AttentionInterface.register(_WINDOWS + _base, _window_attention(_base))
