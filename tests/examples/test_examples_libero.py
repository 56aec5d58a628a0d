"""LIBERO's scripted experts: they solve, and what they recorded is what `lerobot-eval` shows and plays."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.commands import preloaded
from helpers.libero_place import libero_place
from helpers.paths import REPO
from lerobot.datasets.lerobot_dataset import LeRobotDataset

pytestmark = pytest.mark.sim

IMAGE, WRIST, STATE = "observation.images.image", "observation.images.image2", "observation.state"
SEEDS = [100_000, 100_001]


@dataclass
class Run:
    """What `libero_expert_worker.py` wrote."""

    notes: dict[str, Any]
    live: dict[
        str, np.ndarray
    ]  # three observations of LeRobot's environment; `raw`: the simulator's first picture
    root: Path

    def dataset(self) -> LeRobotDataset:
        return LeRobotDataset("local/knob", root=self.root)

    def column(self, key: str) -> np.ndarray:
        return np.stack([np.asarray(row) for row in self.dataset().hf_dataset.with_format("numpy")[key][:]])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Everything is played once, in one process; skips without LIBERO or its assets."""
    with libero_place(tmp_path_factory.mktemp("libero")) as place:
        output = place.folder / "output"
        output.mkdir()
        path = [str(REPO / "examples" / "libero"), os.environ.get("PYTHONPATH", "")]
        done = subprocess.run(
            preloaded(REPO / "tests" / "helpers" / "libero_expert_worker.py", str(output)),
            env={**place.environment, "PYTHONPATH": os.pathsep.join(path)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-4000:]
    with np.load(output / "live.npz") as live:
        return Run(json.loads((output / "notes.json").read_text()), dict(live), output / "dataset")


def test_experts_solve_two_tasks_and_come_back_from_a_disturbance(run: Run) -> None:
    for result in (run.notes["bowl"], run.notes["first"], *run.notes["played_after_kill"]):
        assert result["success"] and 20 < result["steps"] < 120
    assert run.notes["bowl"]["instruction"] == "put the bowl on the plate"


def test_no_recorded_start_is_one_of_those_evaluation_uses(run: Run) -> None:
    for result in (run.notes["first"], *run.notes["played_after_kill"]):
        assert result["start_distance"] > 0.001  # metres


def test_a_killed_recording_goes_on_and_loses_and_doubles_nothing(run: Run) -> None:
    notes = run.notes
    assert not notes["root_after_kill"] and notes["staged_after_kill"] == ["100000.npz"]
    assert notes["first_untouched"]
    assert [result["seed"] for result in notes["played_after_kill"]] == SEEDS[1:]
    assert notes["left"] == ["dataset"]  # neither staged episodes nor half a data set
    recorded = json.loads((run.root / "recording.json").read_text())["episodes"]
    assert recorded == [["turn_on_the_stove", seed] for seed in SEEDS]
    lengths = [result["steps"] for result in (notes["first"], *notes["played_after_kill"])]
    assert run.column("episode_index").tolist() == [0] * lengths[0] + [1] * lengths[1]


def test_other_settings_are_refused(run: Run) -> None:
    assert "was recorded with other settings (image_size: recorded 64, asked for 32)" in run.notes["refusal"]


def test_the_data_set_has_the_layout_of_libero(run: Run) -> None:
    meta = run.dataset().meta
    assert meta.fps == 10 and meta.robot_type == "panda"
    assert {key: tuple(meta.features[key]["shape"]) for key in (IMAGE, WRIST, STATE, "action")} == {
        IMAGE: (64, 64, 3),
        WRIST: (64, 64, 3),
        STATE: (8,),
        "action": (7,),
    }
    assert meta.features[IMAGE]["dtype"] == "image"
    assert list(meta.tasks.index) == ["turn on the stove"]
    actions = run.column("action")
    assert np.abs(actions).max() <= 1 and set(actions[:, 6]) <= {-1.0, 1.0}
    assert np.abs(actions[:, :6]).max(axis=1).min() >= 1e-3  # nobody stands still


def test_frames_are_what_lerobot_eval_gives_to_a_policy(run: Run) -> None:
    dataset = run.dataset()
    for row in range(3):
        item = dataset[row]
        for key in (IMAGE, WRIST):
            assert np.array_equal((item[key].numpy() * 255).round().transpose(1, 2, 0), run.live[key][row])
        assert np.allclose(item[STATE], run.live[STATE][row], atol=1e-6)
    # Robosuite's pictures are upside down; turned by 180 degrees they are upright, and mirrored left to right.
    raw = run.live["raw"]
    assert np.array_equal(run.live[IMAGE][0], raw[::-1, ::-1])
    assert not np.array_equal(run.live[IMAGE][0], raw[::-1])


def test_recorded_actions_solve_the_task_again_in_lerobots_environment(run: Run) -> None:
    assert run.notes["replay"] == {"solved": True, "steps": run.notes["first"]["steps"]}
