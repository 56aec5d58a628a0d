"""VLA-0 for LeRobot: an unmodified vision-language model writes robot actions as integers in text.

Importing this package registers the policy type ``vla0`` and its processor steps with LeRobot, and
nothing else: LeRobot's commands import every installed plugin at start-up, so the model classes
(and with them transformers' Qwen2.5-VL) are imported on first use only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lerobot_policy_vla0.configuration_vla0 import TinyVLMConfig, VLA0Config
from lerobot_policy_vla0.processor_vla0 import VLA0PromptProcessorStep, make_vla0_pre_post_processors

if TYPE_CHECKING:
    from lerobot_policy_vla0.modeling_vla0 import VLA0Policy

__version__ = "0.1.0"

__all__ = [
    "TinyVLMConfig",
    "VLA0Config",
    "VLA0Policy",
    "VLA0PromptProcessorStep",
    "__version__",
    "make_vla0_pre_post_processors",
]


def __getattr__(name: str) -> Any:
    """Import `VLA0Policy` on first use, so that registering the plugin stays cheap."""
    if name == "VLA0Policy":
        from lerobot_policy_vla0.modeling_vla0 import VLA0Policy

        return VLA0Policy
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
