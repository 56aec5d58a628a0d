"""Which files of LIBERO's assets a suite loads: worked out from its task files and the models they name.

Reads text files only. Knows nothing about where assets are looked for or installed (`libero_setup.py` does), and never
imports LIBERO, whose first import asks questions. A test compares the answer with what the simulator loaded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

from lerobot_policy_vla0.errors import LiberoError

#: The suites of the paper's table: Spatial, Object, Goal, Long.
SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10")


@dataclass(frozen=True)
class Scene:
    """The surroundings of a task, by the problem its file names.

    Attributes:
        model: MJCF file, relative to the assets.
        surface: the fixture that is part of the scene and has no model of its own.
        floor, wall: textures that hf-libero puts in place of those the model names.
    """

    model: str
    surface: str
    floor: str = "light-gray-floor-tile.png"
    wall: str = "light-gray-plaster.png"


#: hf-libero 0.1.4, `libero/libero/envs/problems` and `envs/arenas/style.py`.
SCENES = {
    "libero_tabletop_manipulation": Scene("scenes/libero_tabletop_base_style.xml", "table"),
    "libero_floor_manipulation": Scene("scenes/libero_floor_base_style.xml", "floor"),
    "libero_kitchen_tabletop_manipulation": Scene(
        "scenes/libero_kitchen_tabletop_base_style.xml",
        "kitchen_table",
        floor="gray_ceramic_tile.png",
        wall="yellow_linen_wall_texture.png",
    ),
    "libero_living_room_tabletop_manipulation": Scene(
        "scenes/libero_living_room_tabletop_base_style.xml",
        "living_room_table",
        floor="seamless_wood_planks_floor.png",
    ),
    "libero_study_tabletop_manipulation": Scene("scenes/libero_study_base_style.xml", "study_table"),
}
#: Where a model of a given name may be; hf-libero 0.1.4, `libero/libero/envs/objects`.
MODEL_PLACES = (
    "articulated_objects/{0}.xml",
    "stable_hope_objects/{0}/{0}.xml",
    "stable_scanned_objects/{0}/{0}.xml",
    "turbosquid_objects/{0}/{0}.xml",
)


class Assets:
    """A set of asset files: a folder, or the names of what another place holds.

    Args:
        root: the folder; None if only names are known.
        names: paths relative to the assets, with forward slashes; ignored with a ``root``.
    """

    def __init__(self, root: Path | None = None, names: frozenset[str] = frozenset()) -> None:
        self.root = root
        self._names = names

    def has(self, name: str) -> bool:
        """Return whether there is a file ``name``."""
        return name in self._names if self.root is None else (self.root / name).is_file()

    def references(self, model: str, scene: Scene | None) -> Iterator[str]:
        """Yield the files an MJCF file names, relative to the assets; none if its text is not at hand.

        Raises:
            LiberoError: the file is no XML; names it.
        """
        if self.root is None:
            return
        try:
            root = ElementTree.parse(self.root / model).getroot()
        except ElementTree.ParseError as error:
            raise LiberoError(
                f"{self.root / model} is damaged ({error}). Fetch LIBERO's assets again."
            ) from error
        styles = {"texplane": scene.floor, "tex-wall": scene.wall} if scene else {}
        # robosuite leaves out an object's textures that no visible material asks for, and keeps all of a scene's.
        materials = {geom.get("material") for geom in root.iter("geom")}
        used = {m.get("texture") for m in root.iter("material") if m.get("name") in materials}
        for element in root.iter():
            file, name = element.get("file"), element.get("name", "")
            if not file or (scene is None and element.tag == "texture" and name not in used):
                continue
            path = PurePosixPath(model).parent / file
            yield _plain(path.with_name(styles[name]) if name in styles else path)


def _plain(path: PurePosixPath) -> str:
    """Return a relative path without ``.`` and ``..``.

    >>> _plain(PurePosixPath("scenes/../textures/wood.png"))
    'textures/wood.png'
    """
    parts: list[str] = []
    for part in path.parts:
        if part == ".." and parts:
            parts.pop()
        else:
            parts.append(part)
    return "/".join(parts)


def task_files(bddl: str, assets: Assets) -> dict[str, bool]:
    """Return the asset files one task loads, and whether each is there.

    Args:
        bddl: text of the task's file.
        assets: where to look.

    Returns:
        Path relative to the assets to whether it exists. A model that is nowhere is listed by its name and ``/``.

    Raises:
        LiberoError: the task names a scene this version does not know.
    """
    problem = re.search(r"\(problem\s+(\w+)\)", bddl)
    scene = SCENES.get(problem[1].lower()) if problem else None
    if scene is None:
        raise LiberoError(
            f"the task file names the scene {problem[1] if problem else None!r}; known: {', '.join(SCENES)}. "
            "hf-libero is another version than the 0.1.x this was written for."
        )
    sections = re.findall(r"\(:(?:fixtures|objects)\s(.*?)\)", bddl, flags=re.DOTALL)
    named = {name for section in sections for name in re.findall(r"-\s+(\w+)", section)} - {scene.surface}
    files = {scene.model: assets.has(scene.model)}
    models: list[tuple[str, Scene | None]] = [(scene.model, scene)]
    for name in sorted(named):
        found = next((m for m in (place.format(name) for place in MODEL_PLACES) if assets.has(m)), None)
        files[found or f"{name}/"] = found is not None
        if found:
            models.append((found, None))
    for model, style in models:
        if files[model]:
            files |= {file: assets.has(file) for file in assets.references(model, style)}
    return files


def suite_files(bddl_files: Path, suite: str, assets: Assets) -> dict[str, bool]:
    """Return the asset files all tasks of a suite load, and whether each is there; see `suite_tasks`."""
    return {name: there for files in suite_tasks(bddl_files, suite, assets) for name, there in files.items()}


def suite_tasks(bddl_files: Path, suite: str, assets: Assets) -> list[dict[str, bool]]:
    """Return for each task of a suite the asset files it loads, and whether each is there.

    Args:
        bddl_files: LIBERO's folder of task files, one folder per suite.
        suite: such as ``libero_spatial``.
        assets: where to look.

    Returns:
        In the order of the files' names, which is not the order of LIBERO's task numbers.

    Raises:
        LiberoError: there are no task files, or see `task_files`.
    """
    tasks = sorted((bddl_files / suite).glob("*.bddl"))
    if not tasks:
        raise LiberoError(f"{bddl_files / suite} holds no task files (*.bddl). Reinstall hf-libero.")
    return [task_files(task.read_text(encoding="utf-8"), assets) for task in tasks]
