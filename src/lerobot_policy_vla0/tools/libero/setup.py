"""Make LIBERO start without questions: its configuration file, and the place it looks for its assets in.

Also says before a command starts LIBERO that this was not done. Knows where hf-libero 0.1.x looks and in which order.
Never imports it (the first import asks on the terminal), downloads nothing, and replaces nothing that exists. Which
files a suite needs, `libero_assets.py` works out.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from lerobot_policy_vla0.errors import LiberoError
from lerobot_policy_vla0.output_files import write_text
from lerobot_policy_vla0.tools.libero.assets import SUITES, Assets, suite_files, suite_tasks

CONFIG_VARIABLE = "LIBERO_CONFIG_PATH"
HUB_REPO = "lerobot/libero-assets"
#: hf-libero takes its cache folder for complete if these are in it, and downloads into it if not.
CACHE_FOLDERS = ("articulated_objects", "stable_scanned_objects", "turbosquid_objects", "stable_hope_objects")
#: The keys that decide what an evaluation loads.
DECIDING_KEYS = ("benchmark_root", "bddl_files", "init_states")


@dataclass
class Setup:
    """What `set_up` found and did.

    Attributes:
        config_file: LIBERO's configuration.
        config_written: whether it was written now; otherwise it was there, and fits.
        assets: the folder hf-libero will load assets from; None if there is none.
        linked: the link made now, if any.
        on_hub: whether the Hub was asked in place of a folder.
        missing: suite to the asset files that are not there.
        notes: what else a user should know, one sentence each.
    """

    config_file: Path
    config_written: bool
    assets: Path | None = None
    linked: Path | None = None
    on_hub: bool = False
    missing: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def incomplete(self) -> list[str]:
        """The suites that lack files."""
        return [suite for suite, files in self.missing.items() if files]


def find_package() -> Path:
    """Return LIBERO's folder of task files and code, without importing it.

    Raises:
        LiberoError: LIBERO is not installed.
    """
    spec = importlib.util.find_spec("libero")
    for location in (spec.submodule_search_locations or []) if spec else []:
        package = Path(location) / "libero"
        if (package / "bddl_files").is_dir():
            return package
    raise LiberoError('LIBERO is not installed: pip install "lerobot_policy_vla0[libero]"')


def cache_folder() -> Path:
    """Return the second of the two places hf-libero looks for assets in; the first is its own package."""
    return Path.home() / ".cache" / "libero" / "assets"


def config_folder(given: Path | None = None) -> Path:
    """Return the folder of LIBERO's configuration: as given, as in the environment, or LIBERO's default."""
    return given or Path(os.environ.get(CONFIG_VARIABLE) or Path.home() / ".libero")


def write_config(package: Path, folder: Path) -> bool:
    """Write LIBERO's configuration unless one is there that loads the same task files.

    Args:
        package: see `find_package`.
        folder: where to; made if it does not exist.

    Returns:
        Whether a file was written.

    Raises:
        LiberoError: the file there is unreadable or loads other task files; it is left as it is.
    """
    file = folder / "config.yaml"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_text(file, yaml.safe_dump({key: str(path) for key, path in _wanted(package).items()}))
        return True
    _check_config(package, file)
    return False


def _wanted(package: Path) -> dict[str, Path]:
    return {
        "benchmark_root": package,
        "bddl_files": package / "bddl_files",
        "init_states": package / "init_files",
        "datasets": package.parent / "datasets",
        "assets": package / "assets",
    }


def _check_config(package: Path, file: Path) -> None:
    """Refuse a configuration that is unreadable or loads other task files than the installed ones."""
    wanted = _wanted(package)
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
    """Make hf-libero find the assets in ``given``, by a link in its cache folder.

    Args:
        package: see `find_package`.
        given: folder with `articulated_objects` and the others in it.

    Returns:
        The link, or None if hf-libero finds ``given`` already.

    Raises:
        LiberoError: another folder is in the way, or ``given`` lacks a folder hf-libero would then download.
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
        link.rmdir()  # what hf-libero leaves behind when it could not download
    if link.exists() or link.is_symlink():
        raise LiberoError(
            f"{link} exists ({'a link to ' + os.readlink(link) if link.is_symlink() else 'a folder'}) and was left as "
            f"it is. Move it away to use {given}, or leave out --assets to use it."
        )
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(given.resolve(), target_is_directory=True)
    return link


def assets_folder(package: Path) -> Path | None:
    """Return the folder hf-libero loads assets from, in its order; None if it would have to download them."""
    if (package / "assets").exists():
        return package / "assets"
    complete = all((cache_folder() / name).exists() for name in CACHE_FOLDERS)
    return cache_folder() if complete else None


def hub_files() -> frozenset[str]:
    """Return the names of the asset files on the Hub.

    Raises:
        LiberoError: the Hub cannot be asked; says why.
    """
    from httpx import HTTPError
    from huggingface_hub import HfApi

    try:
        return frozenset(HfApi().list_repo_files(HUB_REPO, repo_type="dataset"))
    except (OSError, HTTPError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise LiberoError(
            f"LIBERO's assets are on this machine neither at {find_package() / 'assets'} nor at {cache_folder()}, and "
            f"the Hub could not be asked for {HUB_REPO} ({reason}). With a network, hf-libero fetches them itself; "
            f"without one, copy the folder here and run: vla0 libero-setup --assets DIR --link"
        ) from error


def set_up(
    assets: Path | None = None,
    config_dir: Path | None = None,
    suites: tuple[str, ...] = SUITES,
    link: bool = False,
) -> Setup:
    """Write the configuration and check the assets.

    Args:
        assets: a folder with assets; None takes those hf-libero will find, or asks the Hub.
        config_dir: folder of the configuration; see `config_folder`.
        suites: suites to check.
        link: make hf-libero find ``assets``, if it does not.

    Returns:
        What was found and done. Suites that lack files are no error here: see `Setup.incomplete`.

    Raises:
        LiberoError: LIBERO is not installed, the configuration or the link's place is taken, or there are no assets.
    """
    if link and assets is None:
        raise LiberoError("--link makes hf-libero find a folder, but none was given. Add --assets DIR.")
    if assets is not None and not assets.is_dir():
        raise LiberoError(
            f"--assets {assets} is no folder. Give the one that holds {', '.join(CACHE_FOLDERS)}."
        )
    package = find_package()
    folder = config_folder(config_dir)
    setup = Setup(folder / "config.yaml", write_config(package, folder))
    if assets is not None and link:
        setup.linked = link_assets(package, assets)
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
        files = suite_files(package / "bddl_files", suite, source)
        setup.missing[suite] = [name for name, is_there in files.items() if not is_there]
    return setup


def check_before_start(arguments: Mapping[str, str]) -> None:
    """Refuse arguments of a LeRobot command that would start LIBERO where it is not set up. Writes nothing.

    Without its configuration LIBERO asks a question on its first import and fails where nobody answers; without
    assets it fails at the first reset, after the policy was loaded.

    Args:
        arguments: by name, such as ``env.type``. Those of another simulator pass.

    Raises:
        LiberoError: LIBERO is not installed or not set up, or lacks assets of the tasks asked for; says what to run.
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
        return  # it brings assets of its own, which are not known here
    for suite in filter(None, map(str.strip, arguments.get("env.task", "").split(","))):
        if (package / "bddl_files" / suite).is_dir():  # otherwise LeRobot says which suites there are
            _check_assets(package, suite, arguments.get("env.task_ids"))


def _check_assets(package: Path, suite: str, task_ids: str | None) -> None:
    folder = assets_folder(package)
    source = Assets(folder) if folder is not None else Assets(names=hub_files())
    tasks = suite_tasks(package / "bddl_files", suite, source)
    # Which file is which task number only LIBERO itself knows, so the complete ones are counted.
    complete = sum(all(files.values()) for files in tasks)
    asked = len(tasks) if task_ids is None else _count(task_ids)
    if complete < asked:
        lacks = sorted({name for files in tasks for name, is_there in files.items() if not is_there})
        more = f" and {len(lacks) - 3} more" if len(lacks) > 3 else ""
        raise LiberoError(
            f"{suite} cannot run: {folder or HUB_REPO} has what {complete} of its tasks load, and {asked} are asked "
            f"for: it lacks {', '.join(lacks[:3])}{more}. `vla0 libero-setup` lists what is missing. Fetch it with "
            f"`hf download {HUB_REPO} --repo-type dataset --local-dir DIR` and run: vla0 libero-setup --assets DIR "
            "--link"
        )


def _count(task_ids: str) -> int:
    try:
        ids = json.loads(task_ids)
    except ValueError:
        ids = None
    if not isinstance(ids, list) or not all(type(i) is int for i in ids):
        raise LiberoError(f"--env.task_ids={task_ids} is not a list of indices such as [0,3]")
    return len(set(ids))
