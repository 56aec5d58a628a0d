"""Writes ``vla0.json``: everything that a client of the served model has to know, for readers in any language.

It says what the model is asked, what it answers, and how numbers become actions. This package's own client reads the
robot's folder instead.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lerobot.configs.types import FeatureType
from lerobot.utils.constants import ACTION, OBS_STATE
from torch import Tensor

import lerobot_policy_vla0
from lerobot_policy_vla0.checkpoints.exported import PROTOCOL_FILE
from lerobot_policy_vla0.dataset_stats import ENDS_OF_MODE
from lerobot_policy_vla0.observations.images import TRUNCATION_SLACK
from lerobot_policy_vla0.output_files import write_text
from lerobot_policy_vla0.text.grammar_languages import (
    answer_gbnf,
    answer_lark,
    answer_regex,
    number_alternatives,
)
from lerobot_policy_vla0.tools.exporting.model_files import picture_size

if TYPE_CHECKING:
    from lerobot_policy_vla0.configuration_vla0 import VLA0Config

#: Raised when a reader of an older file would misunderstand a newer one.
FORMAT = 1

#: The answer's grammar, each language in a file of its own: engines take text, and JSON would escape it.
GRAMMARS = {"grammar.regex": answer_regex, "grammar.gbnf": answer_gbnf, "grammar.lark": answer_lark}


def write_protocol(
    folder: Path,
    config: VLA0Config,
    stats: dict[str, dict[str, Tensor]],
    *,
    image_tokens: list[int],
    adapter: dict[str, Any] | None = None,
) -> None:
    """Write ``vla0.json`` and the grammars.

    Args:
        folder: gets the files.
        config: the policy's options, with its features.
        stats: the statistics that the policy's processors normalise with.
        image_tokens: tokens of each picture of a prompt.
        adapter: what has to be served with an adapter that is exported alone.
    """
    for name, grammar in GRAMMARS.items():
        # No newline at the end: a client that sends the file as it is would send it as a part of the regex.
        write_text(folder / name, grammar(config.n_bins, config.chunk_size * config.action_dim))
    content = describe(config, stats, image_tokens=image_tokens)
    write_text(folder / PROTOCOL_FILE, _readable({**content, "adapter": adapter} if adapter else content))


def describe(
    config: VLA0Config, stats: dict[str, dict[str, Tensor]], *, image_tokens: list[int]
) -> dict[str, Any]:
    """Return the content of ``vla0.json``; for the arguments see `write_protocol`."""
    return {
        "format": FORMAT,
        "written_by": f"lerobot_policy_vla0 {lerobot_policy_vla0.__version__}",
        "license": config.license,
        "prompt": _prompt(config, image_tokens),
        "cameras": [
            {"key": key, "trained_on": list(config.image_features[key].shape)} for key in config.camera_keys
        ],
        "picture": _picture(config),
        "state": _state(config, stats),
        "answer": _answer(config),
        "actions": _actions(config, stats),
        "execution": _execution(config),
    }


def _prompt(config: VLA0Config, image_tokens: list[int]) -> dict[str, Any]:
    content: list[dict[str, Any]] = []
    for number in range(1, len(image_tokens) + 1):
        if config.add_vision_id:
            content.append({"type": "text", "text": f"Picture {number}: "})
        content.append({"type": "image_url", "image_url": {"url": "data:image/png;base64,{PICTURE}"}})
    text = "State: {STATE}\n{TASK}" if config.state_in_prompt else "{TASK}"
    return {
        "messages": [
            {"role": "system", "content": config.filled_system_prompt},
            {"role": "user", "content": [*content, {"type": "text", "text": text}]},
        ],
        "fields": "{PICTURE}: the base64 of a PNG, see 'picture'. {TASK}: the instruction, unchanged."
        + (" {STATE}: integers, see 'state'." if config.state_in_prompt else ""),
        "tokens_of_each_picture": image_tokens,
        "temperature": config.temperature,
        "repetition_penalty": config.repetition_penalty,
    }


def _picture(config: VLA0Config) -> dict[str, Any]:
    pixels = picture_size(config)
    return {
        "crop_box": None if config.crop_box is None else list(config.crop_box),
        "crop_ratio": config.crop_ratio,
        "camera_size": list(config.image_size),
        "antialias": config.antialias,
        "tiled": config.tile_images,
        "sent_size": list(pixels),
        "sizes": "height, width, in pixels; round() takes halves to the even neighbour",
        "steps": [
            "crop_box (x0, y0, x1, y1), if it is not null, are fractions of width and height: keep columns "
            "round(x0*width) to round(x1*width) and rows round(y0*height) to round(y1*height).",
            "crop_ratio: keep the middle round(crop_ratio*side) pixels of each side, from round((side - kept)/2) on.",
            "Divide by 255 and resize to camera_size: bilinear, half-pixel centres, "
            + (
                "with a filter while shrinking (antialias)."
                if config.antialias
                else "without a filter while shrinking."
            ),
            f"Back to bytes: multiply by 255, add {TRUNCATION_SLACK}, truncate.",
            "Put the cameras side by side in the order of 'cameras', the first on the left: one picture."
            if config.tile_images
            else "Each camera is a picture of its own, in the order of 'cameras'.",
            "Write it as PNG. The engine's processor must not resize it; its limits in preprocessor_config.json "
            "are such that it does not.",
        ],
    }


def _state(config: VLA0Config, stats: dict[str, dict[str, Tensor]]) -> dict[str, Any] | None:
    if not config.state_in_prompt:
        return None
    return {
        "key": OBS_STATE,
        "n_bins": config.n_bins,
        **_range(config, stats, OBS_STATE, "STATE"),
        "text": "round((state - low) / (high - low) * n_bins) of each dimension, clamped to 0 and n_bins, one space "
        "between two integers",
    }


def _answer(config: VLA0Config) -> dict[str, Any]:
    count, digits = config.chunk_size * config.action_dim, len(str(config.n_bins))
    return {
        "chunk_size": config.chunk_size,
        "action_dim": config.action_dim,
        "n_bins": config.n_bins,
        "text": f"{count} integers from 0 to {config.n_bins} without leading zeros, one space between two: all "
        f"{config.action_dim} dimensions of the first step, then of the second, to the last of {config.chunk_size}.",
        "end": "The token <|im_end|> ends an answer, and no other one.",
        "longest_in_tokens": count * (digits + 1),
        "grammar": {name.rpartition(".")[2]: name for name in GRAMMARS},
        "number": f"({'|'.join(number_alternatives(config.n_bins))})",
        "begun": "The rest of an answer that has begun, k integers, is the regex '( number){k}'.",
    }


def _actions(config: VLA0Config, stats: dict[str, dict[str, Tensor]]) -> dict[str, Any]:
    relative = [i for i in range(config.action_dim) if i not in config.absolute_dimensions]
    return {
        "names": config.action_feature_names,
        **_range(config, stats, ACTION, "ACTION"),
        "value": "low + (high - low) * integer / n_bins, in the robot's units",
        "binary_dimensions": list(config.binary_action_indices),
        "binary": "low or high, whichever is nearer, after averaging",
        "relative_dimensions": relative if config.use_relative_actions else [],
        "relative": f"value is an offset: add {OBS_STATE} of the observation that was asked about",
    }


def _execution(config: VLA0Config) -> dict[str, Any]:
    return {
        "n_action_steps": config.n_action_steps,
        "ensemble_n_chunks": config.ensemble_n_chunks,
        "ensemble_old_weight": config.ensemble_old_weight,
        "text": "Execute the first n_action_steps steps of an answer, then ask again. With ensemble_n_chunks above 1, "
        "each step is the weighted mean of the answers that have it: 1 for the newest, ensemble_old_weight for up to "
        "ensemble_n_chunks - 1 older ones.",
        "max_action_step": config.step_limits,
        "max_action_step_unit": config.max_action_step_unit,
        "min_gripper_height": config.min_gripper_height,
    }


def _range(config: VLA0Config, stats: dict[str, dict[str, Tensor]], key: str, kind: str) -> dict[str, Any]:
    """Return the mode and the two ends of a normalised value, by dimension."""
    mode = config.normalization_mapping[FeatureType[kind].value]
    low, high = (stats[key][end].flatten().tolist() for end in ENDS_OF_MODE[mode])
    return {"normalization": mode.value, "statistics": list(ENDS_OF_MODE[mode]), "low": low, "high": high}


def _readable(content: dict[str, Any]) -> str:
    """Write JSON with lists of numbers and of names on one line."""

    def joined(found: re.Match[str]) -> str:
        line = f"[{' '.join(found[1].split())}]"
        return line if '"' not in line or len(line) < 120 else found[0]

    text = json.dumps(content, indent=2, ensure_ascii=False)
    return re.sub(r"\[\n\s+([^\[\]{}]*?)\n\s+\]", joined, text) + "\n"
