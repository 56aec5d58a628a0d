"""How the project's pictures look, and how they become PNG files. Knows matplotlib; knows nothing about what is drawn.

No global state: figures are objects, not pyplot's current one, and nobody's settings are changed. The same input gives
the same bytes: a user's matplotlibrc has no say.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.figure import Figure

INK, GREY, LIGHT = "#2b2f36", "#8d949e", "#e6e8eb"
#: Told apart by people with colour-blindness too (Okabe and Ito's palette, yellow left out).
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
    """Give an empty figure in the project's look; draw it and call `png` before leaving the block.

    Args:
        width: in inches of 140 pixels.
        height: likewise.
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
