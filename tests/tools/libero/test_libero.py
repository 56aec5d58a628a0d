"""LIBERO through the real `lerobot-eval`: pictures, cameras, actions and gripper against the simulator's own state.

The evaluations run once, in one process (`libero_worker.py`), on the first task of each suite, with LIBERO's own
assets. Success is not looked at: the policy is random.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.commands import preloaded
from helpers.libero_place import LiberoPlace, libero_place
from helpers.libero_variants import variant_files, write_wheel
from helpers.paths import REPO

from lerobot_policy_vla0.tools.commands import main
from lerobot_policy_vla0.tools.evaluation.perturbation import camera_direction
from lerobot_policy_vla0.tools.libero.assets import SUITES, Assets, task_files
from lerobot_policy_vla0.tools.libero.setup import find_package

pytestmark = pytest.mark.sim

IMAGE, WRIST = "observation.images.image", "observation.images.image2"
METRES, RADIANS = 0.05, 0.5  # what an action of 1 asks for: robosuite's OSC_POSE, output_max


@dataclass
class Run:
    """One evaluation as `libero_worker.py` wrote it down."""

    notes: dict[str, Any]
    arrays: dict[str, np.ndarray]

    def actions(self) -> np.ndarray:
        """What the environment was given: (steps, 7)."""
        return np.array([step["action"] for step in self.notes["steps"]])

    def column(self, name: str) -> np.ndarray:
        """One measurement of every step."""
        return np.array([step[name] for step in self.notes["steps"]])

    def picture(self, key: str) -> np.ndarray:
        """What the policy saw first: (256, 256, 3) in [0, 255]."""
        return self.arrays[key].transpose(1, 2, 0) * 255


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiberoPlace]:
    """Where `vla0 libero-setup` set LIBERO up."""
    with libero_place(tmp_path_factory.mktemp("libero")) as place:
        yield place


@pytest.fixture(scope="module")
def runs(place: LiberoPlace) -> dict[str, Run]:
    """Every evaluation of the worker, by name: one per suite, and two with a fixed command."""
    path = os.pathsep.join([str(REPO / "tests"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        preloaded(REPO / "tests" / "helpers" / "libero_worker.py", str(place.folder), *SUITES),
        env={**place.environment, "PYTHONPATH": path},
        stdin=subprocess.DEVNULL,  # nobody answers
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    result = {}
    for name in (*SUITES, "forward_close", "left_up_open"):
        with np.load(place.folder / f"{name}.npz") as arrays:
            result[name] = Run(json.loads((place.folder / f"{name}.json").read_text()), dict(arrays))
    return result


@pytest.fixture(params=SUITES)
def run(runs: dict[str, Run], request: pytest.FixtureRequest) -> Run:
    """The paper's protocol on one suite."""
    return runs[request.param]


def test_the_picture_is_upright_and_mirrored_and_the_cameras_are_in_order(run: Run) -> None:
    assert run.notes["cameras"] == [IMAGE, WRIST]
    third, wrist = run.arrays["agentview"].astype(float), run.arrays["robot0_eye_in_hand"].astype(float)
    # Robosuite hands out pictures upside down, LeRobot turns them by 180 degrees: what remains is left for right.
    # Every pixel agrees with MuJoCo's own renderer, up to the rounding of a few.
    assert np.abs(run.picture(IMAGE) - third[:, ::-1]).mean() < 0.5
    assert np.abs(run.picture(WRIST) - wrist[:, ::-1]).mean() < 0.5
    for other in (third, third[::-1], third[::-1, ::-1], wrist[:, ::-1]):
        assert np.abs(run.picture(IMAGE) - other).mean() > 10


def test_actions_are_a_twentieth_of_a_metre_and_half_a_radian(run: Run) -> None:
    actions = run.actions()
    assert actions.shape[1] == 7 and np.abs(actions[:, :6]).min() > 0
    assert np.allclose(run.column("goal_shift"), actions[:, :3] * METRES, atol=0.001)
    assert np.allclose(run.column("goal_turn"), actions[:, 3:6] * RADIANS, atol=0.005)


def test_the_gripper_is_snapped_and_the_others_are_not(run: Run) -> None:
    actions = run.actions()
    assert set(actions[:, 6]) <= {-1.0, 1.0}
    assert not set(np.abs(actions[:, :6]).ravel()) & {0.0, 1.0}


@pytest.mark.parametrize(("name", "steps"), [*((suite, 2) for suite in SUITES), ("forward_close", 5)])
def test_every_episode_starts_from_its_own_settled_state(runs: dict[str, Run], name: str, steps: int) -> None:
    run = runs[name]
    resets = run.notes["resets"]
    assert [reset["init_state"] for reset in resets] == list(range(len(resets)))
    for reset in resets:
        assert reset["given_states"] == [reset["init_state"]]
        assert reset["n_states"] == 50
        assert reset["settled_seconds"] == pytest.approx(10 / 20)  # ten steps at 20 Hz
    (task,) = run.notes["tasks"]
    assert len(task["metrics"]["successes"]) == len(resets)
    assert len(run.notes["steps"]) == steps * len(resets)  # episode_length


def test_the_second_episode_starts_elsewhere(runs: dict[str, Run]) -> None:
    first, second = runs["forward_close"].notes["resets"]
    assert np.abs(np.subtract(first["position"], second["position"])).max() > 1e-3


def test_the_state_is_the_simulators_too(run: Run) -> None:
    state = run.arrays["observation.state"]
    assert state.shape == (8,)
    # Metres. Robosuite measures at the beginning of a step of 50 ms, and the arm may not stand quite still yet.
    assert state[:3] == pytest.approx(run.notes["resets"][0]["position"], abs=1e-4)


def test_a_command_forward_moves_forward_and_one_closes(runs: dict[str, Run]) -> None:
    run = runs["forward_close"]
    assert np.allclose(run.actions(), [[0.8, 0, 0, 0, 0, 0, 1]], atol=1e-6)
    assert len(run.actions()) == 10
    for episode in (slice(0, 5), slice(5, 10)):
        moved = run.column("moved")[episode].sum(axis=0)
        assert moved[0] > 0.025 and np.abs(moved[1:]).max() < 0.01
        fingers = np.abs(run.column("fingers")[episode]).sum(axis=1)  # metres between the fingers
        assert (np.diff(fingers) < 0).all() and fingers[-1] < fingers[0] - 0.02


def test_a_command_left_and_up_moves_there_and_minus_one_opens(runs: dict[str, Run]) -> None:
    run = runs["left_up_open"]
    assert np.allclose(run.actions(), [[0, 0.8, 0.4, 0, 0, 0, -1]], atol=1e-6)
    moved = run.column("moved").sum(axis=0)
    assert moved[1] > 0.025 and moved[1] / moved[2] == pytest.approx(2, rel=0.1)
    assert abs(moved[0]) < 0.005
    fingers = np.abs(run.column("fingers")).sum(axis=1)
    assert (np.diff(fingers) > -1e-4).all() and fingers[-1] > 0.075  # of 0.08


def test_the_files_worked_out_are_those_the_simulator_loaded(run: Run, place: LiberoPlace) -> None:
    reset = run.notes["resets"][0]
    named = task_files(Path(reset["bddl"]).read_text(), Assets(place.assets))
    assert all(named.values())
    # LIBERO writes down some paths as it found them, and others with links resolved.
    roots = place.assets, place.assets.resolve()
    loaded = {
        str(Path(file).relative_to(root))
        for file in reset["files"]
        for root in roots
        if Path(file).is_relative_to(root)
    }
    assert loaded == {name for name in named if not name.endswith(".xml")}


# ---- the camera that is moved ----------------------------------------------------------------------------------


def test_a_moved_camera_changes_its_picture_and_nothing_else(place: LiberoPlace) -> None:
    program = preloaded(REPO / "tests" / "helpers" / "libero_camera.py", str(place.folder / "camera.npz"))
    done = subprocess.run(
        program, env=place.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    with np.load(place.folder / "camera.npz") as arrays:
        seen = dict(arrays)
    home, offsets = seen["plain_place"], {}
    for name, seed in (("moved", 3), ("other", 4)):
        offsets[name] = seen[f"{name}_place"] - home
        assert offsets[name] == pytest.approx(0.01 * camera_direction(seed), abs=1e-9)  # metres; not added up
        assert np.array_equal(seen[f"{name}_turn"], seen["plain_turn"])
    assert np.array_equal(seen["unmoved_place"], home)
    # What docs/libero.md says of the seed: it places what stands still, also with fixed states.
    apart = np.abs(seen["other_bodies"] - seen["plain_bodies"]).max(axis=1)
    assert {str(name) for name in seen["plain_names"][apart > 1e-3]} == {
        "wooden_cabinet_1_main",
        "flat_stove_1_main",
    }
    for step in (0, 1):
        third, wrist, state = (f"{what}{step}" for what in ("image", "image2", "state"))
        assert (seen[f"moved_{third}"] != seen[f"plain_{third}"]).any(axis=-1).mean() > 0.2
        difference = np.abs(seen[f"moved_{third}"].astype(float) - seen[f"plain_{third}"]).mean()
        assert 1 < difference < 10  # a little elsewhere, not upside down
        assert np.array_equal(seen[f"moved_{wrist}"], seen[f"plain_{wrist}"])
        assert np.allclose(seen[f"moved_{state}"], seen[f"plain_{state}"], rtol=0, atol=1e-12)
    for what in ("physics", "bodies", "rewards"):
        assert np.allclose(seen[f"moved_{what}"], seen[f"plain_{what}"], rtol=0, atol=1e-12)


# ---- other start positions -------------------------------------------------------------------------------------


def test_an_episode_starts_where_the_variant_says(place: LiberoPlace, tmp_path: Path) -> None:
    # A variant made of the suite's own files: bowl and bottle exchange their places, and cheese and stove.
    suite, task = "libero_goal", "turn_on_the_stove"
    package = find_package()
    bowl, cheese, bottle = (slice(column, column + 2) for column in (10, 17, 24))  # x and y in a start state
    stove = (-0.41, 0.21)  # metres: the middle of its region in the task files
    files, ordinary = {}, {}
    for file in (package / "bddl_files" / suite).glob("*.bddl"):
        text = file.read_text()
        for one, other in (("akita_black_bowl", "wine_bottle"), ("cream_cheese", "flat_stove")):
            regions = [f"main_table_{name.removeprefix('flat_')}_region" for name in (one, other)]
            for name, here, there in ((one, *regions), (other, *reversed(regions))):
                assert f"(On {name}_1 {here})" in text
                text = text.replace(f"(On {name}_1 {here})", f"(On {name}_1 {there})")
        states = torch.load(package / "init_files" / suite / f"{file.stem}.pruned_init", weights_only=False)
        ordinary[file.stem] = states.copy()
        states[:, bowl], states[:, bottle] = ordinary[file.stem][:, bottle], ordinary[file.stem][:, bowl]
        states[:, cheese] = stove
        files |= variant_files("swap", suite, **{file.stem: (text, states)})
    wheel, config = write_wheel(tmp_path / "pro.whl", files), tmp_path / "swap"
    assert main(["libero-setup", "--pro", str(wheel), "--variant", "swap", "--config-dir", str(config)]) == 0

    program = preloaded(REPO / "tests/helpers/libero_start.py", str(tmp_path / "start.npz"), suite, task)
    path = os.pathsep.join([str(REPO / "examples" / "libero"), os.environ.get("PYTHONPATH", "")])
    environment = place.environment | {"LIBERO_CONFIG_PATH": str(config), "PYTHONPATH": path}
    done = subprocess.run(
        program, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    with np.load(tmp_path / "start.npz") as arrays:
        seen = dict(arrays)
    first = ordinary[task][0]
    order = ["akita_black_bowl_1", "cream_cheese_1", "wine_bottle_1", "plate_1"]
    assert seen["free_joints"].tolist() == order
    for name, expected in zip(order, (first[bottle], stove, first[bowl], first[31:33]), strict=True):
        assert seen[name][:2] == pytest.approx(expected, abs=0.01), name  # metres, after settling
    # What stands still is in no start state: its place comes from the task file.
    assert seen["flat_stove_1"][:2] == pytest.approx(first[cheese], abs=0.05)
