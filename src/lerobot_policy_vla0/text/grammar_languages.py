"""Writes the grammar of an answer in the languages that inference engines take: a regex, GBNF and Lark.

An answer, or the rest of one that has begun: integers in ``[0, n_bins]`` without leading zeros, one space between them.
`text.grammar` is the same language as an automaton over tokens. The end of the turn is not part of the text; an engine
lets the model end where the text may end.
"""

from __future__ import annotations

from lerobot_policy_vla0.errors import ConfigError
from lerobot_policy_vla0.text.grammar import MAX_BINS


def number_alternatives(n_bins: int) -> list[str]:
    """Return regexes without groups that together match exactly the integers in ``[0, n_bins]``.

    Each is digits and classes of digits, so GBNF and Lark can read the same parts. No two match the same number.

    >>> number_alternatives(1000)
    ['0', '[1-9]', '[1-9][0-9]', '[1-9][0-9][0-9]', '1000']
    >>> number_alternatives(255)
    ['0', '[1-9]', '[1-9][0-9]', '1[0-9][0-9]', '2[0-4][0-9]', '25[0-5]']

    Raises:
        ConfigError: if ``n_bins`` is not in ``[1, 99999]``.
    """
    if not 1 <= n_bins <= MAX_BINS:
        raise ConfigError(f"n_bins={n_bins} must lie in [1, {MAX_BINS}].")
    top = str(n_bins)
    shorter = ["[1-9]" + "[0-9]" * more for more in range(len(top) - 1)]
    # Of the numbers as long as n_bins: those that first differ from it, downwards, at each of its digits.
    as_long = []
    for place, digit in enumerate(top):
        lowest, last = 1 if place == 0 else 0, place == len(top) - 1
        highest = int(digit) if last else int(digit) - 1
        if highest >= lowest:
            free = str(lowest) if lowest == highest else f"[{lowest}-{highest}]"
            as_long.append(top[:place] + free + "[0-9]" * (len(top) - place - 1))
    return ["0", *shorter, *as_long]


def answer_regex(n_bins: int, n_numbers: int, *, begun: bool = False) -> str:
    r"""Return the answer's grammar as a regex that every engine reads: groups, classes and counted repetition only.

    Args:
        n_bins: the top integer.
        n_numbers: how many integers are still to come, at least 1.
        begun: the text goes on after an integer, so it begins with a space.

    >>> answer_regex(9, 3)
    '(0|[1-9])( (0|[1-9])){2}'
    >>> answer_regex(9, 2, begun=True)
    '( (0|[1-9])){2}'
    """
    number = f"({'|'.join(number_alternatives(n_bins))})"
    if begun:
        return f"( {number}){{{n_numbers}}}"
    return number if n_numbers == 1 else f"{number}( {number}){{{n_numbers - 1}}}"


def answer_gbnf(n_bins: int, n_numbers: int, *, begun: bool = False) -> str:
    """Return the answer's grammar in GBNF, llama.cpp's language; for the arguments see `answer_regex`.

    >>> print(answer_gbnf(25, 3))
    root ::= number (" " number){2}
    number ::= "0" | [1-9] | "1" [0-9] | "2" [0-5]
    """
    alternatives = " | ".join(_quoted(part) for part in number_alternatives(n_bins))
    return f"root ::= {_sequence('number', n_numbers, begun)}\nnumber ::= {alternatives}"


def answer_lark(n_bins: int, n_numbers: int, *, begun: bool = False) -> str:
    """Return the answer's grammar in Lark's EBNF, llguidance's language; for the arguments see `answer_regex`.

    >>> print(answer_lark(9, 3))
    start: NUMBER (" " NUMBER){2}
    NUMBER: /0|[1-9]/
    """
    return (
        f"start: {_sequence('NUMBER', n_numbers, begun)}\nNUMBER: /{'|'.join(number_alternatives(n_bins))}/"
    )


def _sequence(number: str, n_numbers: int, begun: bool) -> str:
    if begun:
        return f'(" " {number}){{{n_numbers}}}'
    return number if n_numbers == 1 else f'{number} (" " {number}){{{n_numbers - 1}}}'


def _quoted(part: str) -> str:
    """Write an alternative as GBNF does: digits in quotes, classes as they are."""
    words, literal = [], ""
    for piece in part.replace("[", " [").replace("]", "] ").split():
        if piece.startswith("["):
            words.append(piece)
        else:
            literal = piece
            words.append(f'"{literal}"')
    return " ".join(words)
