"""Imports VLA-0 checkpoints that LeRobot did not write: the paper's, vla0-trl's, and what ``vla0 export`` wrote."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lerobot_policy_vla0.modeling_vla0 import VLA0Policy

__all__ = ["load_official_checkpoint"]


def load_official_checkpoint(
    source: str | Path, *, out: str | Path | None = None, **options: Any
) -> VLA0Policy:
    """Load a checkpoint of the paper's or vla0-trl's layout, as ``vla0 import`` and `from_pretrained` do.

    Args:
        source: a folder or Hub repo id, such as ``ankgoyal/vla0-libero``.
        out: the policy folder to make and keep; its processors are loaded from there. None imports to a
            temporary folder, which needs the weights' size in disk space for a while.
        **options: the fields of `lerobot_policy_vla0.tools.importing.checkpoint.ImportOptions`.

    Raises:
        OutputError: if ``out`` is taken.
        CheckpointError: naming what the checkpoint lacks.
    """
    # These imports load transformers' models, which not every user of this package needs.
    from lerobot_policy_vla0.modeling_vla0 import VLA0Policy
    from lerobot_policy_vla0.tools.importing.checkpoint import ImportOptions, import_checkpoint

    with TemporaryDirectory() as temporary:
        folder = Path(temporary) / "policy" if out is None else Path(out)
        import_checkpoint(source, folder, ImportOptions(**options))
        policy: VLA0Policy = VLA0Policy.from_pretrained(folder)
        return policy
