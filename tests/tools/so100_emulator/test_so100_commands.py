"""LeRobot's console scripts record and replay on the emulated SO-100; `vla0 emulate-so100` serves it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.commands import BIN, fresh, preloaded
from helpers.paths import REPO
from helpers.patience import STALE_MS
from helpers.so100_policy import STEP
from helpers.waiting import LONG, wait_until

from lerobot_policy_vla0.tools.commands import main
from lerobot_policy_vla0.tools.so100_emulator import JOINTS, BusLog, CameraSettings, SO100Emulator
from lerobot_policy_vla0.tools.so100_emulator.console import obey

FPS = 20
#: Length of an episode.
SECONDS = 2
#: Steps per chunk, and a rate at which a chunk lasts longer than it takes to compute on a busy machine.
CHUNK, ROLLOUT_FPS = 12, 5

needs_sdk = pytest.mark.skipif(
    not (BIN / "lerobot-record").exists(), reason="pip install 'lerobot[core_scripts]'"
)


def command(command: list[str]) -> str:
    """Run a command without a terminal and return what it logged."""
    finished = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout[-4000:]
    return finished.stdout


def record_arguments(
    emulator: SO100Emulator, root: Path, *, episodes: int, seconds: int = SECONDS
) -> list[str]:
    """Return the arguments of a `lerobot-record` of short episodes, teleoperated by the scripted leader."""
    return [
        *emulator.robot_options(),
        *emulator.teleop_options(),
        "--dataset.repo_id=local/so100",
        f"--dataset.root={root}",
        f"--dataset.fps={FPS}",
        f"--dataset.num_episodes={episodes}",
        f"--dataset.episode_time_s={seconds}",
        "--dataset.reset_time_s=0",
        "--dataset.single_task=wave",
        "--dataset.video=false",
        "--dataset.push_to_hub=false",
        "--dataset.no_stamp=true",
        "--play_sounds=false",
    ]


@dataclass
class Recording:
    """An emulator, and the dataset that `lerobot-record` made on it."""

    emulator: SO100Emulator
    root: Path
    with_camera: bool


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recording]:
    pytest.importorskip("scservo_sdk", reason="pip install 'lerobot[feetech]'")
    try:
        import zmq  # noqa: F401

        camera = CameraSettings("top", 64, 48, 15)
    except ImportError:
        camera = None
    folder = tmp_path_factory.mktemp("so100")
    with SO100Emulator(folder, cameras=[camera] if camera else []) as emulator:
        command(fresh(BIN / "lerobot-record", *record_arguments(emulator, folder / "data", episodes=2)))
        yield Recording(emulator, folder / "data", camera is not None)


def columns(root: Path) -> Any:
    """Return the dataset, and its joints as ``(frames, 6)`` arrays: actions, states, and the episode of each frame."""
    from lerobot.datasets import LeRobotDataset

    data = LeRobotDataset("local/so100", root=root)
    table = data.hf_dataset.with_format("numpy")
    return (
        data,
        np.stack(table["action"]),
        np.stack(table["observation.state"]),
        np.array(table["episode_index"]),
    )


@needs_sdk
@pytest.mark.sim
def test_the_recorded_dataset_loads_and_the_arm_moves_in_it(recording: Recording) -> None:
    data, actions, states, episodes = columns(recording.root)
    assert data.meta.total_episodes == 2
    assert data.meta.features["action"]["names"] == [f"{joint}.pos" for joint in JOINTS]
    assert len(actions) <= 2 * SECONDS * FPS + 2
    for episode in (0, 1):
        mine = episodes == episode
        assert mine.sum() > FPS // 2  # a busy machine records fewer
        assert (np.ptp(actions[mine], axis=0) > 5).all()
        assert (np.ptp(states[mine], axis=0) > 5).all()
        # Past the start, the follower is where the leader was a frame ago, or on its way, however long the frame took.
        assert np.abs(states[mine][1:] - actions[mine][:-1])[FPS // 4 :].mean() < 8
    assert data[0]["task"] == "wave"


@needs_sdk
@pytest.mark.sim
def test_the_reaching_benchmark_writes_what_a_recording_has(recording: Recording) -> None:
    if not recording.with_camera:
        pytest.skip("no camera without pyzmq: pip install pyzmq")
    sys.path.insert(0, str(REPO / "benchmarks"))
    from reach import demonstrations, task

    data, *_ = columns(recording.root)
    expected = demonstrations.features()
    expected["observation.images.top"]["shape"] = (48, 64, 3)  # of the camera here
    recorded = {key: data.meta.features[key] for key in expected}
    assert recorded == expected
    assert data.meta.robot_type == demonstrations.ROBOT_TYPE
    frame = demonstrations.demonstrate(0)[0]
    assert {key: frame[key].dtype for key in expected} == {
        key: feature["dtype"] if feature["dtype"] != "image" else np.uint8
        for key, feature in expected.items()
    }
    assert frame["observation.images.top"].shape == (task.CAMERA.height, task.CAMERA.width, 3)


@needs_sdk
@pytest.mark.sim
def test_the_recorded_pictures_change_with_the_arm(recording: Recording) -> None:
    if not recording.with_camera:
        pytest.skip("no camera without pyzmq: pip install pyzmq")
    data, *_ = columns(recording.root)
    pictures = [
        data[index]["observation.images.top"].numpy() for index in (0, len(data) // 5, 2 * len(data) // 5)
    ]
    assert pictures[0].shape == (3, 48, 64)
    for first, second in [(0, 1), (1, 2)]:
        # Whenever the leader is caught: 1.9 % or more of the pixels, over two minutes of its waving.
        assert (np.abs(pictures[first] - pictures[second]).max(axis=0) > 0.1).mean() > 0.01
    # Red, green, blue in this order: the ball is red.
    red, green, blue = pictures[0]
    assert ((red > 0.6) & (green < 0.45) & (blue < 0.45)).sum() >= 3


@needs_sdk
@pytest.mark.sim
def test_a_replay_sends_what_was_recorded_and_the_arm_follows(recording: Recording) -> None:
    _, actions, _, episodes = columns(recording.root)
    robot = [option for option in recording.emulator.robot_options() if "cameras" not in option]
    with BusLog(recording.emulator.followers[0]) as log:
        command(
            fresh(
                BIN / "lerobot-replay",
                *robot,
                "--dataset.repo_id=local/so100",
                f"--dataset.root={recording.root}",
                "--dataset.episode=1",
                f"--dataset.fps={FPS}",
                "--play_sounds=false",
            )
        )
    recorded = actions[episodes == 1]
    assert len(log.goals) == len(recorded)
    # LeRobot truncates to whole steps. The gripper is in percent of its 1470 steps, below a step of the others.
    assert np.abs(np.array([goal.pose for goal in log.goals]) - recorded).max() <= 1.01 * STEP
    # The follower passes where it passed, a step behind or on its way there.
    assert np.abs(np.array([goal.seen for goal in log.goals])[1:] - recorded[:-1])[FPS // 4 :].mean() < 8
    # At the end it has arrived, within a step of rounding.
    assert np.abs(recording.emulator.followers[0].pose() - recorded[-1]).mean() < 5
    assert not recording.emulator.followers[0].torque()


@pytest.fixture(scope="module")
def policy(recording: Recording) -> Path:
    """A policy trained on the recording for two steps: its actions mean nothing, their range does."""
    if not recording.with_camera:
        pytest.skip("a policy needs pictures, the camera pyzmq: pip install pyzmq")
    output = recording.root.parent / "policy"
    command(
        preloaded(
            BIN / "lerobot-train",
            f"--config_path={REPO / 'configs' / 'debug.yaml'}",
            "--dataset.repo_id=local/so100",
            f"--dataset.root={recording.root}",
            f"--output_dir={output}",
            f"--policy.chunk_size={CHUNK}",
            f"--policy.n_action_steps={CHUNK}",
            "--policy.ensemble_n_chunks=1",
            "--steps=2",
            "--save_freq=2",
        )
    )
    return output / "checkpoints" / "000002" / "pretrained_model"


@needs_sdk
@pytest.mark.sim
@pytest.mark.parametrize(("inference", "process"), [("sync", fresh), ("rtc", preloaded)])
def test_a_rollout_sends_goals_in_the_range_of_the_recording(
    recording: Recording, policy: Path, inference: str, process: Any, tmp_path: Path
) -> None:
    _, actions, *_ = columns(recording.root)
    with (
        (tmp_path / "log.txt").open("w") as said,
        BusLog(recording.emulator.followers[0]) as log,
        subprocess.Popen(
            process(
                BIN / "lerobot-rollout",
                "--strategy.type=base",
                f"--inference.type={inference}",
                f"--policy.path={policy}",
                "--policy.device=cpu",
                *recording.emulator.robot_options(),
                "--task=wave",
                f"--fps={ROLLOUT_FPS}",
                "--return_to_initial_position=false",
                "--play_sounds=false",
            ),
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
        ) as rollout,
    ):
        # Until the policy was asked more than once, however long that takes.
        wait_until(lambda: len(log.goals) > CHUNK or rollout.poll() is not None)
        rollout.send_signal(signal.SIGINT)
        assert rollout.wait(timeout=LONG) == 0, (tmp_path / "log.txt").read_text()[-4000:]
    goals = np.array([goal.pose for goal in log.goals])
    assert len(goals) > CHUNK
    # And the arm is where it was told to go, or on its way there: how far it got before the end is a matter of time.
    pose, way = np.array(recording.emulator.followers[0].pose()), goals[-3:]
    assert (pose > way.min(axis=0) - 5).all()
    assert (pose < way.max(axis=0) + 5).all()
    assert (goals >= actions.min(axis=0) - 1.01 * STEP).all()
    assert (goals <= actions.max(axis=0) + 1.01 * STEP).all()
    assert not recording.emulator.followers[0].torque()


def record_into_a_fault(emulator: SO100Emulator, root: Path, fault: str) -> tuple[int, str]:
    """Record, have an accident a few frames into the second episode; return status and what was said."""
    process = subprocess.Popen(
        # The second episode is not over before LeRobot has noticed.
        preloaded(
            BIN / "lerobot-record",
            *record_arguments(
                emulator, root, episodes=3, seconds=2 * STALE_MS // 1000 if fault == "stall" else SECONDS
            ),
        ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    said = []
    with BusLog(emulator.followers[0]) as log:
        for line in process.stdout:
            said.append(line)
            if "Recording episode 1" in line:
                end = len(log.goals) + 3
                wait_until(lambda end=end: len(log.goals) >= end or process.poll() is not None)
                obey(emulator, fault)
    return process.wait(), "".join(said)


@needs_sdk
@pytest.mark.sim
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("unplug follower", r"termios.error: .5, .Input/output error"),
        (
            "silence follower 3",
            r"ConnectionError: Failed to sync read .Present_Position. .*\[1, 2, 3, 4, 5, 6\]",
        ),
        ("stall", r"TimeoutError: ZMQCamera.top.* latest frame is too old"),
    ],
)
def test_a_fault_ends_the_recording_by_name_and_what_was_saved_loads(
    tmp_path: Path, fault: str, message: str
) -> None:
    pytest.importorskip("scservo_sdk", reason="pip install 'lerobot[feetech]'")
    camera = None
    if fault == "stall":
        pytest.importorskip("zmq", reason="pip install pyzmq")
        camera = CameraSettings("top", 64, 48, 30)
    with SO100Emulator(tmp_path, cameras=[camera] if camera else []) as emulator:
        root = tmp_path / "data"
        status, said = record_into_a_fault(emulator, root, fault)
    assert re.search(message, said), said[-4000:]
    assert status == 1, said[-4000:]
    data, actions, *_ = columns(root)
    assert data.meta.total_episodes >= 1  # a busy machine notices so late that the second one is over
    assert len(actions) == len(data) > FPS // 2  # a busy machine records fewer


def test_the_command_prints_options_obeys_and_ends_cleanly(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "lerobot_policy_vla0.tools.commands",
            "emulate-so100",
            "--folder",
            tmp_path,
            "--no-camera",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    shown = []
    while "Ctrl-C" not in (line := process.stdout.readline()):
        assert line, process.communicate()[1]
        shown.append(line)
    text = "".join(shown)
    for option in (
        "--robot.type=so100_follower",
        f"--robot.port={tmp_path}/ports/follower",
        "--teleop.id=leader",
    ):
        assert option in text
    assert (tmp_path / "calibration" / "leader.json").is_file()
    process.stdin.write("dance\nunplug follower\n")
    process.stdin.flush()
    wait_until(lambda: not os.path.lexists(tmp_path / "ports" / "follower"))
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate()
    assert process.returncode == 0, errors
    assert out.endswith("# ended\n")
    assert "cannot do 'dance'" in errors
    assert f"fault: port {tmp_path}/ports/follower is unplugged" in errors
    assert not os.path.lexists(tmp_path / "ports" / "leader")


def test_the_command_reports_a_bad_setting_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    assert main(["emulate-so100", "--folder", str(tmp_path), "--size", "8", "8"]) == 2
    assert "vla0 emulate-so100: error: a picture of 8x8 is too small" in capsys.readouterr().err
    assert {number: signal.getsignal(number) for number in before} == before
