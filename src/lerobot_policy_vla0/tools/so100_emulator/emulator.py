"""Emulated arms and cameras together, and the options with which LeRobot's commands use them."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Self

from lerobot_policy_vla0.errors import ConfigError
from lerobot_policy_vla0.tools.so100_emulator.arm import Arm
from lerobot_policy_vla0.tools.so100_emulator.body import Body
from lerobot_policy_vla0.tools.so100_emulator.camera import CameraSettings, SceneCamera
from lerobot_policy_vla0.tools.so100_emulator.scene import Picture, Scene
from lerobot_policy_vla0.tools.so100_emulator.trajectory import REST, Pose, Trajectory, wave

_MARK = "# Written by vla0 emulate-so100, and gone when it ends."


class SO100Emulator:
    """SO-100 arms, and cameras that look at the first follower. A context manager that runs until `close`.

    Args:
        folder: ports and calibration files are made here; existing calibration files are used as they are.
        followers: names of the arms that are told where to go.
        leaders: names of the arms that follow ``trajectory``, pose over seconds.
        trajectory: of the leaders.
        cameras: of different names.
        scene: what the cameras look at, without a ``body``.
        start: pose the followers begin in.
        body: the first follower's, in place of the servos' own law of motion. It draws the pictures too: cameras have
            the names of its views.
        model: LeRobot's name of the arms: so100 or so101.

    Raises:
        ConfigError: if names repeat or are no file names, there is no arm, a camera has no follower to look at,
            the body has no such view, or a part cannot be made.
    """

    def __init__(
        self,
        folder: Path,
        *,
        followers: Sequence[str] = ("follower",),
        leaders: Sequence[str] = ("leader",),
        trajectory: Trajectory = wave,
        cameras: Sequence[CameraSettings] = (),
        scene: Scene | None = None,
        start: Pose = REST,
        body: Body | None = None,
        model: str = "so100",
    ) -> None:
        names = [*followers, *leaders]
        if (
            not names
            or len(set(names)) != len(names)
            or any(Path(n).name != n or n in ("", "..") for n in names)
        ):
            raise ConfigError(f"arms need different names that can be file names, got {names}")
        seen = [camera.name for camera in cameras]
        if seen and not followers:
            raise ConfigError(f"camera {seen[0]!r} looks at the first follower, and there is none")
        if len(set(seen)) != len(seen):
            raise ConfigError(f"cameras need different names, got {seen}")
        if body is not None and (unknown := set(seen) - set(body.views)):
            raise ConfigError(
                f"the arm's cameras are {', '.join(body.views)}, not {', '.join(sorted(unknown))}"
            )
        self.body, self.model = body, model
        self.folder = folder.absolute()
        self.scene = scene or Scene()
        self.arms: dict[str, Arm] = {}
        self.cameras: dict[str, SceneCamera] = {}
        self._followers, self._leaders = tuple(followers), tuple(leaders)
        with ExitStack() as made:
            for name in names:
                script, moved_by = trajectory if name in leaders else None, body if name == names[0] else None
                arm = Arm(name, self.folder, trajectory=script, start=start, body=moved_by)
                made.callback(arm.close)
                self.arms[name] = arm
            for camera in cameras:
                take = partial(self.render, camera.width, camera.height, camera.name)
                self.cameras[camera.name] = SceneCamera(camera, take)
                made.callback(self.cameras[camera.name].close)
            self._parts = made.pop_all()

    @property
    def followers(self) -> list[Arm]:
        """The arms that are told where to go."""
        return [self.arms[name] for name in self._followers]

    @property
    def leaders(self) -> list[Arm]:
        """The arms that follow the script."""
        return [self.arms[name] for name in self._leaders]

    def render(self, width: int, height: int, view: str = "top") -> Picture:
        """Return what a camera sees now: ``(height, width, 3)`` uint8 RGB. Without a body all see the same."""
        if self.body is not None:
            return self.body.render(view, width, height)
        return self.scene.render(self.followers[0].pose(), width, height)

    def place_ball(self, x: float, y: float) -> None:
        """Put the ball ``x`` metres ahead of the first follower and ``y`` metres to its left."""
        self.scene.place_ball(x, y)

    @property
    def pairs(self) -> list[str]:
        """Names of which ``NAME_left`` and ``NAME_right`` are followers: LeRobot's `bi_so_follower` drives both."""
        names = [name.removesuffix("_left") for name in self._followers if name.endswith("_left")]
        return [name for name in names if f"{name}_right" in self._followers]

    def robot_options(self, follower: str | None = None) -> list[str]:
        """Return the options of LeRobot's commands for a follower (default: the first) or for a pair.

        Those of the first follower, and of its pair, have the cameras.
        """
        name = follower or self._followers[0]
        both = [f"{name}_left", f"{name}_right"] if name in self.pairs else [name]
        arms = [self.arms[one] for one in both]
        if name in self.pairs:
            options = [
                "--robot.type=bi_so_follower",
                f"--robot.id={name}",
                f"--robot.calibration_dir={arms[0].calibration_dir}",
                f"--robot.left_arm_config.port={arms[0].port.path}",
                f"--robot.right_arm_config.port={arms[1].port.path}",
            ]
        else:
            options = _options("robot", f"{self.model}_follower", arms[0])
        if self.cameras and self.followers[0] in arms:
            described = (
                f"{name}: {{{', '.join(f'{key}: {value}' for key, value in camera.lerobot_config().items())}}}"
                for name, camera in self.cameras.items()
            )
            options.append(f"--robot.cameras={{{', '.join(described)}}}")
        return options

    def teleop_options(self, leader: str | None = None) -> list[str]:
        """Return the options of LeRobot's commands for a leader (default: the first)."""
        return _options("teleop", f"{self.model}_leader", self.arms[leader] if leader else self.leaders[0])

    def close(self) -> None:
        """Remove ports and camera. Calibration files stay."""
        self._parts.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _options(prefix: str, type: str, arm: Arm) -> list[str]:
    return [
        f"--{prefix}.type={type}",
        f"--{prefix}.port={arm.port.path}",
        f"--{prefix}.id={arm.name}",
        f"--{prefix}.calibration_dir={arm.calibration_dir}",
    ]


def bash_arrays(emulator: SO100Emulator) -> str:
    """Return the arrays ``ROBOT`` and ``TELEOP``: the options of the first follower and of the first leader."""
    named = {
        "ROBOT": emulator.robot_options() if emulator.followers else [],
        "TELEOP": emulator.teleop_options() if emulator.leaders else [],
    }
    lines = [_MARK]
    for name, options in named.items():
        lines += [f"{name}=(", *(f"  {shlex.quote(option)}" for option in options), ")"]
    return "\n".join(lines) + "\n"


@contextmanager
def options_file(emulator: SO100Emulator, path: Path) -> Iterator[None]:
    """Keep `bash_arrays` in a file while the context lasts. A file that no emulator wrote is refused."""
    if path.exists() and not path.read_text(encoding="utf-8", errors="replace").startswith(_MARK):
        raise ConfigError(f"{path} exists and is not an emulator's: give another file, or move it away")
    path.parent.mkdir(parents=True, exist_ok=True)
    text = bash_arrays(emulator)
    path.write_text(text, encoding="utf-8")
    try:
        yield
    finally:
        # An emulator that was started since has written its own.
        if path.exists() and path.read_text(encoding="utf-8") == text:
            path.unlink()
