"""Builds the decoder that a policy's options ask for, and the reader of number probabilities with the same options."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch

from lerobot_policy_vla0.decoding.distribution import NumberDistributions
from lerobot_policy_vla0.decoding.fast import FastDecoder
from lerobot_policy_vla0.decoding.reference import ReferenceDecoder
from lerobot_policy_vla0.decoding.speculative import PreviousChunkDrafter
from lerobot_policy_vla0.text.grammar import AnswerGrammar

if TYPE_CHECKING:
    from lerobot_policy_vla0.backbone.vlm import VLM
    from lerobot_policy_vla0.configuration_vla0 import VLA0Config
    from lerobot_policy_vla0.decoding.lean import LeanModel
    from lerobot_policy_vla0.decoding.request import Decoder

logger = logging.getLogger(__name__)


def build_decoder(
    config: VLA0Config, vlm: VLM, device: torch.device, *, like: Decoder | None = None
) -> Decoder:
    """Return the decoder a policy config asks for, and say in the log which one and why.

    Args:
        config: its ``decoder``, sampling and chunk options.
        vlm: the backbone.
        device: where the backbone's weights are.
        like: another decoder of the same policy, whose copies of weights are shared; nothing is logged then.
    """
    grammar = _grammar(config, vlm, device)
    shape = (config.chunk_size, config.action_dim)
    sampling = {"temperature": config.temperature, "repetition_penalty": config.repetition_penalty}
    if config.engine is not None:
        from lerobot_policy_vla0.decoding.engine import EngineDecoder
        from lerobot_policy_vla0.decoding.engine_client import EngineClient

        client = EngineClient(config.engine, config.engine_model, config.engine_timeout_s)
        return EngineDecoder(client, vlm, grammar, shape=shape, **sampling)
    name, why = config.decoder, "as configured"
    if name == "auto":
        name, why = ("speculative", "auto, greedy") if config.temperature == 0 else ("fast", "auto, sampling")
    if like is None:
        logger.info("decoder: %s on %s (%s)", name, device.type, why)
    if name == "reference":
        return ReferenceDecoder(vlm, grammar, shape=shape, **sampling)
    drafter = None
    if name == "speculative":
        drafter = PreviousChunkDrafter(grammar, shape=shape, draft_width=config.draft_width)
    return FastDecoder(vlm, grammar, shape=shape, drafter=drafter, model=_model_of(like), **sampling)


def build_distributions(
    config: VLA0Config, vlm: VLM, device: torch.device, *, min_mass: float, decoder: Decoder | None = None
) -> NumberDistributions:
    """Return what reads the probability of every number, with the sampling options of a policy's decoder.

    Args:
        config: its sampling and chunk options.
        vlm: the backbone.
        device: where the backbone's weights are.
        min_mass: see `distribution.NumberDistributions`.
        decoder: one of the same policy, whose copies of weights are shared.
    """
    return NumberDistributions(
        vlm,
        _grammar(config, vlm, device),
        temperature=config.temperature,
        repetition_penalty=config.repetition_penalty,
        min_mass=min_mass,
        model=_model_of(decoder),
    )


def _model_of(decoder: Decoder | None) -> LeanModel | None:
    """Return what runs the backbone for a decoder, if that can be shared."""
    return decoder.runner.model if isinstance(decoder, FastDecoder) else None


def _grammar(config: VLA0Config, vlm: VLM, device: torch.device) -> AnswerGrammar:
    """Return the legal answers of a policy."""
    n_numbers = config.chunk_size * config.action_dim
    return AnswerGrammar(n_bins=config.n_bins, n_numbers=n_numbers, tokens=vlm.tokens, device=device)
