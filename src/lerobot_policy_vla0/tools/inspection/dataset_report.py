"""Writes the report on a dataset: for the terminal, and as a folder with a page, Markdown, pictures and JSON."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.patches import Rectangle
from matplotlib.ticker import NullFormatter
from torch import Tensor
from torchvision.io import encode_png

from lerobot_policy_vla0.tools.inspection.dataset import Inspection, Picture
from lerobot_policy_vla0.tools.inspection.report_folder import write_report
from lerobot_policy_vla0.tools.reporting import pages
from lerobot_policy_vla0.tools.reporting import plots as plotting
from lerobot_policy_vla0.tools.reporting.pages import Table, number, share_text
from lerobot_policy_vla0.tools.reporting.plots import BLUE, GREY, ORANGE


def terminal(numbers: dict[str, Any]) -> str:
    """Return the report as text."""
    return _document(numbers, pages.text_table, heading=lambda text: f"{text}\n{'-' * len(text)}")


def write(inspection: Inspection, folder: Path) -> Path:
    """Write ``index.html`` (self-contained), ``report.md``, ``report.json`` and the pictures; return the page.

    ``model_input*.png`` are the pixels that the model gets, ``camera_*.png`` each camera's part of them.
    """
    numbers, size = inspection.numbers, len(inspection.model_input)
    inputs = [f"model_input{'' if size == 1 else f'_{place + 1}'}.png" for place in range(size)]
    exact: dict[str, Tensor] = dict(zip(inputs, inspection.model_input, strict=True))
    exact |= {
        f"camera_{p.key.removeprefix('observation.').replace('.', '_')}.png": p.seen
        for p in inspection.pictures
    }
    pictures = {name: bytes(encode_png(image).numpy()) for name, image in exact.items()}
    pictures["crops.png"] = _draw_crops(inspection.pictures)
    pictures["actions.png"] = _draw_actions(inspection)
    shown = "\n\n".join(f"![{name}]({name})" for name in ("crops.png", *inputs))
    document = _document(numbers, pages.markdown_table, heading=lambda text: f"## {text}")
    markdown = f"# {numbers['dataset']}\n\n{document}\n\n## Pictures\n\n{shown}\n"

    findings = numbers["findings"]
    found = pages.html_list(findings, warnings=True) if findings else pages.html_text(_NOTHING)
    sections = {heading: "".join(map(_html, blocks)) for heading, blocks in _sections(numbers).items()}
    sections["Actions"] += pages.html_image(pictures["actions.png"], _ACTIONS)
    sections["Actions as numbers"] += pages.html_text(_BINS_NOTE)
    sections["Pictures"] += pages.html_image(pictures["crops.png"], _CROPS) + "".join(
        pages.html_image(pictures[name], f"What the model sees, pixel for pixel: {_size(exact[name])}.")
        for name in inputs
    )
    page = pages.page(
        f"VLA-0 on {numbers['dataset']}", _lead(numbers), [(_FINDINGS, found), *sections.items()]
    )
    return write_report(folder, numbers, pictures, {"index.html": page, "report.md": markdown})


_FINDINGS = "Worth a second look"
_NOTHING = "Nothing: no constant or outlier-dominated action, no squeezed picture."
_ACTIONS = (
    "Distribution of each action over the dataset, in the robot's units. Shaded: the range that the bins cover. "
    "Dotted: the middle 98 % of the values."
)
_CROPS = (
    "One frame. Left: as recorded, with the crop box (orange) and what evaluation sees (blue; training moves a window "
    "of that size about). Right: after resizing."
)
_BINS_NOTE = (
    "Error: what writing an action as an integer and reading it back changes, measured on the data. Vanishing: "
    "changes from one frame to the next that fall into one bin."
)


#: What a section holds: tables, lists, and paragraphs of text.
_Block = Table | list[str] | str


def _sections(numbers: dict[str, Any]) -> dict[str, list[_Block]]:
    """Return the sections that all forms of the report have."""
    return {
        "Actions": [_action_table(numbers)],
        "Actions as numbers": [_bins_table(numbers), _step_table(numbers)],
        "Pictures": [_camera_table(numbers)],
        "Prompt and answer": [_prompt_lines(numbers)],
        "Tasks": [_task_table(numbers)],
        "Training, computed": _estimates(numbers["estimates"]),
    }


def _document(numbers: dict[str, Any], table: Callable[[Table], str], heading: Callable[[str], str]) -> str:
    """Return the report as plain text or Markdown."""
    parts = [_lead(numbers)]
    for title, blocks in {**_sections(numbers), _FINDINGS: [numbers["findings"] or _NOTHING]}.items():
        parts.append(heading(title))
        for block in blocks:
            if isinstance(block, Table):
                parts.append(table(block))
            else:
                parts.append(block if isinstance(block, str) else "\n".join(f"- {line}" for line in block))
    return "\n\n".join(parts)


def _html(block: _Block) -> str:
    if isinstance(block, Table):
        return pages.html_table(block)
    return pages.html_text(block) if isinstance(block, str) else pages.html_list(block)


def _lead(numbers: dict[str, Any]) -> str:
    length = numbers["episode_length"]
    return (
        f"{numbers['episodes']} episodes, {numbers['frames']} frames at {numbers['fps']} per second; episodes of "
        f"{length['min']} to {length['max']} frames (median {length['median']:g}). A chunk of {numbers['chunk_size']} "
        f"steps is {number(numbers['chunk_seconds'])} s; {share_text(numbers['padded_share'])} of all steps lie past "
        "an episode's end."
    )


# ---------------------------------------------------------------------- tables


def _action_table(numbers: dict[str, Any]) -> Table:
    header = ["action", "min", "1 %", "median", "99 %", "max"]
    header += ["middle 98 %", "bins cover", "outside", "values"]
    rows = [
        [
            f"{place} {row['name']}" if row["name"] != str(place) else row["name"],
            *(number(row[key]) for key in ("min", "q01", "median", "q99", "max")),
            f"{share_text(row['middle_98_share_of_range'])} of range",
            f"{number(row['normalised_from'])} to {number(row['normalised_to'])}",
            share_text(row["outside_range"]),
            str(row["distinct_values"]),
        ]
        for place, row in enumerate(numbers["actions"])
    ]
    return Table(header, rows)


def _bins_table(numbers: dict[str, Any]) -> Table:
    header = ["n_bins", "tokens per chunk", "longest", "possible", "largest error", "vanishing changes"]
    rows = []
    for row in numbers["quantisation"]:
        vanishing = [share for share in row["vanishing_changes"] if share is not None]
        rows.append(
            [
                _own(row, numbers),
                f"{row['tokens_mean']:.1f}",
                str(row["tokens_max"]),
                str(row["tokens_longest_possible"]),
                number(max(row["max_error"])),
                share_text(float(np.mean(vanishing))) if vanishing else "no changes",
            ]
        )
    return Table(header, rows)


def _step_table(numbers: dict[str, Any]) -> Table:
    """Show one step and its mean error in the robot's units: a row per dimension, a column per number of bins."""
    written = numbers["quantisation"]
    own = next(row for row in written if row["n_bins"] == numbers["n_bins"])
    rows = [
        [
            described["name"],
            *(f"{number(row['step'][place])} (±{number(row['mean_error'][place])})" for row in written),
            str(own["levels_used"][place]),
        ]
        for place, described in enumerate(numbers["actions"])
    ]
    return Table(["one step (mean error)", *(_own(row, numbers) for row in written), "levels used"], rows)


def _own(row: dict[str, Any], numbers: dict[str, Any]) -> str:
    return f"{row['n_bins']}{' (this policy)' if row['n_bins'] == numbers['n_bins'] else ''}"


def _camera_table(numbers: dict[str, Any]) -> Table:
    sizes = ("size", "after_crop_box", "seen", "resized_to")
    rows = [
        [camera["key"], *(f"{camera[size][1]}x{camera[size][0]}" for size in sizes)]
        for camera in numbers["cameras"]
    ]
    rows += [[key, "not read", "", "", ""] for key in numbers["ignored_cameras"]]
    return Table(["camera (width x height)", "recorded", "crop box", "seen", "resized to"], rows)


def _task_table(numbers: dict[str, Any]) -> Table:
    rows = [[task or "(empty)", str(count)] for task, count in numbers["tasks"].items()]
    return Table(["task", "episodes"], rows)


def _prompt_lines(numbers: dict[str, Any]) -> list[str]:
    prompt = numbers["prompt"]
    own = next(row for row in numbers["quantisation"] if row["n_bins"] == numbers["n_bins"])
    images = prompt["image_tokens"]
    longest = prompt["longest_prompt_tokens"]
    return [
        f"Image tokens: {sum(images)} in {f'{len(images)} images' if len(images) > 1 else 'one image'}.",
        f"Prompt: text not counted, because {prompt['not_counted']}."
        if longest is None
        else f"Prompt: {longest} tokens with the longest task, images included.",
        f"Answer: {own['tokens_mean']:.1f} tokens on average, {own['tokens_max']} at most, end and newline included "
        f"({own['chunks_counted']} chunks counted).",
        f"System prompt: {prompt['system_prompt']}",
    ]


def _estimates(estimates: dict[str, Any]) -> list[_Block]:
    if "not_computed" in estimates:
        return [f"Not computed: {estimates['not_computed']}."]
    return [_estimate_text(estimates), _memory_table(estimates)]


def _estimate_text(estimates: dict[str, Any]) -> str:
    petaflop = estimates["petaflop_per_epoch"]
    return (
        f"{estimates['backbone']}, {estimates['batch_size']} samples per step: {estimates['steps_per_epoch']} steps "
        f"per epoch, {estimates['tokens_per_sample']} tokens per sample{estimates['left_out']}. An epoch takes "
        f"{number(petaflop)} petaflop ({number(estimates['teraflop_per_sample'])} teraflop per sample): "
        f"{_duration(petaflop / 0.1)} for an accelerator that sustains 100 teraflop per second. Computed from the "
        "backbone's shapes; what yours sustains is for you to measure. Memory in GB, with gradient checkpointing, "
        "without fragmentation and workspaces:"
    )


def _duration(seconds: float) -> str:
    """Write seconds as people say them.

    >>> _duration(30.0), _duration(600.0), _duration(36_000.0)
    ('30 s', '10 minutes', '10 hours')
    """
    if seconds < 120:
        return f"{number(seconds, 2)} s"
    return f"{number(seconds / 60, 2)} minutes" if seconds < 7200 else f"{number(seconds / 3600, 2)} hours"


def _memory_table(estimates: dict[str, Any]) -> Table:
    memory = estimates["memory_gb_with_gradient_checkpointing"]
    parts = list(next(iter(memory.values())))
    rows = [[way, *(number(row[part]) for part in parts)] for way, row in memory.items()]
    return Table(["way of training", *(part.replace("_", " ") for part in parts)], rows)


# ---------------------------------------------------------------------- pictures


def _size(image: Tensor) -> str:
    return f"{image.shape[2]}x{image.shape[1]}"


def _draw_crops(pictures: list[Picture]) -> bytes:
    """Draw each camera's frame with its crops, and what is left of it."""
    with plotting.new_figure(9, 3.4 * len(pictures)) as figure:
        axes: Any = figure.subplots(len(pictures), 2, squeeze=False)
        for (left, right), picture in zip(axes, pictures, strict=True):
            original = picture.original.permute(1, 2, 0).numpy()
            top, first, height, width = picture.window
            dimmed = (original * 0.45 + 255 * 0.3).astype(np.uint8)
            inside = np.s_[top : top + height, first : first + width]
            dimmed[inside] = original[inside]
            left.imshow(dimmed)
            for (y, x, h, w), color in ((picture.box, ORANGE), (picture.window, BLUE)):
                left.add_patch(
                    Rectangle((x - 0.5, y - 0.5), w, h, fill=False, ec=color, lw=1.8, clip_on=False)
                )
            left.set_title(f"{picture.key}, {_size(picture.original)}")
            right.imshow(picture.seen.permute(1, 2, 0).numpy(), interpolation="nearest")
            right.set_title(f"resized to {_size(picture.seen)}")
            for axis in (left, right):
                axis.set_xticks([])
                axis.set_yticks([])
                axis.spines[:].set_visible(False)
        return plotting.png(figure)


def _draw_actions(inspection: Inspection) -> bytes:
    """Draw a histogram per dimension with the range the bins cover."""
    rows = inspection.numbers["actions"]
    columns = min(4, len(rows))
    lines = math.ceil(len(rows) / columns)
    with plotting.new_figure(9, 0.3 + 1.75 * lines) as figure:
        axes: Any = figure.subplots(lines, columns, squeeze=False)
        for place, axis in enumerate(axes.flat):
            if place >= len(rows):
                axis.set_visible(False)
                continue
            row = rows[place]
            values = inspection.actions[:, place]
            low, high = row["normalised_from"], row["normalised_to"]
            if row["min"] == row["max"]:
                axis.bar([row["min"]], [1], width=0.05, color=GREY)
                axis.set(xlim=(row["min"] - 1, row["min"] + 1), ylim=(0.005, 1.3))
                axis.set_title(f"{row['name']}    never changes")
            else:
                axis.axvspan(low, high, color=BLUE, alpha=0.10, lw=0)
                axis.hist(values, bins=60, color=BLUE, weights=np.full(len(values), 1 / len(values)))
                for limit in (row["q01"], row["q99"]):
                    axis.axvline(limit, color=ORANGE, lw=1.1, ls=":")
                axis.set_ylim(min(0.5 / len(values), 0.005), 1.3)
                axis.set_title(row["name"])
            axis.set_yscale("log")
            axis.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
            axis.yaxis.set_minor_formatter(NullFormatter())
            axis.tick_params(labelsize=7.5)
        return plotting.png(figure)
