"""Check that what is written down holds: links, options and `make` targets in documents; the constraints.

Reads files only; knows nothing about the model. Part of `make check`.
"""

from __future__ import annotations

import dataclasses
import re
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent


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
        defaults[prefix + item.name] = str(value).lower() if isinstance(value, bool) else str(value)
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
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    used = set(re.findall(r"`make ([a-z]+)|^make ([a-z]+)", visible(path), flags=re.MULTILINE))
    return [f"no target `make {name}`" for name in sorted({a or b for a, b in used} - targets)]


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
        lines = broken_links(path) + wrong_options(path, defaults) + unknown_targets(path)
        problems += [f"{path.relative_to(ROOT)}: {line}" for line in lines]
    for path in sorted((ROOT / "examples").rglob("*.sh")):
        problems += [f"{path.relative_to(ROOT)}: {line}" for line in wrong_options(path, defaults)]
    print("\n".join(problems) or f"check_repo: {len(shown)} documents and constraints.txt hold")
    unfinished = sum(path.read_text(encoding="utf-8").count("TODO(fill)") for path in shown)
    if unfinished:
        print(f"check_repo: note: {unfinished} TODO(fill) left in documents")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
