"""The order of rooms, read from the imports: docs/architecture.md describes it, this file enforces it."""

from __future__ import annotations

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = "lerobot_policy_vla0"
SOURCE = Path(__file__).resolve().parents[1] / "src" / PACKAGE

#: Rooms from the lowest to the highest. A module imports its own room and lower lines, never a higher line, and never
#: another room of its own line unless that room stands to the left.
ORDER = (
    ("errors", "licenses", "output_files"),
    ("text", "observations"),
    ("optimizers", "configuration_vla0", "dataset_stats", "normalization"),
    ("backbone",),
    ("training", "decoding"),
    ("execution",),
    ("checkpoints",),
    ("modeling_vla0",),
    ("processor_vla0",),
    ("tools",),
)

#: The package itself registers LeRobot's plugin and may import what registration needs.
ENTRANCE = "__init__"


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name below the package, a folder by its own name."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
        found[name] = path
    return found


MODULES = modules()


def imports(path: Path, *, for_types: bool) -> set[str]:
    """Modules of the package that a file imports anywhere in it, also inside functions.

    Args:
        path: of the file.
        for_types: include what only type checkers see (``if TYPE_CHECKING``).
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped: set[int] = set()
    if not for_types:
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                skipped |= {id(inner) for statement in node.body for inner in ast.walk(statement)}
    found = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            below = name.split(".")
            if below[0] != PACKAGE:
                continue
            while len(below) > 1 and ".".join(below[1:]) not in MODULES:
                below.pop()
            found.add(".".join(below[1:]) or ENTRANCE)
    return found


def room(module: str) -> str:
    """The first part of a module's name."""
    return module.split(".")[0]


def place(name: str) -> tuple[int, int]:
    """Line and column of a room in `ORDER`."""
    for line, rooms in enumerate(ORDER):
        if name in rooms:
            return line, rooms.index(name)
    raise AssertionError(f"{name} is in no line of ORDER: say where the new room stands")


@pytest.mark.parametrize("module", [name for name in MODULES if name != ENTRANCE])
def test_arrows_point_down(module: str) -> None:
    """Also for imports inside functions; those for type checkers may point up, except into tools."""
    line, column = place(room(module))
    wrong = []
    for target in imports(MODULES[module], for_types=False):
        if target == ENTRANCE:
            continue
        other_line, other_column = place(room(target))
        if room(target) != room(module) and (other_line, other_column) > (line, column):
            wrong.append(target)
    assert not wrong, f"{module} imports {wrong}, which stand above it in ORDER"


@pytest.mark.parametrize("module", [name for name in MODULES if room(name) != "tools"])
def test_the_policy_never_sees_the_tools(module: str) -> None:
    seen = {target for target in imports(MODULES[module], for_types=True) if room(target) == "tools"}
    assert not seen, f"{module} imports {sorted(seen)}"


def test_no_module_imports_itself_by_a_detour() -> None:
    graph = {name: imports(path, for_types=False) - {name} for name, path in MODULES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"import circle: {' -> '.join(error.args[1])}")


def test_the_emulator_stands_alone() -> None:
    """The emulated SO-100 imports nothing of the package but errors."""
    for module, path in MODULES.items():
        if module.startswith("tools.so100_emulator"):
            others = {t for t in imports(path, for_types=True) if not t.startswith("tools.so100_emulator")}
            assert others <= {"errors"}, f"{module} imports {sorted(others - {'errors'})}"


def test_the_documented_order_is_this_one() -> None:
    text = (SOURCE.parents[1] / "docs" / "architecture.md").read_text(encoding="utf-8")
    documented = re.search(r"^errors, licenses, output_files ▸.*?tools$", text, re.MULTILINE | re.DOTALL)
    assert documented, "docs/architecture.md has no line 'errors ▸ ... ▸ tools'"
    rooms = [re.split(r",\s*", step.strip()) for step in documented[0].split("▸")]
    assert rooms == [list(line) for line in ORDER]


def test_no_test_module_imports_another() -> None:
    """What several of them need is in tests/helpers."""
    wrong = []
    for path in sorted((SOURCE.parents[1] / "tests").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            wrong += [f"{path.name}: {name}" for name in names if name.split(".")[-1].startswith("test_")]
    assert not wrong, wrong
