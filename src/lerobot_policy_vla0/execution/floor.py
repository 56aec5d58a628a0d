"""Keeps the gripper above the table: the option ``min_gripper_height``.

A goal's height comes from MuJoCo's kinematics of so101-nexus's SO-101, whose joint angles are LeRobot's degrees. A real
arm's degrees count from the middle of its calibrated range, so its heights are off by what its calibration is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from lerobot_policy_vla0.errors import ActionError, ConfigError

if TYPE_CHECKING:
    from lerobot_policy_vla0.dataset_stats import ActionRange

Array = np.ndarray[Any, Any]

#: Metres that goals are kept above the height asked for: on the way between them joints sag, and arrive one after the
#: other (tests/tools/so101/test_so101_limits.py).
_SAG = 4e-3
#: Metres that a raised goal is higher than it has to be.
_MARGIN = 1e-3
_ITERATIONS = 100
_DAMPING = 1e-6  # square metres per square radian
_STRIDE = 0.05  # radians a step of the search is long at most, so that it ends just above the height
#: Parts of the way to a raised goal that are tried, the largest first.
_SHARES = (1.0, 0.5, 0.25, 0.125)


class Floor:
    """Keeps goals from lying too low.

    Args:
        height: the lowest allowed place of the point between the fingertips, metres above the arm's foot.
        actions: the range of the normalised actions: five joints in degrees, and the gripper.

    Raises:
        ConfigError: without so101-nexus, or if the actions are not an SO-101's.
    """

    def __init__(self, height: float, actions: ActionRange) -> None:
        try:
            import mujoco
            from so101_nexus import get_so101_mujoco_model_path
            from so101_nexus.config import SO101_JOINT_NAMES, SO101_TCP_SITE_NAME
        except ImportError as error:
            raise ConfigError(
                f"min_gripper_height={height} needs the arm's kinematics: pip install 'lerobot_policy_vla0[so101]'."
            ) from error
        if len(actions.low) != len(SO101_JOINT_NAMES):
            raise ConfigError(
                f"min_gripper_height={height} is for an SO-101 with the joints {SO101_JOINT_NAMES}; the action has "
                f"{len(actions.low)} dimensions. Set it to None."
            )
        self._height = height + _SAG
        self._low, self._span = actions.low.double().cpu(), actions.span.double().cpu()
        self._model = mujoco.MjModel.from_xml_path(str(get_so101_mujoco_model_path()))
        self._data = mujoco.MjData(self._model)
        joints = [self._model.joint(name) for name in SO101_JOINT_NAMES[:5]]
        self._positions = np.array([joint.qposadr[0] for joint in joints])
        self._velocities = np.array([joint.dofadr[0] for joint in joints])
        self._least, self._most = np.array([joint.range for joint in joints]).T
        self._point = self._model.site(SO101_TCP_SITE_NAME).id

    def keep_above(self, goals: Tensor, previous: Tensor | None, limits: Tensor) -> Tensor:
        """Return goals ``(B, D)`` that are high enough; those that are stay bit-identical.

        A goal that is too low is raised. If that takes it further from the goal before than a step may be, the joints
        turn a part of the way, or not at all: where the goal before was high enough, the new one is.

        Args:
            goals: normalised. Raised ones may leave ``[-1, 1]``, where the training data has none that is high enough.
            previous: ``(B, D)`` the goals before; None after a reset.
            limits: ``(D,)`` the largest change of each dimension from them.

        Raises:
            ActionError: if no joint angles near a goal are high enough.
        """
        kept = goals.clone()
        for row, goal in enumerate(goals.double().cpu()):
            if self.height(self._degrees(goal)) >= self._height:
                continue
            raised = self._raised(goal)
            if previous is not None:
                before, most = previous[row].double().cpu(), limits.double().cpu()
                change = (raised - before).clamp(-most, most)
                ways = (before + share * change for share in _SHARES)
                raised = next(
                    (way for way in ways if self.height(self._degrees(way)) >= self._height), before
                )
            kept[row] = raised.to(kept)
        return kept

    def _degrees(self, goal: Tensor) -> Array:
        """Return a normalised goal ``(D,)`` in the robot's units."""
        degrees: Array = (self._low + (goal + 1) / 2 * self._span).numpy()
        return degrees

    def _raised(self, goal: Tensor) -> Tensor:
        """Return a goal ``(D,)`` with the nearest five joint angles that are high enough."""
        joints = torch.from_numpy(np.degrees(self._raise(np.radians(self._degrees(goal)[:5]))))
        low, span = self._low[:5], self._span[:5]
        raised = goal.clone()
        raised[:5] = torch.where(span > 0, (joints - low) / span * 2 - 1, goal[:5])
        return raised

    def height(self, degrees: Array) -> float:
        """Return the height of the point between the fingertips, metres, for five joint angles in degrees.

        An arm stops at its joints' limits, whatever it is sent.
        """
        return self._look(np.clip(np.radians(degrees[:5]), self._least, self._most))[0]

    def _raise(self, joints: Array) -> Array:
        """Return the nearest angles that are high enough, found along the height's gradient, radians."""
        joints = np.clip(joints, self._least, self._most)
        wanted = self._height + _MARGIN
        for _ in range(_ITERATIONS):
            height, gradient = self._look(joints)
            if height >= self._height:
                return joints
            # A joint at its limit cannot help.
            free = np.where(gradient > 0, joints < self._most, joints > self._least)
            gradient = gradient * free
            step = gradient * (wanted - height) / (gradient @ gradient + _DAMPING)
            step *= min(1.0, _STRIDE / max(float(np.linalg.norm(step)), 1e-12))
            joints = np.clip(joints + step, self._least, self._most)
        raise ActionError(
            f"min_gripper_height={self._height - _SAG:g}: no pose near the goal {np.degrees(joints).round(1).tolist()} "
            f"degrees is {_SAG} m higher (it reaches {self._look(joints)[0]:.3f} m). Lower min_gripper_height."
        )

    def _look(self, joints: Array) -> tuple[float, Array]:
        """Return the height at joint angles in radians, metres, and its gradient, metres per radian."""
        import mujoco

        self._data.qpos[self._positions] = joints
        mujoco.mj_kinematics(self._model, self._data)
        mujoco.mj_comPos(self._model, self._data)
        jacobian = np.zeros((3, self._model.nv))
        mujoco.mj_jacSite(self._model, self._data, jacobian, None, self._point)
        return float(self._data.site_xpos[self._point][2]), jacobian[2, self._velocities]
