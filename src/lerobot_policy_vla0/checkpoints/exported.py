"""The parts of an exported policy by name, and how loading recognises one.

``vla0 export`` writes the backbone for inference engines. Beside it lies ``robot/``, a policy folder without weights:
the policy then acts on an engine's answers. ``vla0 import`` puts both together again.
"""

from __future__ import annotations

from pathlib import Path

#: What a client has to know, for readers in any language; it makes a folder an export.
PROTOCOL_FILE = "vla0.json"
#: The policy folder without weights.
ROBOT_FOLDER = "robot"
#: In the robot's folder: the policy's tensors that are not the backbone's (the state of its augmentation).
OWN_TENSORS = "own_tensors.safetensors"


def is_export(folder: Path) -> bool:
    """Return whether ``vla0 export`` wrote a folder."""
    return (folder / PROTOCOL_FILE).is_file() and (folder / ROBOT_FOLDER).is_dir()


def is_robot_folder(folder: Path) -> bool:
    """Return whether a folder is the ``robot/`` of an export, wherever it was copied to."""
    return (folder / OWN_TENSORS).is_file()
