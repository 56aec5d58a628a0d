"""`vla0 serve`: LeRobot's real robot client drives the emulated SO-100 through it; clients, refusals, addresses."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.commands import preloaded
from helpers.so100_policy import STEP
from helpers.tiny import make_config
from helpers.waiting import LONG, free_port, wait_until

from lerobot_policy_vla0 import VLA0Policy, make_vla0_pre_post_processors
from lerobot_policy_vla0.errors import CameraError, ConfigError
from lerobot_policy_vla0.tools.commands import main
from lerobot_policy_vla0.tools.so100_emulator import JOINTS, BusLog, CameraSettings, SO100Emulator

grpc = pytest.importorskip("grpc", reason="pip install 'lerobot_policy_vla0[serve]'")

# LeRobot's modules make a folder for logs where they are imported.
with contextlib.chdir(tempfile.mkdtemp()):
    from helpers.lerobot_client import LeRobotClient
    from lerobot.transport import services_pb2

    from lerobot_policy_vla0.tools.serving.policy_server import (
        check_features,
        exposure_warning,
        is_loopback,
        make_settings,
        serve,
    )

STATE = {"dtype": "float32", "shape": (6,), "names": [f"{joint}.pos" for joint in JOINTS]}
TOP = {"dtype": "image", "shape": (48, 64, 3), "names": ["height", "width", "channels"]}
FEATURES = {"observation.state": STATE, "observation.images.top": TOP}
#: Degrees, and percent for the gripper: well inside what the joints can do.
LOW = torch.tensor([-20.0, -30.0, -25.0, -15.0, -10.0, 20.0])
HIGH = torch.tensor([25.0, 10.0, 15.0, 20.0, 30.0, 60.0])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy for six joints and a camera of 64 x 48; its answers mean nothing, their range does."""
    folder = tmp_path_factory.mktemp("served") / "policy"
    config = make_config(action_dim=6, chunk_size=8, n_action_steps=8)
    config.input_features["observation.images.top"].shape = (3, 48, 64)
    stats = {
        "action": {"min": LOW, "max": HIGH},
        "observation.state": {"min": LOW - 50, "max": HIGH + 50},  # where the emulated arm begins, too
    }
    VLA0Policy(config).save_pretrained(folder)
    for processor in make_vla0_pre_post_processors(config, stats):
        processor.save_pretrained(folder)
    return folder


class Client(LeRobotClient):
    """A client of the emulated arm."""

    features = FEATURES
    chunk = 8

    def observe(self, seed: int) -> None:
        """Send a picture made of `seed`, with the arm at rest."""
        picture = np.random.default_rng(seed).integers(0, 256, (48, 64, 3), dtype=np.uint8)
        self.send({**dict.fromkeys(STATE["names"], 0.0), "top": picture, "task": "wave"})


@contextlib.contextmanager
def running_server(
    folder: Path, monkeypatch: pytest.MonkeyPatch, done: threading.Event
) -> Iterator[tuple[int, threading.Thread]]:
    """Run a server in this process, in a folder where LeRobot may write its logs; yields its port and thread."""
    monkeypatch.chdir(folder)
    number = free_port()
    settings = make_settings(port=number, obs_queue_timeout=0.3, inference_latency=0.0)
    thread = threading.Thread(target=serve, args=(settings, done))
    thread.start()
    try:
        yield number, thread
    finally:
        done.set()
        thread.join(timeout=LONG)
    assert not thread.is_alive()


@pytest.fixture
def port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The port of a server."""
    with running_server(tmp_path, monkeypatch, threading.Event()) as (number, _):
        yield number


def local_answer(checkpoint: Path, seed: int) -> np.ndarray[Any, Any]:
    """Return what the policy answers to `Client.observe(seed)`, computed here."""
    policy = VLA0Policy.from_pretrained(checkpoint)
    stats = {"action": {"min": LOW, "max": HIGH}}
    preprocess, postprocess = make_vla0_pre_post_processors(policy.config, stats)
    picture = np.random.default_rng(seed).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    batch = preprocess(
        {
            "observation.images.top": torch.from_numpy(picture).permute(2, 0, 1)[None] / 255,
            "observation.state": torch.zeros(1, 6),
            "task": "wave",
        }
    )
    return np.asarray(postprocess(policy.predict_action_chunk(batch))[0])


# ---------------------------------------------------------------------- clients


def test_a_chunk_is_the_policys_own_and_nothing_is_left_for_the_next_client(
    port: int, checkpoint: Path
) -> None:
    first, second = Client(port), Client(port)
    first.begin(checkpoint)
    first.observe(1)
    np.testing.assert_allclose(first.actions(), local_answer(checkpoint, 1), atol=1e-4)
    first.observe(2)  # computed by nobody: the client goes away before it asks
    second.begin(checkpoint)
    assert second.actions() is None
    second.observe(3)
    np.testing.assert_allclose(second.actions(), local_answer(checkpoint, 3), atol=1e-4)


def test_the_server_has_ended_only_after_its_last_query(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, answer, answered, done = (threading.Event() for _ in range(4))
    predict = VLA0Policy.predict_action_chunk

    def slow(policy: VLA0Policy, *arguments: Any, **options: Any) -> Any:
        asked.set()
        assert answer.wait(LONG)
        chunk = predict(policy, *arguments, **options)
        answered.set()
        return chunk

    with running_server(tmp_path, monkeypatch, done) as (port, thread):
        client = Client(port)
        client.begin(checkpoint)
        client.observe(1)
        monkeypatch.setattr(VLA0Policy, "predict_action_chunk", slow)
        query = client.stub.GetActions.future(services_pb2.Empty())
        assert asked.wait(LONG)
        query.cancel()  # the client goes away
        done.set()
        threading.Timer(1.0, answer.set).start()
        thread.join(timeout=LONG)
        assert answered.is_set()


def test_the_newest_client_has_the_policy_alone(port: int, checkpoint: Path) -> None:
    first, second = Client(port), Client(port)
    first.begin(checkpoint)
    second.begin(checkpoint)
    first.observe(1)  # another robot's picture must not move this one
    assert second.actions() is None
    second.observe(2)
    assert first.actions() is None
    assert second.actions() is not None
    first.begin(checkpoint)  # and back
    second.observe(1)
    assert first.actions() is None


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (
            {"observation.state": STATE, "observation.images.front": TOP},
            r"CameraError: the robot has the cameras \['observation.images.front'\], but the policy was trained with "
            r"\['observation.images.top'\] \(missing: \['observation.images.top'\], unknown: "
            r"\['observation.images.front'\]\)\. If they are the same camera, call 'front' 'top' in --robot\.cameras\.",
        ),
        (
            {"observation.state": {**STATE, "shape": (7,)}, "observation.images.top": TOP},
            "ActionError: observation.state has 7 values, the policy was trained with 6: this is another robot",
        ),
    ],
)
def test_a_robot_that_does_not_fit_is_told_so(
    port: int, checkpoint: Path, features: dict[str, Any], message: str
) -> None:
    client = Client(port)
    with pytest.raises(grpc.RpcError) as refused:
        client.begin(checkpoint, features)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert re.search(message, refused.value.details())
    client.observe(1)
    assert client.actions() is None  # nothing acts


def test_a_policy_that_does_not_load_is_named_and_the_one_before_does_not_act(
    port: int, checkpoint: Path, tmp_path: Path
) -> None:
    client = Client(port)
    client.begin(checkpoint)
    with pytest.raises(grpc.RpcError) as refused:
        client.begin(tmp_path / "none")
    assert "no checkpoint at" in refused.value.details()
    client.observe(1)
    assert client.actions() is None
    with pytest.raises(grpc.RpcError) as refused:
        client.begin(checkpoint, policy_type="nothing")
    assert "Policy type nothing not supported" in refused.value.details()


def test_cameras_that_are_chosen_or_too_many() -> None:
    config = make_config(cameras=("observation.images.top", "observation.images.wrist"), action_dim=6)
    both = {**FEATURES, "observation.images.wrist": TOP}
    check_features(config, both)
    with pytest.raises(CameraError, match=r"missing: \['observation.images.wrist'\].*all of them"):
        check_features(config, FEATURES)
    with pytest.raises(CameraError, match=r"Take \['observation.images.third'\] out of --robot"):
        check_features(config, {**both, "observation.images.third": TOP})


# ---------------------------------------------------------------------- addresses


def test_what_can_be_reached_from_elsewhere_is_warned_of() -> None:
    for host in ("localhost", "127.0.0.1", "127.1.2.3", "::1"):
        assert is_loopback(host)
        assert exposure_warning(host, 8080) is None
    for host in ("0.0.0.0", "::", "192.168.1.4", "robot.lan"):
        warning = exposure_warning(host, 8080)
        assert warning is not None
        assert warning.startswith(f"WARNING: {host}:8080 can be reached from other machines")
        assert "unpickles what it receives" in warning
        assert "can run any code" in warning


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"port": 0}, "Port must be between 1 and 65535, got 0"),
        ({"fps": 0}, "--fps=0 must be at least 1"),
        ({"host": ""}, "--host is empty"),
        ({"inference_latency": -1.0}, "inference_latency must be non-negative"),
    ],
)
def test_impossible_settings_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_settings(**options)


def test_without_grpcio_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "grpc", None)
    monkeypatch.delitem(sys.modules, "lerobot_policy_vla0.tools.serving.policy_server")
    assert main(["serve"]) == 2
    assert "pip install 'lerobot_policy_vla0[serve]'" in capsys.readouterr().err


def test_a_port_that_is_taken_is_refused(
    port: int, capsys: pytest.CaptureFixture[str], checkpoint: Path
) -> None:
    Client(port).begin(checkpoint)  # it is up
    assert main(["serve", "--host=127.0.0.1", f"--port={port}"]) == 2
    assert f"cannot listen on 127.0.0.1:{port}" in capsys.readouterr().err


# ---------------------------------------------------------------------- the real client


def start(folder: Path, command: list[str]) -> subprocess.Popen[str]:
    """Start a program in a folder of its own; errors and output go to ``log.txt`` there."""
    folder.mkdir()
    with (folder / "log.txt").open("w") as log:
        return subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
        )


def end_of_log(folder: Path) -> str:
    return (folder / "log.txt").read_text()[-4000:]


def start_server(folder: Path, python: list[str], host: str, port: int) -> subprocess.Popen[str]:
    """Start `vla0 serve` with what runs Python programs, and wait until it listens."""
    command = [
        *python,
        "-m",
        "lerobot_policy_vla0.tools.commands",
        "serve",
        f"--host={host}",
        f"--port={port}",
    ]
    server, log = start(folder, command), folder / "log.txt"
    wait_until(
        lambda: "Ctrl-C ends this" in log.read_text() or server.poll() is not None,
        lambda: end_of_log(folder),
    )
    return server


def end_server(server: subprocess.Popen[str], how: signal.Signals, folder: Path) -> str:
    """End it, check that it ended well, and return what it said."""
    server.send_signal(how)
    server.wait(timeout=LONG)
    said = (folder / "log.txt").read_text()
    assert server.returncode == 0, said[-4000:]
    assert said.rstrip().endswith("# ended")
    assert "Traceback" not in said
    return said


def drive(folder: Path, emulator: SO100Emulator, log: BusLog, port: int, checkpoint: Path) -> None:
    """Run LeRobot's robot client on the emulated arm for 30 goals. How it ends is its own affair: kill it."""
    client = start(
        folder,
        preloaded(
            "-c",
            # LeRobot's module as it is run, and its ZMQ camera, which it does not import itself.
            "import runpy, lerobot.cameras.zmq\n"
            "runpy.run_module('lerobot.async_inference.robot_client', run_name='__main__')",
            *emulator.robot_options(),
            "--task=wave",
            f"--server_address=127.0.0.1:{port}",
            "--policy_type=vla0",
            f"--pretrained_name_or_path={checkpoint}",
            "--actions_per_chunk=8",
            "--aggregate_fn_name=latest_only",
            "--fps=20",
        ),
    )
    try:
        wait_until(
            lambda: len(log.goals) >= 30 or client.poll() is not None,
            lambda: f"{len(log.goals)} goals\n{end_of_log(folder)}",
        )
    finally:
        client.kill()
        client.wait()


@pytest.mark.sim
def test_a_server_for_everyone_warns_and_ends_on_a_termination(tmp_path: Path) -> None:
    server = start_server(tmp_path / "server", [sys.executable], "0.0.0.0", port := free_port())
    said = end_server(server, signal.SIGTERM, tmp_path / "server")
    assert f"WARNING: 0.0.0.0:{port} can be reached from other machines" in said


@pytest.mark.sim
def test_the_robot_client_drives_the_arm_through_the_server(checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("scservo_sdk", reason="pip install 'lerobot[feetech]'")
    pytest.importorskip("zmq", reason="pip install pyzmq")
    server = start_server(tmp_path / "server", preloaded(), "127.0.0.1", port := free_port())
    with SO100Emulator(tmp_path / "arms", cameras=[CameraSettings("top", 64, 48, 30)]) as emulator:
        log = BusLog(emulator.followers[0])
        try:
            drive(tmp_path / "client", emulator, log, port, checkpoint)
        finally:
            said = end_server(server, signal.SIGINT, tmp_path / "server")
        goals, low, width = np.array([goal.pose for goal in log.goals]), LOW.numpy(), (HIGH - LOW).numpy()
        assert len(goals) >= 30, end_of_log(tmp_path / "client")
        assert "WARNING" not in said  # nothing but this machine reaches it
        assert "warmed up" in said  # before the first observation, not in its answer
        # Every goal is one of the policy's 101 levels between the ends of its statistics, within a servo's step.
        levels = np.clip(np.round((goals - low) / width * 100), 0, 100)
        assert np.abs(goals - (low + levels / 100 * width)).max() <= 1.01 * STEP
        # The arm followed them: it moved, and is where the last one says, or on its way.
        poses = np.array([goal.seen for goal in log.goals])
        assert np.abs(poses[-1] - poses[0]).max() > 5
        assert np.abs(emulator.followers[0].pose() - goals[-1]).mean() < 5
