"""A folder appears when all went well, and never in the place of another."""

from __future__ import annotations

from pathlib import Path

import pytest

from lerobot_policy_vla0.errors import CheckpointError
from lerobot_policy_vla0.new_folder import new_folder


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
        pytest.raises(CheckpointError, match=r"out could not be written .*No space left"),
        new_folder(tmp_path / "out"),
    ):
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_what_exists_is_kept(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("out", "link"):
        with pytest.raises(CheckpointError, match=f"{name} exists already"), new_folder(tmp_path / name):
            pytest.fail("the work began")


def test_what_appeared_meanwhile_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(CheckpointError, match="exists already"), new_folder(out) as partial:
        (partial / "ours").write_text("x")
        out.mkdir()
        (out / "theirs").write_text("y")
    assert [p.name for p in out.iterdir()] == ["theirs"]
