"""A folder appears when all went well, and never in the place of another."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lerobot_policy_vla0.errors import OutputError
from lerobot_policy_vla0.output_files import new_folder, refuse_existing, write_json, write_text


def test_it_appears_whole(tmp_path: Path) -> None:
    out = tmp_path / "a" / "out"
    with new_folder(out) as partial:
        (partial / "whole").write_text("x")
        assert not out.exists()
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["out"]
    assert (out / "whole").read_text() == "x"
    assert out.stat().st_mode & 0o777 == (tmp_path / "a").stat().st_mode & 0o777


@pytest.mark.parametrize(
    ("error", "seen"), [(RuntimeError("bad weights"), RuntimeError), (KeyboardInterrupt(), KeyboardInterrupt)]
)
def test_nothing_is_left_of_an_interrupted_one(
    tmp_path: Path, error: BaseException, seen: type[BaseException]
) -> None:
    with pytest.raises(seen), new_folder(tmp_path / "out") as partial:
        (partial / "half").write_text("x")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match=r"out could not be written .*No space left"),
        new_folder(tmp_path / "out"),
    ):
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_what_exists_is_kept(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "theirs").write_text("y")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link_to_empty").symlink_to(tmp_path / "empty")
    for name in ("out", "file", "link", "link_to_empty"):
        with pytest.raises(OutputError, match=f"{name} exists already"), new_folder(tmp_path / name):
            pytest.fail("the work began")
    assert (tmp_path / "out" / "theirs").read_text() == "y"


def test_an_empty_folder_is_free(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    refuse_existing(tmp_path / "out")
    with new_folder(tmp_path / "out") as partial:
        (partial / "whole").write_text("x")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["whole"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_mount_point_is_refused_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "is_mount", lambda path: path == tmp_path)
    with pytest.raises(OutputError, match=r"is a mount point, .* give a folder in it"), new_folder(tmp_path):
        pytest.fail("the work began")
    with new_folder(tmp_path / "in_it"):
        pass


def test_what_appeared_meanwhile_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(OutputError, match="exists already"), new_folder(out) as partial:
        (partial / "ours").write_text("x")
        out.mkdir()
        (out / "theirs").write_text("y")
    assert [p.name for p in out.iterdir()] == ["theirs"]


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_json(file, {"a": [1]})
    assert file.read_text() == '{\n "a": [\n  1\n ]\n}\n'
    with pytest.raises(UnicodeEncodeError):
        write_text(file, "half \ud800")
    assert json.loads(file.read_text()) == {"a": [1]}
    write_text(file, "né")
    assert file.read_bytes() == "né".encode()
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
