"""What LeRobot calls the steps of a processor."""

from __future__ import annotations

from lerobot.processor import ProcessorStep


def override_name(step: ProcessorStep) -> str:
    """Return the name by which LeRobot overrides a step's options, as in `PolicyProcessorPipeline.from_pretrained`."""
    return getattr(type(step), "_registry_name", None) or type(step).__name__
