"""The request that a decoder answers, and the protocol that every decoder follows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from lerobot_policy_vla0.text.grammar import spell

if TYPE_CHECKING:
    from lerobot_policy_vla0.decoding.report import DecodeReport


@dataclass(frozen=True)
class DecodeRequest:
    """What a decoder needs to answer one batch.

    Attributes:
        ids: ``(B, P)`` int64 prompt ids, left-padded, image placeholders expanded.
        mask: ``(B, P)`` bool, false on padding.
        pixel_values: ``(patches, C*t*p*p)`` float, sample-major then image-major.
        grid_thw: ``(images, 3)`` int64, patches per image along time, height, width; all images have one size.
        committed: ``(B, n, D)`` int64 bins of the chunk's first steps, which are decided already (real-time
            chunking): the answer begins with them.
        steps_since: control steps executed since the previous request of this episode. It makes drafts better and
            changes no answer.
        size: a row of ``grid_thw``; None reads it there, for which the host waits.
        previous: each row's ``T * D`` bins of the chunk before, None for a row without one. A decoder otherwise drafts
            from its own last answer, which is right as long as it serves the same rows in every call. It makes drafts
            better and changes no answer.
        pictures: each image of all rows, ``(B, 3, h, w)`` uint8 on the host, for a decoder that sends pictures to an
            engine; ``pixel_values`` is empty then.
    """

    ids: Tensor
    mask: Tensor
    pixel_values: Tensor
    grid_thw: Tensor
    committed: Tensor | None = None
    steps_since: int = 1
    size: tuple[int, int, int] | None = None
    previous: Sequence[Sequence[int] | None] | None = None
    pictures: Sequence[Tensor] | None = None

    @property
    def grid(self) -> tuple[int, int, int]:
        """Patches of each image along time, height, width, on the host."""
        if self.size is not None:
            return self.size
        frames, height, width = self.grid_thw[0].tolist()
        return frames, height, width

    def committed_symbols(self, n_numbers: int) -> list[list[int]]:
        """Return each row's committed steps as grammar symbols; empty lists without any."""
        if self.committed is None:
            return [[] for _ in range(len(self.ids))]
        return [spell(row, n_numbers) for row in self.committed.flatten(1).tolist()]


class Decoder(Protocol):
    """Answers prompts with action text. Its ``name`` is the one in the config and in reports."""

    name: str
    #: The report of the last call; None before the first.
    last: DecodeReport | None

    def decode(self, request: DecodeRequest) -> Tensor:
        """Return answer ids ``(B, L)`` int64 on the host: the numbers, the end token, then padding.

        Raises:
            DecodeError: if the model returns NaN/Inf logits.
        """
        ...

    def reset(self) -> None:
        """Start a new episode, for which earlier answers say nothing."""
        ...
