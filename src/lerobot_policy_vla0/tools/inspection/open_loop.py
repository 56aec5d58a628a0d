"""Open loop: what a policy would do on frames of a demonstration, beside what was demonstrated there.

The policy sees the demonstration's frames whatever it predicts, through its own pre- and post-processor. Asks
for predictions and how sure the model was of them; sums up, draws and writes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from lerobot.utils.constants import ACTION
from numpy.typing import NDArray
from torch import Tensor

from lerobot_policy_vla0.decoding.distribution import central_band
from lerobot_policy_vla0.errors import ActionError, ConfigError
from lerobot_policy_vla0.observations.batches import ACTION_IS_PAD
from lerobot_policy_vla0.text.codec import ActionCodec, quantise
from lerobot_policy_vla0.tools.inspection.open_loop_result import BAND, SHARES, EpisodeResult, OpenLoopResult
from lerobot_policy_vla0.tools.loading import DatasetSource, TrainedPolicy, action_names, episode_tasks


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
