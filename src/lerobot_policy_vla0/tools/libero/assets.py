"""Finds out which files of LIBERO's assets a suite loads, from its task files and the models they name.

It never imports LIBERO, whose first import asks questions. A test compares the files with those the simulator loads.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

from lerobot_policy_vla0.errors import LiberoError

#: The suites of the paper's table (Spatial, Object, Goal, Long), and the 90 tasks beside Long's.
SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90")


@dataclass(frozen=True)
class Scene:
    """The surroundings of a task."""

    model: str  # MJCF file, relative to the assets
    surface: str  # the fixture that is part of the scene and has no model of its own
    floor: str = (
        "light-gray-floor-tile.png"  # hf-libero uses these textures in place of those the model names
    )
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
    """A set of asset files: a folder or, without a ``root``, only names relative to the assets."""

    def __init__(self, root: Path | None = None, names: frozenset[str] = frozenset()) -> None:
        self.root = root
        self._names = names

    def has(self, name: str) -> bool:
        """Return whether there is a file ``name``."""
        return name in self._names if self.root is None else (self.root / name).is_file()

    def references(self, model: str, scene: Scene | None) -> Iterator[str]:
        """Yield the files that an MJCF file names, relative to the assets; none if only names are known."""
        if self.root is None:
            return
        try:
            root = ElementTree.parse(self.root / model).getroot()
        except ElementTree.ParseError as error:
            raise LiberoError(
                f"{self.root / model} is damaged ({error}). Fetch LIBERO's assets again."
            ) from error
        styles = {"texplane": scene.floor, "tex-wall": scene.wall} if scene else {}
        # robosuite keeps all textures of a scene, and those textures of an object that a visible material uses.
        materials = {geom.get("material") for geom in root.iter("geom")}
        used = {m.get("texture") for m in root.iter("material") if m.get("name") in materials}
        for element in root.iter():
            file, name = element.get("file"), element.get("name", "")
            if not file or (scene is None and element.tag == "texture" and name not in used):
                continue
            path = PurePosixPath(model).parent / file
            # A path such as scenes/../textures/wood.png becomes textures/wood.png.
            yield posixpath.normpath(path.with_name(styles[name]) if name in styles else path)


def task_files(bddl: str, assets: Assets) -> dict[str, bool]:
    """Return the asset files that a task with the file text ``bddl`` loads, and whether each exists.

    Paths are relative to the assets. A model that is not found is listed by its name and ``/``.

    Raises:
        LiberoError: if the task names a scene that is not in `SCENES`.
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
    """Return the asset files that the tasks of a suite load, and whether each exists; see `suite_tasks`."""
    return {name: there for files in suite_tasks(bddl_files, suite, assets) for name, there in files.items()}


def suite_tasks(bddl_files: Path, suite: str, assets: Assets) -> list[dict[str, bool]]:
    """Return for each task of a suite the asset files it loads, and whether each exists; see `task_files`.

    Tasks are in the order of their files' names in the folder ``bddl_files/suite``, which is not the order of LIBERO's
    task numbers.
    """
    tasks = sorted((bddl_files / suite).glob("*.bddl"))
    if not tasks:
        raise LiberoError(f"{bddl_files / suite} holds no task files (*.bddl). Reinstall hf-libero.")
    return [task_files(task.read_text(encoding="utf-8"), assets) for task in tasks]
