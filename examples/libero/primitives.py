"""Motion primitives: where the hand goes next, from nothing but where everything is now.

No primitive remembers anything: the same scene always gives the same action. A policy that sees the scene can therefore
learn it, and an arm that was pushed off its way finds back to it. Speed is proportional to distance, and no primitive
ever stands still.

An action is LIBERO's: float (7,) in [-1, 1]. 1.0 asks for 5 cm along x, y, z or half a radian about them; the last
number closes the gripper at 1 and opens it at -1. Except at the knob, the hand keeps the orientation it starts with, so
numbers 4 to 6 are 0.
"""

from __future__ import annotations

from collections.abc import Callable

import mujoco
import numpy as np
from simulation import Scene

Expert = Callable[[Scene], np.ndarray]

OPEN, CLOSE = -1.0, 1.0
STEP = 0.05  # metres that an action of 1 asks for
TURN = 0.5  # radians that an action of 1 asks for
UPRIGHT = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])  # the hand when an episode starts
GAIN = 2.0  # the controller covers about a third of what one step asks for


def move(scene: Scene, goal: np.ndarray, gripper: float) -> np.ndarray:
    """Straight to `goal`, (3,) metres."""
    motion = GAIN * (goal - scene.hand) / STEP
    motion /= max(1.0, np.abs(motion).max())  # as fast as allowed, without a change of direction
    return np.concatenate([motion, np.zeros(3), [gripper]])


def descend_on(
    scene: Scene, goal: np.ndarray, gripper: float, clearance: float, slope: float = 2.0
) -> np.ndarray:
    """To `goal` from above: the hand is `clearance` metres higher while it is far away, and lower the nearer it is.

    It comes down along a cone: `slope` metres higher for each metre to the side, from 1 cm beside the goal on.
    """
    away = goal[:2] - scene.hand[:2]
    distance = np.linalg.norm(away)
    height = goal[2] + np.clip(slope * (distance - 0.01), 0.0, clearance)
    # A hand that is too low rises before it goes sideways: it may have something under or in it.
    too_low = np.clip((height - scene.hand[2]) / 0.04, 0.0, 1.0)
    return move(scene, np.append(scene.hand[:2] + (1.0 - too_low) * away, height), gripper)


def oriented(scene: Scene, action: np.ndarray, tilt: float, yaw: float) -> np.ndarray:
    """Return `action` with a turn to a hand whose fingers point down, by `tilt` radians back to the robot's base.

    `yaw` then turns the hand about the vertical, counterclockwise from above.
    """
    wanted = turned(2, yaw) @ turned(1, tilt) @ UPRIGHT
    turn = np.clip(GAIN * axis_angle(wanted @ scene.rotation.T) / TURN, -1.0, 1.0)
    return np.concatenate([action[:3], turn, action[6:]])


def turned(axis: int, angle: float) -> np.ndarray:
    """Return the rotation, (3, 3), by `angle` radians about axis 0, 1 or 2 (x, y or z)."""
    quaternion, rotation = np.zeros(4), np.zeros(9)
    mujoco.mju_axisAngle2Quat(quaternion, np.eye(3)[axis], angle)
    mujoco.mju_quat2Mat(rotation, quaternion)
    return rotation.reshape(3, 3)


def axis_angle(rotation: np.ndarray) -> np.ndarray:
    """Return a rotation matrix as axis times angle, (3,) radians."""
    quaternion, result = np.zeros(4), np.zeros(3)
    mujoco.mju_mat2Quat(quaternion, rotation.ravel())
    mujoco.mju_quat2Vel(result, quaternion, 1.0)
    return result


def turn_knob(fixture: str, joint: str) -> Expert:
    """Turn the stove's knob, from above counterclockwise, by pushing the far end of its handle to the left."""

    def act(scene: Scene) -> np.ndarray:
        angle = scene.joint(joint)
        # The handle of `flat_stove` ends 4.5 cm from its axis, and points away from the robot when the stove is off.
        along, across = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
        end = scene.position(fixture)[:2] + 0.035 * along
        beside = np.append(end - 0.05 * across, scene.position(fixture)[2] + 0.035)
        offset = scene.hand - beside
        pushing = bool(offset[2] < 0.02 and abs(offset[:2] @ along) < 0.015 and offset[:2] @ across > -0.02)
        if pushing:
            push = np.append(across - GAIN * (offset[:2] @ along) / STEP * along, -GAIN * offset[2] / STEP)
            action = np.concatenate([np.clip(push, -1.0, 1.0), np.zeros(3), [CLOSE]])
        else:
            action = descend_on(scene, beside, CLOSE, clearance=0.10)
        # An upright hand cannot come down so near to the base: the elbow ends. The fingers do not roll along the handle
        # (their friction is too large), so the hand turns with it.
        return oriented(scene, action, tilt=0.6, yaw=angle + 0.4 * pushing)

    return act


def push_plate(plate: str, region: str) -> Expert:
    """Push a plate over the table to a region: closed fingers inside it press against its far rim.

    From outside there is no room: the cabinet is behind the plate. The way is curved, first to the left and then back,
    because the box that lies on the straight one would be jammed against the stove.
    """

    def act(scene: Scene) -> np.ndarray:
        here, goal = scene.position(plate), scene.position(region)
        way = (goal - here)[:2] + np.array([-0.01, 0.015])
        way[0] += 0.65 * way[1]
        along = way / np.linalg.norm(way)
        across = np.array([-along[1], along[0]])
        offset = scene.hand - here
        if offset[2] < 0.025 and np.linalg.norm(offset[:2]) < 0.06:
            # Slower where the rim is reached, or the fingers climb over it.
            speed = np.clip((0.06 - offset[:2] @ along) / 0.03, 0.1, 1.0)
            sideways = GAIN * (offset[:2] @ across) / STEP
            down = GAIN * (goal[2] + 0.017 - scene.hand[2]) / STEP
            motion = np.clip(np.append(speed * along - sideways * across, down), -1.0, 1.0)
            return np.concatenate([motion, np.zeros(3), [CLOSE]])
        return descend_on(scene, here + np.append(0.01 * along, 0.013), CLOSE, clearance=0.10)

    return act


def pick_and_place(
    name: str,
    target: str,
    grasp: tuple[float, float, float],
    place: tuple[float, float, float],
    clearance: float,
    slope: float = 2.0,
    tolerance: tuple[float, float] = (0.015, 0.02),
) -> Expert:
    """Grasp an object from above and put it down.

    Args:
        name: The object.
        target: The object, fixture or region it is put on or into.
        grasp: From the object's origin to where the fingers close, metres. The fingers open along y.
        place: From the target's origin to where the object's origin ends, metres.
        clearance: How much higher the object is carried, metres.
        slope: How steeply it is let down; see `descend_on`.
        tolerance: How near to the grasp, sideways and in height, the fingers close, metres. Flat things slip out of
            fingers that close too high.
    """

    def act(scene: Scene) -> np.ndarray:
        here, goal = scene.position(name), scene.position(target) + place
        to_grasp = here + grasp - scene.hand
        if scene.holds(name):
            return descend_on(scene, goal + scene.hand - here, CLOSE, clearance, slope)
        if np.linalg.norm(to_grasp[:2]) < tolerance[0] and abs(to_grasp[2]) < tolerance[1]:
            return move(scene, here + grasp, CLOSE)
        return descend_on(scene, here + grasp, OPEN, clearance=0.08)

    return act
