"""What a camera sees: an SO-100, drawn from its joint angles, on a table with a coloured ball.

A pinhole camera draws lines and discs; every joint changes the picture. Coordinates are those of `kinematics`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise, product

import cv2
import numpy as np
from numpy.typing import NDArray

from lerobot_policy_vla0.errors import ConfigError
from lerobot_policy_vla0.tools.so100_emulator.kinematics import Points, joint_points

Picture = NDArray[np.uint8]
Color = tuple[int, int, int]  # red, green, blue

#: The table's edges in metres.
_TABLE_X, _TABLE_Y = (-0.35, 0.5), (-0.45, 0.45)
_GRID, _WALL = (160, 142, 115), (214, 220, 226)
_BASE, _LINK, _JOINT = (60, 60, 66), (238, 178, 40), (70, 70, 78)
_FIXED_JAW, _MOVING_JAW = (40, 110, 60), (120, 40, 140)
_SHIFT = 4  # OpenCV draws at sixteenths of a pixel, so that small motion is visible


def _tiles() -> list[tuple[list[tuple[float, float, float]], Color]]:
    """Return corners and colour of the tiles on the table. No two tiles have the same colour."""
    tiles = []
    n = 9
    xs, ys = np.linspace(*_TABLE_X, n + 1).tolist(), np.linspace(*_TABLE_Y, n + 1).tolist()
    for i, j in product(range(n), range(n)):
        corners = [(xs[i + a], ys[j + b], 0.0) for a, b in ((0, 0), (1, 0), (1, 1), (0, 1))]
        near, left = i / (n - 1), j / (n - 1)
        light = 0.7 + 0.4 * near
        red, green, blue = 90 + 110 * left, 160, 200 - 110 * left
        tiles.append((corners, (int(light * red), int(light * green), int(light * blue))))
    return tiles


_TILES = _tiles()


@dataclass
class Scene:
    """A table, a ball, an arm, and the camera that looks at them."""

    ball: tuple[float, float] = (0.24, 0.08)  # x and y in metres, see `place_ball`
    ball_radius: float = 0.02  # metres, in (0, 0.2]
    ball_color: Color = (220, 40, 30)
    eye: tuple[float, float, float] = (0.55, -0.4, 0.42)  # where the camera is
    look_at: tuple[float, float, float] = (0.13, 0.0, 0.1)  # the middle of the picture
    field_of_view: float = 48.0  # vertical, degrees, in (0, 180)
    _drawn: tuple[object, Picture] | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 0 < self.field_of_view < 180:
            raise ConfigError(
                f"field_of_view={self.field_of_view} is no angle of view: give degrees in (0, 180)"
            )
        if not 0 < self.ball_radius <= 0.2:
            raise ConfigError(
                f"ball_radius={self.ball_radius} is no ball on this table: give metres in (0, 0.2]"
            )
        self.place_ball(*self.ball)

    @property
    def ball_centre(self) -> Points:
        """Where the middle of the ball is: ``(3,)`` metres."""
        return np.array([*self.ball, self.ball_radius])

    def place_ball(self, x: float, y: float) -> None:
        """Put the ball ``x`` metres ahead of the arm and ``y`` metres to its left. May be called from any thread."""
        (x_low, x_high), (y_low, y_high) = _TABLE_X, _TABLE_Y
        if not (x_low <= x <= x_high and y_low <= y <= y_high):  # false for NaN
            raise ConfigError(
                f"a ball at x={x}, y={y} is off the table: give metres, x in [{x_low}, {x_high}] ahead of the arm, "
                f"y in [{y_low}, {y_high}] to its left"
            )
        self.ball = (x, y)  # one assignment: a camera never sees half a move

    def render(self, pose: Sequence[float], width: int, height: int) -> Picture:
        """Return the picture of an arm in ``pose``: ``(height, width, 3)`` uint8, RGB."""
        picture: Picture = self._empty_table(width, height).copy()
        points = joint_points(pose)
        shadow = points * [1.0, 1.0, 0.0]
        for start, end in pairwise(shadow[1:-1]):
            self._line(picture, start, end, 0.02, _GRID)
        ball = self.ball_centre
        ball_is_far = self._depth(ball) > self._depth(points[4])
        if ball_is_far:
            self._disc(picture, ball, self.ball_radius, self.ball_color)
        self._line(picture, points[0], points[1], 0.07, _BASE)
        for start, end in pairwise(points[1:5]):
            self._line(picture, start, end, 0.028, _LINK)
        self._line(picture, points[4], points[5], 0.014, _FIXED_JAW)
        self._line(picture, points[4], points[6], 0.014, _MOVING_JAW)
        for point in points[1:5]:
            self._disc(picture, point, 0.019, _JOINT)
        if not ball_is_far:
            self._disc(picture, ball, self.ball_radius, self.ball_color)
        return picture

    def _empty_table(self, width: int, height: int) -> Picture:
        """Return the picture without arm and ball, which is drawn once for each viewpoint and size."""
        key = (self.eye, self.look_at, self.field_of_view, width, height)
        if self._drawn is not None and self._drawn[0] == key:
            return self._drawn[1]
        picture: Picture = np.empty((height, width, 3), np.uint8)
        picture[:] = _WALL
        for corners, color in _TILES:
            self._polygon(picture, corners, color)
        for step in range(-4, 5):
            self._line(picture, (-0.3, step / 10, 0), (0.5, step / 10, 0), 0.002, _GRID)
            self._line(picture, (step / 10 + 0.1, -0.4, 0), (step / 10 + 0.1, 0.4, 0), 0.002, _GRID)
        self._drawn = (key, picture)
        return picture

    def _camera(self) -> tuple[Points, Points]:
        eye = np.asarray(self.eye, np.float64)
        forward = np.asarray(self.look_at, np.float64) - eye
        forward /= np.linalg.norm(forward)
        right = np.cross(forward, [0.0, 0.0, 1.0])
        right /= np.linalg.norm(right)
        return eye, np.stack([right, np.cross(forward, right), forward])  # rows: right, down, forward

    def _depth(self, point: Points) -> float:
        eye, axes = self._camera()
        return float(axes[2] @ (point - eye))

    def _project(self, picture: Picture, points: Sequence[Sequence[float]] | Points) -> tuple[Points, float]:
        """Return ``(n, 2)`` pixels, and pixels per metre at the first point."""
        eye, axes = self._camera()
        seen = (np.asarray(points, np.float64) - eye) @ axes.T
        depth = np.maximum(seen[:, 2], 0.02)
        height, width = picture.shape[:2]
        focal = height / 2 / np.tan(np.deg2rad(self.field_of_view) / 2)
        pixels: Points = seen[:, :2] / depth[:, None] * focal + [width / 2, height / 2]
        return pixels, float(focal / depth[0])

    def _line(
        self,
        picture: Picture,
        start: Sequence[float] | Points,
        end: Sequence[float] | Points,
        size: float,
        color: Color,
    ) -> None:
        pixels, scale = self._project(picture, np.array([start, end], float))
        first, last = _fixed_point(pixels)
        cv2.line(picture, first, last, color, max(1, round(size * scale)), cv2.LINE_AA, _SHIFT)

    def _disc(self, picture: Picture, centre: Points, radius: float, color: Color) -> None:
        pixels, scale = self._project(picture, centre[None])
        size = round(radius * scale * 2**_SHIFT)
        cv2.circle(picture, _fixed_point(pixels)[0], size, color, -1, cv2.LINE_AA, _SHIFT)

    def _polygon(self, picture: Picture, corners: Sequence[Sequence[float]], color: Color) -> None:
        pixels, _ = self._project(picture, corners)
        cv2.fillConvexPoly(picture, np.array(_fixed_point(pixels)), color, cv2.LINE_AA, _SHIFT)


def _fixed_point(pixels: Points) -> list[tuple[int, int]]:
    return [(round(x * 2**_SHIFT), round(y * 2**_SHIFT)) for x, y in pixels.tolist()]
