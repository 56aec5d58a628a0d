"""The pictures of the report: loss curves, predicted against recorded actions, a film of the evaluation.

Knows LeRobot's policies and datasets through their public factories; nothing in here is about one policy.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from report_data import ReportError, TrainingLog, read_json

from lerobot_policy_vla0.tools.reporting import plots as plotting
from lerobot_policy_vla0.tools.reporting.plots import BLUE, GREY, ORANGE

FILM_FPS = 20  # steps that the film shows per second


def plot_loss(log: TrainingLog) -> bytes:
    """Draw training and validation loss, and the accuracies that were logged, over training steps; returns a PNG."""
    accuracies = [name for name in ("token_accuracy", "first_step_accuracy") if name in log.train]
    with plotting.new_figure(9 if accuracies else 5, 3.2) as figure:
        axes: Any = figure.subplots(1, 1 + bool(accuracies), squeeze=False)[0]
        loss = axes[0]
        steps, values = zip(*sorted(log.train["loss"].items()), strict=True)
        loss.plot(steps, values, color=BLUE, label="training (with augmentation)")
        if log.validation:
            steps, values = zip(*sorted(log.validation.items()), strict=True)
            loss.plot(steps, values, "o-", color=ORANGE, ms=4, label="validation")
        loss.set(xlabel="training step", ylabel="cross-entropy per token (nats)", ylim=(0, None))
        loss.legend()
        if accuracies:
            for name, color in zip(accuracies, (BLUE, ORANGE), strict=False):
                steps, values = zip(*sorted(log.train[name].items()), strict=True)
                axes[1].plot(steps, values, color=color, label=name.replace("_", " "))
            axes[1].set(xlabel="training step", ylabel="fraction correct (training)", ylim=(0, 1))
            axes[1].legend(loc="lower right")
        return plotting.png(figure)


def predict_episode(checkpoint: Path, root: Path, batch_size: int = 16) -> dict[str, Any]:
    """Let a checkpoint predict a chunk at every frame of one demonstration.

    The policy sees the demonstration's frames whatever it predicts (open loop).

    Args:
        checkpoint: A `pretrained_model` folder.
        root: Folder of the demonstrations.
        batch_size: Frames per call.

    Returns:
        `predicted` and `recorded`, float32 (T, D) in the robot's units: first step of each chunk and what the
        expert did; `episode` (index), `held_out` (whether training never saw it) and `names` of the D
        dimensions.

    Raises:
        ReportError: the checkpoint is missing.
    """
    if not (checkpoint / "config.json").is_file():
        raise ReportError(f"{checkpoint}/config.json is missing: no trained policy to predict with")
    import torch
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.datasets.lerobot_dataset import LeRobotDataset
    from lerobot.policies import make_policy, make_pre_post_processors
    from lerobot.utils.import_utils import register_third_party_plugins

    register_third_party_plugins()
    config = PreTrainedConfig.from_pretrained(checkpoint)
    config.pretrained_path = checkpoint
    dataset = LeRobotDataset(f"local/{root.name}", root=root)
    episode = dataset.num_episodes - 1  # held out if any is: LeRobot holds out the last episodes of each task
    held_out = bool(read_json(checkpoint / "train_config.json")["dataset"].get("eval_split"))
    policy = make_policy(cfg=config, ds_meta=dataset.meta)
    policy.eval()
    preprocessor, postprocessor = make_pre_post_processors(
        policy_cfg=config,
        pretrained_path=str(checkpoint),
        preprocessor_overrides={"device_processor": {"device": str(policy.config.device)}},
    )
    row = dataset.meta.episodes[episode]
    frames = range(row["dataset_from_index"], row["dataset_to_index"])
    recorded, predicted = [], []
    for start in range(0, len(frames), batch_size):
        items = [dataset[index] for index in frames[start : start + batch_size]]
        recorded += [item["action"].numpy() for item in items]
        keys = [key for key in items[0] if key.startswith("observation.")]
        batch: dict[str, Any] = {key: torch.stack([item[key] for item in items]) for key in keys}
        batch["task"] = [item["task"] for item in items]
        with torch.inference_mode():
            chunk = policy.predict_action_chunk(preprocessor(batch))  # (B, chunk, D), normalised
            predicted.append(postprocessor(chunk)[:, 0].float().cpu().numpy())  # (B, D), the robot's units
    names = dataset.meta.features["action"]["names"] or [str(i) for i in range(recorded[0].shape[0])]
    return {
        "predicted": np.concatenate(predicted),
        "recorded": np.stack(recorded),
        "episode": episode,
        "held_out": held_out,
        "names": list(names),
    }


def plot_actions(result: dict[str, Any]) -> tuple[bytes, list[float]]:
    """Draw `predict_episode`'s result, one panel per action dimension.

    Returns:
        A PNG, and the mean absolute errors.
    """
    predicted, recorded = result["predicted"], result["recorded"]
    errors = np.abs(predicted - recorded).mean(axis=0)
    columns = 2
    rows = math.ceil(recorded.shape[1] / columns)
    with plotting.new_figure(9, 0.4 + 1.9 * rows) as figure:
        axes: Any = figure.subplots(rows, columns, sharex=True, squeeze=False)
        for index, axis in enumerate(axes.flat):
            if index >= recorded.shape[1]:
                axis.set_visible(False)
                continue
            axis.plot(recorded[:, index], color=GREY, lw=3, label="expert")
            axis.plot(predicted[:, index], color=BLUE, lw=1, marker=".", ms=4, label="predicted")
            axis.set_title(f"{result['names'][index]}   mean error {errors[index]:.3f}")
            axis.set_ylim(-1.1, 1.1)
        figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside upper right", ncols=2)
        for axis in axes[-1]:
            axis.set_xlabel("frame")
        return plotting.png(figure), [round(float(error), 4) for error in errors]


def make_film(videos: dict[int, Path], success: dict[int, bool], path: Path, limit: int = 6) -> list[int]:
    """Put the first evaluated episodes side by side, as H.264 that browsers play, `FILM_FPS` steps per second.

    A green frame is a success, a red one a failure.

    Returns:
        The seeds shown, row by row; empty (and no file) if there are no videos.
    """
    seeds = sorted(seed for seed, video in videos.items() if video.is_file())[:limit]
    if not seeds:
        return []
    clips = []
    for seed in seeds:
        color = (60, 160, 80) if success[seed] else (200, 60, 50)
        with av.open(str(videos[seed])) as container:
            frames = [
                cv2.resize(f.to_ndarray(format="rgb24"), (232, 232), interpolation=cv2.INTER_AREA)
                for f in container.decode(video=0)
            ]
        clips.append([cv2.copyMakeBorder(f, 4, 4, 4, 4, cv2.BORDER_CONSTANT, value=color) for f in frames])
    columns = min(3, len(clips))
    while len(clips) % columns:
        clips.append([np.full_like(clips[0][0], 255)])
    with av.open(str(path), mode="w") as container:
        stream = container.add_stream("libx264", rate=FILM_FPS)
        stream.width, stream.height = 240 * columns, 240 * (len(clips) // columns)
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "26", "movflags": "+faststart"}
        for step in range(max(len(clip) for clip in clips)):
            tiles = [
                clip[min(step, len(clip) - 1)] for clip in clips
            ]  # an ended episode shows its last frame
            grid = np.vstack([np.hstack(tiles[i : i + columns]) for i in range(0, len(tiles), columns)])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grid, format="rgb24")))
        container.mux(stream.encode())
    return seeds
