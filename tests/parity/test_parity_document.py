"""docs/parity.md names a test for every line, and each of them exists."""

from __future__ import annotations

import re
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
NAMED = re.findall(r"\[`(test_\w+)`\]\(\.\./(tests/[\w/]+\.py)\)", (REPO / "docs" / "parity.md").read_text())


def test_every_test_the_document_names_exists() -> None:
    assert len(NAMED) > 20
    missing = [f"{file}: {name}" for name, file in NAMED if f"def {name}(" not in (REPO / file).read_text()]
    assert missing == []


def test_every_line_of_a_difference_names_a_test() -> None:
    text = (REPO / "docs" / "parity.md").read_text()
    rows = [
        line
        for line in text.splitlines()
        if line.startswith("| ") and not line.startswith(("| what", "| here"))
    ]
    assert len(rows) > 20
    assert [row for row in rows if "](../tests/" not in row] == []
