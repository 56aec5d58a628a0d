"""Writes the report of an open-loop run: for the terminal, and as a folder with a page, pictures and JSON."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lerobot_policy_vla0.tools.inspection.open_loop import BAND, SHARES, EpisodeResult, OpenLoopResult
from lerobot_policy_vla0.tools.inspection.report_folder import write_report
from lerobot_policy_vla0.tools.reporting import pages
from lerobot_policy_vla0.tools.reporting import plots as plotting
from lerobot_policy_vla0.tools.reporting.pages import Table, number, share_text
from lerobot_policy_vla0.tools.reporting.plots import BLUE, COLORS, GREY, INK, ORANGE

#: At most this many episodes are drawn, those with the largest errors.
MAX_PICTURES = 12


def terminal(numbers: dict[str, Any]) -> str:
    """Return the most important numbers as text."""
    steps = numbers["mae_bins_by_step"]
    return "\n".join(
        [
            _lead(numbers),
            "",
            pages.text_table(_dimension_table(numbers)),
            "",
            "error by step of the chunk, in bins: "
            + "  ".join(f"{i + 1}: {'-' if v is None else number(v)}" for i, v in enumerate(steps)),
        ]
    )


def write(result: OpenLoopResult, numbers: dict[str, Any], folder: Path) -> Path:
    """Write ``index.html`` (self-contained), ``report.json`` and the pictures; return the page."""
    drawn = sorted(result.episodes, key=lambda e: -float(e.bin_error[e.valid].mean()))[:MAX_PICTURES]
    pictures = {"horizon.png": _draw_horizon(numbers)}
    pictures |= {f"episode_{e.index:06d}.png": _draw_episode(result, e) for e in drawn}
    order = sorted(drawn, key=lambda e: e.index)
    left = len(result.episodes) - len(order)
    notes = [_EPISODES]
    if left:
        notes.append(f"The {len(order)} episodes with the largest error; {left} more are in the table.")
    sections = [
        ("Error", pages.html_table(_dimension_table(numbers)) + pages.html_text(*_explanations(numbers))),
        (
            "By step of the chunk, and how well the model knows what it does not know",
            pages.html_image(pictures["horizon.png"], _HORIZON),
        ),
        ("Episodes", pages.html_table(_episode_table(numbers))),
        (
            "Predicted and demonstrated actions",
            pages.html_text(*notes)
            + "".join(pages.html_image(pictures[f"episode_{e.index:06d}.png"], _caption(e)) for e in order),
        ),
    ]
    page = pages.page(f"Open loop: {Path(result.policy).name}", _lead(numbers), sections)
    return write_report(folder, numbers, pictures, {"index.html": page})


_HORIZON = (
    "Left: mean absolute error by step. Right: share of demonstrated values inside the model's own bands, "
    "over the probability the bands hold; on or above the diagonal is honest, below is overconfident."
)
_EPISODES = (
    "Blue: the first step of the chunk predicted at each frame. Shaded: the band that holds "
    f"{BAND:.0%} of the model's probability, given the numbers it wrote before. Grey: the demonstration. "
    "Thin: whole chunks, drawn from where they were predicted."
)


# ---------------------------------------------------------------------- words and tables


def _lead(numbers: dict[str, Any]) -> str:
    seen = [e["seen"] for e in numbers["episodes"]]
    kinds = [f"{seen.count(kind)} {words}" for kind, words in _SEEN.items() if kind in seen]
    return (
        f"{numbers['policy']} on {numbers['dataset']}: {len(seen)} episode(s) ({', '.join(kinds)}), "
        f"{numbers['frames']} frames, {numbers['steps_compared']} predicted steps compared. Mean absolute error "
        f"{number(numbers['mae_bins'])} of {numbers['n_bins']} bins."
    )


_SEEN = {
    "held out": "held out of training",
    "trained on": "seen in training",
    "unknown": "not known whether seen in training",
}


def _dimension_table(numbers: dict[str, Any]) -> Table:
    """Show a row per dimension and one for their mean. Of the values with units only errors are averaged."""
    columns: list[tuple[str, list[str], str]] = []

    def add(header: str, key: str, write: Callable[[float], str], *, mean: bool = True) -> None:
        values = numbers[f"{key}_by_dimension"]
        every = "-" if None in values else write(float(np.mean(values)))
        columns.append((header, ["-" if v is None else write(v) for v in values], every if mean else ""))

    add("error", "mae", number)
    add("in bins", "mae_bins", number)
    columns.append(("one bin", [number(v) for v in numbers["bin_in_units"]], ""))
    if numbers["mean_action_mae_by_dimension"] is not None:
        add("always the mean action", "mean_action_mae", number)
    add("same bin", "same_bin", share_text)
    add(f"in the {BAND:.0%} band", "inside_band", share_text)
    add("band's width", "band_width", number, mean=False)
    add("probability", "probability", share_text)
    header = ["mean absolute error", *(name for name, _, _ in columns)]
    rows = [
        [name, *(values[place] for _, values, _ in columns)]
        for place, name in enumerate(numbers["dimensions"])
    ]
    return Table(header, [*rows, ["all", *(mean for _, _, mean in columns)]])


def _explanations(numbers: dict[str, Any]) -> list[str]:
    out = [
        f"{numbers['steps_past_the_end']} steps of chunks that reach past the end of their episode were left out.",
        "Error, one bin, “always the mean action” (the error of a policy that sees nothing) and the band's width are "
        "in the robot's units. Same bin: share of numbers predicted exactly. Band: demonstrated values inside. "
        "Probability: the model's own, of the numbers it wrote.",
        "“All” is the plain mean over dimensions; in the robot's units it mixes what may not be comparable.",
    ]
    clipped = numbers["outside_training_range_by_dimension"]
    if max(clipped) > 0:
        shares = [
            f"{name} {share_text(share)}"
            for name, share in zip(numbers["dimensions"], clipped, strict=True)
            if share > 0
        ]
        outside = "Demonstrated values outside the range the policy was trained on, which it cannot express:"
        out.append(f"{outside} {', '.join(shares)}.")
    return out


def _episode_table(numbers: dict[str, Any]) -> Table:
    header = ["episode", "task", "in training", "frames", "error, robot's units", "error, bins"]
    rows = []
    for e in numbers["episodes"]:
        frames = f"{e['frames']} of {e['length']}"
        rows.append(
            [str(e["episode"]), e["task"], e["seen"], frames, number(e["mae"]), number(e["mae_bins"])]
        )
    return Table(header, rows, text=(1, 2))


def _caption(episode: EpisodeResult) -> str:
    error = number(float(episode.bin_error[episode.valid].mean()))
    return f"Episode {episode.index} ({_SEEN[episode.seen]}), “{episode.task}”: mean absolute error {error} bins."


# ---------------------------------------------------------------------- pictures


def _draw_horizon(numbers: dict[str, Any]) -> bytes:
    """Draw the error by step, and the share of values inside the model's bands."""
    by_step = np.array(
        [[np.nan if v is None else v for v in row] for row in numbers["mae_bins_by_step_and_dimension"]]
    )
    steps = np.arange(1, len(by_step) + 1)
    with plotting.new_figure(9, 3.3) as figure:
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        for place, name in enumerate(numbers["dimensions"]):
            color = COLORS[place % len(COLORS)]
            style = "-" if place < len(COLORS) else "--"
            left.plot(steps, by_step[:, place], style, color=color, lw=1.3, marker="o", ms=3, label=name)
        left.plot(steps, by_step.mean(1), color=INK, lw=2.4, label="mean")
        left.set(xlabel="step of the chunk", ylabel="mean absolute error (bins)", ylim=(0, None))
        left.locator_params(axis="x", integer=True)
        left.legend(ncols=2 if len(numbers["dimensions"]) > 4 else 1, fontsize=8)
        left.set_title("error by step")
        shares = [numbers["inside_band_by_share"][str(share)] for share in SHARES]
        inside = np.array(shares, dtype=np.float64)  # (S, D), NaN for None
        right.plot([0, 1], [0, 1], color=GREY, lw=1, ls=":")
        for place in range(inside.shape[1]):
            right.plot(SHARES, inside[:, place], color=COLORS[place % len(COLORS)], lw=1.1, alpha=0.8)
        right.plot(SHARES, inside.mean(1), color=INK, lw=2.4, marker="o", ms=4)
        right.set(xlabel="probability the band holds", ylabel="demonstrated values inside")
        right.set(xlim=(0.45, 1.01), ylim=(0, 1.03))
        right.set_title("calibration of the bands")
        return plotting.png(figure)


def _draw_episode(result: OpenLoopResult, episode: EpisodeResult) -> bytes:
    """Draw one panel per dimension over the episode."""
    dims = len(result.names)
    columns = 1 if dims == 1 else 2
    rows = math.ceil(dims / columns)
    with plotting.new_figure(9, 0.55 + 1.75 * rows) as figure:
        axes: Any = figure.subplots(rows, columns, sharex=True, squeeze=False)
        for place, axis in enumerate(axes.flat):
            if place >= dims:
                axis.set_visible(False)
                continue
            _draw_dimension(axis, result, episode, place)
        for column in range(columns):
            lowest = axes[(dims - 1 - column) // columns, column]
            lowest.set_xlabel(f"frame ({result.fps} per second)")
            lowest.tick_params(labelbottom=True)
        handles, labels = axes[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper right", ncols=len(labels))
        return plotting.png(figure)


def _draw_dimension(axis: Any, result: OpenLoopResult, episode: EpisodeResult, place: int) -> None:
    frames = episode.frames
    error = episode.error[..., place][episode.valid].mean()
    shown = _whole_demonstration(episode, place)
    axis.plot(*shown, color=GREY, lw=3.2, alpha=0.75, solid_capstyle="round", label="demonstrated")
    low, high = episode.low[:, 0, place], episode.high[:, 0, place]
    axis.fill_between(frames, low, high, color=BLUE, alpha=0.18, lw=0, label=f"{BAND:.0%} band")
    chunk = episode.predicted.shape[1]
    stride = int(frames[1] - frames[0]) if len(frames) > 1 else 1
    for row in range(0, len(frames), max(1, round(chunk / stride))):
        steps = episode.valid[row].sum()
        label = "whole chunks" if row == 0 and chunk > 1 else None
        values = episode.predicted[row, :steps, place]
        axis.plot(frames[row] + np.arange(steps), values, color=ORANGE, lw=0.8, alpha=0.8, label=label)
    first = episode.predicted[:, 0, place]
    axis.plot(frames, first, color=BLUE, lw=1.1, marker="o", ms=2.2, label="predicted")
    axis.set_title(f"{result.names[place]}    mean error {number(float(error))}")
    axis.margins(x=0.01, y=0.08)
    low, high = axis.get_ylim()
    # A constant fills no axis, which would magnify rounding errors.
    if np.ptp(shown[1]) == 0 and high - low < 0.2 * max(abs(low), abs(high)):
        axis.set_ylim(low - 1, high + 1)


def _whole_demonstration(episode: EpisodeResult, place: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return frames and demonstrated values, also those between the queried frames that chunks cover."""
    known: dict[int, float] = {}
    for row, frame in enumerate(episode.frames.tolist()):
        for step in range(int(episode.valid[row].sum())):
            known[frame + step] = float(episode.demonstrated[row, step, place])
    frames = sorted(known)
    return np.array(frames), np.array([known[frame] for frame in frames])
