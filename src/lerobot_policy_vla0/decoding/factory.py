"""Builds the decoder that a policy's options ask for, and what measures number probabilities on the same terms."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch

from lerobot_policy_vla0.decoding.distribution import NumberDistributions
from lerobot_policy_vla0.decoding.fast import FastDecoder
from lerobot_policy_vla0.decoding.reference import ReferenceDecoder
from lerobot_policy_vla0.decoding.speculative import SpeculativeDecoder
from lerobot_policy_vla0.text.grammar import AnswerGrammar

if TYPE_CHECKING:
    from lerobot_policy_vla0.backbone.vlm import VLM
    from lerobot_policy_vla0.configuration_vla0 import VLA0Config
    from lerobot_policy_vla0.decoding.request import Decoder

logger = logging.getLogger(__name__)


def build_decoder(config: VLA0Config, vlm: VLM, device: torch.device) -> Decoder:
    """Return the decoder a policy config asks for, and say in the log which one and why.

    Args:
        config: its ``decoder``, sampling and chunk options.
        vlm: the backbone.
        device: where the backbone's weights are.
    """
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
