"""Datasets whose every number is given by the test, and reading HTML pages back."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np

REPO_ID = "local/made-up"


def write_dataset(
    root: Path,
    episodes: Sequence[Sequence[Sequence[float]]],
    *,
    cameras: dict[str, tuple[int, int]] | None = None,
    names: Sequence[str] = (),
    tasks: Sequence[str] = ("push",),
    fps: int = 10,
) -> Path:
    """Write actions ``episodes[e][frame][dimension]``; cameras are (height, width) by key. Returns ``root``."""
    from lerobot.datasets import LeRobotDataset

    cameras = cameras or {"observation.images.top": (64, 64)}
    dims = len(episodes[0][0])
    dataset = LeRobotDataset.create(
        repo_id=REPO_ID,
        root=root,
        fps=fps,
        use_videos=False,
        features={
            **{
                key: {"dtype": "image", "shape": (*size, 3), "names": ["height", "width", "channels"]}
                for key, size in cameras.items()
            },
            "action": {"dtype": "float32", "shape": (dims,), "names": list(names) or None},
        },
    )
    rng = np.random.default_rng(0)
    for place, actions in enumerate(episodes):
        for action in actions:
            pictures = {
                key: rng.integers(0, 255, (*size, 3), dtype=np.uint8) for key, size in cameras.items()
            }
            dataset.add_frame(
                {**pictures, "action": np.array(action, np.float32), "task": tasks[place % len(tasks)]}
            )
        dataset.save_episode()
    dataset.finalize()
    return root


class Page(HTMLParser):
    """What a test wants to know of a page.

    Attributes:
        pictures: the embedded ones, decoded.
        links: addresses that lead out of the page; nothing of a self-contained one is loaded from such.
        cells: the text of all table cells.
        tables: the text of a table's cells by row, by the table's class.
        text: all text.
    """

    VOID = frozenset({"meta", "img", "br"})

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.pictures: list[bytes] = []
        self.links: list[str] = []
        self.cells: list[str] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.text = ""
        self._open: list[str] = []
        self.feed(path.read_text())
        assert self._open == [], f"unclosed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self._open.append(tag)
        if tag == "table":
            self._rows = self.tables.setdefault(dict(attrs).get("class") or "", [])
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self.cells.append("")
            self._rows[-1].append("")
        for name, value in attrs:
            if name in ("src", "href"):
                head, _, data = (value or "").partition(",")
                if head == "data:image/png;base64":
                    self.pictures.append(base64.b64decode(data, validate=True))
                else:
                    self.links.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if "td" in self._open or "th" in self._open:
            self.cells[-1] += data
            self._rows[-1][-1] += data
