"""Pictures of success rates and comparisons, as PNG bytes, the same bytes for the same numbers.

Needs matplotlib, which the package installs with the extra ``report``; imports it only when a picture is drawn.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lerobot_policy_vla0.errors import EvaluationError
from lerobot_policy_vla0.evaluation.compare import Comparison, Line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, BLUE, ORANGE, GREY = "#333333", "#2f6db3", "#d9822b", "#9aa0a6"
COLORS = (BLUE, ORANGE, "#4a9a63", "#a24ea3", "#b8443a", "#6b6f76")

#: matplotlib settings shared by every picture of the project.
RC: dict[str, Any] = {
    "figure.dpi": 130,
    "savefig.dpi": 130,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e8eb",
    "legend.frameon": False,
    "text.parse_math": False,  # a $ in a name is a $
}


def check_matplotlib() -> None:
    """Make sure that pictures can be drawn.

    Raises:
        EvaluationError: matplotlib is not installed; says how to install it.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise EvaluationError(
            "the report's plots need matplotlib, which is not installed: pip install 'lerobot_policy_vla0[report]' "
            "(the table on the terminal needs nothing: leave out --out)"
        ) from None


@contextmanager
def _figure(width: float, height: float) -> Iterator[tuple[Figure, Any]]:
    """Give a figure with one pair of axes: no window system, no global state."""
    check_matplotlib()
    import matplotlib as mpl
    from matplotlib.figure import Figure

    # The user's own matplotlibrc would change the picture.
    with mpl.rc_context():
        mpl.rcdefaults()
        settings: Any = mpl.rcParams  # typed with a literal per setting
        settings.update(RC)
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.subplots()


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def plot_success(lines: Sequence[Line]) -> bytes:
    """Draw every line's success rates with their intervals, one colour per policy, the first line on top."""
    policies = list(lines[0].rates)
    step = 0.8 / len(policies)
    with _figure(8, 0.9 + len(lines) * (0.18 + 0.17 * len(policies))) as (figure, axes):
        for index, policy in enumerate(policies):
            color = COLORS[index % len(COLORS)]
            shown = [(y, rate) for y, line in enumerate(lines) if (rate := line.rates[policy]) is not None]
            places = [y + (index - (len(policies) - 1) / 2) * step for y, _ in shown]
            rates = [100 * rate.rate for _, rate in shown]
            limits = [(100 * rate.interval[0], 100 * rate.interval[1]) for _, rate in shown]
            axes.hlines(places, [low for low, _ in limits], [high for _, high in limits], color=color, lw=2)
            axes.plot(rates, places, "o", color=color, ms=5, label=policy)
        axes.set(xlim=(-2, 102), ylim=(len(lines) - 0.4, -0.6), xlabel="solved, % (line: 95 % interval)")
        axes.set_yticks(range(len(lines)), [line.name for line in lines])
        axes.grid(axis="y", visible=False)
        for label, line in zip(axes.get_yticklabels(), lines, strict=True):
            label.set_fontweight("normal" if line.kind == "task" else "bold")
        if len(policies) > 1:
            figure.legend(loc="outside upper center", ncols=min(4, len(policies)))
        return _png(figure)


def plot_comparison(comparisons: Sequence[Comparison]) -> bytes:
    """Draw in how many episodes both, one or neither policy succeeds: one bar per scope."""
    with _figure(8, 0.9 + 0.4 * len(comparisons)) as (figure, axes):
        parts = [
            ("both", [c.both for c in comparisons], "#b9cfe8"),
            (f"only {comparisons[0].first}", [c.only_first for c in comparisons], BLUE),
            (f"only {comparisons[0].second}", [c.only_second for c in comparisons], ORANGE),
            ("neither", [c.neither for c in comparisons], "#d8dadd"),
        ]
        left = [0] * len(comparisons)
        for label, counts, color in parts:
            axes.barh(range(len(comparisons)), counts, left=left, color=color, label=label, height=0.6)
            for y, (start, count) in enumerate(zip(left, counts, strict=True)):
                ink = "white" if color == BLUE else INK
                if count:
                    axes.text(
                        start + count / 2, y, str(count), ha="center", va="center", fontsize=8, color=ink
                    )
            left = [start + count for start, count in zip(left, counts, strict=True)]
        axes.set_yticks(range(len(comparisons)), [c.scope for c in comparisons])
        axes.set(
            xlabel="episodes with the same start, by who solves them", ylim=(len(comparisons) - 0.5, -0.5)
        )
        axes.locator_params(axis="x", integer=True)
        axes.grid(axis="y", visible=False)
        figure.legend(loc="outside upper center", ncols=4)
        return _png(figure)
