"""Keep the wall time of a demo's stages, and which are done, in one JSON file.

python stages.py FILE done NAME              exit status 0 if the stage is done
python stages.py FILE add NAME SECONDS       an interrupted attempt: seconds add up
python stages.py FILE finish NAME SECONDS    the last attempt: the stage is done
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def add(file: Path, name: str, seconds: float, done: bool) -> None:
    """Add `seconds` of wall time to stage `name`, and mark it done."""
    stages = json.loads(file.read_text()) if file.is_file() else {}
    before = stages.get(name, {"seconds": 0.0})
    stages[name] = {"seconds": round(before["seconds"] + seconds, 1), "done": done}
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(stages, indent=1) + "\n")
    temporary.replace(file)


def is_done(file: Path, name: str) -> bool:
    """Return whether stage `name` is done."""
    return file.is_file() and bool(json.loads(file.read_text()).get(name, {}).get("done"))


def main(arguments: list[str]) -> int:
    """Run the command; returns the exit status."""
    match arguments:
        case [file, "done", name]:
            return 0 if is_done(Path(file), name) else 1
        case [file, "add" | "finish" as verb, name, seconds]:
            add(Path(file), name, float(seconds), verb == "finish")
            return 0
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
