"""LeRobot's own commands drive the policy: train, validate, resume, evaluate. Offline, tiny model."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import toy_env  # noqa: F401 - registers --env.type=toy
from helpers.commands import DEBUG, evaluate, train, train_arguments
from helpers.engine_server import serving
from helpers.tiny import make_dataset
from safetensors.torch import load_file

from lerobot_policy_vla0.errors import CameraError, CheckpointError, SharedPolicyError, StatsError


@pytest.fixture(scope="session")
def dataset_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of three episodes of eight frames."""
    return make_dataset(tmp_path_factory.mktemp("data") / "tiny")


@pytest.fixture(scope="session")
def checkpoint(dataset_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of four steps, written by the console script in a process of its own."""
    output = tmp_path_factory.mktemp("run") / "out"
    script = Path(sys.executable).parent / "lerobot-train"
    finished = subprocess.run(
        [
            str(script),
            DEBUG,
            *train_arguments(dataset_root, output, steps=4, save=2),
            "--dataset.eval_split=0.34",
            "--eval_steps=2",
        ],
        env={**os.environ, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    (output.parent / "log.txt").write_text(finished.stdout + finished.stderr)
    assert finished.returncode == 0, finished.stderr[-4000:]
    return output / "checkpoints" / "000004" / "pretrained_model"


def test_the_console_script_discovers_trains_and_validates(checkpoint: Path) -> None:
    log = (checkpoint.parents[2].parent / "log.txt").read_text()
    for name in ("loss:", "token_accuracy:", "first_step_accuracy:", "bin_error:", "clipped_fraction:"):
        assert name in log, name
    assert "step 2: eval_loss=" in log
    assert "step 4: eval_loss=" in log


def test_a_resumed_run_equals_the_uninterrupted_one(
    checkpoint: Path, dataset_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train([DEBUG, *train_arguments(dataset_root, whole, steps=4, save=2)], monkeypatch)
    train([DEBUG, *train_arguments(dataset_root, parts, steps=2, save=2)], monkeypatch)
    saved = parts / "checkpoints" / "last" / "pretrained_model" / "train_config.json"
    train([f"--config_path={saved}", "--resume=true", "--steps=4"], monkeypatch)
    name = Path("checkpoints/000004/pretrained_model/model.safetensors")
    first, second = load_file(whole / name), load_file(parts / name)
    assert first.keys() == second.keys()
    for key, tensor in first.items():
        assert torch.equal(tensor, second[key]), key
    before = load_file(whole / "checkpoints/000002/pretrained_model/model.safetensors")
    assert any(not torch.equal(tensor, before[key]) for key, tensor in first.items())


def test_evaluation_runs_on_an_engine_without_weights(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same actions, so the same rewards; two environments are asked for at a time."""
    robot = tmp_path / "robot"
    shutil.copytree(checkpoint, robot)
    (robot / "model.safetensors").unlink()
    rewards = []
    with serving(checkpoint) as (engine, address):
        for folder, options in ((checkpoint, []), (robot, [f"--policy.engine={address}"])):
            arguments = ["--env.type=toy", "--eval.n_episodes=2", "--eval.batch_size=2", "--seed=3"]
            output = tmp_path / f"eval_{folder.name}"
            evaluate([f"--policy.path={folder}", *options, *arguments, f"--output_dir={output}"], monkeypatch)
            info = json.loads((output / "eval_info.json").read_text())
            rewards.append(info["per_task"][0]["metrics"])
    assert rewards[0]["sum_rewards"] == rewards[1]["sum_rewards"]
    assert len(engine.asked) > 2


def test_evaluation_runs_from_the_checkpoint_alone(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = []
    for name in ("a", "b"):
        evaluate(
            [
                f"--policy.path={checkpoint}",
                "--env.type=toy",
                "--eval.n_episodes=2",
                "--eval.batch_size=2",
                "--seed=3",
                f"--output_dir={tmp_path / name}",
            ],
            monkeypatch,
        )
        info = json.loads((tmp_path / name / "eval_info.json").read_text())
        results.append(info["per_task"][0]["metrics"]["sum_rewards"])
        assert len(results[-1]) == 2
        assert sorted(p.name for p in (tmp_path / name).rglob("*.mp4")) == [
            "eval_episode_0.mp4",
            "eval_episode_1.mp4",
        ]
    assert results[0] == results[1]  # same seeds, same result


def test_evaluation_takes_weights_in_eight_bits(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torchao", reason="weights in 8 bits need the [quantize] extra")
    toy = ["--env.type=toy", "--eval.n_episodes=1", "--eval.batch_size=1", f"--output_dir={tmp_path}"]
    evaluate([f"--policy.path={checkpoint}", "--policy.quantization=int8", *toy], monkeypatch)
    assert json.loads((tmp_path / "eval_info.json").read_text())["overall"]["n_episodes"] == 1


def test_one_policy_in_several_threads_is_refused(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SharedPolicyError, match=r"--env\.max_parallel_tasks=1"):
        evaluate(
            [
                f"--policy.path={checkpoint}",
                "--env.type=toy",
                "--env.task=one,two",
                "--env.max_parallel_tasks=2",
                "--eval.n_episodes=2",
                "--eval.batch_size=1",
                f"--output_dir={tmp_path}",
            ],
            monkeypatch,
        )


def test_another_camera_name_is_refused(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [
        f"--policy.path={checkpoint}",
        "--env.type=toy",
        "--env.camera=side",
        "--eval.n_episodes=1",
        "--eval.batch_size=1",
        f"--output_dir={tmp_path}",
    ]
    # LeRobot's own check comes first; with a rename map it stands back and ours speaks.
    with pytest.raises(ValueError, match=r"observation\.images\.side"):
        evaluate(arguments, monkeypatch)
    rename = '--rename_map={"observation.images.side": "observation.images.front"}'
    with pytest.raises(CameraError, match=r"observation\.images\.top.*observation\.images\.front"):
        evaluate([*arguments, rename], monkeypatch)


def test_renaming_the_camera_makes_it_run(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate(
        [
            f"--policy.path={checkpoint}",
            "--env.type=toy",
            "--env.camera=side",
            '--rename_map={"observation.images.side": "observation.images.top"}',
            "--eval.n_episodes=1",
            "--eval.batch_size=1",
            f"--output_dir={tmp_path}",
        ],
        monkeypatch,
    )
    assert json.loads((tmp_path / "eval_info.json").read_text())["overall"]["n_episodes"] == 1


def test_an_untrained_policy_does_not_act(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    untrained = ["--policy.type=vla0", "--policy.vlm_model_name=tiny", "--policy.device=cpu"]
    with pytest.raises(StatsError, match=r"--policy\.path"):
        evaluate(
            [*untrained, "--env.type=toy", "--eval.n_episodes=1", f"--output_dir={tmp_path}"], monkeypatch
        )


def test_changing_the_chunk_size_of_a_checkpoint_is_refused(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CheckpointError, match="chunk_size is 4, the checkpoint has 3"):
        evaluate(
            [
                f"--policy.path={checkpoint}",
                "--policy.chunk_size=4",
                "--env.type=toy",
                "--eval.n_episodes=1",
                f"--output_dir={tmp_path}",
            ],
            monkeypatch,
        )


def test_fine_tuning_from_a_checkpoint_starts_from_its_weights(
    checkpoint: Path, dataset_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = train_arguments(dataset_root, tmp_path / "out", steps=1, save=1)
    train(
        [
            f"--policy.path={checkpoint}",
            "--policy.push_to_hub=false",
            "--policy.optimizer_lr=0",
            "--num_workers=0",
            "--env_eval_freq=0",
            *arguments,
        ],
        monkeypatch,
    )
    saved = load_file(tmp_path / "out/checkpoints/000001/pretrained_model/model.safetensors")
    for key, tensor in load_file(checkpoint / "model.safetensors").items():
        if key != "augmentation.state":
            assert torch.equal(tensor, saved[key]), key


def test_importing_the_plugin_is_cheap() -> None:
    code = (
        "import time\n"
        "start = time.process_time()\n"
        "import lerobot.configs.policies, lerobot.processor, lerobot.optim\n"
        "middle = time.process_time()\n"
        "import lerobot_policy_vla0, sys\n"
        "print((time.process_time() - middle) / (middle - start))\n"
        "print('transformers.models.qwen2_5_vl.modeling_qwen2_5_vl' in sys.modules)\n"
        "print('lerobot_policy_vla0.modeling_vla0' in sys.modules)\n"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert float(out[0]) < 0.05  # of what LeRobot's own imports take, however fast the machine
    assert out[1:] == ["False", "False"]
