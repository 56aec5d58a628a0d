"""The ``vla0`` command itself: declared, listed, and quick to say what is wrong."""

from __future__ import annotations

import tomllib

import pytest
from helpers import toy_env  # noqa: F401 - registers --env.type=toy
from helpers.paths import REPO

from lerobot_policy_vla0.tools import commands
from lerobot_policy_vla0.tools.commands import COMMANDS, main


def test_the_console_script_is_declared_and_lists_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    scripts = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"vla0": f"{main.__module__}:{main.__name__}"}
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in COMMANDS)


def test_wrong_usage_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, expected in (
        ([], "required: COMMAND"),
        (["improt"], "invalid choice: 'improt'"),
        (["import", "x"], "required: --out"),
        (["import", "x", "--out=y", "--camera=top"], "'top' is not NAME=KEY"),
        (["import", "x", "--out=y", "--image-size=big"], "'big' is neither pixels"),
        (["import", "x", "--out=y", "--binary-action-indices=last"], "'last' is neither 'none' nor"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 2
        assert expected in capsys.readouterr().err


def test_help_imports_no_subcommand(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} was imported")

    monkeypatch.setattr(commands, "import_module", refuse)
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    with pytest.raises(AssertionError, match="import_official was imported"):
        main(["import", "--help"])
