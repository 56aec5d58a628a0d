"""Computes the common prefix of a batch's prompts once.

All prompts of a policy are the same text up to their first image, and causal attention never looks ahead, so this
prefix has the same states in every row. `pack` puts a batch into one sequence: the prefix, then all rows. An attention
function, registered with transformers, lets every row attend to the prefix. The layers themselves do not change, so
gradient checkpointing, sharding and adapters work as before.
"""

from __future__ import annotations

from collections.abc import Sequence
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


@dataclass(frozen=True)
class PackedBatch:
    """A batch as one sequence: the common prefix of ``P`` tokens, then ``S`` tokens of each of the ``B`` rows.

    Padding on the left of a row becomes filler at its end, which no token attends to.

    Attributes:
        prefix: P, at least 1.
        begins: ``(B,)`` int64, the first column of each row that is not padding.
        last_begin: the maximum of ``begins``.
        ids: ``(1, P + B*S)`` int64.
        positions: ``(3, 1, P + B*S)`` int64.
    """

    prefix: int
    begins: Tensor
    last_begin: int
    ids: Tensor
    positions: Tensor

    def has_columns(self, first: int) -> bool:
        """Tell whether all columns from ``first`` on come after the prefix in every row."""
        return first >= self.last_begin + self.prefix

    def columns(self, states: Tensor, first: int, length: int) -> Tensor:
        """Return the states of the batch's columns ``first`` to ``length``.

        ``(P + B*S, hidden) -> (B, length - first, hidden)``; `has_columns` must hold for ``first``.
        """
        rows = len(self.begins)
        own = states[self.prefix :].view(rows, -1, states.shape[1])  # (B, S, hidden)
        at = torch.arange(first, length, device=states.device) - self.begins.unsqueeze(1) - self.prefix
        return own[torch.arange(rows, device=states.device).unsqueeze(1), at]


def common_prefix(ids: Tensor, mask: Tensor, *, stop: int) -> Tensor:
    """Return the number of first tokens that all rows share, before the first ``stop``: ``()`` int64.

    Args:
        ids: ``(B, L)`` int64.
        mask: ``(B, L)`` bool, false on padding, which may be on the left.
        stop: the id before which the prefix ends.

    >>> pad, image = 0, 9
    >>> ids = torch.tensor([[pad, 5, 6, image, 7], [5, 6, image, 7, 8]])
    >>> int(common_prefix(ids, ids != pad, stop=image))
    2
    """
    begins = mask.long().argmax(1, keepdim=True)  # (B, 1)
    # (B, L): the columns of each row, rotated so that its first token comes first.
    columns = (begins + torch.arange(ids.shape[1], device=ids.device)) % ids.shape[1]
    aligned, real = ids.gather(1, columns), mask.gather(1, columns)
    alike = (aligned == aligned[:1]) & (aligned != stop) & real
    return alike.all(0).long().cumprod(0).sum()


def prefix_facts(ids: Tensor, mask: Tensor, *, stop: int) -> Tensor:
    """Return what the host must know to `pack` a batch, ``(3,)`` int64, from its prompts alone if they hold a ``stop``.

    It is the length of the common prefix, and the smallest and largest number of columns before a row's first token.
    """
    begins = mask.long().argmax(1)  # (B,)
    return torch.stack([common_prefix(ids, mask, stop=stop), begins.min(), begins.max()])


def pack(
    ids: Tensor, mask: Tensor, positions: Tensor, *, stop: int, facts: Sequence[int] | None = None
) -> PackedBatch | None:
    """Pack a batch; None if it has a single row or no common prefix.

    Args:
        ids: ``(B, L)`` int64.
        mask: ``(B, L)`` bool, false on padding, which may be left or right of a row's tokens.
        positions: ``(3, B, L)`` int64.
        stop: the id before which the prefix ends.
        facts: those of `prefix_facts`; None computes them, for which the host waits for the device.
    """
    rows, length = ids.shape
    if rows == 1:
        return None
    begins = mask.long().argmax(1)  # (B,)
    prefix, start, last_begin = prefix_facts(ids, mask, stop=stop).tolist() if facts is None else facts
    if prefix == 0:
        return None
    step = torch.arange(length - start - prefix, device=ids.device)
    columns = begins.unsqueeze(1) + prefix + step  # (B, S)
    past = columns >= length
    columns = columns.clamp(max=length - 1)
    common = begins[0] + torch.arange(prefix, device=ids.device)
    rest = ids.gather(1, columns)
    rest = torch.where(past, ids[0, common[:1]], rest)
    places = positions.gather(2, columns.expand(3, -1, -1))
    return PackedBatch(
        prefix=prefix,
        begins=begins,
        last_begin=last_begin,
        ids=torch.cat([ids[0, common], rest.flatten()]).unsqueeze(0),
        positions=torch.cat([positions[:, 0, common], places.flatten(1)], dim=1).unsqueeze(1),
    )


# ------------------------------------------------------------------ attention

_OWN = "vla0_prefix_"
_BASES = ("sdpa", "eager")


@dataclass(frozen=True)
class PrefixLayout:
    """Layout of a packed sequence ``(1, P + B*S)``: ``prefix`` is P, ``rows`` is B."""

    prefix: int
    rows: int


def base_attention(name: str) -> str:
    """Return transformers' name of an attention: this module's prefix is removed.

    >>> base_attention("vla0_prefix_eager"), base_attention("flash_attention_2")
    ('eager', 'flash_attention_2')
    """
    return name.removeprefix(_OWN)


def use_own_attention(text: PretrainedConfig) -> None:
    """Switch a language model's config, in place, from ``sdpa`` or ``eager`` to this module's attention."""
    if text._attn_implementation in _BASES:
        text._attn_implementation = _OWN + str(text._attn_implementation)


def can_share_prefix(text: PretrainedConfig) -> bool:
    """Tell whether a language model understands a `PrefixLayout`."""
    return str(text._attn_implementation).startswith(_OWN)


def _own_attention(base: str) -> Any:
    def attend(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        prefix_layout: PrefixLayout | None = None,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend as ``base`` does; inputs with a layout are ``(1, heads, P + B*S, head_dim)``."""
        function = ALL_ATTENTION_FUNCTIONS.get_interface(base, eager_attention_forward)
        if prefix_layout is None:
            result: tuple[Tensor, Tensor | None] = function(
                module, query, key, value, attention_mask, **options
            )
            return result
        n, rows = prefix_layout.prefix, prefix_layout.rows

        def whole(x: Tensor) -> Tensor:
            own = x[0, :, n:].reshape(x.shape[1], rows, -1, x.shape[3]).transpose(0, 1)
            # (B, heads, P + S, head_dim)
            return torch.cat([x[:, :, :n].expand(rows, -1, -1, -1), own], dim=2)

        # The prefix's queries are computed once per row: causal attention without a mask is so much faster that this
        # pays. transformers' sdpa is causal without a mask; eager needs one.
        mask = None
        if base == "eager":
            length = n + (query.shape[2] - n) // rows
            mask = torch.full(
                (length, length), torch.finfo(query.dtype).min, dtype=query.dtype, device=query.device
            )
            mask = mask.triu(1)
        # (B, P + S, heads, head_dim)
        out = function(module, whole(query), whole(key), whole(value), mask, **options)[0]
        return torch.cat([out[0, :n], out[:, n:].flatten(0, 1)]).unsqueeze(0), None

    return attend


for _base, _mask in zip(_BASES, (sdpa_mask, eager_mask), strict=True):
    AttentionInterface.register(_OWN + _base, _own_attention(_base))
    AttentionMaskInterface.register(_OWN + _base, _mask)
