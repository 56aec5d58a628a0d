"""The computed budget of a 3B model, and that every benchmark still finds what it imports."""

from __future__ import annotations

import importlib
import json
import sys

import pytest
from helpers.paths import REPO

BENCHMARKS = REPO / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))


@pytest.mark.parametrize("name", sorted(path.stem for path in BENCHMARKS.glob("*.py")))
def test_every_benchmark_can_be_imported(name: str) -> None:
    assert importlib.import_module(name).__doc__


def test_the_committed_table_is_what_the_script_computes() -> None:
    budget = importlib.import_module("latency_budget")
    committed = json.loads((BENCHMARKS / "results" / "latency_budget.json").read_text())
    read = budget.bytes_per_pass()
    assert read == committed["bytes_per_pass"]
    rollouts = json.loads(budget.ROLLOUTS.read_text())
    rows = budget.budget(committed["chunk_size"], committed["fps"], rollouts, read)
    assert rows == committed["rows"]
    h100 = next(row for row in rows if row["gpu"] == "H100 SXM")
    # 30 steps of 6 joints, 0.651 passes each with whole chunks executed, of 5.55 GB at 3,350 GB/s.
    assert h100["sync_ms"] == pytest.approx(30 * 6 * 0.651 * 5.5495 / 3.350, abs=1)
