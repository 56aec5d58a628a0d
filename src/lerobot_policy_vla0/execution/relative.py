"""Relative actions: the common origin of chunks that were predicted from different states.

LeRobot's own steps do the conversion: they subtract the state from the action before normalisation, and add the state
of the *current* tick after un-normalisation. This is right if a chunk is converted as a whole (as in Real-Time
Chunking). It is wrong if a chunk is executed over several ticks, because the state moves meanwhile; and chunks
predicted from different states cannot be averaged.

Both are corrected in normalised units. At every tick the absolute action zero passes through LeRobot's own steps, which
gives the *origin* ``o_t = normalise(0 - state_t)``. An answer ``r`` to the query at tick ``q`` means the absolute
position ``r - o_q``, the same for all ticks. At tick ``t`` it is returned as ``r - o_q + o_t``; the post-processor
converts this to the un-normalised ``r`` plus the state at the query. Dimensions that stay absolute have the origin 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from lerobot.configs.types import PipelineFeatureType, PolicyFeature
from lerobot.lerobot_types import EnvTransition, TransitionKey
from lerobot.processor import ProcessorStep, ProcessorStepRegistry
from lerobot.utils.constants import ACTION
from torch import Tensor

from lerobot_policy_vla0.errors import StateError
from lerobot_policy_vla0.observations.batches import read_state

#: ``(B, D)`` float32: the absolute action zero as a normalised action relative to this observation.
ORIGIN = "observation.vla0_origin"
_ASKED = "vla0_origin_asked"


class _KeepsFeatures(ProcessorStep):
    def transform_features(
        self, features: dict[PipelineFeatureType, dict[str, PolicyFeature]]
    ) -> dict[PipelineFeatureType, dict[str, PolicyFeature]]:
        """Change nothing: the origin is no input of the model."""
        return features


@dataclass
@ProcessorStepRegistry.register(name="vla0_zero_action")
class VLA0ZeroActionProcessorStep(_KeepsFeatures):
    """Adds the absolute action zero to an observation without action; `VLA0OriginProcessorStep` removes it again.

    It stands before LeRobot's relative step, and checks that there is a state.
    """

    action_dim: int

    def __call__(self, transition: EnvTransition) -> EnvTransition:
        """Return the transition with an action.

        Raises:
            StateError: if the state is missing or has NaN/Inf.
        """
        state = read_state(transition.get(TransitionKey.OBSERVATION) or {}, "use_relative_actions")
        if transition.get(TransitionKey.ACTION) is not None:
            return transition
        asked = transition.copy()
        asked[TransitionKey.ACTION] = state.new_zeros(len(state), self.action_dim, dtype=torch.float32)
        complementary = transition.get(TransitionKey.COMPLEMENTARY_DATA) or {}
        asked[TransitionKey.COMPLEMENTARY_DATA] = {**complementary, _ASKED: True}
        return asked

    def get_config(self) -> dict[str, Any]:
        """Return the saved options."""
        return {"action_dim": self.action_dim}


@dataclass
@ProcessorStepRegistry.register(name="vla0_origin")
class VLA0OriginProcessorStep(_KeepsFeatures):
    """Moves the converted action zero into the observation; stands after the normaliser."""

    def __call__(self, transition: EnvTransition) -> EnvTransition:
        """Return the transition with the origin instead of the added action; others are unchanged."""
        complementary = transition.get(TransitionKey.COMPLEMENTARY_DATA) or {}
        if _ASKED not in complementary:
            return transition
        answered = transition.copy()
        answered[TransitionKey.OBSERVATION] = {
            **(transition.get(TransitionKey.OBSERVATION) or {}),
            ORIGIN: transition[TransitionKey.ACTION],
        }
        answered[TransitionKey.ACTION] = None
        answered[TransitionKey.COMPLEMENTARY_DATA] = {k: v for k, v in complementary.items() if k != _ASKED}
        return answered

    def get_config(self) -> dict[str, Any]:
        """Return no options."""
        return {}


def read_origin(batch: dict[str, Any], absolute: list[int], device: torch.device) -> Tensor:
    """Return the origin ``(B, D)`` of a batch.

    Args:
        batch: the output of the pre-processor.
        absolute: dimensions that are not relative; their origin is 0.
        device: device of the result.

    Raises:
        StateError: if the batch has no origin.
    """
    if ORIGIN not in batch:
        raise StateError(
            f"the batch has no {ORIGIN!r}, which use_relative_actions=True needs to execute a chunk step by step; it "
            f"has {sorted(batch)}. Run the observation through the policy's pre-processor, without an {ACTION!r}."
        )
    origin: Tensor = batch[ORIGIN].to(device).clone()
    origin[:, absolute] = 0.0
    return origin
