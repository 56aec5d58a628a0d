"""What VLA-0 will make of a dataset: ranges, quantisation, text length, pictures, cost. Measured on the data itself.

Reads actions (all of them, no video) and one frame. Normalises with LeRobot's own step and writes with the policy's own
codec, so that what is reported is what training will see. Computes; prints and writes nothing.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lerobot_policy_vla0.configuration_vla0 import VLA0Config
from lerobot_policy_vla0.dataset_stats import check_stats
from lerobot_policy_vla0.errors import DatasetError
from lerobot_policy_vla0.observations.batches import image_problems, raise_for_problems, select_cameras
from lerobot_policy_vla0.observations.images import box_window, evaluation_window, tile, transform
from lerobot_policy_vla0.text.prompt import PromptEncoder
from lerobot_policy_vla0.tools.inspection.actions import (
    action_ranges,
    coarseness,
    padded_share,
    quantisation,
    read_actions,
    tidy,
)
from lerobot_policy_vla0.tools.inspection.cost import (
    BackboneFacts,
    backbone_facts,
    memory_table,
    training_flops,
)
from lerobot_policy_vla0.tools.loading import (
    DatasetSource,
    action_names,
    episode_tasks,
    fill_features,
)

#: Numbers of bins that are compared; the policy's own is added.
BINS = (100, 250, 1000, 4000)


@dataclass
class Picture:
    """One camera of one frame.

    Attributes:
        key: of the dataset.
        original: ``(3, H, W)`` uint8.
        seen: ``(3, h, w)`` uint8, what the model sees of it in evaluation.
        box, window: ``(top, left, height, width)`` of the crop box and of what is seen, in the original's pixels.
    """

    key: str
    original: Tensor
    seen: Tensor
    box: tuple[int, int, int, int]
    window: tuple[int, int, int, int]


@dataclass
class Inspection:
    """Everything found.

    Attributes:
        numbers: for JSON and the report's tables.
        actions: ``(N, D)`` float32, the robot's units.
        pictures: of one frame, in the model's order.
        model_input: the pictures as the model gets them: one tiled image, or one per camera; ``(3, h, w)`` uint8.
        findings: what deserves a second look, as sentences.
    """

    numbers: dict[str, Any]
    actions: NDArray[Any]
    pictures: list[Picture]
    model_input: list[Tensor]
    findings: list[str]


def inspect(
    source: DatasetSource, config: VLA0Config, *, episode: int = 0, frame: int = 0, batch_size: int = 8
) -> Inspection:
    """Inspect a dataset for a policy that is to be trained on it.

    Args:
        source: the dataset.
        config: the policy's options; the dataset's features are filled in.
        episode: episode of the picture shown.
        frame: of that episode.
        batch_size: samples per GPU, for the estimates.

    Raises:
        DatasetError: if the dataset, or that frame, does not exist.
        StatsError: if its statistics cannot normalise actions.
        ActionError: if actions are NaN or infinite.
        CameraError, ConfigError: if the options do not fit the dataset.
    """
    meta = source.metadata()
    fill_features(config, meta)
    if config.use_relative_actions:
        raise DatasetError(
            "use_relative_actions=True: a chunk's offsets depend on where it begins, which this report, made of single "
            "frames, cannot show. Leave it out to inspect the absolute actions."
        )
    check_stats(config, meta.stats)
    if batch_size < 1:
        raise DatasetError(f"--batch-size={batch_size} must be at least 1.")
    lengths = [int(meta.episodes[index]["length"]) for index in range(meta.total_episodes)]
    if not 0 <= episode < len(lengths) or not 0 <= frame < lengths[episode]:
        last = lengths[episode] - 1 if 0 <= episode < len(lengths) else None
        raise DatasetError(
            f"there is no frame {frame} of episode {episode}: the dataset has the episodes 0 to {len(lengths) - 1}"
            + (f", and this one the frames 0 to {last}." if last is not None else ".")
        )
    actions = read_actions(source, lengths)
    names = action_names(meta)
    ranges, findings = action_ranges(actions, names, config, meta.stats)
    written = [
        quantisation(actions, lengths, names, config, meta.stats, bins)
        for bins in sorted({*BINS, config.n_bins})
    ]
    own = next(row for row in written if row["n_bins"] == config.n_bins)
    findings += coarseness(own, config)
    pictures, model_input = _pictures(source, config, sum(lengths[:episode]) + frame, episode)
    findings += [line for picture in pictures for line in _picture_findings(picture, config)]
    tasks = Counter(task for index in range(len(lengths)) for task in episode_tasks(meta, index))
    if "" in tasks:
        findings.append(
            f"{tasks['']} episode(s) have an empty task text: the image alone tells the model what to do."
        )
    short = sum(length < config.chunk_size for length in lengths)
    if short:
        findings.append(f"{short} episode(s) are shorter than chunk_size={config.chunk_size}.")
    facts = backbone_facts(config)
    prompt = _prompt(config, facts, sorted(tasks))
    numbers = {
        "dataset": source.repo_id,
        "episodes": len(lengths),
        "frames": sum(lengths),
        "fps": int(meta.fps),
        "episode_length": _spread(lengths),
        "tasks": dict(sorted(tasks.items(), key=lambda item: (-item[1], item[0]))),
        "chunk_size": config.chunk_size,
        "chunk_seconds": tidy(config.chunk_size / meta.fps),
        "padded_share": tidy(padded_share(lengths, config.chunk_size)),
        "n_bins": config.n_bins,
        "normalization": config.normalization_mapping["ACTION"].value,
        "actions": ranges,
        "quantisation": written,
        "cameras": [
            {
                "key": p.key,
                "size": list(p.original.shape[1:]),
                "after_crop_box": list(p.box[2:]),
                "seen": list(p.window[2:]),
                "resized_to": list(p.seen.shape[1:]),
            }
            for p in pictures
        ],
        "ignored_cameras": [
            key for key in meta.camera_keys if key not in config.camera_keys and key not in meta.depth_keys
        ],
        "prompt": prompt,
        "estimates": _estimates(config, facts, prompt, own, sum(lengths), batch_size),
        "findings": findings,
    }
    return Inspection(numbers, actions, pictures, model_input, findings)


# ---------------------------------------------------------------------- pictures


def _pictures(
    source: DatasetSource, config: VLA0Config, index: int, episode: int
) -> tuple[list[Picture], list[Tensor]]:
    """Return one frame's pictures, and what the model gets to see of them in evaluation."""
    dataset = source.open(episodes=[episode])
    places = dataset.absolute_to_relative_idx or {}
    item = dataset[places.get(index, index)]
    batch = {key: item[key].unsqueeze(0) for key in config.image_features}
    images = select_cameras(batch, config.camera_keys, config.image_features)
    raise_for_problems(image_problems(images).tolist(), config.camera_keys)
    settings = config.image_settings()
    seen = transform(images, settings, None)
    pictures = []
    for key, image, small in zip(config.camera_keys, images, seen, strict=True):
        height, width = image.shape[-2:]
        original = image[0] if image.dtype == torch.uint8 else (image[0].clamp(0, 1) * 255).round().byte()
        pictures.append(
            Picture(
                key,
                original,
                small[0],
                box_window(height, width, config.crop_box),
                evaluation_window(height, width, settings),
            )
        )
    return pictures, [tile(seen)[0]] if config.tile_images else [small[0] for small in seen]


def _picture_findings(picture: Picture, config: VLA0Config) -> list[str]:
    findings = []
    _, _, height, width = picture.window
    out_h, out_w = picture.seen.shape[1:]
    stretch = (width / height) / (out_w / out_h)
    if not 0.8 <= stretch <= 1.25:
        narrower = "narrower" if stretch > 1 else "wider"
        findings.append(
            f"{picture.key}: what is seen ({width}x{height}) has another shape than image_size ({out_w}x{out_h}), so "
            f"things look {max(stretch, 1 / stretch):.2f} times {narrower} than they are. Usual, and the same in "
            "training and evaluation; --policy.crop_box or --policy.image_size avoid it."
        )
    shrink = max(height / out_h, width / out_w)
    if shrink > 2 and not config.antialias:
        findings.append(
            f"{picture.key}: shrinking {shrink:.1f} times without a filter skips pixels, and small things flicker. "
            "Consider --policy.antialias=true, or a --policy.crop_box around the workspace."
        )
    return findings


# ---------------------------------------------------------------------- text and cost


def _prompt(config: VLA0Config, facts: BackboneFacts, tasks: list[str]) -> dict[str, Any]:
    """Count image tokens, and the prompt's tokens if there is a tokenizer to count with."""
    patch, merge = 14, 2
    if facts.config is not None:
        patch, merge = facts.config.vision_config.patch_size, facts.config.vision_config.spatial_merge_size
    settings = config.prompt_settings(patch, merge, pad_token_id=0)  # nothing is padded here
    longest = None
    if facts.tokenizer is not None:
        encoder = PromptEncoder(facts.tokenizer, settings)
        state = [settings.n_bins] * settings.state_dim or None  # no state is longer
        longest = max(len(encoder.encode(task, state)) for task in tasks)
    return {
        "image_tokens": list(settings.image_tokens),
        "longest_prompt_tokens": longest,
        "not_counted": facts.missing if longest is None else "",
        "system_prompt": settings.system_prompt,
    }


def _estimates(
    config: VLA0Config,
    facts: BackboneFacts,
    prompt: dict[str, Any],
    quantisation: dict[str, Any],
    frames: int,
    batch_size: int,
) -> dict[str, Any]:
    """Compute memory and arithmetic of training; nothing is measured."""
    if facts.config is None:
        return {"not_computed": facts.missing}
    patches = sum(prompt["image_tokens"]) * facts.config.vision_config.spatial_merge_size**2
    text = prompt["longest_prompt_tokens"] or sum(prompt["image_tokens"])
    length = text + quantisation["tokens_max"]
    flops = training_flops(
        facts.config,
        length=length,
        answer=quantisation["tokens_max"],
        patches=patches,
        checkpointing=config.gradient_checkpointing,
        vision_frozen=config.freeze_vision_encoder,
    )
    return {
        "backbone": config.vlm_model_name,
        "batch_size": batch_size,
        "tokens_per_sample": length,
        "left_out": "" if prompt["longest_prompt_tokens"] else ", without the prompt's text",
        "steps_per_epoch": math.ceil(frames / batch_size),
        "memory_gb_with_gradient_checkpointing": memory_table(batch_size, length, patches, facts.config),
        "teraflop_per_sample": tidy(flops / 1e12),
        "petaflop_per_epoch": tidy(flops * frames / 1e15),
    }


# ---------------------------------------------------------------------- small things


def _spread(lengths: list[int]) -> dict[str, Any]:
    return {"min": min(lengths), "median": float(np.median(lengths)), "max": max(lengths)}
