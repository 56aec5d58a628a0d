"""What LeRobot 0.6.2 adds to its commands works with this policy; `scripts/try_lerobot.sh` runs this file.

Skipped on 0.6.1, which has none of it.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from helpers.commands import DEBUG, train, train_arguments
from helpers.comparing import COMPARABLE, distance
from helpers.tiny import make_dataset
from lerobot.policies.pretrained import PreTrainedPolicy
from safetensors.torch import load_file

from lerobot_policy_vla0 import VLA0Policy

pytestmark = pytest.mark.skipif(
    not hasattr(PreTrainedPolicy, "generate_text"), reason="this LeRobot is older than 0.6.2"
)

WEIGHTS = "pretrained_model/model.safetensors"


@pytest.fixture(scope="module")
def dataset_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data") / "tiny")


def run(root: Path, output: Path, monkeypatch: pytest.MonkeyPatch, steps: int, *options: str) -> Path:
    """Train with `lerobot-train`; return the folder of the last checkpoint."""
    arguments = train_arguments(root, output, steps=steps, save=steps)
    train([DEBUG, *arguments, *COMPARABLE, *options], monkeypatch)
    return output / "checkpoints" / f"{steps:06d}"


def test_two_accumulated_batches_are_one_of_twice_the_size(
    dataset_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accumulate = "--accelerator.gradient_accumulation.steps=2"
    parts = run(dataset_root, tmp_path / "parts", monkeypatch, 2, "--batch_size=2", accumulate)
    whole = run(dataset_root, tmp_path / "whole", monkeypatch, 1, "--batch_size=4")
    still = run(dataset_root, tmp_path / "still", monkeypatch, 1, "--batch_size=4", "--policy.optimizer_lr=0")
    first, second, start = (load_file(folder / WEIGHTS) for folder in (parts, whole, still))
    moved = distance(second, start)
    assert moved > 0
    assert distance(first, second) < 0.02 * moved


@pytest.mark.skipif(importlib.util.find_spec("diffusers") is None, reason="pip install diffusers")
def test_the_averaged_weights_are_saved_as_a_policy_and_resumed(
    dataset_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    average = ("--ema.enable=true", "--ema.decay=0.5")
    output = tmp_path / "run"
    arguments = train_arguments(dataset_root, output, steps=2, save=1)
    train([DEBUG, *arguments, *COMPARABLE, *average], monkeypatch)
    last = output / "checkpoints" / "000002"
    first, live = load_file(output / "checkpoints" / "000001" / WEIGHTS), load_file(last / WEIGHTS)
    assert distance(first, live) > 0
    averaged = VLA0Policy.from_pretrained(last / "pretrained_model_ema").state_dict()
    for key, tensor in live.items():
        if key != "augmentation.state":
            middle = (
                0.5 * first[key] + 0.5 * tensor
            )  # the average begins with the weights after the first step
            torch.testing.assert_close(averaged[key], middle, rtol=1e-5, atol=1e-7, msg=key)
    config = last / "pretrained_model" / "train_config.json"
    train([f"--config_path={config}", "--resume=true", "--steps=3"], monkeypatch)
    assert (output / "checkpoints/000003/pretrained_model_ema/model.safetensors").is_file()


def test_left_out_episodes_are_not_trained_on(
    dataset_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[str] = []
    monkeypatch.setattr("logging.info", lambda message, *rest: logged.append(str(message)))
    folder = run(dataset_root, tmp_path / "out", monkeypatch, 1, "--dataset.exclude_episodes=[1]")
    assert "dataset.num_episodes=2" in logged
    assert (folder / WEIGHTS).is_file()


def test_accelerates_precision_leaves_actions_as_they_are(
    dataset_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run(dataset_root, tmp_path / "out", monkeypatch, 1, "--accelerator.mixed_precision=bf16")
    assert {tensor.dtype for tensor in load_file(folder / WEIGHTS).values()} >= {torch.float32}
