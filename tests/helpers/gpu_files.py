"""Which files `pytest -m gpu` reads."""

from __future__ import annotations

from pathlib import Path


class GpuFilesOnly:
    """Leaves files without a `gpu` test unread: a machine with a GPU may lack what the others import."""

    def pytest_ignore_collect(self, collection_path: Path) -> bool | None:
        if collection_path.suffix == ".py" and "mark.gpu" not in collection_path.read_text(encoding="utf-8"):
            return True
        return None
