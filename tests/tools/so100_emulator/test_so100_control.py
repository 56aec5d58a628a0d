"""LeRobot's real rollouts on the emulated arm, tick by tick: in range, within the limit, never without a goal."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from helpers.so100_policy import HIGH, LOW, Rollout, save_policy

from lerobot_policy_vla0.errors import ConfigError
from lerobot_policy_vla0.tools.so100_emulator import Arm, BusLog
from lerobot_policy_vla0.tools.so100_emulator.packets import Instruction, Packet
from lerobot_policy_vla0.tools.so100_emulator.servo import Register

#: Degrees (percent for the gripper) a goal may differ from the one before.
LIMIT = 3.0
#: Control steps per second: few, so that a chunk lasts longer than it takes to compute on a busy machine.
FPS = 3
GOALS = 30
STEP = 360 / 4095  # degrees per encoder step


@pytest.fixture(scope="module", params=["sync", "rtc"])
def rollout(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Rollout:
    """Thirty goals of a policy that wants to jump all over the range, limited."""
    folder = tmp_path_factory.mktemp(request.param)
    rollout = Rollout(folder)
    rollout(
        save_policy(folder / "policy", chunk_size=12, n_action_steps=12, restless=True),
        f"--inference.type={request.param}",
        *(["--inference.queue_threshold=8"] if request.param == "rtc" else []),
        f"--policy.max_action_step={LIMIT}",
        "--policy.max_action_step_unit=robot",
        f"--fps={FPS}",
        goals=GOALS,
    )
    return rollout


@pytest.mark.sim
def test_goals_lie_in_the_range_and_change_by_no_more_than_the_limit(rollout: Rollout) -> None:
    goals = np.array([goal.pose for goal in rollout.log.goals])
    assert len(goals) >= GOALS
    assert (goals >= LOW - 1.01 * STEP).all() and (goals <= HIGH + 1.01 * STEP).all()
    assert not rollout.torque
    changes = np.array(rollout.log.changes())
    assert changes.max() > LIMIT / 2  # it moves
    assert "max_action_step bites" in rollout.said
    # LeRobot's queue leaves out steps where it believes that more of them are over than were executed, and says so.
    told = re.findall(r"indexes_diff=(\d+), real_delay=(\d+)", rollout.said)
    # The first chunk finds nothing to join.
    left_out = max([abs(int(delay) - int(executed)) for executed, delay in told[1:]], default=0)
    assert changes.max() <= LIMIT * (1 + left_out) + 1.01 * STEP  # LeRobot cuts goals to whole encoder steps


@pytest.mark.sim
def test_no_control_tick_is_without_a_goal_once_warm(rollout: Rollout) -> None:
    assert rollout.log.idle_ticks(FPS, warm_up=1.0) == 0
    assert len(rollout.log.intervals(warm_up=1.0)) > GOALS // 2


# ---------------------------------------------------------------- the log itself


READ = Packet(254, Instruction.SYNC_READ, bytes([Register.PRESENT_POSITION, 2, *range(1, 7)]))


def goal(*steps: int) -> Packet:
    """Return a command to all six servos."""
    rows = b"".join(bytes([id]) + step.to_bytes(2, "little") for id, step in enumerate(steps, start=1))
    return Packet(254, Instruction.SYNC_WRITE, bytes([Register.GOAL_POSITION, 2]) + rows)


def test_the_log_counts_ticks_without_a_goal_and_measures_the_others(tmp_path: Path) -> None:
    now = 0.0
    arm = Arm("follower", tmp_path)
    try:
        with BusLog(arm, clock=lambda: now) as log:
            assert (log.idle_ticks(10), log.intervals(), log.changes()) == (0, [], [])
            here = goal(*[2048] * 6)
            there = goal(2048 + 91, *[2048] * 5)  # 8 degrees
            for now, packet in [  # noqa: B007 - the clock reads `now`
                (0.0, READ),  # before the first goal: not counted
                (0.1, READ), (0.11, here),
                (0.2, READ), (0.25, READ), (0.26, there),  # asked twice
                (0.3, READ),  # idle
                (0.4, READ), (0.45, READ),  # idle, asked twice
                (0.5, READ), (0.52, there),
                (0.6, READ),  # idle
                (0.7, READ), (0.71, here),
                (0.8, READ),  # the end: not known to be idle
                (0.9, Packet(3, Instruction.READ, bytes([Register.PRESENT_POSITION, 2]))),
            ]:  # fmt: skip
                arm.bus.handle(packet)
        arm.bus.handle(here)  # after closing
    finally:
        arm.close()
    assert len(log.reads) == 11 and [each.time for each in log.goals] == [0.11, 0.26, 0.52, 0.71]
    assert log.idle_ticks(10) == 3
    assert log.idle_ticks(10, warm_up=0.25) == 2
    assert log.intervals() == pytest.approx([0.15, 0.26, 0.19])
    assert log.intervals(warm_up=0.3) == pytest.approx([0.19])
    first = [change[0] for change in log.changes()]
    assert first == pytest.approx([8.0, 0.0, 8.0], abs=0.01)
    assert all(change[1:] == [0.0] * 5 for change in log.changes())


def test_one_log_at_a_time(tmp_path: Path) -> None:
    arm = Arm("follower", tmp_path)
    try:
        with BusLog(arm), pytest.raises(ConfigError, match="'follower' has an observer already"):
            BusLog(arm)
        BusLog(arm).close()
    finally:
        arm.close()
