"""Gives pictures the project's look and turns them into PNG files.

The same input gives the same bytes, whatever the user's matplotlibrc says. Nothing here uses or changes global state:
a figure is an object, not pyplot's current one, and matplotlib's settings are restored.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.figure import Figure

INK, GREY, LIGHT = "#2b2f36", "#8d949e", "#e6e8eb"
#: Okabe and Ito's palette without yellow: people with colour-blindness can distinguish these too.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
BLUE, ORANGE = COLORS[:2]

_LOOK: dict[str, Any] = {
    "figure.dpi": 140,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LIGHT,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "text.parse_math": False,  # a $ in a name is a $
    "legend.frameon": False,
}


@contextmanager
def new_figure(width: float, height: float) -> Iterator[Figure]:
    """Yield an empty figure in the project's look; draw it and call `png` before leaving the block.

    Width and height are in inches of 140 pixels.
    """
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        settings: Any = matplotlib.rcParams  # typed with a literal per setting
        settings.update(_LOOK)
        yield Figure(figsize=(width, height), layout="constrained")


def png(figure: Figure) -> bytes:
    """Return a figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
