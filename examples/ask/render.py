"""Draw the pictures of questions.jsonl again: four of Meta-World, two of the emulated SO-100.

    python examples/ask/render.py [FOLDER]

64 colours keep the files small.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("MUJOCO_GL", "egl")  # before anything imports MuJoCo

import numpy as np
from PIL import Image

from lerobot_policy_vla0.tools.so100_emulator.scene import Scene

SIZE = 224
METAWORLD = ("drawer-open-v3", "door-open-v3", "basketball-v3", "button-press-topdown-v3")
#: Joint angles in degrees, gripper in percent, and the ball's place and colour.
SO100 = {
    "so100_far_ball": ([0, -40, 40, 30, 0, 60], (0.32, 0.1), (220, 40, 30)),
    "so100_near_ball": ([-25, 10, 20, 60, 0, 20], (0.2, -0.12), (40, 70, 220)),
}


def save(picture: np.ndarray, folder: Path, name: str) -> None:
    image = Image.fromarray(picture).resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    image.quantize(64, dither=Image.Dither.NONE).save(folder / f"{name}.png", optimize=True)
    print(f"{folder / name}.png")


def main() -> None:
    from lerobot.envs.metaworld import MetaworldEnv

    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    for task in METAWORLD:
        env = MetaworldEnv(task=task, obs_type="pixels")
        observation, _ = env.reset(seed=0)
        env.close()
        save(observation["pixels"], folder, task.removesuffix("-v3").replace("-", "_"))
    for name, (pose, ball, color) in SO100.items():
        scene = Scene(ball=ball, ball_color=color)
        save(scene.render(pose, 448, 448), folder, name)


if __name__ == "__main__":
    main()
