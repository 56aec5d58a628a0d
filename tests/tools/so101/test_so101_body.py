"""An emulated arm with physics: the wire is the emulator's, motion and pictures are MuJoCo's."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import mujoco
import numpy as np
import pytest
from helpers.paths import REPO
from helpers.patience import be_patient

pytest.importorskip("so101_nexus", reason="pip install 'lerobot_policy_vla0[so101]'")

from lerobot_policy_vla0.errors import ConfigError
from lerobot_policy_vla0.tools.so100_emulator.arm import SteppedArm, build_bus
from lerobot_policy_vla0.tools.so100_emulator.calibration import default_calibration, from_steps
from lerobot_policy_vla0.tools.so100_emulator.camera import CameraSettings
from lerobot_policy_vla0.tools.so100_emulator.console import obey
from lerobot_policy_vla0.tools.so100_emulator.emulator import SO100Emulator
from lerobot_policy_vla0.tools.so100_emulator.servo import Register
from lerobot_policy_vla0.tools.so100_emulator.trajectory import REST
from lerobot_policy_vla0.tools.so101.body import PhysicalArm
from lerobot_policy_vla0.tools.so101.scene import CAMERAS, PickLift

pytestmark = pytest.mark.sim


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now

    def pass_by(self, body: PhysicalArm, seconds: float) -> None:
        """Let time pass, in which somebody looks now and then."""
        for _ in range(round(seconds / 0.25)):
            self.now += 0.25
            body.angle(0)


def test_goals_on_the_bus_move_the_simulated_joints() -> None:
    clock = Clock()
    body = PhysicalArm(seed=0, clock=clock)
    arm = SteppedArm()  # its way of writing to a bus
    arm._bus = build_bus(arm.calibration, REST, clock=clock, body=body)
    assert arm.pose() == pytest.approx(
        [0, -90, 90, 37.8, 0, 0], abs=1.5
    )  # the simulation's rest pose, not REST
    goal = [25, -40, 55, 60, -30, 70]
    arm.send(goal)
    clock.pass_by(body, 1.5)
    assert arm.pose() == pytest.approx(goal, abs=1.5)
    shoulder = np.degrees(body.angle(0))
    assert shoulder == pytest.approx(25, abs=1.5)
    # Without torque it sinks, slowly, as its gears do; a goal beyond a joint's limits is cut by the servo.
    for servo in arm._bus.servos:
        servo.write(Register.TORQUE_ENABLE, b"\0")
    clock.pass_by(body, 1.5)
    assert abs(arm.pose()[1] - goal[1]) > 2
    arm.send([500, *goal[1:]])
    clock.pass_by(body, 2.0)
    assert arm.pose()[0] <= 110.5


def test_the_pictures_are_the_scenes() -> None:
    body, scene = PhysicalArm(seed=7, clock=Clock()), PickLift(image_size=48)
    scene.reset(seed=7)
    scene.data.qpos[:] = body._data.qpos
    mujoco.mj_forward(scene.model, scene.data)
    seen = scene._get_obs()
    for view in body.views:
        assert np.array_equal(body.render(view, 48, 48), seen[CAMERAS[view]]), view
    scene.close()
    with pytest.raises(ConfigError, match=r"cameras wrist, side, not 'top'"):
        body.render("top", 48, 48)


def test_a_process_that_slept_does_not_make_up_for_hours() -> None:
    clock = Clock()
    body = PhysicalArm(clock=clock)
    clock.now += 3600
    began = body._data.time
    body.angle(0)
    assert body._data.time - began == pytest.approx(0.5, abs=0.01)


def test_so101_follower_lifts_the_cube_over_the_wire(tmp_path: Path) -> None:
    pytest.importorskip("scservo_sdk", reason="pip install 'lerobot[feetech]'")
    from lerobot.robots.so_follower import SO101Follower, SO101FollowerConfig

    sys.path.insert(0, str(REPO / "examples" / "so101"))
    from expert import Expert

    be_patient()
    body = PhysicalArm(seed=1)
    with SO100Emulator(tmp_path, leaders=(), body=body, model="so101") as emulator:
        options = dict(option.removeprefix("--robot.").split("=") for option in emulator.robot_options())
        assert options.pop("type") == "so101_follower"
        robot = SO101Follower(
            SO101FollowerConfig(
                port=options["port"], id=options["id"], calibration_dir=Path(options["calibration_dir"])
            )
        )
        robot.connect(calibrate=False)
        expert = Expert(body._scene)
        calibration = default_calibration()
        shafts = body.shafts(calibration)
        names = list(robot.action_features)

        def held() -> bool:
            return body._scene._is_grasping() > 0.5

        until = time.monotonic() + 60
        while body.lift_height < 0.05 and time.monotonic() < until:
            with body._lock:
                radians = expert.act(grasped=held())
            steps = [
                shaft_steps(shaft, angle) - calibration[name.removesuffix(".pos")].homing_offset
                for shaft, angle, name in zip(shafts, radians, names, strict=True)
            ]
            robot.send_action(dict(zip(names, from_steps(steps, calibration), strict=True)))
            time.sleep(1 / 30)
        assert body.lift_height >= 0.05 and held()
        obey(emulator, "reset 2")
        assert abs(body.lift_height) < 0.005
        robot.disconnect()
    with pytest.raises(ConfigError, match=r"cameras are wrist, side, not top"):
        SO100Emulator(tmp_path, cameras=[CameraSettings("top", 64, 48)], body=body)


def shaft_steps(shaft: object, radians: float) -> float:
    """Invert a shaft's own conversion, by its two ends: it is linear."""
    convert = shaft._radians  # type: ignore[attr-defined]
    low, high = convert(0.0), convert(1000.0)
    return (radians - low) / (high - low) * 1000.0


def test_the_command_gives_lerobot_an_so101_with_two_cameras(tmp_path: Path) -> None:
    pytest.importorskip("zmq", reason="pip install pyzmq")
    command = ["emulate-so100", "--body", "mujoco", "--folder", tmp_path, "--leaders", "--size", "64", "48"]
    process = subprocess.Popen(
        [sys.executable, "-m", "lerobot_policy_vla0.tools.commands", *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    shown = []
    while "Ctrl-C" not in (line := process.stdout.readline()):
        assert line, process.communicate()[1]
        shown.append(line)
    process.stdin.write("reset 5\ndance\n")
    process.stdin.flush()
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate()
    assert process.returncode == 0, errors
    assert out.endswith("# ended\n") and "Traceback" not in errors
    options = "".join(shown)
    assert "--robot.type=so101_follower" in options
    assert "{wrist: {type: zmq" in options and "side: {type: zmq" in options


def test_emulated_arms_without_physics_can_be_so101s_too(tmp_path: Path) -> None:
    with SO100Emulator(tmp_path, model="so101") as emulator:
        assert emulator.robot_options()[0] == "--robot.type=so101_follower"
        assert emulator.teleop_options()[0] == "--teleop.type=so101_leader"
        with pytest.raises(ConfigError, match=r"only an arm with physics \(--body mujoco\) begins again"):
            obey(emulator, "reset 1")
