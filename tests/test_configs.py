"""The training configurations that are shipped: LeRobot's parser reads them, and they train."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import draccus
import numpy as np
import pytest
import yaml
from helpers.paths import REPO
from lerobot.configs.train import TrainPipelineConfig

from lerobot_policy_vla0 import VLA0Config
from lerobot_policy_vla0.tools.ablation.plan import read_plan
from lerobot_policy_vla0.tools.evaluation.plan import parse_arguments, plan_shards
from lerobot_policy_vla0.tools.latency.budget import Loop, QueryTime, plan_rtc
from lerobot_policy_vla0.tools.so100_emulator import JOINTS

TRAINING = sorted(p for p in (REPO / "configs").glob("*.yaml") if "policy" in yaml.safe_load(p.read_text()))
SO100 = [path for path in TRAINING if path.stem.startswith("so100")]
#: What makes the 3B model's configuration one for a CPU; everything else stays as it is shipped.
TINY = [
    "--policy.vlm_model_name=tiny",
    "--policy.device=cpu",
    "--policy.tiny.hidden_size=64",
    "--policy.tiny.num_layers=2",
    "--policy.tiny.num_heads=2",
    "--policy.tiny.num_kv_heads=2",
    "--policy.tiny.intermediate_size=128",
    "--policy.tiny.vision_layers=1",
    "--policy.image_size=[56,56]",
    "--batch_size=2",
    "--num_workers=0",
    "--steps=2",
    "--save_freq=2",
    "--eval_steps=2",
    "--max_eval_samples=2",
    "--log_freq=1",
]


def parse(path: Path, *arguments: str) -> TrainPipelineConfig:
    """Read a configuration as `lerobot-train` does."""
    config: TrainPipelineConfig = draccus.parse(TrainPipelineConfig, path, args=list(arguments))
    return config


def make_recording(root: Path, cameras: list[str], episodes: int = 3) -> Path:
    """Write what `lerobot-record` writes for an SO-100: six named joints in degrees, and cameras."""
    from lerobot.datasets import LeRobotDataset

    joints = {"dtype": "float32", "shape": (6,), "names": [f"{joint}.pos" for joint in JOINTS]}
    picture = {"dtype": "image", "shape": (48, 64, 3), "names": ["height", "width", "channels"]}
    dataset = LeRobotDataset.create(
        repo_id="local/so100",
        root=root,
        fps=30,
        robot_type="so100_follower",
        use_videos=False,
        features={
            "action": joints,
            "observation.state": joints,
            **{f"observation.images.{camera}": picture for camera in cameras},
        },
    )
    rng = np.random.default_rng(0)
    for _ in range(episodes):
        for frame in range(6):
            pose = (40 * np.sin(frame / 3 + np.arange(6))).astype(np.float32)
            pictures = {
                f"observation.images.{c}": rng.integers(0, 256, (48, 64, 3), np.uint8) for c in cameras
            }
            dataset.add_frame({"action": pose, "observation.state": pose, "task": "wave", **pictures})
        dataset.save_episode()
    dataset.finalize()
    return root


def test_the_configurations_are_found() -> None:
    assert {path.stem for path in TRAINING} >= {"debug", "metaworld_tiny", "so100", "so100_lora"}


@pytest.mark.parametrize("path", TRAINING, ids=lambda path: path.stem)
def test_lerobots_parser_reads_it(path: Path) -> None:
    config = parse(path)
    assert isinstance(config.policy, VLA0Config)
    written = yaml.safe_load(path.read_text())
    for name, value in written["policy"].items():
        if name not in ("type", "tiny", "device"):
            read = getattr(config.policy, name)
            assert (list(read) if isinstance(read, tuple) else read) == value, name
    for name in ("seed", "batch_size", "steps", "save_freq", "env_eval_freq"):
        assert getattr(config, name) == written[name]
    assert config.policy.push_to_hub is False


@pytest.mark.parametrize("path", SO100, ids=lambda path: path.stem)
def test_the_arm_executes_whole_chunks_and_rtc_has_half_a_second(path: Path) -> None:
    config = parse(path)
    policy: Any = config.policy
    assert (policy.n_action_steps, policy.ensemble_n_chunks) == (policy.chunk_size, 1)
    assert policy.cameras is None  # whatever the recording has
    loop = Loop(fps=30, chunk_size=policy.chunk_size, n_action_steps=policy.n_action_steps)
    assert plan_rtc(QueryTime(fixed_ms=500, per_step_ms=0), loop).verdict == "keeps up"
    assert plan_rtc(QueryTime(fixed_ms=501, per_step_ms=0), loop).verdict == "pauses"
    # Beside each other: nothing but what adapters change.
    full, lora = parse(REPO / "configs" / "so100.yaml"), parse(REPO / "configs" / "so100_lora.yaml")
    differ = {name for name in vars(full.policy) if getattr(full.policy, name) != getattr(lora.policy, name)}
    assert differ == {"param_dtype", "optimizer_lr", "scheduler_warmup_steps"}
    assert full.peft is None
    assert lora.peft is not None
    assert (lora.peft.method_type, lora.peft.r, lora.peft.lora_alpha) == ("LORA", 16, 32)


@pytest.mark.parametrize(
    ("name", "cameras"), [("so100", ["top", "wrist"]), ("so100", ["top"]), ("so100_lora", ["top", "wrist"])]
)
def test_it_trains(name: str, cameras: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "so100_lora":
        pytest.importorskip("peft", reason="pip install 'lerobot_policy_vla0[lora]'")
    from lerobot.scripts.lerobot_train import main

    data = ["--dataset.repo_id=local/so100", f"--dataset.root={make_recording(tmp_path / 'data', cameras)}"]
    # An episode of six frames in ten would be none at all.
    split = ["--dataset.eval_split=0.34", f"--output_dir={tmp_path / 'out'}"]
    path = REPO / "configs" / f"{name}.yaml"
    monkeypatch.setattr(sys, "argv", ["lerobot-train", f"--config_path={path}", *data, *split, *TINY])
    main()
    saved = tmp_path / "out" / "checkpoints" / "000002" / "pretrained_model"
    written = json.loads((saved / "config.json").read_text())
    assert written["chunk_size"] == written["n_action_steps"] == 30
    assert set(written["input_features"]) == {
        "observation.state",
        *(f"observation.images.{camera}" for camera in cameras),
    }
    assert (saved / "adapter_model.safetensors").exists() == (name == "so100_lora")


@pytest.mark.parametrize(
    "path", sorted((REPO / "configs/ablations").glob("*.yaml")), ids=lambda path: path.stem
)
def test_every_evaluation_of_an_ablation_can_be_planned(path: Path) -> None:
    """LIBERO's task was once named as a text, which the sweep refused when it was started."""
    plan = read_plan(path)
    for seed in plan.seeds:
        for evaluation in plan.evaluations(seed):
            given = [f"--{name}={value}" for name, value in evaluation.arguments.items()]
            shards = plan_shards(
                parse_arguments([*given, "--policy.path=somewhere"]), plan.episodes_per_shard
            )
            assert shards, evaluation.name
