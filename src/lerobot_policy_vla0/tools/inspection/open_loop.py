"""Asks a policy what it would do on the frames of a demonstration, and compares that with the demonstration.

The policy sees the demonstration's frames whatever it predicts, through its own pre- and post-processor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import batched
from typing import Any

import numpy as np
import torch
from lerobot.utils.constants import ACTION
from numpy.typing import NDArray
from torch import Tensor

from lerobot_policy_vla0.decoding.distribution import central_band
from lerobot_policy_vla0.errors import ActionError, ConfigError
from lerobot_policy_vla0.observations.batches import ACTION_IS_PAD
from lerobot_policy_vla0.text.codec import quantise
from lerobot_policy_vla0.tools.loading import DatasetSource, TrainedPolicy, action_names, episode_tasks

#: Shares of the model's probability for which bands are computed. `BAND` is the one that is drawn.
SHARES = (0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
BAND = 0.9


@dataclass
class EpisodeResult:
    """Predictions on one episode: F frames, T steps of a chunk, D dimensions. Actions are in the robot's units."""

    index: int
    task: str
    length: int  # frames of the episode
    seen: str  # "held out", "trained on" or "unknown"
    frames: NDArray[Any]  # (F,) int64, the frames at which the policy was asked
    valid: NDArray[Any]  # (F, T) bool, false for steps past the episode's end
    demonstrated: NDArray[Any]  # (F, T, D) float32
    predicted: NDArray[Any]  # (F, T, D) float32
    # (F, T, D) float32, the ends of the band that holds BAND of the model's probability; NaN where an engine does not
    # tell, as in inside and probability
    low: NDArray[Any]
    high: NDArray[Any]
    demonstrated_bins: NDArray[Any]  # (F, T, D) int64
    predicted_bins: NDArray[Any]  # (F, T, D) int64
    clipped: NDArray[Any]  # (F, T, D) bool, whether the policy cannot express the demonstrated value
    inside: NDArray[
        Any
    ]  # (S, F, T, D) 1 where the demonstrated bin lies in the band of each of SHARES, else 0
    probability: NDArray[Any]  # (F, T, D) float64, the model's, of the numbers it wrote

    @property
    def error(self) -> NDArray[Any]:
        """``(F, T, D)`` absolute error in the robot's units."""
        error: NDArray[Any] = np.abs(self.predicted.astype(np.float64) - self.demonstrated)
        return error

    @property
    def bin_error(self) -> NDArray[Any]:
        """``(F, T, D)`` absolute error in bins."""
        error: NDArray[Any] = np.abs(self.predicted_bins - self.demonstrated_bins)
        return error


@dataclass
class OpenLoopResult:
    """Predictions and demonstrations of a run, in the robot's units."""

    policy: str
    dataset: str
    names: list[str]  # of the D dimensions
    n_bins: int
    fps: int
    step: NDArray[Any]  # (D,) the size of one bin
    mean_action: NDArray[Any] | None  # (D,) of the dataset; None if its statistics have none
    episodes: list[EpisodeResult]  # ascending

    def mean_by(self, what: Callable[[EpisodeResult], NDArray[Any]]) -> NDArray[Any]:
        """Return the mean over frames of ``(F, T, D)`` values, without steps past the end of an episode: ``(T, D)``.

        It is NaN where no frame has such a step, which happens if chunks are longer than the episodes.
        """
        total = sum((what(e) * e.valid[..., None]).sum(0, dtype=np.float64) for e in self.episodes)
        with np.errstate(invalid="ignore"):
            mean: NDArray[Any] = total / self.counts[:, None]
        return mean

    @property
    def counts(self) -> NDArray[Any]:
        """How many frames have each step of a chunk: ``(T,)`` int64."""
        counts: NDArray[Any] = np.sum([e.valid.sum(0) for e in self.episodes], axis=0)
        return counts

    def overall(self, by_step: NDArray[Any]) -> NDArray[Any]:
        """Return the mean over all steps ``(D,)`` of means by step ``(T, D)``, every number counting alike."""
        weights = self.counts
        mean: NDArray[Any] = np.where(weights[:, None] > 0, by_step, 0.0).T @ weights / weights.sum()
        return mean

    def mean(self, what: Callable[[EpisodeResult], NDArray[Any]]) -> list[float]:
        """Return the mean of ``(F, T, D)`` values by dimension, rounded for JSON."""
        rounded: list[float] = _round(self.overall(self.mean_by(what)))
        return rounded


# ---------------------------------------------------------------------- asking the policy


def evaluate(
    trained: TrainedPolicy,
    source: DatasetSource,
    meta: Any,
    episodes: Sequence[int],
    *,
    unseen: Sequence[int] | None,
    stride: int = 1,
    frames_per_episode: int | None = None,
    batch_size: int = 16,
    seed: int = 0,
    progress: Callable[[str], None] = lambda line: None,
) -> OpenLoopResult:
    """Ask a policy for a chunk at frames of demonstrations.

    Args:
        trained: the policy.
        source: the dataset.
        meta: its metadata.
        episodes: which ones, ascending.
        unseen: episodes held out of training; None if that is not known.
        stride: ask at every so many frames, from the first on.
        frames_per_episode: ask at this many frames instead, evenly spread; at all if an episode has fewer.
        batch_size: frames per query.
        seed: for sampling (``temperature`` above 0).
        progress: is called with a line after each episode.

    Raises:
        ConfigError: for counts below 1.
        ActionError: if a demonstration holds NaN or infinity.
        DatasetError: if the dataset cannot be read.
    """
    for name, value in (
        ("stride", stride),
        ("frames-per-episode", 1 if frames_per_episode is None else frames_per_episode),
        ("batch-size", batch_size),
    ):
        if value < 1:
            raise ConfigError(f"--{name}={value} must be at least 1.")
    config = trained.policy.config
    deltas = [index / meta.fps for index in config.action_delta_indices]
    dataset = source.open(episodes=list(episodes), delta_timestamps={ACTION: deltas})
    torch.manual_seed(seed)
    results = []
    for index in episodes:
        row = meta.episodes[index]
        first, length = int(row["dataset_from_index"]), int(row["length"])
        frames = _frames(length, stride, frames_per_episode)
        places = dataset.absolute_to_relative_idx or {}
        positions = [places.get(first + int(frame), first + int(frame)) for frame in frames]
        seen = "unknown" if unseen is None else "held out" if index in set(unseen) else "trained on"
        parts = [
            _query(trained, [dataset[p] for p in chosen], index) for chosen in batched(positions, batch_size)
        ]
        joined = {
            name: np.concatenate([part[name] for part in parts], axis=1 if name == "inside" else 0)
            for name in parts[0]
        }
        task = " / ".join(episode_tasks(meta, index))
        results.append(EpisodeResult(index, task, length, seen, frames, **joined))
        progress(f"episode {index}: {len(frames)} of {length} frames")
    ones = torch.ones(1, config.chunk_size, config.action_dim)
    span = (trained.postprocess(ones) - trained.postprocess(-ones))[0, 0]
    mean = (meta.stats or {}).get(ACTION, {}).get("mean")
    return OpenLoopResult(
        policy=trained.name,
        dataset=source.repo_id,
        names=action_names(meta),
        n_bins=config.n_bins,
        fps=int(meta.fps),
        step=_numpy(span).astype(np.float64) / config.n_bins,
        mean_action=None if mean is None else np.asarray(mean, dtype=np.float64).reshape(-1),
        episodes=results,
    )


def _frames(length: int, stride: int, count: int | None) -> NDArray[Any]:
    """Return frames of an episode of ``length``: every ``stride``-th, or ``count`` evenly spread ones.

    >>> _frames(10, 4, None).tolist(), _frames(10, 1, 3).tolist(), _frames(2, 1, 3).tolist()
    ([0, 4, 8], [0, 4, 9], [0, 1])
    """
    if count is None:
        return np.arange(0, length, stride)
    return np.unique(np.linspace(0, length - 1, min(count, length)).astype(np.int64))


def _query(trained: TrainedPolicy, items: list[dict[str, Any]], episode: int) -> dict[str, NDArray[Any]]:
    """Ask the policy at some frames of an episode; return the arrays of `EpisodeResult` for them."""
    config = trained.policy.config
    demonstrated = torch.stack([item[ACTION] for item in items]).float()
    demonstrated = demonstrated.reshape(len(items), config.chunk_size, config.action_dim)  # (F, T, D)
    if not bool(torch.isfinite(demonstrated).all()):
        raise ActionError(
            f"episode {episode} has NaN or infinite actions, which cannot be compared with anything. Repair the "
            "dataset, or leave the episode out with --episodes."
        )
    others = set(items[0]) & {f"observation.{name}" for name in ("state", "environment_state")}
    batch: dict[str, Any] = {
        key: torch.stack([item[key] for item in items])
        for key in sorted({*trained.cameras.values(), *others})
    }
    batch |= {
        ACTION: demonstrated,
        ACTION_IS_PAD: torch.stack([item[ACTION_IS_PAD] for item in items]),
        "task": [item["task"] for item in items],
    }
    ready = trained.preprocess(batch)
    chunk = trained.policy.predict_action_chunk(ready)  # (F, T, D), normalised
    report = trained.policy.last_decode
    assert report is not None
    beliefs = trained.policy.number_distributions(ready, [trace.symbols for trace in report.traces])

    def in_units(bins: NDArray[Any]) -> NDArray[Any]:
        return _numpy(trained.postprocess(trained.policy.codec.bins_to_actions(torch.from_numpy(bins))))

    bins, clipped = quantise(ready[ACTION].cpu(), config.n_bins)
    predicted_bins, _ = quantise(chunk.cpu(), config.n_bins)
    # For each share, the lowest and the highest bin of the band: (2, F, T, D)
    bands = [
        np.array([central_band(belief, share) for belief in beliefs]).swapaxes(0, 1).reshape(2, *chunk.shape)
        for share in SHARES
    ]
    demonstrated_bins = bins.numpy()
    low, high = bands[SHARES.index(BAND)]
    unknown = np.isnan(np.stack(beliefs)).any(-1).reshape(chunk.shape)
    inside = np.stack([(a <= demonstrated_bins) & (demonstrated_bins <= b) for a, b in bands])
    return {
        "valid": ~batch[ACTION_IS_PAD].numpy(),
        "demonstrated": demonstrated.numpy(),
        "predicted": _numpy(trained.postprocess(chunk)),
        "low": np.where(unknown, np.nan, in_units(low)),
        "high": np.where(unknown, np.nan, in_units(high)),
        "demonstrated_bins": demonstrated_bins,
        "predicted_bins": predicted_bins.numpy(),
        "clipped": clipped.numpy(),
        "inside": np.where(unknown, np.nan, inside),
        "probability": report.number_probability,
    }


def _numpy(tensor: Tensor) -> NDArray[Any]:
    array: NDArray[Any] = tensor.float().cpu().numpy()
    return array


# ---------------------------------------------------------------------- numbers


def summary(result: OpenLoopResult) -> dict[str, Any]:
    """Return the numbers of a run, rounded to six digits, for JSON and for the report's tables.

    Errors are means over the steps inside the episodes, every frame counting alike. ``mae`` is the mean of dimensions
    whose units may differ, ``mae_bins`` the mean of bins.
    """
    by_step = result.mean_by(lambda e: e.error)  # (T, D)
    bins_by_step = result.mean_by(lambda e: e.bin_error)
    overall, bins_overall = result.overall(by_step), result.overall(bins_by_step)
    inside = {str(share): result.mean(partial(_inside, place=i)) for i, share in enumerate(SHARES)}
    average = result.mean_action
    return {
        "policy": result.policy,
        "dataset": result.dataset,
        "dimensions": result.names,
        "chunk_size": len(by_step),
        "n_bins": result.n_bins,
        "bin_in_units": _round(result.step),
        "frames": sum(len(e.frames) for e in result.episodes),
        "steps_compared": int(result.counts.sum()),
        "steps_past_the_end": int(sum((~e.valid).sum() for e in result.episodes)),
        "mae": _round(overall.mean()),
        "mae_bins": _round(bins_overall.mean()),
        "mae_by_dimension": _round(overall),
        "mae_bins_by_dimension": _round(bins_overall),
        "mae_by_step": _round(by_step.mean(1)),
        "mae_bins_by_step": _round(bins_by_step.mean(1)),
        "mae_by_step_and_dimension": _round(by_step),
        "mae_bins_by_step_and_dimension": _round(bins_by_step),
        "same_bin_by_dimension": result.mean(lambda e: e.predicted_bins == e.demonstrated_bins),
        "probability_by_dimension": result.mean(lambda e: e.probability),
        "mean_action_mae_by_dimension": None
        if average is None
        else result.mean(lambda e: np.abs(e.demonstrated - average)),
        "outside_training_range_by_dimension": result.mean(lambda e: e.clipped),
        "band": BAND,
        "band_width_by_dimension": result.mean(lambda e: np.abs(e.high.astype(np.float64) - e.low)),
        "inside_band_by_dimension": inside[str(BAND)],
        "inside_band_by_share": inside,
        "episodes": [
            {
                "episode": e.index,
                "task": e.task,
                "seen": e.seen,
                "length": e.length,
                "frames": len(e.frames),
                "mae": _round(e.error[e.valid].mean()),
                "mae_bins": _round(e.bin_error[e.valid].mean()),
            }
            for e in result.episodes
        ],
    }


def _inside(episode: EpisodeResult, place: int) -> NDArray[Any]:
    values: NDArray[Any] = episode.inside[place]
    return values


def _round(value: Any) -> Any:
    """Return floats for JSON: six significant digits, None for NaN."""
    if isinstance(value, np.ndarray):
        return [_round(item) for item in value]
    return None if np.isnan(value) else float(f"{float(value):.6g}")


def over_threshold(numbers: dict[str, Any], max_mae: float | None, max_mae_bins: float | None) -> list[str]:
    """Return a sentence for each threshold that is exceeded, with value, threshold and worst dimension."""
    broken = []
    for option, limit, key, unit in (
        ("--max-mae", max_mae, "mae", "in the robot's units"),
        ("--max-mae-bins", max_mae_bins, "mae_bins", "bins"),
    ):
        if limit is not None and numbers[key] > limit:
            by_dimension = numbers[f"{key}_by_dimension"]
            worst = int(np.argmax(by_dimension))
            broken.append(
                f"mean absolute error {numbers[key]:g} ({unit}) is above {option}={limit:g}; worst dimension: "
                f"{numbers['dimensions'][worst]} with {by_dimension[worst]:g}"
            )
    return broken
