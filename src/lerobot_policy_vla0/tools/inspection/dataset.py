"""Measures what VLA-0 will make of a dataset: ranges, quantisation, text length, pictures, cost.

It reads all actions and one frame. LeRobot's own step normalises the actions and the policy's own codec writes them, so
that the report shows what training will see.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lerobot.configs.types import NormalizationMode
from lerobot.lerobot_types import TransitionKey
from lerobot.processor import make_default_policy_processor_steps
from lerobot.processor.converters import create_transition
from lerobot.utils.constants import ACTION
from numpy.typing import NDArray
from torch import Tensor

from lerobot_policy_vla0.configuration_vla0 import VLA0Config
from lerobot_policy_vla0.dataset_stats import check_stats
from lerobot_policy_vla0.errors import ActionError, DatasetError, StatsError
from lerobot_policy_vla0.observations.batches import image_problems, raise_for_problems, select_cameras
from lerobot_policy_vla0.observations.images import box_window, evaluation_window, tile, transform
from lerobot_policy_vla0.text.codec import ActionCodec, ActionTokens, quantise
from lerobot_policy_vla0.text.prompt import PromptEncoder
from lerobot_policy_vla0.tools.inspection.cost import (
    BackboneFacts,
    backbone_facts,
    memory_table,
    training_flops,
)
from lerobot_policy_vla0.tools.loading import (
    DatasetSource,
    action_names,
    check_frame,
    episode_tasks,
    read_frame,
    set_features,
)

#: Numbers of bins that are compared, besides the policy's own.
BINS = (100, 250, 1000, 4000)
#: Chunks written out to count tokens, evenly spread over the dataset.
MAX_CHUNKS = 20_000
#: A dimension is dominated by outliers if the middle 98 % of its values span less of its range than this.
OUTLIER_SPAN = 0.5

_ANY_TOKENS = ActionTokens(tuple(range(10)), 10, 11, 12, 13, 14)  # lengths do not depend on the ids


@dataclass
class Picture:
    """One camera of one frame."""

    key: str
    original: Tensor  # (3, H, W) uint8
    seen: Tensor  # (3, h, w) uint8, what the model sees of it in evaluation
    box: tuple[int, int, int, int]  # top, left, height and width of the crop box in the original's pixels
    window: tuple[int, int, int, int]  # likewise of what the model sees


@dataclass
class Inspection:
    """What was found in a dataset."""

    numbers: dict[str, Any]  # for JSON and the report's tables
    actions: NDArray[Any]  # (N, D) float32, the robot's units
    pictures: list[Picture]  # of one frame, in the model's order
    model_input: list[Tensor]  # (3, h, w) uint8, one tiled image or one per camera


def inspect(
    source: DatasetSource, config: VLA0Config, *, episode: int = 0, frame: int = 0, batch_size: int = 8
) -> Inspection:
    """Inspect a dataset for a policy that is to be trained on it.

    The config's features are set to the dataset's. ``episode`` and ``frame`` choose the picture. ``batch_size`` is the
    number of samples per GPU, for the estimates.

    Raises:
        DatasetError: if the dataset, or that frame, does not exist.
        StatsError: if its statistics cannot normalise actions.
        ActionError: if actions are NaN or infinite.
        CameraError, ConfigError: if the options do not fit the dataset.
    """
    meta = source.metadata()
    set_features(config, meta)
    if config.use_relative_actions:
        raise DatasetError(
            "use_relative_actions=True: a chunk's offsets depend on where it begins, which this report, made of single "
            "frames, cannot show. Leave it out to inspect the absolute actions."
        )
    check_stats(config, meta.stats)
    if batch_size < 1:
        raise DatasetError(f"--batch-size={batch_size} must be at least 1.")
    lengths = [int(meta.episodes[index]["length"]) for index in range(meta.total_episodes)]
    check_frame(meta, episode, frame)
    actions = read_actions(source, lengths)
    names = action_names(meta)
    ranges, findings = action_ranges(actions, names, config, meta.stats)
    written = [
        quantisation(actions, lengths, names, config, meta.stats, bins)
        for bins in sorted({*BINS, config.n_bins})
    ]
    own = next(row for row in written if row["n_bins"] == config.n_bins)
    findings += coarseness(own, config)
    pictures, model_input = _pictures(read_frame(source, meta, episode, frame), config)
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
        "episode_length": {"min": min(lengths), "median": float(np.median(lengths)), "max": max(lengths)},
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
    return Inspection(numbers, actions, pictures, model_input)


# ---------------------------------------------------------------------- actions


def read_actions(source: DatasetSource, lengths: list[int]) -> NDArray[Any]:
    """Return all actions of a dataset, ``(N, D)`` float32, without decoding a picture."""
    table = source.open(download_videos=False).hf_dataset.select_columns([ACTION]).with_format("numpy")
    actions = np.asarray(table[:][ACTION], dtype=np.float32)
    actions = actions.reshape(len(actions), -1)  # LeRobot stores a single dimension without its axis
    if len(actions) != sum(lengths):
        raise DatasetError(
            f"{source} has {len(actions)} rows of data and {sum(lengths)} frames in its episodes' table. Download it "
            "again, or let LeRobot repair it."
        )
    bad = ~np.isfinite(actions).all(1)
    if bad.any():
        ends = np.cumsum(lengths)
        episodes = sorted({int(np.searchsorted(ends, row, side="right")) for row in np.flatnonzero(bad)})
        dims = np.flatnonzero(~np.isfinite(actions).all(0)).tolist()
        raise ActionError(
            f"{int(bad.sum())} frames have NaN or infinite actions (episodes {episodes[:10]}, dimensions {dims}). "
            "Training would stop at them: repair or drop these episodes, then recompute the statistics."
        )
    return actions


class Normaliser:
    """LeRobot's normalisation of actions, as the policy's processors will do it."""

    def __init__(self, config: VLA0Config, stats: dict[str, dict[str, Any]]) -> None:
        self._steps = make_default_policy_processor_steps(config, stats)

    def normalise(self, actions: Tensor) -> Tensor:
        """Return normalised actions ``(..., D)``, which lie in [-1, 1] if the statistics are right."""
        return self._run(self._steps.normalize, actions)

    def restore(self, actions: Tensor) -> Tensor:
        """Return normalised actions ``(..., D)`` in the robot's units."""
        return self._run(self._steps.unnormalize, actions)

    @staticmethod
    def _run(step: Any, actions: Tensor) -> Tensor:
        out: Tensor = step(create_transition(action=actions))[TransitionKey.ACTION]
        return out.cpu()


def action_ranges(
    actions: NDArray[Any], names: list[str], config: VLA0Config, stats: dict[str, Any]
) -> tuple[list[dict[str, Any]], list[str]]:
    """Describe each dimension, and return what is unusual about it as sentences."""
    normaliser = Normaliser(config, stats)
    ones = torch.ones(1, len(names))
    low, high = (normaliser.restore(sign * ones)[0].double().numpy() for sign in (-1, 1))
    outside = (normaliser.normalise(torch.from_numpy(actions)).abs() > 1 + 1e-5).double().mean(0).numpy()
    mode = config.normalization_mapping["ACTION"]
    rows, findings = [], []
    for place, name in enumerate(names):
        values = actions[:, place].astype(np.float64)
        q01, median, q99 = np.quantile(values, (0.01, 0.5, 0.99))
        span = float(values.max() - values.min())
        middle = float((q99 - q01) / span) if span > 0 else 0.0
        rows.append(
            {
                "name": name,
                "min": tidy(values.min()),
                "q01": tidy(q01),
                "median": tidy(median),
                "q99": tidy(q99),
                "max": tidy(values.max()),
                "mean": tidy(values.mean()),
                "std": tidy(values.std()),
                "distinct_values": len(np.unique(values)),
                "middle_98_share_of_range": tidy(middle),
                "normalised_from": tidy(low[place]),
                "normalised_to": tidy(high[place]),
                "outside_range": tidy(outside[place]),
            }
        )
        where = f"action {place} ({name})" if name != str(place) else f"action {place}"
        if span == 0:
            findings.append(
                f"{where} never changes (always {values[0]:g}). It will be written as 0 every time: two tokens per "
                "step that teach nothing. Harmless; leave it out of the recording if the robot does not need it."
            )
        elif rows[-1]["distinct_values"] == 2 and place not in config.binary_action_indices:
            findings.append(
                f"{where} has two values only, {values.min():g} and {values.max():g}. If you average overlapping "
                f"chunks (ensemble_n_chunks), --policy.binary_action_indices='[{place}]' keeps it to these two."
            )
        elif middle < OUTLIER_SPAN and mode is NormalizationMode.MIN_MAX:
            findings.append(_outliers(where, values, middle, q01, q99, config, stats))
        if span > 0 and outside[place] > 0 and mode is NormalizationMode.MIN_MAX:
            findings.append(
                f"{where}: {outside[place]:.2%} of its values lie outside the statistics in meta/stats.json "
                f"({low[place]:g} to {high[place]:g}; the data go from {values.min():g} to {values.max():g}) and "
                "would be clamped. The statistics belong to other data: recompute them."
            )
        elif span > 0 and outside[place] > 0:
            findings.append(
                f"{where}: {mode.value} clamps {outside[place]:.2%} of its values to {low[place]:g}..{high[place]:g}; "
                f"the data go from {values.min():g} to {values.max():g}."
            )
    return rows, findings


def _outliers(
    where: str, values: NDArray[Any], middle: float, q01: float, q99: float, config: VLA0Config, stats: Any
) -> str:
    """Say what a dimension dominated by outliers costs, and what the two remedies cost."""
    clamped = float(((values < q01) | (values > q99)).mean())
    finer = math.ceil(config.n_bins / middle) if middle > 0 else None
    text = (
        f"{where}: the middle 98 % of its values span {middle:.0%} of its range, so most bins are spent on outliers. "
        "Look at them first: a rare value can be a real command (a gripper that opens seldom) or a glitch."
    )
    if middle == 0:
        return text + (
            " Here 98 % of the values are one and the same, so QUANTILES would flatten the dimension: keep MIN_MAX."
        )
    quantiles = '--policy.normalization_mapping=\'{"ACTION": "QUANTILES"}\''
    ways = f" If glitches: {quantiles} makes steps {1 / middle:.1f} times finer and clamps {clamped:.1%} of the values"
    if "q01" not in stats[ACTION]:
        ways += (
            " (the dataset's statistics have no quantiles yet: lerobot.scripts.augment_dataset_quantile_stats "
            "adds them)"
        )
    if finer is not None and finer <= 99_999:
        ways += f". If commands: --policy.n_bins={finer} makes the steps as fine without losing them"
    return text + ways + "."


def quantisation(
    actions: NDArray[Any], lengths: list[int], names: list[str], config: VLA0Config, stats: Any, n_bins: int
) -> dict[str, Any]:
    """Write all actions with ``n_bins``, read them back, and count the tokens of the dataset's chunks."""
    normaliser = Normaliser(config, stats)
    codec = ActionCodec(_ANY_TOKENS, n_bins=n_bins, chunk_size=config.chunk_size, action_dim=len(names))
    raw = torch.from_numpy(actions)
    bins, _ = quantise(normaliser.normalise(raw), n_bins)
    back = normaliser.restore(codec.bins_to_actions(bins))
    error = (back.double() - raw.double()).abs()
    ones = torch.ones(1, len(names))
    step = (normaliser.restore(ones) - normaliser.restore(-ones))[0].double() / n_bins
    inner = np.ones(len(actions), dtype=bool)
    inner[np.cumsum([0, *lengths[:-1]])] = False  # an episode's first frame has no previous one
    moved = (raw[1:] != raw[:-1]).numpy() & inner[1:, None]
    vanished = moved & (bins[1:] == bins[:-1]).numpy()
    tokens = _chunk_tokens(codec, bins, lengths)
    changes = moved.sum(0)
    return {
        "n_bins": n_bins,
        "step": [tidy(value) for value in step],
        "mean_error": [tidy(value) for value in error.mean(0)],
        "max_error": [tidy(value) for value in error.amax(0)],
        "levels_used": [len(np.unique(bins[:, place])) for place in range(len(names))],
        "vanishing_changes": [
            None if count == 0 else tidy(lost / count)
            for lost, count in zip(vanished.sum(0).tolist(), changes.tolist(), strict=True)
        ],
        "tokens_mean": tidy(tokens.mean()),
        "tokens_max": int(tokens.max()),
        "tokens_longest_possible": codec.max_answer_length,
        "chunks_counted": len(tokens),
    }


def _chunk_tokens(codec: ActionCodec, bins: Tensor, lengths: list[int]) -> NDArray[Any]:
    """Return the lengths ``(n,)`` of the answers to some frames, spread evenly; end and newline are included."""
    ends = np.repeat(np.cumsum(lengths), lengths)
    count = min(MAX_CHUNKS, len(bins))
    frames = np.linspace(0, len(bins) - 1, count).astype(np.int64)
    # As LeRobot does it, the last action is repeated past the end of the episode.
    rows = np.minimum(frames[:, None] + np.arange(codec.chunk_size), ends[frames][:, None] - 1)
    counts = [
        codec.encode_bins(bins[torch.from_numpy(part)]).is_token.sum(1)
        for part in np.array_split(rows, math.ceil(count / 2048))
    ]
    tokens: NDArray[Any] = torch.cat(counts).numpy()
    return tokens


def coarseness(row: dict[str, Any], config: VLA0Config) -> list[str]:
    """Say which dimensions move less from frame to frame than one bin."""
    findings = []
    for place, share in enumerate(row["vanishing_changes"]):
        if share is not None and share > 0.5:
            findings.append(
                f"action {place}: {share:.0%} of its changes from one frame to the next are smaller than the bins can "
                f"tell (n_bins={config.n_bins}, one step is {row['step'][place]:g}). Slow motion will come in jumps "
                "of that size; raise --policy.n_bins if that matters to the robot."
            )
    return findings


def padded_share(lengths: list[int], chunk: int) -> float:
    """Return the share of predicted steps that lie past the end of their episode.

    >>> padded_share([2], 3)  # frames 0 and 1: one step, then two, of three
    0.5
    """
    padded = sum(chunk - left for length in lengths for left in range(1, min(chunk, length) + 1))
    return padded / (sum(lengths) * chunk)


def tidy(value: Any) -> float:
    """Return a number with six significant digits."""
    if not math.isfinite(float(value)):
        raise StatsError(f"a computed figure is {value}: the action statistics are damaged.")
    return float(f"{float(value):.6g}")


# ---------------------------------------------------------------------- pictures


def _pictures(item: dict[str, Any], config: VLA0Config) -> tuple[list[Picture], list[Tensor]]:
    """Return one frame's pictures, and what the model sees of them in evaluation."""
    batch = {key: item[key].unsqueeze(0) for key in config.image_features}
    images = select_cameras(batch, config.camera_keys, config.image_features)
    raise_for_problems(image_problems(images).tolist(), config.camera_keys)
    settings = config.image_settings()
    seen = transform(images, settings, None)
    pictures = []
    for key, image, small in zip(config.camera_keys, images, seen, strict=True):
        height, width = image.shape[-2:]
        original = image[0] if image.dtype == torch.uint8 else (image[0].clamp(0, 1) * 255).round().byte()
        box, window = box_window(height, width, config.crop_box), evaluation_window(height, width, settings)
        pictures.append(Picture(key, original, small[0], box, window))
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
    """Count image tokens and, if there is a tokenizer, the prompt's tokens."""
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
    """Compute the memory and the arithmetic that training needs."""
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
