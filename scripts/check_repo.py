"""Check that the documents say what is there, and that the constraints meet the requirements. Part of `make check`.

Documents: links, options and their defaults, `make` targets, paths, modules, tests, commands with their options, the
messages quoted in docs/troubleshooting.md, and docs/options.md as a whole.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from importlib.metadata import distribution
from pathlib import Path

import options_doc
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "lerobot_policy_vla0"
#: Its dated entries name paths, modules and commands that existed then.
LOG = ROOT / "docs" / "log.md"


def documents() -> list[Path]:
    """Return every Markdown file of the repository."""
    folders = ("docs", "examples", "benchmarks", "configs")
    return sorted([*ROOT.glob("*.md"), *(path for name in folders for path in (ROOT / name).rglob("*.md"))])


def visible(path: Path) -> str:
    """Return the text of a document without its HTML comments."""
    return re.sub(r"<!--.*?-->", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)


def anchors(path: Path) -> set[str]:
    """Return the anchors a Markdown viewer makes from the headings of a document."""
    titles = re.findall(r"^#+ +(.+?) *$", visible(path), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def broken_links(path: Path) -> list[str]:
    """Return a line for each relative link of a document whose file or anchor does not exist."""
    problems = []
    text = re.sub(r"```.*?```", "", visible(path), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        if not file.exists():
            problems.append(f"link to {target}: no such file")
        elif anchor and anchor not in anchors(file):
            problems.append(f"link to {target}: no such heading in {file.name}")
    return problems


def option_defaults(config: object, prefix: str = "") -> dict[str, str]:
    """Return the dotted names of a config's options, nested ones included, with their values as documents show them."""
    defaults = {}
    for item in dataclasses.fields(config):  # type: ignore[arg-type]
        value = getattr(config, item.name)
        defaults[prefix + item.name] = options_doc.show(value)
        if dataclasses.is_dataclass(value):
            defaults |= option_defaults(value, f"{prefix}{item.name}.")
    return defaults


def wrong_options(path: Path, defaults: dict[str, str]) -> list[str]:
    """Return a line for each `--policy.x` or option-table row that names no option or shows another default."""
    text = visible(path)
    used = set(re.findall(r"--policy\.([a-z_][a-z_0-9.]*[a-z_0-9])", text)) - {"type", "path"}
    problems = []
    for table in re.findall(r"^\| option .*?(?=\n\n|\Z)", text, flags=re.MULTILINE | re.DOTALL):
        for row in table.splitlines()[2:]:
            names, shown = (re.findall(r"`([^`]+)`", cell) for cell in row.split("|")[1:3])
            used |= set(names)
            if len(shown) == len(names):  # a cell without a literal is prose
                problems += [
                    f"default of `{name}` is {defaults[name]}, not {value}"
                    for name, value in zip(names, shown, strict=True)
                    if name in defaults and value != defaults[name]
                ]
    return problems + [f"`{name}` is no option of VLA0Config" for name in sorted(used - defaults.keys())]


def unknown_targets(path: Path) -> list[str]:
    """Return a line for each `make x` in a document that the Makefile does not have."""
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    used = set(re.findall(r"`make ([a-z0-9-]+)|^make ([a-z0-9-]+)", visible(path), flags=re.MULTILINE))
    return [f"no target `make {name}`" for name in sorted({a or b for a, b in used} - targets)]


# ---------------------------------------------------------------------- paths, modules and tests


def code_of(text: str) -> list[str]:
    """Return the code of a document: its fenced lines, continued ones joined, and its inline spans."""
    fences = re.findall(r"^ *```\w*\n(.*?)^ *```", text, flags=re.MULTILINE | re.DOTALL)
    lines = [line.strip() for fence in fences for line in re.sub(r"\\\n\s*", "", fence).splitlines()]
    prose = re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)
    return lines + [" ".join(span.split()) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", prose)]


def missing_paths(code: list[str]) -> list[str]:
    """Return a line for each path of the repository in a document's code that does not exist.

    `*` and `<...>` stand for any name, at least one of which has to exist.
    """
    folders = "src|docs|configs|examples|benchmarks|tests|scripts"
    used = re.findall(rf"(?<![\w./-])(?:{folders})/[\w./*<>-]*", "\n".join(code))
    paths = sorted({path.rstrip(".") for path in used})
    return [f"no path `{path}`" for path in paths if not any(ROOT.glob(re.sub(r"<[^>]*>", "*", path)))]


def missing_modules(code: list[str]) -> list[str]:
    """Return a line for each `lerobot_policy_vla0.x.y` in a document's code that is no module, nor a name in one."""
    problems = []
    for dotted in sorted(set(re.findall(rf"\b{PACKAGE}((?:\.\w+)+)", "\n".join(code)))):
        place, names = ROOT / "src" / PACKAGE, dotted.split(".")[1:]
        file = place / "__init__.py"
        while names:
            place /= names[0]
            module = next(
                (path for path in (place / "__init__.py", place.with_suffix(".py")) if path.is_file()), None
            )
            if module is None:
                break
            file = module
            names.pop(0)
        if names and not re.search(rf"\b{names[0]}\b", file.read_text(encoding="utf-8")):
            problems.append(f"no `{PACKAGE}{dotted}`: {file.relative_to(ROOT)} has no {names[0]}")
    return problems


def missing_tests(path: Path) -> list[str]:
    """Return a line for each link ``[`test_x`](file.py)`` of a document whose file has no such test."""
    links = re.findall(r"\[`(test_\w+)`\]\(([^)]+\.py)\)", visible(path))
    files = {name: (path.parent / name) for _, name in links}
    texts = {name: file.read_text(encoding="utf-8") if file.is_file() else "" for name, file in files.items()}
    return [f"{name} has no {test}" for test, name in links if f"def {test}(" not in texts[name]]


# ---------------------------------------------------------------------- commands


@cache
def options_of(command: str) -> frozenset[str] | None:
    """Return the options that a subcommand of `vla0` takes, None if there is no such subcommand."""
    from lerobot_policy_vla0.tools import commands

    if command not in commands.COMMANDS:
        return None
    parser = argparse.ArgumentParser()
    import_module(f"{commands.__name__}.{commands.COMMANDS[command][0]}").configure(parser)
    return frozenset(parser._option_string_actions)


def simple_commands(code: list[str]) -> Iterator[list[str]]:
    """Yield the words of each shell command in a document's code, without the variables set in front of it."""
    for line in code:
        try:
            words = shlex.split(line, comments=True)
        except ValueError:  # a quote that does not close: no command
            continue
        command: list[str] = []
        for word in [*words, ";"]:
            if word in ("|", "||", "&&", "&", ";"):
                if command:
                    yield command
                command = []
            elif command or not re.match(r"\$$|[A-Z_]+=", word):
                command.append(word)


def wrong_commands(code: list[str]) -> list[str]:
    """Return a line for each `lerobot-x` that is not installed, and each `vla0 x --y` that `vla0` does not take.

    Names in capitals and `...` stand for something else and are not looked up. What follows `--` is another command's.
    """
    installed = {point.name for point in distribution("lerobot").entry_points}
    named = set(re.findall(r"(?<![\w/.-])lerobot-[a-z]+(?:-[a-z]+)*(?![\w/-])", "\n".join(code)))
    problems = [f"no command `{name}`" for name in sorted(named - installed)]
    for command, *words in simple_commands(code):
        if command != "vla0" or not words or not re.fullmatch(r"[a-z][a-z0-9-]*", words[0]):
            continue
        options = options_of(words[0])
        if options is None:
            problems.append(f"no command `vla0 {words[0]}`")
            continue
        own = words[: words.index("--")] if "--" in words else words
        for name in (word.partition("=")[0] for word in own if word.startswith("--")):
            if name not in options and re.fullmatch(r"--[a-z0-9_.-]*[a-z0-9]", name):
                problems.append(f"`vla0 {words[0]}` has no option `{name}`")
    return problems


# ---------------------------------------------------------------------- messages

#: Where a message has a value: an ellipsis, what is in brackets or quotes, a number, a single capital.
_VALUE = re.compile(r"""\.\.\.|<[^>]*>|\[[^]]*\]|(?<!\w)'[^']*'(?!\w)|"[^"]*"|\d[\d.]*|\b[A-Z]\b""")


def string_of(node: ast.AST) -> str:
    """Return the text of a string in a program, NUL where a value is put in: literals, f-strings, sums of them."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(map(string_of, node.values))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return string_of(node.left) + string_of(node.right)
    return "\0"


def strings_of(source: str) -> set[str]:
    """Return the strings of a Python file that are not docstrings, each on one line."""
    tree = ast.parse(source)
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    kinds = (ast.Constant, ast.JoinedStr, ast.BinOp)
    found = (
        string_of(node) for node in ast.walk(tree) if isinstance(node, kinds) and id(node) not in docstrings
    )
    return {" ".join(text.split()) for text in found}


def known_strings() -> set[str]:
    """Return what the package and the shell scripts can say."""
    strings: set[str] = set()
    for path in (ROOT / "src").rglob("*.py"):
        strings |= strings_of(path.read_text(encoding="utf-8"))
    for path in (*(ROOT / "scripts").glob("*.sh"), *(ROOT / "examples").rglob("*.sh")):
        strings |= {" ".join(line.split()) for line in path.read_text(encoding="utf-8").splitlines()}
    return strings


def unknown_messages(text: str, strings: set[str]) -> list[str]:
    """Return a line for each message in the headings of a document that no string of the project can be.

    A message is a code span of three words or more. A heading that ends in a name in parentheses, `(LeRobot)`, quotes
    that program's messages, and they are not looked up; `; ` separates messages of several programs. A message
    is split where it has values (`_VALUE`), and the pieces have to follow each other in one string of the project.
    """
    problems = []
    for heading in re.findall(r"^###+ +(.+?) *$", text, flags=re.MULTILINE):
        ours = [part for part in re.split(r"(?<=[`)]); ", heading) if not re.search(r" \([^)]+\)$", part)]
        for message in re.findall(r"`([^`]+)`", " ".join(ours)):
            if len(message.split()) < 3:
                continue
            pieces = [piece.strip() for piece in _VALUE.split(message)]
            if sum(len(re.findall(r"\w+", piece)) for piece in pieces) < 2:
                problems.append(f"message `{message}` has too few words to be looked up")
                continue
            pattern = re.compile(".*".join(re.escape(piece) for piece in pieces if piece))
            if not any(pattern.search(string) for string in strings):
                problems.append(
                    f"no string of src or the scripts is `{message}`. Quote one message as it is, with `...` for "
                    "values; or end the heading with the program that says it, in parentheses"
                )
    return problems


# ---------------------------------------------------------------------- constraints


def unmet_requirements() -> list[str]:
    """Return a line for each requirement of pyproject.toml that constraints.txt lacks or contradicts."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {
        canonicalize_name(name): version
        for name, _, version in (line.partition("==") for line in lines if line and not line.startswith("#"))
    }
    problems = []
    for requirement in (Requirement(text) for group in groups for text in group):
        pin = pins.get(canonicalize_name(requirement.name))
        if pin is None:
            problems.append(f"{requirement.name} is not pinned")
        elif not requirement.specifier.contains(pin, prereleases=True):
            problems.append(f"{requirement.name}=={pin} contradicts pyproject.toml's {requirement}")
    return problems


def main() -> int:
    """Print every problem as `file: problem`; return 1 if there is one."""
    from lerobot_policy_vla0.configuration_vla0 import VLA0Config

    defaults = option_defaults(VLA0Config(device="cpu"))
    shown = documents()
    problems = [f"constraints.txt: {line}" for line in unmet_requirements()]
    for path in shown:
        lines = (
            broken_links(path) + wrong_options(path, defaults) + unknown_targets(path) + missing_tests(path)
        )
        if path != LOG:
            code = code_of(visible(path))
            lines += missing_paths(code) + missing_modules(code) + wrong_commands(code)
        problems += [f"{path.relative_to(ROOT)}: {line}" for line in lines]
    messages = unknown_messages(visible(ROOT / "docs" / "troubleshooting.md"), known_strings())
    problems += [f"docs/troubleshooting.md: {line}" for line in messages]
    if options_doc.PAGE.read_text(encoding="utf-8") != options_doc.page():
        problems.append("docs/options.md: not what the docstrings say; run `make docs`")
    for path in sorted((ROOT / "examples").rglob("*.sh")):
        problems += [f"{path.relative_to(ROOT)}: {line}" for line in wrong_options(path, defaults)]
    print("\n".join(problems) or f"check_repo: {len(shown)} documents and constraints.txt hold")
    unfinished = sum(path.read_text(encoding="utf-8").count("TODO(fill)") for path in shown)
    if unfinished:
        print(f"check_repo: note: {unfinished} TODO(fill) left in documents")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
