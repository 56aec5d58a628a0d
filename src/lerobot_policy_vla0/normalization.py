"""LeRobot's normaliser and un-normaliser, which refuse to pass on unchanged what they have to convert.

LeRobot's steps return a value as it is if its key has no statistics, if its kind has no mode, or if it is not one of
the features. The model would then read degrees as bins, and a robot would be sent numbers from -1 to 1 as degrees.

LeRobot's commands override the options of both steps by the names ``normalizer_processor`` and
``unnormalizer_processor``. A step that is not in LeRobot's registry is saved with the path of its class, and is
overridden by the name of its class. This is why these classes have names in lower case.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lerobot.configs.types import FeatureType, NormalizationMode
from lerobot.lerobot_types import EnvTransition, TransitionKey
from lerobot.processor import NormalizerProcessorStep, UnnormalizerProcessorStep
from lerobot.utils.constants import ACTION
from torch import Tensor

from lerobot_policy_vla0.dataset_stats import ENDS_OF_MODE, missing_stats, similar_keys
from lerobot_policy_vla0.errors import StatsError

if TYPE_CHECKING:  # `_Strict` stands before one of LeRobot's two steps
    from lerobot.processor import NormalizerProcessorStep as _Converter
else:
    _Converter = object


@dataclass
class _Strict(_Converter):
    """Checks at every call what the step below it is about to convert.

    Attributes:
        required: keys that have to be converted to or from [-1, 1] if they are there: ``action``, and
            ``observation.state`` if the prompt has it.
    """

    required: list[str] = field(default_factory=lambda: [ACTION], kw_only=True)

    #: Not in LeRobot's registry, where both names are taken; see above.
    _registry_name = None

    def __call__(self, transition: EnvTransition) -> EnvTransition:
        """Convert the transition as LeRobot does.

        Raises:
            StatsError: if a required key would stay as it is; names the key, what there is instead, and the fix.
        """
        observation = transition.get(TransitionKey.OBSERVATION) or {}
        for key in self.required:
            value = transition.get(TransitionKey.ACTION) if key == ACTION else observation.get(key)
            if isinstance(value, Tensor) and (problem := self._problem(key, value.shape[-1])):
                raise StatsError(problem)
        return super().__call__(transition)

    def get_config(self) -> dict[str, Any]:
        """Return the options that are saved."""
        return {**super().get_config(), "required": list(self.required)}

    def _problem(self, key: str, size: int) -> str | None:
        """Return why a value of ``size`` dimensions would not be converted; None if it is."""
        kind = FeatureType.ACTION if key == ACTION else FeatureType.STATE
        mode = self.norm_map.get(kind, NormalizationMode.IDENTITY)
        ends, stats = ENDS_OF_MODE.get(mode), self._tensor_stats.get(key, {})
        name = type(self).__name__
        leave_out = f"Leave the override of {name!r} out, so that the checkpoint's own are used"
        if ends is None:
            return (
                f"{name} would leave {key!r} as it is: its mode for {kind.value} is {mode.value}, from the norm_map "
                f"{ {k.value: v.value for k, v in self.norm_map.items()} }. {leave_out}, or override it with the "
                "policy's normalization_mapping."
            )
        selected = self.normalize_observation_keys
        if key != ACTION and (key not in self.features or (selected is not None and key not in selected)):
            return (
                f"{name} would leave {key!r} as it is: it converts only the features "
                f"{sorted(self.features if selected is None else selected)}. {leave_out}, or override it with the "
                "policy's input_features and output_features."
            )
        if missing := [end for end in ends if end not in stats]:
            similar = similar_keys(self._tensor_stats, key) if not stats else []
            rename = f" Rename {similar[0]!r} to {key!r} if it is meant." if len(similar) == 1 else ""
            return (
                f"{name} would leave {key!r} as it is: {mode.value} needs its statistics {missing}, and there are "
                f"{missing_stats(self._tensor_stats, key)}. {leave_out}, or override its stats with those of the data "
                f"set the policy was trained on (dataset.meta.stats).{rename}"
            )
        if wrong := {end: tuple(stats[end].shape) for end in ends if stats[end].shape[-1:] != (size,)}:
            return (
                f"{name} has statistics of {key!r} of shape {wrong}, and {key!r} has {size} dimensions: they are of "
                f"another robot. {leave_out}."
            )
        return None


@dataclass
class normalizer_processor(_Strict, NormalizerProcessorStep):  # noqa: N801 - see above
    """Normalises actions, and the state if the prompt has it, to [-1, 1]."""


@dataclass
class unnormalizer_processor(_Strict, UnnormalizerProcessorStep):  # noqa: N801 - see above
    """Converts actions from [-1, 1] to the robot's units."""
