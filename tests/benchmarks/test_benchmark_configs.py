"""The benchmarks' training configurations: the paper's values, and LeRobot's command trains from them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import draccus
import numpy as np
import pytest
from helpers.paths import REPO
from helpers.tiny import SMALL
from lerobot.configs.train import TrainPipelineConfig

import lerobot_policy_vla0  # noqa: F401 - registers the policy
from lerobot_policy_vla0.errors import ConfigError

CAMERAS = ["observation.images.image", "observation.images.image2"]


def test_libero_is_trained_as_in_the_paper() -> None:
    config = draccus.parse(
        TrainPipelineConfig, REPO / "configs" / "libero.yaml", args=["--policy.device=cpu"]
    )
    policy = config.policy
    assert (policy.chunk_size, policy.n_bins, policy.image_size, policy.crop_ratio) == (
        8,
        1000,
        (224, 224),
        0.875,
    )
    assert (policy.action_mask_max_ratio, policy.action_mask_skip_prob) == (0.4, 0.1)
    assert policy.cameras == CAMERAS  # third person first
    assert (policy.n_action_steps, policy.ensemble_n_chunks, policy.binary_action_indices) == (1, 8, [6])
    optimizer = policy.get_optimizer_preset()
    assert (optimizer.lr, optimizer.weight_decay) == (8 * 5e-6, 1e-10)
    frames, gpus, epochs = 273_465, 8, 24
    assert config.steps == pytest.approx(epochs * frames / (gpus * config.batch_size), rel=1e-4)


def test_several_tasks_are_trained_as_the_demo_is_with_as_many_steps_each() -> None:
    one, four = (
        draccus.parse(TrainPipelineConfig, REPO / "configs" / f"metaworld_{name}.yaml", args=[])
        for name in ("tiny", "multitask")
    )
    assert four.steps == 4 * one.steps
    different = {
        name
        for name, value in draccus.encode(one.policy).items()
        if value != draccus.encode(four.policy)[name]
    }
    assert different == {"crop_box", "scheduler_warmup_steps"}
    # It holds the boxes measured for the four tasks (examples/metaworld/demo.sh).
    x0, y0, x1, y1 = four.policy.crop_box
    for box in ((0.3, 0.125, 0.875, 0.7), (0.43, 0.29, 0.85, 0.71), (0.43, 0.34, 0.83, 0.74)):
        assert x0 <= box[0] and y0 <= box[1] and x1 >= box[2] and y1 >= box[3]
    assert x1 - x0 == pytest.approx(y1 - y0)


def make_libero_like(root: Path) -> Path:
    """Write two short episodes with LIBERO's names and sizes; returns ``root``."""
    from lerobot.datasets import LeRobotDataset

    image = {"dtype": "image", "shape": (256, 256, 3), "names": ["height", "width", "channels"]}
    dataset = LeRobotDataset.create(
        repo_id="local/libero",
        root=root,
        fps=10,
        use_videos=False,
        features={
            **dict.fromkeys(reversed(CAMERAS), image),  # the configuration orders them, not the data set
            "observation.state": {"dtype": "float32", "shape": (8,), "names": None},
            "action": {"dtype": "float32", "shape": (7,), "names": None},
        },
    )
    rng = np.random.default_rng(0)
    for task in ("put the bowl on the plate", "turn on the stove"):
        for _ in range(9):
            pictures = {key: rng.integers(0, 255, (256, 256, 3), dtype=np.uint8) for key in CAMERAS}
            action = rng.uniform(-1, 1, 7).astype(np.float32)
            dataset.add_frame(
                {**pictures, "observation.state": np.zeros(8, np.float32), "action": action, "task": task}
            )
        dataset.save_episode()
    dataset.finalize()
    return root


def test_libero_trains_and_the_checkpoint_holds_the_simulation_protocol(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lerobot.scripts.lerobot_train import main

    arguments = [
        f"--config_path={REPO / 'configs' / 'libero.yaml'}",
        "--dataset.repo_id=local/libero",
        f"--dataset.root={make_libero_like(tmp_path / 'data')}",
        "--policy.vlm_model_name=tiny",
        "--policy.device=cpu",
        "--policy.dtype=float32",
        *(f"--policy.tiny.{name}={value}" for name, value in SMALL.items()),
        "--batch_size=2",
        "--steps=1",
        "--num_workers=0",
        f"--output_dir={tmp_path / 'out'}",
    ]
    monkeypatch.setattr(sys, "argv", ["lerobot-train", *arguments])
    main()
    saved = tmp_path / "out" / "checkpoints" / "last" / "pretrained_model" / "config.json"
    config = json.loads(saved.read_text())
    assert config["cameras"] == CAMERAS
    assert (config["n_action_steps"], config["ensemble_n_chunks"]) == (1, 8)
    assert config["binary_action_indices"] == [6]


def test_a_misspelt_protocol_is_refused() -> None:
    # What the commands of docs/libero.md rely on: ensembling cannot be silently inert.
    arguments = ["--policy.device=cpu", "--policy.n_action_steps=8"]
    with pytest.raises(Exception, match="instantiate class VLA0Config") as error:
        draccus.parse(TrainPipelineConfig, REPO / "configs" / "libero.yaml", args=arguments)
    causes = []
    cause: BaseException | None = error.value
    while cause is not None:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    assert any(isinstance(one, ConfigError) and "ensemble_n_chunks=8" in str(one) for one in causes)
