"""A dataset's actions as VLA-0 will write them: ranges, quantisation, text length. Measured on the data itself.

Normalises with LeRobot's own step and writes with the policy's own codec. Knows nothing about pictures or prompts.
"""

from __future__ import annotations

import math
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
from lerobot_policy_vla0.errors import ActionError, DatasetError, StatsError
from lerobot_policy_vla0.text.codec import ActionCodec, ActionTokens, quantise
from lerobot_policy_vla0.tools.loading import DatasetSource

#: Chunks written out to count tokens, evenly spread over the dataset.
MAX_CHUNKS = 20_000
#: A dimension is dominated by outliers if the middle 98 % of its values span less of its range than this.
OUTLIER_SPAN = 0.5

_ANY_TOKENS = ActionTokens(tuple(range(10)), 10, 11, 12, 13, 14)  # lengths do not depend on the ids


def read_actions(source: DatasetSource, lengths: list[int]) -> NDArray[Any]:
    """Return all actions of a dataset, ``(N, D)`` float32; decodes no picture.

    Raises:
        ActionError: naming the episodes with NaN or infinite actions.
        DatasetError: if there are not as many as the episodes should have.
    """
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
    """LeRobot's normalisation of actions, as the policy's processors will do it.

    Args:
        config: the policy's.
        stats: the dataset's.
    """

    def __init__(self, config: VLA0Config, stats: dict[str, dict[str, Any]]) -> None:
        self._steps = make_default_policy_processor_steps(config, stats)

    def normalise(self, actions: Tensor) -> Tensor:
        """Return actions ``(..., D)`` of the robot in [-1, 1], nominally."""
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
    """Describe each dimension, and say what is odd about it."""
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
    """Say what a dimension dominated by outliers costs, and the two ways out with their price."""
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
    """Write all actions with ``n_bins`` and read them back; count the tokens of real chunks."""
    normaliser = Normaliser(config, stats)
    codec = ActionCodec(_ANY_TOKENS, n_bins=n_bins, chunk_size=config.chunk_size, action_dim=len(names))
    raw = torch.from_numpy(actions)
    bins, _ = quantise(normaliser.normalise(raw), n_bins)
    back = normaliser.restore(codec.bins_to_actions(bins))
    error = (back.double() - raw.double()).abs()
    ones = torch.ones(1, len(names))
    step = (normaliser.restore(ones) - normaliser.restore(-ones))[0].double() / n_bins
    inner = np.ones(len(actions), dtype=bool)
    inner[np.cumsum([0, *lengths[:-1]])] = False  # an episode's first frame follows nothing
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
    """Return the tokens of the answers to some frames, spread evenly: ``(n,)``, end and newline included."""
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
    """Say which dimensions move less between frames than a bin can tell."""
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
    padded = sum(
        max(0, frame + chunk - length)
        for length in lengths
        for frame in range(max(0, length - chunk), length)
    )
    return padded / (sum(lengths) * chunk)


def tidy(value: Any) -> float:
    """Return a number with six significant digits, which is what a report needs and JSON can hold."""
    if not math.isfinite(float(value)):
        raise StatsError(f"a computed figure is {value}: the action statistics are damaged.")
    return float(f"{float(value):.6g}")
