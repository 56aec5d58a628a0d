"""Decoders: one protocol, several implementations with one meaning (greedy under the grammar).

`grammar` says which text is legal, `reference` is the slow oracle (Hugging Face ``generate`` under the
grammar). Whatever decodes faster must return the very tokens the reference returns: `fast` runs passes over
a static cache (`passes`, `cache`), `speculative` adds drafts to it. `report` says what a decode did, `distribution`
how probable every other number was.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from lerobot_policy_vla0.decoding.grammar import AnswerGrammar, spell

if TYPE_CHECKING:
    from lerobot_policy_vla0.configuration_vla0 import VLA0Config
    from lerobot_policy_vla0.decoding.distribution import NumberDistributions
    from lerobot_policy_vla0.decoding.report import DecodeReport
    from lerobot_policy_vla0.vlm import VLM

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DecodeRequest:
    """What a decoder needs to answer one batch.

    Attributes:
        ids: ``(B, P)`` int64 prompt ids, left-padded, image placeholders expanded.
        mask: ``(B, P)`` bool, false on padding.
        pixel_values: ``(patches, C*t*p*p)`` float, sample-major then image-major.
        grid_thw: ``(images, 3)`` int64, patches per image along time, height, width.
        committed: ``(B, n, D)`` int64 bins of the chunk's first steps, already decided (real-time
            chunking): the answer begins with them.
        steps_since: control steps executed since the previous request of this episode, a hint that
            makes drafts better and changes no answer.
    """

    ids: Tensor
    mask: Tensor
    pixel_values: Tensor
    grid_thw: Tensor
    committed: Tensor | None = None
    steps_since: int = 1

    def committed_symbols(self, n_numbers: int) -> list[list[int]]:
        """Return the committed steps of each row as grammar symbols, an empty list without any."""
        if self.committed is None:
            return [[] for _ in range(len(self.ids))]
        return [spell(row, n_numbers) for row in self.committed.flatten(1).tolist()]


class Decoder(Protocol):
    """Answers prompts with action text."""

    name: str
    #: What the last call did; None before the first.
    last: DecodeReport | None

    def decode(self, request: DecodeRequest) -> Tensor:
        """Return answer ids ``(B, L)`` int64: the numbers, the end token, then padding.

        Raises:
            DecodeError: if the model returns NaN/Inf logits.
        """
        ...

    def reset(self) -> None:
        """Start a new episode: earlier answers say nothing about the next one."""
        ...


def build_decoder(config: VLA0Config, vlm: VLM, device: torch.device) -> Decoder:
    """Return the decoder a policy config asks for, and say in the log which one and why.

    Args:
        config: its ``decoder``, sampling and chunk options.
        vlm: the backbone.
        device: where the backbone's weights are.
    """
    from lerobot_policy_vla0.decoding.fast import FastDecoder
    from lerobot_policy_vla0.decoding.reference import ReferenceDecoder
    from lerobot_policy_vla0.decoding.speculative import SpeculativeDecoder

    name, why = config.decoder, "as configured"
    if name == "auto":
        name, why = ("speculative", "auto, greedy") if config.temperature == 0 else ("fast", "auto, sampling")
    logger.info("decoder: %s on %s (%s)", name, device.type, why)
    grammar, options = _grammar_and_options(config, vlm, device)
    options["shape"] = (config.chunk_size, config.action_dim)
    if name == "reference":
        return ReferenceDecoder(vlm, grammar, temperature=config.temperature, **options)
    if name == "fast":
        return FastDecoder(vlm, grammar, temperature=config.temperature, **options)
    return SpeculativeDecoder(vlm, grammar, n_bins=config.n_bins, draft_width=config.draft_width, **options)


def build_distributions(
    config: VLA0Config, vlm: VLM, device: torch.device, *, min_mass: float
) -> NumberDistributions:
    """Return what asks for the probability of every number, on the terms of a policy's decoder.

    Args:
        config: its sampling and chunk options.
        vlm: the backbone.
        device: where the backbone's weights are.
        min_mass: see `distribution.NumberDistributions`.
    """
    from lerobot_policy_vla0.decoding.distribution import NumberDistributions

    grammar, options = _grammar_and_options(config, vlm, device)
    return NumberDistributions(
        vlm, grammar, n_bins=config.n_bins, temperature=config.temperature, min_mass=min_mass, **options
    )


def _grammar_and_options(
    config: VLA0Config, vlm: VLM, device: torch.device
) -> tuple[AnswerGrammar, dict[str, Any]]:
    """Return the legal answers of a policy, and what everything that decodes them is told."""
    codec = config.codec(vlm.tokens)
    grammar = AnswerGrammar(n_bins=config.n_bins, n_numbers=codec.n_numbers, tokens=vlm.tokens, device=device)
    return grammar, {
        "max_answer": codec.max_answer_length,
        "repetition_penalty": config.repetition_penalty,
    }


__all__ = ["DecodeRequest", "Decoder", "build_decoder", "build_distributions"]
