"""Draws success rates and comparisons as PNG pictures."""

from __future__ import annotations

from collections.abc import Sequence

from lerobot_policy_vla0.tools.evaluation.compare import Comparison, Line
from lerobot_policy_vla0.tools.reporting import plots as plotting
from lerobot_policy_vla0.tools.reporting.plots import BLUE, COLORS, INK, ORANGE

_LIGHT_BLUE, _LIGHT_GREY = "#b9d7ea", "#d8dadd"  # both and neither; full colours: one policy alone


def plot_success(lines: Sequence[Line]) -> bytes:
    """Draw every line's success rates with their intervals, one colour per policy, the first line on top."""
    policies = list(lines[0].rates)
    step = 0.8 / len(policies)
    with plotting.new_figure(8, 0.9 + len(lines) * (0.18 + 0.17 * len(policies))) as figure:
        axes = figure.subplots()
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
        return plotting.png(figure)


def plot_comparison(comparisons: Sequence[Comparison]) -> bytes:
    """Draw in how many episodes both, one or neither policy succeeds: one bar per scope."""
    with plotting.new_figure(8, 0.9 + 0.4 * len(comparisons)) as figure:
        axes = figure.subplots()
        parts = [
            ("both", [c.both for c in comparisons], _LIGHT_BLUE),
            (f"only {comparisons[0].first}", [c.only_first for c in comparisons], BLUE),
            (f"only {comparisons[0].second}", [c.only_second for c in comparisons], ORANGE),
            ("neither", [c.neither for c in comparisons], _LIGHT_GREY),
        ]
        left = [0] * len(comparisons)
        for label, counts, color in parts:
            axes.barh(range(len(comparisons)), counts, left=left, color=color, label=label, height=0.6)
            for y, (start, count) in enumerate(zip(left, counts, strict=True)):
                ink = "white" if color in (BLUE, ORANGE) else INK
                if count:
                    x = start + count / 2
                    axes.text(x, y, str(count), ha="center", va="center", fontsize=8, color=ink)
            left = [start + count for start, count in zip(left, counts, strict=True)]
        axes.set_yticks(range(len(comparisons)), [c.scope for c in comparisons])
        same = "task and seed" if comparisons[0].other_starts else "start"
        axes.set(
            xlabel=f"episodes with the same {same}, by who solves them", ylim=(len(comparisons) - 0.5, -0.5)
        )
        axes.locator_params(axis="x", integer=True)
        axes.grid(axis="y", visible=False)
        figure.legend(loc="outside upper center", ncols=4)
        return plotting.png(figure)
