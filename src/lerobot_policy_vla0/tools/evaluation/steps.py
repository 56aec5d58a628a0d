"""Writes every step of an evaluation to Parquet, one file per shard, and collects those of finished shards.

::

    OUT/shards/NAME/attempt-1/steps.parquet   complete; before the end of the evaluation, steps.parquet.part
    OUT/steps/NAME.parquet                    the same file, of the attempt whose result counts

All files have the same columns (`schema`), so pyarrow, datasets and polars read ``OUT/steps`` as one table.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow

FILE_NAME = "steps.parquet"
FOLDER = "steps"


@dataclass(frozen=True)
class Step:
    """One step of one episode: a row."""

    task_group: str  # LeRobot's, in the undivided evaluation
    task_id: int  # index within the group, likewise
    episode: int  # index within the task, likewise
    seed: int | None  # of the episode's reset
    step: int  # from 0
    time: float  # seconds of simulated time since the reset: step / fps
    wall_time: float  # seconds since the reset ended, when the step had been executed
    action: list[float]  # as the environment got it, (D,) in its units
    reward: float  # of this step, in the environment's units
    success: bool  # whether LeRobot takes the episode for solved after this step
    passes: (
        int | None
    )  # runs of the language model for the query before this step; None: no query, or not known
    query_ms: float | None  # wall time of that query, milliseconds; one query answers a whole batch


def schema() -> pyarrow.Schema:
    """Return the columns of a file; their names are those of `Step`."""
    import pyarrow as pa

    types = [
        *(pa.string(), pa.int32(), pa.int32(), pa.int64(), pa.int32(), pa.float64(), pa.float64()),
        *(pa.list_(pa.float64()), pa.float64(), pa.bool_(), pa.int32(), pa.float64()),
    ]
    names = [field.name for field in fields(Step)]
    return pa.schema(list(zip(names, types, strict=True)))


class StepWriter:
    """Writes a shard's file, under another name until `finish`: a killed worker leaves nothing that passes for one."""

    def __init__(self, path: Path) -> None:
        import pyarrow.parquet

        self._path, self._part = path, path.with_name(path.name + ".part")
        self._writer = pyarrow.parquet.ParquetWriter(self._part, schema())

    def write(self, steps: Sequence[Step]) -> None:
        """Add some steps."""
        import pyarrow as pa

        columns = {field.name: [getattr(step, field.name) for step in steps] for field in fields(Step)}
        self._writer.write_table(pa.table(columns, schema=schema()))

    def finish(self) -> None:
        """Complete the file."""
        self._writer.close()
        self._part.replace(self._path)


def collect(finished: dict[str, Path], folder: Path) -> list[str]:
    """Put the files of finished shards into one folder, and take out all others.

    Args:
        finished: by shard name, the folder of the attempt that counts.
        folder: where to put them; they are links to the same content where the disk has such links.

    Returns:
        Names of shards without a file: environments from the Hub are not watched.
    """
    folder.mkdir(exist_ok=True)
    for path in folder.glob("*.parquet"):
        if path.stem not in finished:
            path.unlink()
    missing = []
    for name, attempt in finished.items():
        source, place = attempt / FILE_NAME, folder / f"{name}.parquet"
        if not source.exists():
            missing.append(name)
            continue
        if place.exists() and place.stat().st_size == source.stat().st_size:
            continue
        part = folder / f".{name}.part"
        with suppress(FileNotFoundError):
            part.unlink()
        try:
            os.link(source, part)
        except OSError:
            shutil.copyfile(source, part)
        part.replace(place)
    return missing


def read(path: Path) -> list[dict[str, Any]]:
    """Return the rows of one file, or of a folder of files, as dictionaries."""
    import pyarrow.dataset

    rows: list[dict[str, Any]] = pyarrow.dataset.dataset(path, format="parquet").to_table().to_pylist()
    return rows
