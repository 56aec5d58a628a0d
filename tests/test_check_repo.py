"""scripts/check_repo.py and scripts/options_doc.py: what a document says wrongly is found, what is right passes."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from helpers.paths import REPO

sys.path.insert(0, str(REPO / "scripts"))
import check_repo
import options_doc

SOURCE = '''
"""A docstring that nobody ever prints."""
def run(value, key):
    raise ValueError(
        f"the dataset {value!r} has no {key}. "
        "Give it one, or leave it out" + (f" ({value})" if key else "") + "."
    )
    logger.warning("a chunk took %s steps, more than chunk_size=%d: the robot waited", value, key)
'''
STRINGS = check_repo.strings_of(SOURCE)


# ---------------------------------------------------------------------- messages


@pytest.mark.parametrize(
    "heading",
    [
        "`the dataset ... has no ...`",
        "`the dataset 'pusht' has no ... Give it one, or leave it out ...`",
        "`Give it one, or leave it out`",
        "`a chunk took 9 steps, more than chunk_size=4: the robot waited`",
        "`a chunk took N steps, more than chunk_size=[4]: the robot waited`, `the dataset <name> has no`",
        "`Nobody here says this` (LeRobot)",
        "`Nobody here says this`, then `nor says anybody this` (LeRobot)",
        "`Nobody here says this` (LeRobot); `leave it out ...`",
        "Slow with `--no.such_option here`",
        "Nothing quoted",
    ],
)
def test_messages_of_the_project_and_of_named_programs_pass(heading: str) -> None:
    assert check_repo.unknown_messages(f"# Page\n\n### {heading}\n\ntext\n", STRINGS) == []


@pytest.mark.parametrize(
    ("heading", "message"),
    [
        ("`the dataset ... has not ...`", "the dataset ... has not ..."),
        # Pieces that exist, in another order or in two strings.
        ("`has no ... the dataset ...`", "has no ... the dataset ..."),
        ("`the dataset ...: the robot waited`", "the dataset ...: the robot waited"),
        ("`A docstring that nobody ever prints.`", "A docstring that nobody ever prints."),
        ("`Nobody here says this`; `says LeRobot this here` (LeRobot)", "Nobody here says this"),
        ("On a robot: `Nobody here says this`", "Nobody here says this"),
    ],
)
def test_a_message_that_nothing_says_is_found(heading: str, message: str) -> None:
    (problem,) = check_repo.unknown_messages(f"### {heading}\n", STRINGS)
    assert problem == (
        f"no string of src or the scripts is `{message}`. Quote one message as it is, with `...` for values; or end "
        "the heading with the program that says it, in parentheses"
    )


def test_a_message_of_values_alone_is_refused() -> None:
    assert check_repo.unknown_messages("### `... took ...`\n", STRINGS) == [
        "message `... took ...` has too few words to be looked up"
    ]


def test_messages_of_shell_scripts_are_known() -> None:
    strings = check_repo.known_strings()
    assert check_repo.unknown_messages("### `no Python 3.12 with venv and ensurepip found`\n", strings) == []


# ---------------------------------------------------------------------- paths, modules and tests


def test_code_is_read_from_spans_and_fences() -> None:
    text = "See `one\ntwo` and ``x``.\n\n```bash\nvla0 eval \\\n  --out DIR\n# `comment`\n```\n\n`three`\n"
    assert check_repo.code_of(text) == ["vla0 eval --out DIR", "# `comment`", "one two", "three"]


@pytest.mark.parametrize(
    "code",
    [
        "docs/options.md",
        "--config_path=configs/libero.yaml",
        "bash examples/so100/*.sh",
        "tests/test_<module>.py",
        "outputs/docs/no_such_page.md",
        "../docs/no_such_page.md",
        "the folder src/.",
    ],
)
def test_paths_that_exist_or_are_not_the_repositorys_pass(code: str) -> None:
    assert check_repo.missing_paths([code]) == []


@pytest.mark.parametrize("path", ["docs/no_such_page.md", "configs/no_such_*.yaml", "src/<any>/nothing.py"])
def test_a_path_that_does_not_exist_is_found(path: str) -> None:
    assert check_repo.missing_paths([f"python {path} --option"]) == [f"no path `{path}`"]


def test_modules_and_what_is_in_them_pass() -> None:
    code = [
        "lerobot_policy_vla0.configuration_vla0.VLA0Config",
        "from lerobot_policy_vla0.errors import Vla0Error",
    ]
    assert check_repo.missing_modules(code) == []


def test_a_module_or_name_that_does_not_exist_is_found() -> None:
    code = ["lerobot_policy_vla0.nowhere.Thing", "`lerobot_policy_vla0.configuration_vla0.NoConfig`"]
    assert check_repo.missing_modules(code) == [
        "no `lerobot_policy_vla0.configuration_vla0.NoConfig`: src/lerobot_policy_vla0/configuration_vla0.py has no "
        "NoConfig",
        "no `lerobot_policy_vla0.nowhere.Thing`: src/lerobot_policy_vla0/__init__.py has no nowhere",
    ]


def test_a_link_to_a_test_that_does_not_exist_is_found(tmp_path: Path) -> None:
    (tmp_path / "test_a.py").write_text("def test_one() -> None: ...\n")
    page = tmp_path / "page.md"
    page.write_text("[`test_one`](test_a.py), [`test_two`](test_a.py), [`test_one`](test_b.py)\n")
    assert check_repo.missing_tests(page) == ["test_a.py has no test_two", "test_b.py has no test_one"]


# ---------------------------------------------------------------------- commands


@pytest.mark.parametrize(
    "code",
    [
        "vla0 eval --shards 2 --out DIR -- --no.such_option=1",
        "MUJOCO_GL=egl vla0 libero-setup --config-dir DIR   # don't ask",
        "vla0 open-loop --policy.path=x --policy.n_bins=10 --dataset.root=... | tee log",
        "vla0 latency --policy.NAME=VALUE",
        "vla0 SUBCOMMAND --help",
        "lerobot-train --policy.type=vla0 --no.such_option=1",
        "another vla0 thing",
        "import lerobot_policy_vla0 as vla0",
    ],
)
def test_commands_that_exist_pass(code: str) -> None:
    assert check_repo.wrong_commands([code]) == []


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("vla0 no-such-command --out x", "no command `vla0 no-such-command`"),
        ("vla0 merge ADAPTER --into x", "`vla0 merge` has no option `--into`"),
        ("$ cd x && A=b vla0 eval --shard=2 -- --x", "`vla0 eval` has no option `--shard`"),
        ("vla0 latency --policy.n_bin=10", "`vla0 latency` has no option `--policy.n_bin`"),
        ("lerobot-evaluate --policy.path=x", "no command `lerobot-evaluate`"),
    ],
)
def test_a_command_or_option_that_does_not_exist_is_found(code: str, problem: str) -> None:
    assert check_repo.wrong_commands([code]) == [problem]


# ---------------------------------------------------------------------- the options


def test_the_page_has_every_option_once_with_its_default() -> None:
    page = options_doc.page()
    assert page.count("\n| `chunk_size` | `8` | The model predicts this many steps per query") == 1
    assert page.count("\n| `tiny.num_layers` | `4` | ") == 1
    assert page.count("\n| `antialias` | `false` | ") == 1
    assert '`{"VISUAL": "IDENTITY", "STATE": "IDENTITY", "ACTION": "MIN_MAX"}`' in page
    assert "([state](state.md))" in page
    groups = [line.removeprefix("## ") for line in page.splitlines() if line.startswith("## ")]
    assert groups == [
        "Backbone",
        "Chunk and text",
        "Images",
        "Training augmentation",
        "Execution",
        "Decoding",
        "Engine",
        "Precision and memory",
        "Optimizer",
        "Sizes of the tiny backbone",
    ]


def test_a_docstring_is_read_section_by_section() -> None:
    text = "Sizes.\n\nNot a section:\n\n- a;\n\nWidths:\n    a: One\n        line.\n    b: Two: 2.\n\nRest:\n    c: 3."
    introduction, sections = options_doc.parse(text)
    assert introduction == "Sizes.\n\nNot a section:\n\n- a;"
    assert sections == {"Widths": {"a": "One line.", "b": "Two: 2."}, "Rest": {"c": "3."}}


def test_an_option_without_a_description_is_refused() -> None:
    @dataclass
    class Options:
        """Options.

        All:
            a: This is one.
            c: This is another.
        """

        a: int = 1
        b: int = 2
        c: int = 3

    with pytest.raises(
        ValueError, match=r"describes 2 options and the class has 3; the first difference is \('c', 'b'\)"
    ):
        options_doc.tables(Options())


@pytest.mark.parametrize("committed", ["", None])
def test_a_page_that_is_not_what_the_docstrings_say_is_found(
    committed: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "options.md"
    monkeypatch.setattr(options_doc, "PAGE", page)
    if committed is not None:
        page.write_text(committed)
    monkeypatch.setattr(sys, "argv", ["options_doc.py", "--check"])
    assert options_doc.main() == 1
    assert "run `make docs`" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["options_doc.py", "--write"])
    assert options_doc.main() == 0
    monkeypatch.setattr(sys, "argv", ["options_doc.py", "--check"])
    assert options_doc.main() == 0


# ---------------------------------------------------------------------- all together


def test_make_check_fails_for_each_kind_of_wrong_document(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    added = {
        "README.md": "\n`docs/gone.md`, `vla0 gone`, `lerobot_policy_vla0.gone`, `--policy.gone=1`, `make gone`\n",
        "docs/troubleshooting.md": "\n### `nobody says this here`\n",
    }
    visible = check_repo.visible
    monkeypatch.setattr(
        check_repo, "visible", lambda path: visible(path) + added.get(str(path.relative_to(REPO)), "")
    )
    monkeypatch.setattr(options_doc, "page", lambda: "other")
    assert check_repo.main() == 1
    said = capsys.readouterr().out
    for problem in (
        "README.md: no path `docs/gone.md`",
        "README.md: no command `vla0 gone`",
        "README.md: no `lerobot_policy_vla0.gone`: ",
        "README.md: `gone` is no option of VLA0Config",
        "README.md: no target `make gone`",
        "docs/troubleshooting.md: no string of src or the scripts is `nobody says this here`",
        "docs/options.md: not what the docstrings say",
    ):
        assert problem in said
