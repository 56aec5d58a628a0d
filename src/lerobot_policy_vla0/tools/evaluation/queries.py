"""Counts and times the policy's queries while an evaluation runs, through its debug log.

`lerobot-eval` records neither. `VLA0Policy.select_action` logs each query to a logger that is silent unless somebody
listens; `recording` listens and leaves a file. Knows nothing about environments or success.
"""

from __future__ import annotations

import json
import logging
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

FILE_NAME = "queries.json"

#: Debug records carry ``rows`` (answers in the query) and ``milliseconds``.
LOGGER = "lerobot_policy_vla0.queries"


@dataclass(frozen=True)
class Query:
    """One call of the model.

    Attributes:
        rows: answers, one per environment in the batch.
        milliseconds: wall time from the observation on the device to the actions in the queue.
    """

    rows: int
    milliseconds: float


class _Listener(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.queries: list[Query] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.queries.append(Query(vars(record)["rows"], round(vars(record)["milliseconds"], 2)))


@contextmanager
def recording(path: Path) -> Iterator[None]:
    """Write what the policy was asked meanwhile to a file, if all went well.

    Policies of other kinds leave an empty list.
    """
    logger, listener = logging.getLogger(LOGGER), _Listener()
    before = logger.level, logger.propagate
    logger.addHandler(listener)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False  # LeRobot prints what reaches the root logger
    try:
        yield
        path.write_text(json.dumps([[query.rows, query.milliseconds] for query in listener.queries]) + "\n")
    finally:
        logger.removeHandler(listener)
        logger.level, logger.propagate = before


def read_queries(path: Path) -> list[Query]:
    """Return the queries in a file; none if it is missing or unreadable: it says nothing about success."""
    try:
        return [Query(int(rows), float(milliseconds)) for rows, milliseconds in json.loads(path.read_text())]
    except (OSError, ValueError, TypeError):
        return []


def summarise(queries: list[Query], n_action_steps: int | None) -> dict[str, float | int | None] | None:
    """Return count, median, 95th percentile (nearest rank) and mean per executed step, the last three in milliseconds.

    Args:
        queries: of one policy.
        n_action_steps: executed per query; None if that is not known, or not always the same.

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
