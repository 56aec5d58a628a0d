"""The demos' scripts: finished stages are skipped, stopped ones go on, and runs are never mixed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.paths import REPO

Demo = Callable[..., tuple[subprocess.CompletedProcess[str], list[str]]]


@pytest.fixture
def demo(tmp_path: Path) -> Demo:
    """Run a demo with stand-ins that note their arguments; training stops after a checkpoint at first."""
    binaries = tmp_path / "bin"
    binaries.mkdir()
    calls = tmp_path / "calls.txt"
    note = f'echo "${{0##*/}} $*" >> {calls}\n'
    scripts = {
        "python": f"""case $1 in
            *stages.py) exec {sys.executable} "$@";;
            *tasks.py) echo '[info] a line of the library'; echo libero_goal 6; exit 0;;
        esac
        """
        + note,
        "vla0": "",
        "lerobot-eval": note,
        "lerobot-train": note
        + f"""
            last={tmp_path}/run/train/checkpoints/last/pretrained_model
            if [ -d $last ]; then exit 0; fi
            mkdir -p $last; touch $last/train_config.json; exit 3
        """,
    }
    for name, text in scripts.items():
        (binaries / name).write_text("#!/bin/bash\n" + text)
        (binaries / name).chmod(0o755)

    def run(example: str, **settings: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
        calls.write_text("")
        environment = {**os.environ, "PATH": f"{binaries}:{os.environ['PATH']}", **settings}
        environment |= {"DEMO_DIR": str(tmp_path / "run"), "PYTHON": str(binaries / "python")}
        script = REPO / "examples" / example / "demo.sh"
        result = subprocess.run(
            ["bash", script], env=environment, capture_output=True, text=True, check=False
        )
        return result, calls.read_text().splitlines()

    return run


def test_the_demo_skips_what_is_done_and_resumes_what_is_not(demo: Demo, tmp_path: Path) -> None:
    stopped, calls = demo("metaworld", DEMO_STEPS="7", DEMO_EPISODES="9")
    assert stopped.returncode == 3
    assert [call.split()[0] for call in calls] == ["python", "lerobot-train"]
    assert "--task button-press-topdown-v3 --episodes 9" in calls[0]
    assert "--config_path=configs/metaworld_tiny.yaml" in calls[1] and "--steps=7" in calls[1]
    assert "--log_freq=7" in calls[1]  # a training without a logged loss has no curve to report
    measured = json.loads((tmp_path / "run" / "stages.json").read_text())
    assert (measured["record"]["done"], measured["train"]["done"]) == (True, False)

    finished, calls = demo("metaworld", DEMO_STEPS="7", DEMO_EPISODES="9")
    assert finished.returncode == 0
    assert "== 1/5 record: done before" in finished.stdout
    assert [call.split()[0] for call in calls] == ["lerobot-train", "python", "lerobot-eval", "python"]
    assert "--resume=true" in calls[0] and "--steps" not in calls[0]
    assert "baselines.py" in calls[1] and "--seeds 200000 --episodes 20" in calls[1]
    assert "--seed=200000" in calls[2] and "--eval.n_episodes=20" in calls[2]
    assert "report.py --run" in calls[3] and calls[3].endswith("--hz 80")

    again, calls = demo("metaworld", DEMO_STEPS="7", DEMO_EPISODES="9")
    assert again.returncode == 0
    assert len(calls) == 1 and "report.py" in calls[0]

    refused, calls = demo("metaworld", DEMO_STEPS="8", DEMO_EPISODES="9")
    assert refused.returncode == 2 and calls == []
    assert "was started with other settings" in refused.stderr
    assert "steps=7" in refused.stderr and "steps=8" in refused.stderr


def test_liberos_demo_evaluates_on_the_fixed_states_as_it_recorded(demo: Demo) -> None:
    stopped, calls = demo("libero", DEMO_STEPS="7", DEMO_EPISODES="9", DEMO_IMAGE_SIZE="64")
    assert stopped.returncode == 3, stopped.stderr
    assert [call.split()[0] for call in calls] == ["python", "lerobot-train"]
    assert "--task put_the_cream_cheese_in_the_bowl --episodes 9 --noise 0.2 --image-size 64" in calls[0]
    assert "--config_path=configs/libero_tiny.yaml" in calls[1] and "--steps=7" in calls[1]

    finished, calls = demo("libero", DEMO_STEPS="7", DEMO_EPISODES="9", DEMO_IMAGE_SIZE="64")
    assert finished.returncode == 0, finished.stderr
    assert [call.split()[0] for call in calls] == ["lerobot-train", "lerobot-eval", "python", "python"]
    evaluation, baselines, report = calls[1:]
    assert "--env.task=libero_goal --env.task_ids=[6]" in evaluation
    assert "--env.observation_height=64 --env.observation_width=64" in evaluation
    assert "--eval.n_episodes=50" in evaluation and "--seed=1000" in evaluation
    assert "init_states" not in evaluation  # their default is the fixed ones
    assert "4_baselines.py" in baselines and "--seed 1000 --episodes 50" in baselines
    assert report.endswith("--hz 20")
