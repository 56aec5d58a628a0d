"""Decoders: one protocol, several implementations with one meaning (greedy under the grammar).

`grammar` says which text is legal, `reference` is the slow oracle (Hugging Face ``generate`` under the
grammar). Whatever decodes faster must return the very tokens the reference returns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class DecodeRequest:
    """What a decoder needs to answer one batch.

    Attributes:
        ids: ``(B, P)`` int64 prompt ids, left-padded, image placeholders expanded.
        mask: ``(B, P)`` bool, false on padding.
        pixel_values: ``(patches, C*t*p*p)`` float, sample-major then image-major.
        grid_thw: ``(images, 3)`` int64, patches per image along time, height, width.
    """

    ids: Tensor
    mask: Tensor
    pixel_values: Tensor
    grid_thw: Tensor


class Decoder(Protocol):
    """Answers prompts with action text."""

    def decode(self, request: DecodeRequest) -> Tensor:
        """Return answer ids ``(B, L)`` int64: the numbers, the end token, then padding.

        Raises:
            DecodeError: if the model returns NaN/Inf logits.
        """
        ...


__all__ = ["DecodeRequest", "Decoder"]
