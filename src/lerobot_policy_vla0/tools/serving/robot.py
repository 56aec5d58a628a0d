"""One robot's side of a served policy: its processors, its queue of actions, and its earlier chunks."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
from lerobot.processor import RenameObservationsProcessorStep
from numpy.typing import NDArray

from lerobot_policy_vla0.modeling_vla0 import VLA0Policy
from lerobot_policy_vla0.processor_vla0 import VLA0PromptProcessorStep
from lerobot_policy_vla0.tools.serving.observations import ObservationReader


class Robot:
    """Acts for one robot. Nothing here is shared with another robot but the weights and the tokenizer.

    Args:
        policy: this robot's, of `SharedModel.new_policy`.
        processors: the policy's pre- and post-processor, as loaded; they are copied.
        reader: turns a client's messages into observations.
    """

    def __init__(self, policy: VLA0Policy, processors: tuple[Any, Any], reader: ObservationReader) -> None:
        self.policy = policy
        self._reader = reader
        self.preprocess, self.postprocess = own_processors(processors)

    def reset(self) -> None:
        """Start a new episode."""
        self.policy.reset()
        self.preprocess.reset()
        self.postprocess.reset()

    def next_action(self, message: Mapping[str, Any]) -> NDArray[np.float32]:
        """Return the next action ``(D,)`` in the robot's units; the model is asked if no action is queued.

        Raises:
            Vla0Error: if the message is no observation of this policy's robot, or there is no answer.
        """
        return self._select(self.preprocess(self._reader.read(message)))

    def next_actions(self, message: Mapping[str, Any]) -> NDArray[np.float32]:
        """Return the actions ``(n_action_steps, D)`` up to the next query, in the robot's units.

        What `next_action` would return in as many calls: averaged over earlier chunks, snapped and limited.

        Raises:
            Vla0Error: see `next_action`.
        """
        batch = self.preprocess(self._reader.read(message))
        actions = [self._select(batch)]
        while self.policy.executor.queue:
            actions.append(self._select(batch))
        return np.stack(actions)

    def _select(self, batch: dict[str, Any]) -> NDArray[np.float32]:
        action: NDArray[np.float32] = self.postprocess(self.policy.select_action(batch))[0].float().numpy()
        return action


def own_processors(
    processors: tuple[Any, Any], rename_map: Mapping[str, str] | None = None
) -> tuple[Any, Any]:
    """Return copies of a pre- and a post-processor that share the tokenizer, which is large and never changes.

    Args:
        processors: as loaded.
        rename_map: the policy's key by the robot's, where they differ.
    """
    shared = {
        id(step): copy.copy(step)
        for step in processors[0].steps
        if isinstance(step, VLA0PromptProcessorStep) and step.encoder  # built here, once for all robots
    }
    own: tuple[Any, Any] = copy.deepcopy(processors, shared)
    for step in own[0].steps:
        if isinstance(step, RenameObservationsProcessorStep):
            step.rename_map = dict(rename_map or {})
    return own
