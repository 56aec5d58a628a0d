"""Open loop: what a policy would do on frames of a demonstration, beside what was demonstrated there.

The policy sees the demonstration's frames whatever it predicts, through its own pre- and post-processor. Computes
predictions, errors and how sure the model was; draws and writes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from lerobot.utils.constants import ACTION
from numpy.typing import NDArray
from torch import Tensor

from lerobot_policy_vla0.batches import ACTION_IS_PAD
from lerobot_policy_vla0.codec import ActionCodec, quantise
from lerobot_policy_vla0.decoding.distribution import central_band
from lerobot_policy_vla0.errors import ActionError, ConfigError
from lerobot_policy_vla0.sources import DatasetSource, TrainedPolicy, action_names, episode_tasks

#: Shares of the model's probability that bands are computed for; `BAND` is the one that is drawn.
SHARES = (0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
BAND = 0.9


@dataclass
class EpisodeResult:
    """Predictions on one episode: F frames, T steps of a chunk, D dimensions.

    Attributes:
        index: of the episode.
        task: its instruction.
        length: frames of the episode.
        seen: ``held out``, ``trained on`` or ``unknown``.
        frames: ``(F,)`` int64, frames of the episode that the policy was asked at.
        valid: ``(F, T)`` bool, false for steps past the episode's end.
        demonstrated, predicted: ``(F, T, D)`` float32, the robot's units.
        low, high: ``(F, T, D)`` float32, the robot's units: the band that holds `BAND` of the model's probability.
        demonstrated_bins, predicted_bins: ``(F, T, D)`` int64.
        clipped: ``(F, T, D)`` bool, demonstrated values outside the range the policy was trained on.
        inside: ``(S, F, T, D)`` bool, whether the demonstrated bin lies in the band of each of `SHARES`.
        probability: ``(F, T, D)`` float64, the model's, of the numbers it wrote.
    """

    index: int
    task: str
    length: int
    seen: str
    frames: NDArray[Any]
    valid: NDArray[Any]
    demonstrated: NDArray[Any]
    predicted: NDArray[Any]
    low: NDArray[Any]
    high: NDArray[Any]
    demonstrated_bins: NDArray[Any]
    predicted_bins: NDArray[Any]
    clipped: NDArray[Any]
    inside: NDArray[Any]
    probability: NDArray[Any]

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
    """All of a run.

    Attributes:
        policy, dataset: as they were named.
        names: of the D dimensions.
        n_bins: the policy's.
        fps: of the dataset.
        step: ``(D,)`` one bin in the robot's units.
        mean_action: ``(D,)`` the dataset's mean action, for comparison; None if its statistics have none.
        episodes: in ascending order.
    """

    policy: str
    dataset: str
    names: list[str]
    n_bins: int
    fps: int
    step: NDArray[Any]
    mean_action: NDArray[Any] | None
    episodes: list[EpisodeResult]

    def mean_by(self, what: Callable[[EpisodeResult], NDArray[Any]]) -> NDArray[Any]:
        """Return the mean over frames of ``(F, T, D)`` values, past-the-end steps left out: ``(T, D)``.

        NaN where no frame has such a step (chunks longer than the episodes).
        """
        total = sum((what(e) * e.valid[..., None]).sum(0, dtype=np.float64) for e in self.episodes)
        with np.errstate(invalid="ignore"):
            mean: NDArray[Any] = total / self.counts[:, None]
        return mean

    @property
    def counts(self) -> NDArray[Any]:
        """``(T,)`` int64, frames that have each step of a chunk."""
        counts: NDArray[Any] = np.sum([e.valid.sum(0) for e in self.episodes], axis=0)
        return counts

    def overall(self, by_step: NDArray[Any]) -> NDArray[Any]:
        """Return the mean over all steps ``(D,)`` of means by step ``(T, D)``, every number counting alike."""
        weights = self.counts[:, None]
        mean: NDArray[Any] = np.where(weights > 0, by_step, 0.0).T @ weights[:, 0] / weights.sum()
        return mean


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
        episodes: which, ascending.
        unseen: episodes held out of training; None if that is not known.
        stride: ask at every so many frames, from the first on.
        frames_per_episode: instead: at this many frames, evenly spread; all if an episode has fewer.
        batch_size: frames per query.
        seed: for sampling (``temperature`` above 0).
        progress: told after each episode.

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
            _query(trained, [dataset[p] for p in chosen], index) for chosen in _batches(positions, batch_size)
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


def _batches(positions: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(positions), size):
        yield positions[start : start + size]


def _query(trained: TrainedPolicy, items: list[dict[str, Any]], episode: int) -> dict[str, NDArray[Any]]:
    """Ask the policy at some frames; returns the arrays of `EpisodeResult` for them."""
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
    codec = trained.policy.codec
    shape = (len(items), config.chunk_size, config.action_dim)
    bins, clipped = quantise(ready[ACTION].cpu(), config.n_bins)
    predicted_bins, _ = quantise(chunk.cpu(), config.n_bins)
    bands = [
        tuple(
            np.stack(ends).reshape(shape)
            for ends in zip(*(central_band(b, share) for b in beliefs), strict=True)
        )
        for share in SHARES
    ]
    demonstrated_bins = bins.numpy()
    low, high = bands[SHARES.index(BAND)]
    return {
        "valid": ~batch[ACTION_IS_PAD].numpy(),
        "demonstrated": demonstrated.numpy(),
        "predicted": _numpy(trained.postprocess(chunk)),
        "low": _in_units(trained, codec, low),
        "high": _in_units(trained, codec, high),
        "demonstrated_bins": demonstrated_bins,
        "predicted_bins": predicted_bins.numpy(),
        "clipped": clipped.numpy(),
        "inside": np.stack([(a <= demonstrated_bins) & (demonstrated_bins <= b) for a, b in bands]),
        "probability": report.number_probability,
    }


def _in_units(trained: TrainedPolicy, codec: ActionCodec, bins: NDArray[Any]) -> NDArray[Any]:
    return _numpy(trained.postprocess(codec.bins_to_actions(torch.from_numpy(bins))))


def _numpy(tensor: Tensor) -> NDArray[Any]:
    array: NDArray[Any] = tensor.float().cpu().numpy()
    return array


# ---------------------------------------------------------------------- figures of merit


def summary(result: OpenLoopResult) -> dict[str, Any]:
    """Return the numbers of a run, rounded to six digits, for JSON and for the report's tables.

    Errors are means over the steps inside the episodes, every frame counting alike. ``mae`` averages dimensions
    whose units may differ; ``mae_bins`` does not have that fault.
    """
    by_step = result.mean_by(lambda e: e.error)  # (T, D)
    bins_by_step = result.mean_by(lambda e: e.bin_error)
    overall, bins_overall = result.overall(by_step), result.overall(bins_by_step)
    inside = [result.overall(result.mean_by(partial(_inside, share=place))) for place in range(len(SHARES))]
    band = result.overall(result.mean_by(lambda e: np.abs(e.high.astype(np.float64) - e.low)))
    exact = result.overall(result.mean_by(lambda e: e.predicted_bins == e.demonstrated_bins))
    clipped = result.overall(result.mean_by(lambda e: e.clipped))
    probability = result.overall(result.mean_by(lambda e: e.probability))
    mean_action = result.mean_action
    baseline = None
    if mean_action is not None:
        baseline = result.overall(result.mean_by(lambda e: np.abs(e.demonstrated - mean_action)))
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
        "same_bin_by_dimension": _round(exact),
        "probability_by_dimension": _round(probability),
        "mean_action_mae_by_dimension": None if baseline is None else _round(baseline),
        "outside_training_range_by_dimension": _round(clipped),
        "band": BAND,
        "band_width_by_dimension": _round(band),
        "inside_band_by_dimension": _round(inside[SHARES.index(BAND)]),
        "inside_band_by_share": {str(s): _round(v) for s, v in zip(SHARES, inside, strict=True)},
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


def _inside(episode: EpisodeResult, share: int) -> NDArray[Any]:
    values: NDArray[Any] = episode.inside[share]
    return values


def _round(value: Any) -> Any:
    """Return floats as JSON has them: six significant digits, None for NaN."""
    if isinstance(value, np.ndarray):
        return [_round(item) for item in value]
    return None if np.isnan(value) else float(f"{float(value):.6g}")


def over_threshold(numbers: dict[str, Any], max_mae: float | None, max_mae_bins: float | None) -> list[str]:
    """Return a sentence for each threshold that the error is above, naming value, threshold and worst dimension."""
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
