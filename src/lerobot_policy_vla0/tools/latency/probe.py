"""Times a policy's queries as `lerobot-rollout` makes them.

A query is what the control loop waits for: arrays from the robot to tensors, pre-processor, the model's answer,
post-processor, actions on the CPU. Frames come from a dataset, `n_action_steps` apart, as a robot that executes so many
steps would see them. Without a dataset they are made up (patches that drift). The answers to those hardly continue from
chunk to chunk, so drafts fit badly, and the time is an upper bound.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lerobot.policies.utils import prepare_observation_for_inference
from numpy.typing import NDArray

from lerobot_policy_vla0.configuration_vla0 import VLA0Config
from lerobot_policy_vla0.errors import CameraError, ConfigError
from lerobot_policy_vla0.tools.latency.budget import QueryTime
from lerobot_policy_vla0.tools.loading import load_with_processors

if TYPE_CHECKING:
    from lerobot.datasets import LeRobotDataset

    from lerobot_policy_vla0.modeling_vla0 import VLA0Policy


#: Arrays by feature: pictures (H, W, 3) uint8, other features as the robot sends them.
Observation = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Timing:
    """Wall times of a number of queries, in milliseconds."""

    queries: int
    median_ms: float
    p95_ms: float
    slowest_ms: float
    fixed_ms: float  # median of what does not grow with the chunk: all but the passes after the prompt's
    prefill_ms: float  # median time until the first symbol was settled; 0 with an engine, which does not tell
    passes: float  # median number of runs of the language model, the prompt's included


@dataclass(frozen=True)
class Measurement:
    """The timed queries of a policy."""

    decoder: str
    device: str
    chunk_size: int
    action_dim: int
    n_bins: int
    frames: str  # where they came from
    cold: Timing  # without a previous chunk, as on an episode's first step
    drafted: Timing  # after a previous chunk

    def query_time(self) -> QueryTime:
        """Return the time to plan with: the slower 95th percentile, split into the chunk's part and the rest."""
        slower = max((self.cold, self.drafted), key=lambda timing: timing.p95_ms)
        fixed = min(slower.fixed_ms, slower.p95_ms)
        return QueryTime(fixed_ms=fixed, per_step_ms=(slower.p95_ms - fixed) / self.chunk_size)


def measure(
    path: str | Path, config: VLA0Config, *, repeats: int = 20, dataset: LeRobotDataset | None = None
) -> Measurement:
    """Load a policy, warm it up, and time its queries.

    Args:
        path: checkpoint folder or Hub repo.
        config: from `loading.load_config`.
        repeats: queries per figure, at least 2.
        dataset: the source of frames, from its beginning; None makes frames up.
    """
    if repeats < 2:
        raise ConfigError(f"repeats={repeats} must be at least 2, for a median and a 95th percentile.")
    policy, *processors = load_with_processors(path, config)
    device = policy.device
    frames = made_up_observations(config) if dataset is None else recorded_observations(config, dataset)
    policy.reset()  # warms up
    cold = []
    for _ in range(repeats):
        policy.reset()
        cold.append(_time_query(policy, processors, *next(frames), device))
    drafted = [_time_query(policy, processors, *next(frames), device) for _ in range(repeats)]
    return Measurement(
        decoder=policy.decoder.name,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        chunk_size=config.chunk_size,
        action_dim=config.action_dim,
        n_bins=config.n_bins,
        frames="made-up frames" if dataset is None else f"frames of {dataset.repo_id}",
        cold=_summary(cold),
        drafted=_summary(drafted),
    )


def recorded_observations(config: VLA0Config, dataset: LeRobotDataset) -> Iterator[tuple[Observation, str]]:
    """Yield a dataset's observations and tasks as a robot gives them, every `n_action_steps`-th, without end."""
    names = [key for key in config.input_features or {} if key in dataset.meta.features]
    if missing := sorted(set(config.camera_keys) - set(names)):
        raise CameraError(
            f"{dataset.repo_id} lacks the policy's camera(s) {missing}; it has {sorted(dataset.meta.camera_keys)}. "
            "Give the dataset the policy was trained on."
        )
    index = 0
    while True:
        item = dataset[index % len(dataset)]
        index += config.n_action_steps
        observation = {
            key: (item[key].permute(1, 2, 0) * 255).round().to(torch.uint8).contiguous().numpy()
            if key in config.image_features
            else item[key].numpy()
            for key in names
        }
        yield observation, item["task"]


def made_up_observations(config: VLA0Config) -> Iterator[tuple[Observation, str]]:
    """Yield observations and a task as a robot gives them: uint8 ``(H, W, 3)`` pictures that drift, joints at zero."""
    pictures = {}
    for index, (key, feature) in enumerate(config.image_features.items()):
        _, height, width = feature.shape
        patches = np.random.default_rng(index).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        pictures[key] = patches[np.ix_(np.arange(height) * 8 // height, np.arange(width) * 8 // width)]
    others = {
        key: np.zeros(feature.shape, np.float32)
        for key, feature in (config.input_features or {}).items()
        if key not in pictures
    }
    shift = 0
    while True:
        shift += 1
        moved = {key: np.ascontiguousarray(np.roll(p, shift, axis=1)) for key, p in pictures.items()}
        yield {**moved, **{key: value.copy() for key, value in others.items()}}, "Pick up the cube."


@torch.inference_mode()
def _time_query(
    policy: VLA0Policy, processors: Any, observation: Observation, task: str, device: torch.device
) -> tuple[float, float, float, float]:
    """Return a query's milliseconds, those that do not grow with the chunk, those of the prompt, and passes."""
    preprocess, postprocess = processors
    began = time.perf_counter()
    batch = prepare_observation_for_inference(observation, device, task, "")
    actions = postprocess(policy.predict_action_chunk(preprocess(batch)))
    actions.cpu()
    took = 1e3 * (time.perf_counter() - began)
    report = policy.last_decode
    assert report is not None
    growing = report.milliseconds - report.prefill_milliseconds
    return took, took - growing, report.prefill_milliseconds, float(report.passes)


def _summary(queries: list[tuple[float, float, float, float]]) -> Timing:
    took = np.array([query[0] for query in queries])
    median, fixed, prefill, passes = np.median(queries, axis=0).tolist()
    p95, slowest = float(np.percentile(took, 95)), float(took.max())
    median, p95, slowest, fixed, prefill = (round(ms, 2) for ms in (median, p95, slowest, fixed, prefill))
    return Timing(len(queries), median, p95, slowest, fixed, prefill, passes)
