"""text/grammar_languages.py: each language holds exactly the answers that `text.grammar` allows."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lerobot_policy_vla0.errors import ConfigError
from lerobot_policy_vla0.text.grammar import number_automaton
from lerobot_policy_vla0.text.grammar_languages import (
    answer_gbnf,
    answer_lark,
    answer_regex,
    number_alternatives,
)

BINS = (1, 2, 9, 10, 11, 19, 20, 99, 100, 250, 255, 999, 1000, 1001, 4000, 4095)


@pytest.mark.parametrize("n_bins", BINS)
def test_a_number_has_exactly_one_alternative_if_it_is_in_range_and_none_otherwise(n_bins: int) -> None:
    alternatives = [re.compile(part) for part in number_alternatives(n_bins)]
    for value in range(10 ** len(str(n_bins)) + 10):
        matches = sum(part.fullmatch(str(value)) is not None for part in alternatives)
        assert matches == (value <= n_bins), value


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 99_999), st.text("0123456789", max_size=6))
def test_the_regex_of_a_number_is_the_automaton(n_bins: int, text: str) -> None:
    transitions, may_end = number_automaton(n_bins)
    state = 0
    for digit in text:
        state = int(transitions[state, int(digit)]) if state >= 0 else -1
    legal = state >= 0 and bool(may_end[state])
    assert (re.fullmatch(answer_regex(n_bins, 1), text) is not None) == legal


@pytest.mark.parametrize(
    ("text", "legal"),
    [
        ("7 10 0", True),
        ("7 10", False),
        ("7 10 0 1", False),
        ("7  10 0", False),
        ("7 10 0 ", False),
        (" 7 10 0", False),
        ("07 10 0", False),
        ("7 11 0", False),
        ("7 10 0\n", False),
        ("٧ 10 0", False),  # a digit, but not one of ours
    ],
)
def test_an_answer_has_its_numbers_and_single_spaces(text: str, legal: bool) -> None:
    assert (re.fullmatch(answer_regex(10, 3), text) is not None) == legal
    assert (re.fullmatch(answer_regex(10, 3, begun=True), f" {text}") is not None) == legal


def test_the_three_languages_have_the_same_numbers() -> None:
    assert answer_gbnf(255, 2) == (
        'root ::= number (" " number){1}\n'
        'number ::= "0" | [1-9] | [1-9] [0-9] | "1" [0-9] [0-9] | "2" [0-4] [0-9] | "25" [0-5]'
    )
    assert answer_lark(255, 2, begun=True) == (
        'start: (" " NUMBER){2}\nNUMBER: /0|[1-9]|[1-9][0-9]|1[0-9][0-9]|2[0-4][0-9]|25[0-5]/'
    )


def test_bins_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"n_bins=0 must lie in \[1, 99999\]"):
        answer_regex(0, 3)
