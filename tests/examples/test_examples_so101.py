"""The numbered scripts of examples/so101, run as printed with the simulated arm."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import BIN, preloaded, preloaded_python, preloaded_scripts
from helpers.paths import REPO

EXAMPLES = REPO / "examples" / "so101"


@pytest.mark.sim
def test_the_scripts_run_in_their_order(tmp_path: Path) -> None:
    pytest.importorskip("so101_nexus", reason="pip install 'lerobot_policy_vla0[so101]'")
    from lerobot.datasets import LeRobotDataset

    run = tmp_path / "run"
    scripts = preloaded_scripts(
        tmp_path / "bin", "vla0", *(f"lerobot-{name}" for name in ("train", "eval", "rollout", "replay"))
    )
    settings = {"EPISODES": 3, "NOISE": 0, "SIZE": 32, "STEPS": 2, "EPISODE_S": 2, "EVAL_EPISODES": 2}
    environment = {
        **os.environ,
        "PATH": f"{scripts}:{BIN}:{os.environ['PATH']}",
        "PYTHON": str(preloaded_python(tmp_path / "bin")),
        "RUN": str(run),
        **{name: str(value) for name, value in settings.items()},
    }
    names = sorted(path.name for path in EXAMPLES.glob("[0-9]_*.sh"))
    assert [int(name[0]) for name in names] == list(range(1, len(names) + 1))
    said, log, lifted = {}, run / "steps.jsonl", {}
    for name in names:
        log.unlink(missing_ok=True)
        one = {"EPISODES": "1"} if name.startswith("8") else {}
        options = ["--workers", "1"] if name == "1_record.sh" else []
        finished = subprocess.run(
            ["bash", EXAMPLES / name, *options],
            cwd="/",
            env={**environment, **one},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert finished.returncode == 0, f"{name}: {finished.stdout[-4000:]}"
        said[name] = finished.stdout
        if log.exists():
            steps = [json.loads(line) for line in log.read_text().splitlines()]
            lifted[name] = sum(step.get("success", False) for step in steps)

    # The expert lifted the cube each time, and a replay on the arm that LeRobot drives lifts it again.
    assert "recorded 3 episodes" in said["1_record.sh"] and "failed ones left out: 0" in said["1_record.sh"]
    assert lifted["9_replay.sh"] >= 1
    assert lifted.keys() == {"6_rollout_sync.sh", "7_rollout_rtc.sh", "8_rollout_record.sh", "9_replay.sh"}

    recorded = LeRobotDataset("local/so101", root=run / "dataset")
    rolled_out = LeRobotDataset("local/rollout_so101", root=run / "rollout")
    assert (recorded.num_episodes, recorded.fps) == (3, 30)
    evaluated = json.loads((run / "eval" / "eval_info.json").read_text())
    assert evaluated["overall"]["n_episodes"] == 2

    # What the expert records is what LeRobot records with this arm: the same keys, names, shapes and units.
    for key in ("observation.state", "action", "observation.images.wrist", "observation.images.side"):
        ours, theirs = (data.meta.features[key] for data in (recorded, rolled_out))
        assert (tuple(ours["shape"]), ours["names"]) == (tuple(theirs["shape"]), theirs["names"]), key
    shown, done = (np.stack(d.hf_dataset.with_format("numpy")["action"]) for d in (recorded, rolled_out))
    margin = 1e-3 * np.ptp(shown, axis=0) + 0.09  # and an encoder's step
    assert (done >= shown.min(axis=0) - margin).all() and (done <= shown.max(axis=0) + margin).all()


@pytest.mark.sim
def test_the_expert_lifts_the_cube_in_spite_of_disturbances() -> None:
    pytest.importorskip("so101_nexus", reason="pip install 'lerobot_policy_vla0[so101]'")
    command = preloaded(EXAMPLES / "measure.py", "--episodes", "3", "--noise", "1", "--workers", "1")
    report = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert (report["lifted"], report["episodes"], report["failed_seeds"]) == (3, 3, [])
    assert 15 < report["mean_steps"] < 100


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.sh")), ids=lambda path: path.name)
def test_every_script_is_bash(path: Path) -> None:
    subprocess.run(["bash", "-n", path], check=True)
    assert os.access(path, os.X_OK) == (path.name[0].isdigit() or path.name == "demo.sh")
