"""What an open-loop run found: predictions beside demonstrations, and the numbers that sum them up.

Computes from arrays; asks no policy, reads no dataset, draws nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
