"""The software renderer's environment variables, in one place so that recording and evaluation share them.

Only defaults: a variable that is already set wins. They choose which OpenGL implementation MuJoCo asks for
and touch no scene, camera or light.

What was tried on 2 cores without a GPU (Mesa 22.3, 480x480 frames of button-press-topdown-v3, median per
step):

    one process:  EGL 132 ms, OSMesa 107 ms; with LP_NUM_THREADS=0 154 and 150 ms, with 1 190 ms
    two at once:  EGL 155 ms each, OSMesa 160 ms each, whatever LP_NUM_THREADS (0, 2) or
    LP_NATIVE_VECTOR_WIDTH (128)

LP_NATIVE_VECTOR_WIDTH=512 crashes this Mesa. Two thirds of the time goes into the shadow (49 ms without it, but
that is another picture). So no variable makes a frame cheaper: one process per core is all there is to gain.
"""

from __future__ import annotations

import os
import sys


def set_rendering_defaults() -> None:
    """Choose EGL for MuJoCo on Linux unless MUJOCO_GL is set; call it before anything imports MuJoCo.

    EGL needs no display. It and OSMesa reach the same rasteriser and gave the same pixels; EGL needs no
    package beside Mesa's libegl1.
    """
    if sys.platform == "linux":
        os.environ.setdefault("MUJOCO_GL", "egl")
