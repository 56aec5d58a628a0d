"""Write `docs/options.md` from the docstrings and defaults of `VLA0Config` and `TinyVLMConfig`.

A docstring has one section per group of options, and the page one table per section. Without an argument the page is
printed; `--write` rewrites the file, `--check` fails if the file differs.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import re
import sys
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parent.parent / "docs" / "options.md"

_HEAD = """\
# Options

<!-- Written by scripts/options_doc.py from the docstrings in configuration_vla0.py: change those, then `make docs`. -->

LeRobot's commands and `vla0` take every option as `--policy.NAME=VALUE`, a configuration file takes it below `policy:`.
There `None` is written `null`. An option that contradicts another one, or that would do nothing, is refused with both
values and the fix. The options that LeRobot gives to every policy (`device`, `push_to_hub`, ...) are not listed here:
`lerobot-train --help` shows them.
"""


def show(value: Any) -> str:
    """Return a default as documents show it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return json.dumps({key: getattr(item, "value", item) for key, item in value.items()})
    return str(value)


def parse(docstring: str) -> tuple[str, dict[str, dict[str, str]]]:
    """Return the introduction of a class's docstring, and the text of each option, section by section.

    A section is a line that ends with a colon, followed by indented entries ``name: text``.
    """
    parts = re.split(r"^([^\s:][^:\n]*):\n(?= {4}\S)", docstring, flags=re.MULTILINE)
    sections: dict[str, dict[str, str]] = {}
    for title, body in zip(parts[1::2], parts[2::2], strict=True):
        entries = re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", body, flags=re.MULTILINE)
        sections[title] = {name: " ".join(text.split()) for name, text in entries}
    return parts[0].strip(), sections


def markdown(text: str) -> str:
    """Return a docstring's text as Markdown in `docs/`: code spans, links to other pages, no bare bars."""
    text = re.sub(r"``docs/(\w+)\.md``", r"[\1](\1.md)", text)
    return text.replace("``", "`").replace("|", "\\|")


def tables(config: Any, prefix: str = "") -> str:
    """Return the tables of a config's options, one per section of its docstring.

    Raises:
        ValueError: if the docstring and the fields do not list the same options in the same order.
    """
    _, sections = parse(inspect.getdoc(type(config)) or "")
    described = [name for entries in sections.values() for name in entries]
    fields = [item.name for item in dataclasses.fields(config) if item.name in type(config).__annotations__]
    inherited = {item.name for item in dataclasses.fields(config)} - set(fields)
    if described != fields:
        first = next((pair for pair in zip(described, fields, strict=False) if pair[0] != pair[1]), None)
        raise ValueError(
            f"the docstring of {type(config).__name__} describes {len(described)} options and the class has "
            f"{len(fields)}; the first difference is {first} (described, declared). List the same options in the same "
            f"order. Inherited and not described: {sorted(inherited)}."
        )
    lines = []
    for title, entries in sections.items():
        lines += ["", f"## {title}", "", "| option | default | what it does |", "|---|---|---|"]
        for name, text in entries.items():
            value = getattr(config, name)
            default = (
                f"the [sizes](#{_TINY_ANCHOR})" if dataclasses.is_dataclass(value) else f"`{show(value)}`"
            )
            lines.append(f"| `{prefix}{name}` | {default} | {markdown(text)} |")
    return "\n".join(lines) + "\n"


_TINY_ANCHOR = "sizes-of-the-tiny-backbone"


def page() -> str:
    """Return the whole page."""
    from lerobot_policy_vla0.configuration_vla0 import VLA0Config

    config = VLA0Config(device="cpu")
    introduction, _ = parse(inspect.getdoc(VLA0Config) or "")
    without_title = introduction.partition("\n\n")[2]
    return f"{_HEAD}\n{markdown(without_title)}\n{tables(config)}{tables(config.tiny, 'tiny.')}"


def main() -> int:
    """Print, write or check the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--write", action="store_true", help="rewrite docs/options.md")
    what.add_argument("--check", action="store_true", help="fail if docs/options.md differs")
    arguments = parser.parse_args()
    if arguments.write:
        PAGE.write_text(page(), encoding="utf-8")
    elif not arguments.check:
        print(page(), end="")
    elif not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != page():
        print("docs/options.md is not what the docstrings say: run `make docs`")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
