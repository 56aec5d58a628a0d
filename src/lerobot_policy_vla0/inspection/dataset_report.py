"""The report on a dataset: for the terminal, and as a folder with a page, Markdown, pictures and JSON."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torchvision.io import encode_png

from lerobot_policy_vla0 import pages
from lerobot_policy_vla0.inspection.dataset import Inspection, Picture
from lerobot_policy_vla0.pages import COLORS, GREY, number, percent

Table = tuple[list[str], list[list[str]]]


def terminal(numbers: dict[str, Any]) -> str:
    """Return the report as text."""
    return _document(numbers, pages.text_table, heading=lambda text: f"{text}\n{'-' * len(text)}")


def write(inspection: Inspection, folder: Path) -> Path:
    """Write ``index.html`` (self-contained), ``report.md``, ``report.json`` and the pictures; return the page.

    ``model_input*.png`` are the very pixels that the model gets, ``camera_*.png`` each camera's part of them.

    Raises:
        ConfigError: if the folder is not empty.
    """
    numbers = inspection.numbers
    pages.empty_folder(folder)
    exact: dict[str, Tensor] = {
        f"model_input{'' if len(inspection.model_input) == 1 else f'_{place + 1}'}.png": image
        for place, image in enumerate(inspection.model_input)
    }
    exact |= {
        f"camera_{p.key.removeprefix('observation.').replace('.', '_')}.png": p.seen
        for p in inspection.pictures
    }
    pictures = {name: bytes(encode_png(image).numpy()) for name, image in exact.items()}
    with pages.drawing() as plt:
        pictures["crops.png"] = pages.figure_png(_draw_crops(plt, inspection.pictures))
        pictures["actions.png"] = pages.figure_png(_draw_actions(plt, inspection))
    for name, png in pictures.items():
        (folder / name).write_bytes(png)
    (folder / "report.json").write_text(json.dumps(numbers, indent=1) + "\n")
    markdown = _document(numbers, pages.markdown_table, heading=lambda text: f"## {text}")
    shown = "\n\n".join(
        f"![{name}]({name})" for name in ("crops.png", *list(exact)[: len(inspection.model_input)])
    )
    (folder / "report.md").write_text(f"# {numbers['dataset']}\n\n{markdown}\n\n## Pictures\n\n{shown}\n")

    def table(content: Table, text: tuple[int, ...] = ()) -> str:
        return pages.html_table(*content, text)

    inputs = "".join(
        pages.html_image(pictures[name], f"What the model sees, pixel for pixel: {_size(exact[name])}.")
        for name in list(exact)[: len(inspection.model_input)]
    )
    findings = numbers["findings"]
    sections = [
        (
            "Worth a second look",
            pages.html_list(findings, warnings=True) if findings else pages.html_text(_NOTHING),
        ),
        ("Actions", table(_action_table(numbers)) + pages.html_image(pictures["actions.png"], _ACTIONS)),
        (
            "Actions as numbers",
            table(_bins_table(numbers)) + table(_step_table(numbers)) + pages.html_text(_BINS_NOTE),
        ),
        (
            "Pictures",
            table(_camera_table(numbers)) + pages.html_image(pictures["crops.png"], _CROPS) + inputs,
        ),
        ("Prompt and answer", pages.html_list(_prompt_lines(numbers))),
        ("Tasks", table(_task_table(numbers))),
        ("Training, computed", _html_estimates(numbers, table)),
    ]
    page = folder / "index.html"
    page.write_text(pages.page(f"VLA-0 on {numbers['dataset']}", _lead(numbers), sections))
    return page


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


def _document(numbers: dict[str, Any], table: Any, heading: Any) -> str:
    findings = [f"- {line}" for line in numbers["findings"]] or [_NOTHING]
    parts = [
        _lead(numbers),
        heading("Actions"),
        table(*_action_table(numbers)),
        heading("Actions as numbers"),
        table(*_bins_table(numbers)),
        table(*_step_table(numbers)),
        heading("Pictures"),
        table(*_camera_table(numbers)),
        heading("Prompt and answer"),
        "\n".join(f"- {line}" for line in _prompt_lines(numbers)),
        heading("Tasks"),
        table(*_task_table(numbers)),
        heading("Training, computed"),
        *_estimate_parts(numbers, table),
        heading("Worth a second look"),
        "\n".join(findings),
    ]
    return "\n\n".join(parts)


def _lead(numbers: dict[str, Any]) -> str:
    length = numbers["episode_length"]
    return (
        f"{numbers['episodes']} episodes, {numbers['frames']} frames at {numbers['fps']} per second; episodes of "
        f"{length['min']} to {length['max']} frames (median {length['median']:g}). A chunk of {numbers['chunk_size']} "
        f"steps is {number(numbers['chunk_seconds'])} s; {percent(numbers['padded_share'])} of all steps lie past an "
        "episode's end."
    )


# ---------------------------------------------------------------------- tables


def _action_table(numbers: dict[str, Any]) -> Table:
    header = [
        "action",
        "min",
        "1 %",
        "median",
        "99 %",
        "max",
        "middle 98 %",
        "bins cover",
        "outside",
        "values",
    ]
    rows = [
        [
            f"{place} {row['name']}" if row["name"] != str(place) else row["name"],
            *(number(row[key]) for key in ("min", "q01", "median", "q99", "max")),
            f"{percent(row['middle_98_share_of_range'])} of range",
            f"{number(row['normalised_from'])} to {number(row['normalised_to'])}",
            percent(row["outside_range"]),
            str(row["distinct_values"]),
        ]
        for place, row in enumerate(numbers["actions"])
    ]
    return header, rows


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
                percent(float(np.mean(vanishing))) if vanishing else "no changes",
            ]
        )
    return header, rows


def _step_table(numbers: dict[str, Any]) -> Table:
    """One step in the robot's units, the mean error beside it, a row per dimension and a column per number of bins."""
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
    return ["one step (mean error)", *(f"{_own(row, numbers)}" for row in written), "levels used"], rows


def _own(row: dict[str, Any], numbers: dict[str, Any]) -> str:
    return f"{row['n_bins']}{' (this policy)' if row['n_bins'] == numbers['n_bins'] else ''}"


def _camera_table(numbers: dict[str, Any]) -> Table:
    rows = [
        [
            camera["key"],
            *(
                f"{camera[key][1]}x{camera[key][0]}"
                for key in ("size", "after_crop_box", "seen", "resized_to")
            ),
        ]
        for camera in numbers["cameras"]
    ]
    rows += [[key, "not read", "", "", ""] for key in numbers["ignored_cameras"]]
    return ["camera (width x height)", "recorded", "crop box", "seen", "resized to"], rows


def _task_table(numbers: dict[str, Any]) -> Table:
    return ["task", "episodes"], [[task or "(empty)", str(count)] for task, count in numbers["tasks"].items()]


def _prompt_lines(numbers: dict[str, Any]) -> list[str]:
    prompt = numbers["prompt"]
    own = next(row for row in numbers["quantisation"] if row["n_bins"] == numbers["n_bins"])
    images = prompt["image_tokens"]
    lines = [
        f"Image tokens: {sum(images)}"
        + (f" in {len(images)} images" if len(images) > 1 else " in one image")
        + ".",
        f"Answer: {own['tokens_mean']:.1f} tokens on average, {own['tokens_max']} at most, end and newline included "
        f"({own['chunks_counted']} chunks counted).",
        f"System prompt: {prompt['system_prompt']}",
    ]
    if prompt["longest_prompt_tokens"] is None:
        lines.insert(1, f"Prompt: text not counted, because {prompt['not_counted']}.")
    else:
        lines.insert(
            1, f"Prompt: {prompt['longest_prompt_tokens']} tokens with the longest task, images included."
        )
    return lines


def _estimate_parts(numbers: dict[str, Any], table: Any) -> list[str]:
    estimates = numbers["estimates"]
    if "not_computed" in estimates:
        return [f"Not computed: {estimates['not_computed']}."]
    return [_estimate_text(estimates), table(*_memory_table(estimates))]


def _html_estimates(numbers: dict[str, Any], table: Any) -> str:
    estimates = numbers["estimates"]
    if "not_computed" in estimates:
        return pages.html_text(f"Not computed: {estimates['not_computed']}.")
    return pages.html_text(_estimate_text(estimates)) + str(table(_memory_table(estimates)))


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
    return ["way of training", *(part.replace("_", " ") for part in parts)], rows


# ---------------------------------------------------------------------- pictures


def _size(image: Tensor) -> str:
    return f"{image.shape[2]}x{image.shape[1]}"


def _draw_crops(plt: Any, pictures: list[Picture]) -> Any:
    """Draw each camera's frame with its crops, beside what is left of it."""
    figure, axes = plt.subplots(
        len(pictures), 2, figsize=(9, 3.4 * len(pictures)), squeeze=False, layout="constrained"
    )
    for (left, right), picture in zip(axes, pictures, strict=True):
        original = picture.original.permute(1, 2, 0).numpy()
        top, first, height, width = picture.window
        dimmed = (original * 0.45 + 255 * 0.3).astype(np.uint8)
        inside = np.s_[top : top + height, first : first + width]
        dimmed[inside] = original[inside]
        left.imshow(dimmed)
        for (y, x, h, w), color in ((picture.box, COLORS[1]), (picture.window, COLORS[0])):
            left.add_patch(
                plt.Rectangle((x - 0.5, y - 0.5), w, h, fill=False, ec=color, lw=1.8, clip_on=False)
            )
        left.set_title(f"{picture.key}, {_size(picture.original)}")
        right.imshow(picture.seen.permute(1, 2, 0).numpy(), interpolation="nearest")
        right.set_title(f"resized to {_size(picture.seen)}")
        for axis in (left, right):
            axis.set_xticks([])
            axis.set_yticks([])
            axis.spines[:].set_visible(False)
    return figure


def _draw_actions(plt: Any, inspection: Inspection) -> Any:
    """Draw a histogram per dimension with the range the bins cover."""
    rows = inspection.numbers["actions"]
    columns = min(4, len(rows))
    lines = math.ceil(len(rows) / columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(9, 0.3 + 1.75 * lines), squeeze=False, layout="constrained"
    )
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
            axis.axvspan(low, high, color=COLORS[0], alpha=0.10, lw=0)
            axis.hist(values, bins=60, color=COLORS[0], weights=np.full(len(values), 1 / len(values)))
            for limit in (row["q01"], row["q99"]):
                axis.axvline(limit, color=COLORS[1], lw=1.1, ls=":")
            axis.set_ylim(min(0.5 / len(values), 0.005), 1.3)
            axis.set_title(row["name"])
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
        axis.yaxis.set_minor_formatter(plt.NullFormatter())
        axis.tick_params(labelsize=7.5)
    return figure
