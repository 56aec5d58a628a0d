"""Counts and times the policy's queries during an evaluation, and reads them back.

`lerobot-eval` records neither. `VLA0Policy.select_action` writes one DEBUG record per query to a logger that
has no other reader; `recording` collects them in a file.
"""

from __future__ import annotations

import json
import logging
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

FILE_NAME = "queries.json"

#: Its DEBUG records carry ``rows`` (answers in the query), ``milliseconds`` and ``passes``.
LOGGER = "lerobot_policy_vla0.queries"


class Query(NamedTuple):
    """One call of the model."""

    rows: int  # answers, one per environment in the batch
    milliseconds: float  # wall time from the observation on the device to the actions in the queue
    passes: int | None = None  # runs of the language model; None if the decoder does not say


@contextmanager
def recording(path: Path, note: Callable[[Query], None] = lambda query: None) -> Iterator[None]:
    """Write the queries made inside the block to a file, if the block ends without an error.

    Policies of other types leave an empty list. ``note`` is called with every query, in the thread that made it.
    """
    queries: list[Query] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said = vars(record)
            queries.append(Query(said["rows"], round(said["milliseconds"], 2), said["passes"]))
            note(queries[-1])

    logger, listener = logging.getLogger(LOGGER), Listener()
    before = logger.level, logger.propagate
    logger.addHandler(listener)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False  # LeRobot prints what reaches the root logger
    try:
        yield
        path.write_text(json.dumps(queries) + "\n")
    finally:
        logger.removeHandler(listener)
        logger.level, logger.propagate = before


def read_queries(path: Path) -> list[Query]:
    """Return the queries in a file, or none if it is missing or unreadable: success rates do not depend on them."""
    try:
        found = json.loads(path.read_text())
        return [Query(int(rows), float(milliseconds), *passes) for rows, milliseconds, *passes in found]
    except (OSError, ValueError, TypeError):
        return []


def summarise(queries: list[Query], n_action_steps: int | None) -> dict[str, float | int | None] | None:
    """Return the count, and in milliseconds the median, the 95th percentile (nearest rank) and the mean per step.

    Args:
        queries: of one policy.
        n_action_steps: steps executed per query; None if that is not known, or not always the same.

    >>> summarise([Query(1, 10.0), Query(1, 30.0)], 4)
    {'queries': 2, 'median': 20.0, 'p95': 30.0, 'per_step': 5.0}
    """
    times = sorted(query.milliseconds for query in queries)
    if not times:
        return None
    return {
        "queries": len(times),
        "median": statistics.median(times),
        "p95": times[-(-95 * len(times) // 100) - 1],
        "per_step": statistics.fmean(times) / n_action_steps if n_action_steps else None,
    }
