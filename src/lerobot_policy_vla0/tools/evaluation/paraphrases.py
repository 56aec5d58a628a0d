"""Says an instruction in other words, by a small table of verbs that mean the same; nouns stay as they are."""

from __future__ import annotations

import re

_SAME = {
    "pick up": "grab",
    "pick": "grab",
    "place": "set",
    "put": "place",
    "open": "open up",
    "close": "shut",
    "turn on": "switch on",
    "turn off": "switch off",
    "stack": "pile",
    "push the": "move the",
    "push a": "move a",
    "push a button": "press a button",
    "press a button": "push a button",
    "press a handle": "push a handle",
    "pull": "tug",
    "rotate": "turn",
    "rotating": "turning",
    "reach a": "go to a",
    "bypass": "go around",
    "grasp": "grip",
    "insert": "stick",
    "slide": "push",
    "sweep": "brush",
    "kick": "shoot",
    "dunk": "drop",
    "get": "take",
    "unplug": "pull out",
}
# The longest first: "pick up" is more than "pick".
_PATTERN = re.compile(rf"\b({'|'.join(sorted(_SAME, key=len, reverse=True))})\b", re.IGNORECASE)


def paraphrase(instruction: str) -> str | None:
    """Return an instruction in other words, or None if the table has none of its verbs.

    >>> paraphrase("pick up the book and place it in the back compartment of the caddy")
    'grab the book and set it in the back compartment of the caddy'
    >>> paraphrase("Put the bowl on the stove")
    'Place the bowl on the stove'
    >>> paraphrase("Hammer a screw on the wall")
    """

    def replace(found: re.Match[str]) -> str:
        said = _SAME[found[0].lower()]
        return said.capitalize() if found[0][0].isupper() else said

    said, count = _PATTERN.subn(replace, instruction)
    return said if count else None
