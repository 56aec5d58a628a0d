"""The emulated SO-100, as the real servo SDK and LeRobot's real robot and camera classes see it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.patience import be_patient
from helpers.waiting import wait_until

from lerobot_policy_vla0.errors import ConfigError
from lerobot_policy_vla0.tools.so100_emulator import (
    JOINTS,
    REST,
    Arm,
    CameraSettings,
    Scene,
    Servo,
    SO100Emulator,
    through,
    wave,
)
from lerobot_policy_vla0.tools.so100_emulator.calibration import default_calibration, from_steps, to_steps
from lerobot_policy_vla0.tools.so100_emulator.console import obey
from lerobot_policy_vla0.tools.so100_emulator.packets import Packet, PacketParser, encode_packet
from lerobot_policy_vla0.tools.so100_emulator.servo import MAX_SPEED, Register

STEP = 360 / 4095  # degrees per encoder step
PATIENCE_MS = 500  # the SDK's own 34 ms are too few on a busy machine


@pytest.fixture
def emulator(tmp_path: Path) -> Iterator[SO100Emulator]:
    with SO100Emulator(tmp_path) as emulator:
        yield emulator


class Host:
    """The real SDK on an emulated port."""

    def __init__(self, path: Path, baud_rate: int = 1_000_000) -> None:
        self.sdk = pytest.importorskip("scservo_sdk", reason="pip install 'lerobot[feetech]'")
        self.port = self.sdk.PortHandler(str(path))
        assert self.port.openPort()
        assert self.port.setBaudRate(baud_rate)
        self.port.setPacketTimeout = self._set_timeout
        self.packets = self.sdk.PacketHandler(0)

    def _set_timeout(self, length: int) -> None:
        self.sdk.PortHandler.setPacketTimeout(self.port, length)
        self.port.packet_timeout += PATIENCE_MS

    def result(self, code: int) -> str:
        names = ("COMM_SUCCESS", "COMM_RX_TIMEOUT", "COMM_RX_CORRUPT")
        return next(name for name in names if getattr(self.sdk, name) == code)

    def ping(self, id: int) -> tuple[int, str, int]:
        model, code, error = self.packets.ping(self.port, id)
        return model, self.result(code), error

    def word(self, id: int, address: int) -> int:
        value, code, _ = self.packets.read2ByteTxRx(self.port, id, address)
        assert self.result(code) == "COMM_SUCCESS"
        return value


@pytest.fixture
def host(emulator: SO100Emulator) -> Iterator[Host]:
    host = Host(emulator.arms["follower"].port.path)
    yield host
    host.port.closePort()


# ----------------------------------------------------------------------------------------------------- frames


def test_frames_survive_noise_pieces_and_bad_checksums() -> None:
    frame = encode_packet(3, 2, bytes([56, 2]))
    assert frame.hex(" ") == "ff ff 03 04 02 38 02 bc"
    bad = frame[:-1] + b"\0"
    stream = b"\x12\xff" + bad + b"\xff" + frame + b"\0" + frame
    parser = PacketParser()
    found = [packet for byte in stream for packet in parser.feed(bytes([byte]))]
    assert found == [Packet(3, 2, bytes([56, 2]))] * 2
    assert parser.rejected == 1


# --------------------------------------------------------------------------------------------- the wire, real SDK


def test_every_servo_answers_a_ping(host: Host) -> None:
    assert [host.ping(id) for id in range(1, 7)] == [(777, "COMM_SUCCESS", 0)] * 6
    assert host.ping(9)[1] == "COMM_RX_TIMEOUT"


def test_registers_are_written_and_read_back(host: Host) -> None:
    assert host.packets.write1ByteTxRx(host.port, 2, Register.P_COEFFICIENT, 16) == (0, 0)
    assert host.packets.read1ByteTxRx(host.port, 2, Register.P_COEFFICIENT) == (16, 0, 0)
    before = host.word(2, Register.PRESENT_POSITION)
    host.packets.write2ByteTxRx(host.port, 2, Register.PRESENT_POSITION, 1)  # read-only: answered, not done
    assert host.word(2, Register.PRESENT_POSITION) == before
    assert host.word(2, Register.MODEL_NUMBER) == 777


def test_sync_read_and_sync_write_reach_all(host: Host, emulator: SO100Emulator) -> None:
    write = host.sdk.GroupSyncWrite(host.port, host.packets, Register.GOAL_POSITION, 2)
    for id in range(1, 7):
        assert write.addParam(id, [(2000 + id) & 0xFF, (2000 + id) >> 8])
    assert write.txPacket() == host.sdk.COMM_SUCCESS
    read = host.sdk.GroupSyncRead(host.port, host.packets, Register.GOAL_POSITION, 2)
    for id in range(1, 7):
        assert read.addParam(id)
    assert read.txRxPacket() == host.sdk.COMM_SUCCESS
    assert [read.getData(id, Register.GOAL_POSITION, 2) for id in range(1, 7)] == [
        2001,
        2002,
        2003,
        2004,
        2005,
        2006,
    ]
    assert emulator.arms["follower"].torque()  # a goal switches torque on


def test_a_registered_write_waits_for_the_action(host: Host) -> None:
    assert host.packets.regWriteTxRx(host.port, 1, Register.GOAL_POSITION, 2, [0x34, 0x08]) == (0, 0)
    assert host.word(1, Register.GOAL_POSITION) != 0x834
    host.packets.action(host.port, host.sdk.BROADCAST_ID)
    wait_until(lambda: host.word(1, Register.GOAL_POSITION) == 0x834)


def test_a_change_of_id_is_answered_by_the_old_one(host: Host) -> None:
    assert host.packets.write1ByteTxRx(host.port, 6, Register.ID, 17) == (0, 0)
    assert host.ping(6)[1] == "COMM_RX_TIMEOUT"
    assert host.ping(17) == (777, "COMM_SUCCESS", 0)


def test_another_baud_rate_is_not_heard(emulator: SO100Emulator) -> None:
    host = Host(emulator.arms["follower"].port.path, baud_rate=115_200)
    assert host.ping(1)[1] == "COMM_RX_TIMEOUT"
    host.port.closePort()


# -------------------------------------------------------------------------------------------------------- faults


def test_faults_show_on_the_wire_and_in_the_log(
    host: Host, emulator: SO100Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    obey(emulator, "silence follower 3")
    assert host.ping(3)[1] == "COMM_RX_TIMEOUT"
    assert host.ping(4)[1] == "COMM_SUCCESS"
    assert "fault: servo 3 is silent" in caplog.text
    obey(emulator, "restore follower 3")
    assert host.ping(3)[1] == "COMM_SUCCESS"

    obey(emulator, "corrupt follower 1")
    assert host.ping(5)[1] == "COMM_RX_CORRUPT"
    assert "fault: wrong checksum in the answer of servo 5" in caplog.text
    assert host.ping(5)[1] == "COMM_SUCCESS"

    obey(emulator, "delay follower 1.5")
    assert host.ping(2)[1] == "COMM_RX_TIMEOUT"
    assert "fault: answer 1.500 s late" in caplog.text
    wait_until(lambda: host.port.ser.in_waiting == 6)  # the whole of it
    host.port.ser.reset_input_buffer()

    obey(emulator, "error follower 2 32")
    assert host.ping(2) == (777, "COMM_SUCCESS", 32)


def test_a_pulled_cable_is_an_error_and_can_be_put_back(emulator: SO100Emulator) -> None:
    import serial

    arm = emulator.arms["follower"]
    host = Host(arm.port.path)
    obey(emulator, "unplug follower")
    assert not os.path.lexists(arm.port.path)
    with pytest.raises((OSError, serial.SerialException)):
        host.port.ser.read(1)
        host.port.ser.write(b"x")
    obey(emulator, "replug follower")
    assert Host(arm.port.path).ping(1) == (777, "COMM_SUCCESS", 0)


@pytest.mark.parametrize(
    "line", ["silence", "silence follower", "silence nobody 3", "delay follower x", "dance"]
)
def test_words_that_make_no_sense_are_answered_with_those_that_do(emulator: SO100Emulator, line: str) -> None:
    with pytest.raises(ConfigError, match=r"unplug ARM.*Arms: follower, leader"):
        obey(emulator, line)


def test_faults_that_would_do_nothing_are_refused(emulator: SO100Emulator) -> None:
    for line, message in [
        ("corrupt follower 0", "0 answers would do nothing"),
        ("delay follower -1", r"-1\.0 s late"),
        ("error follower 1 128", "error bits 128"),
        ("stall", "there is no camera"),
    ]:
        with pytest.raises(ConfigError, match=message):
            obey(emulator, line)


# -------------------------------------------------------------------------------------------------------- motion


class Clock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def goal(servo: Servo, position: int) -> None:
    servo.write(Register.GOAL_POSITION, position.to_bytes(2, "little"))


def test_the_shaft_obeys_the_speed_limit_and_arrives() -> None:
    clock = Clock()
    servo = Servo(1, position=500, clock=clock)
    servo.write(Register.P_COEFFICIENT, bytes([16]))
    goal(servo, 3500)
    path = [servo.position]
    for _ in range(200):
        clock.now += 0.01
        path.append(servo.position)
    speeds = np.diff(path) / 0.01
    assert speeds.max() == pytest.approx(MAX_SPEED, abs=100)  # rounding to steps is 100 steps/s here
    assert (np.diff(path) >= 0).all()
    assert path[-1] == 3500
    # A slower limit, set by the host.
    servo.write(Register.GOAL_VELOCITY, (400).to_bytes(2, "little"))
    goal(servo, 3000)
    clock.now += 0.5
    assert servo.position == 3300


def test_how_often_a_host_looks_changes_nothing() -> None:
    positions = []
    for looks in (1, 7, 100):
        clock = Clock()
        servo = Servo(1, position=1000, clock=clock)
        goal(servo, 2000)
        for _ in range(looks):
            clock.now += 0.4 / looks
            position = servo.position
        positions.append(position)
    assert len(set(positions)) == 1


def test_limits_offset_and_torque_shape_the_motion() -> None:
    clock = Clock()
    servo = Servo(1, position=2000, clock=clock)
    servo.memory.set_word(Register.HOMING_OFFSET, -100)
    servo.memory.set_word(Register.MAX_POSITION_LIMIT, 2500)
    assert servo.position == 2100
    goal(servo, 4000)
    clock.now += 5
    assert servo.position == 2500  # not past the limit
    servo.write(Register.TORQUE_ENABLE, b"\0")
    goal_word = servo.memory.word(Register.GOAL_POSITION)
    clock.now += 1
    assert (servo.position, goal_word) == (2500, 4000)
    servo.write(Register.TORQUE_ENABLE, bytes([128]))  # "here is the middle"
    assert servo.position == 2048


def test_eeprom_survives_only_what_was_written_unlocked() -> None:
    servo = Servo(1, clock=Clock())
    servo.write(Register.P_COEFFICIENT, bytes([11]))  # locked: acts, and is forgotten
    servo.write(Register.LOCK, b"\0")
    servo.write(Register.I_COEFFICIENT, bytes([7]))
    servo.write(Register.TORQUE_ENABLE, b"\1")
    servo.power_cycle()
    kept = [
        servo.read(r, 1)[0] for r in (Register.P_COEFFICIENT, Register.I_COEFFICIENT, Register.TORQUE_ENABLE)
    ]
    assert kept == [32, 7, 0]


def test_a_leader_follows_its_script_until_torque_holds_it(tmp_path: Path) -> None:
    clock = Clock()
    script = through([(0, REST), (2, (30, 0, 0, 0, 20, 80)), (4, REST)])
    arm = Arm("leader", tmp_path, trajectory=script, clock=clock)
    for clock.now in (0.0, 1.0, 2.0, 3.7, 6.0):
        # Half a step of rounding each; the gripper's range is 1470 steps for 100 percent.
        assert np.abs(np.subtract(arm.pose(), script(clock.now))).max() <= STEP / 2 + 1e-9
    arm.bus.servos[0].write(Register.TORQUE_ENABLE, b"\1")
    held = arm.pose()[0]
    clock.now += 1
    assert arm.pose()[0] == held
    arm.close()


def test_poses_round_trip_and_are_clamped() -> None:
    calibration = default_calibration()
    for seconds in np.linspace(0, 10, 50):
        pose = wave(float(seconds))
        assert from_steps(to_steps(pose, calibration), calibration) == pytest.approx(pose)
    assert to_steps([999, 0, 0, 0, 0, 200], calibration)[0] == calibration["shoulder_pan"].range_max
    with pytest.raises(ConfigError, match="a pose has 6 numbers"):
        to_steps([0, 0], calibration)


def test_trajectories_need_growing_times() -> None:
    for points in ([(0, REST)], [(1, REST), (2, REST)], [(0, REST), (0, REST)]):
        with pytest.raises(ConfigError, match="growing times from 0"):
            through(points)


# ------------------------------------------------------------------------------------------------ files and names


def test_existing_calibration_is_used_and_never_overwritten(tmp_path: Path) -> None:
    with SO100Emulator(tmp_path, leaders=()):
        pass
    path = tmp_path / "calibration" / "follower.json"
    text = path.read_text().replace('"range_min": 740', '"range_min": 700')
    path.write_text(text)
    with SO100Emulator(tmp_path, leaders=()) as emulator:
        assert emulator.arms["follower"].bus.read(0, Register.MIN_POSITION_LIMIT) == 700
    assert path.read_text() == text
    path.write_text("{}")
    with pytest.raises(ConfigError, match="an SO-100 has"):
        SO100Emulator(tmp_path)
    path.write_text("nonsense")
    with pytest.raises(ConfigError, match="is no calibration file"):
        SO100Emulator(tmp_path)
    assert path.read_text() == "nonsense"


def test_names_and_ports_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="arms need different names"):
        SO100Emulator(tmp_path, followers=("arm",), leaders=("arm",))
    with pytest.raises(ConfigError, match="arms need different names"):
        SO100Emulator(tmp_path, followers=("a/b",))
    with pytest.raises(ConfigError, match="looks at the first follower"):
        SO100Emulator(tmp_path, followers=(), cameras=[CameraSettings()])
    (tmp_path / "ports").mkdir(exist_ok=True)
    (tmp_path / "ports" / "follower").write_text("mine")
    with pytest.raises(ConfigError, match="is no link to a port"):
        SO100Emulator(tmp_path)
    assert (tmp_path / "ports" / "follower").read_text() == "mine"


# ------------------------------------------------------------------------------------------------ LeRobot's classes


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def arm(tmp_path: Path, clock: Clock) -> Iterator[Arm]:
    """An arm that moves only while the clock is told to."""
    be_patient()
    arm = Arm("follower", tmp_path, clock=clock)
    yield arm
    arm.close()


@pytest.fixture
def follower(arm: Arm, no_questions: None) -> Iterator[Any]:
    pytest.importorskip("scservo_sdk", reason="pip install 'lerobot[feetech]'")
    from lerobot.robots.so_follower import SO100Follower, SO100FollowerConfig

    robot = SO100Follower(
        SO100FollowerConfig(port=str(arm.port.path), id=arm.name, calibration_dir=arm.calibration_dir)
    )
    robot.connect()
    yield robot
    if robot.is_connected:
        robot.disconnect()


@pytest.fixture
def no_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(prompt: str = "") -> str:
        raise AssertionError(f"LeRobot asked: {prompt}")

    monkeypatch.setattr("builtins.input", refuse)


def test_the_follower_connects_moves_and_reads(follower: Any, arm: Arm, clock: Clock) -> None:
    assert follower.is_calibrated
    assert arm.torque()
    start = follower.get_observation()
    assert [start[f"{joint}.pos"] for joint in JOINTS] == pytest.approx(REST, abs=STEP)
    target = [20.0, -30.0, 25.0, 10.0, -40.0, 70.0]
    follower.send_action({f"{joint}.pos": value for joint, value in zip(JOINTS, target, strict=True)})
    follower.get_observation()  # answered after the goals were taken: nobody answers those
    clock.now += 0.03
    speeds = follower.bus.sync_read("Present_Velocity", normalize=False)
    assert 200 < max(abs(speed) for speed in speeds.values()) <= MAX_SPEED
    clock.now += 1.2
    observation = follower.get_observation()
    seen = [observation[f"{joint}.pos"] for joint in JOINTS]
    assert seen == pytest.approx(target, abs=2 * STEP)  # LeRobot truncates to a step, the servo rounds
    assert arm.pose() == pytest.approx(seen)
    follower.disconnect()
    assert not arm.torque()


def test_lerobot_absorbs_one_bad_answer_and_names_a_silent_servo(follower: Any, arm: Arm) -> None:
    arm.faults.corrupt(1)
    assert follower.get_observation()["shoulder_pan.pos"] == pytest.approx(REST[0], abs=STEP)
    arm.faults.silence(4)
    with pytest.raises(ConnectionError, match="Present_Position"):
        follower.get_observation()
    arm.faults.restore(4)
    assert follower.get_observation()["wrist_flex.pos"] == pytest.approx(REST[3], abs=STEP)


def test_lerobot_names_the_missing_motor_at_connect(emulator: SO100Emulator, no_questions: None) -> None:
    pytest.importorskip("scservo_sdk", reason="pip install 'lerobot[feetech]'")
    from lerobot.teleoperators.so_leader import SO100Leader, SO100LeaderConfig

    arm = emulator.arms["leader"]
    arm.faults.silence(5)
    config = SO100LeaderConfig(port=str(arm.port.path), id=arm.name, calibration_dir=arm.calibration_dir)
    with pytest.raises(RuntimeError, match="Missing motor IDs:\n  - 5"):
        SO100Leader(config).connect()


def test_the_leader_reads_its_script(tmp_path: Path, clock: Clock, no_questions: None) -> None:
    pytest.importorskip("scservo_sdk", reason="pip install 'lerobot[feetech]'")
    from lerobot.teleoperators.so_leader import SO100Leader, SO100LeaderConfig

    be_patient()
    arm = Arm("leader", tmp_path, trajectory=wave, clock=clock)
    leader = SO100Leader(
        SO100LeaderConfig(port=str(arm.port.path), id=arm.name, calibration_dir=arm.calibration_dir)
    )
    leader.connect()
    first = leader.get_action()
    clock.now += 0.3
    second = leader.get_action()
    leader.disconnect()
    arm.close()
    moved = [abs(second[f"{joint}.pos"] - first[f"{joint}.pos"]) for joint in JOINTS]
    assert max(moved) > 1.0
    assert list(first) == [f"{joint}.pos" for joint in JOINTS]


# ------------------------------------------------------------------------------------------------------- pictures


def test_every_joint_and_the_ball_change_the_picture() -> None:
    scene = Scene()
    still = scene.render(REST, 160, 120)
    assert still.shape == (120, 160, 3)
    assert still.dtype == np.uint8
    assert np.array_equal(still, scene.render(REST, 160, 120))
    for joint in range(6):
        pose = list(REST)
        pose[joint] += 15
        assert (scene.render(pose, 160, 120) != still).any(axis=2).sum() > 15, JOINTS[joint]
    red = (still[..., 0] > 180) & (still[..., 1] < 90)
    assert 10 < red.sum() < 500
    scene.ball = (0.2, -0.1)
    moved = scene.render(REST, 160, 120)
    assert ((moved[..., 0] > 180) & (moved[..., 1] < 90) & ~red).sum() > 10


def test_lerobots_camera_reads_the_picture_and_notices_a_stall(tmp_path: Path) -> None:
    pytest.importorskip("zmq", reason="pip install pyzmq")
    from lerobot.cameras.zmq import ZMQCamera, ZMQCameraConfig

    be_patient()
    settings = CameraSettings("top", 160, 120, 30)
    with SO100Emulator(tmp_path, leaders=(), cameras=[settings]) as emulator:
        options = dict(emulator.cameras["top"].lerobot_config())
        assert options.pop("type") == "zmq"
        camera = ZMQCamera(ZMQCameraConfig(**options))
        camera.connect()
        seen = camera.read()
        expected = emulator.render(160, 120)
        assert seen.shape == expected.shape
        # JPEG blurs edges; channels in another order would be far off.
        assert np.abs(seen.astype(int) - expected).mean() < 4
        obey(emulator, "stall")

        def too_old() -> bool:
            try:
                camera.read_latest(max_age_ms=500)
            except TimeoutError as error:
                assert "too old" in str(error)
                return True
            return False

        wait_until(too_old)
        time.sleep(1)  # no picture comes any more
        assert too_old()
        obey(emulator, "resume")
        wait_until(lambda: not too_old())
        camera.disconnect()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"width": 8}, "8x480 is too small"), ({"fps": 0}, "fps=0 cannot be kept")],
)
def test_camera_settings_are_checked(options: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CameraSettings(**options)


def test_a_field_of_view_is_an_angle() -> None:
    with pytest.raises(ConfigError, match="field_of_view=180"):
        Scene(field_of_view=180)
