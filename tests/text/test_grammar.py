"""text/grammar.py: its language is exactly the legal answers, and it never runs into a dead end."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lerobot_policy_vla0.errors import ConfigError
from lerobot_policy_vla0.text.codec import ActionCodec, ActionTokens
from lerobot_policy_vla0.text.grammar import END, SEPARATOR, AnswerGrammar, number_automaton

TOKENS = ActionTokens(digits=tuple(range(15, 25)), space=220, end=151645, newline=198, mask=30, pad=151643)
EXHAUSTIVE = (1, 9, 10, 99, 100, 250, 1000)
any_n_bins = st.one_of(st.sampled_from((*EXHAUSTIVE, 4000, 99_999)), st.integers(1, 99_999))
CHARACTERS = "0123456789 ."  # the symbols 0 to 11: digits, separator, end


def make(n_bins: int, n_numbers: int = 1) -> AnswerGrammar:
    return AnswerGrammar(n_bins=n_bins, n_numbers=n_numbers, tokens=TOKENS)


def accepts(grammar: AnswerGrammar, texts: list[str]) -> list[bool]:
    """Whether each text is legal from its first symbol to its last; shorter texts must end in ``.``."""
    state = grammar.start(len(texts))
    alive = torch.ones(len(texts), dtype=torch.bool)
    for position in range(max(map(len, texts))):
        symbols = torch.tensor([CHARACTERS.index(t[position]) if position < len(t) else END for t in texts])
        alive &= grammar.legal(*state).gather(1, symbols.unsqueeze(1)).squeeze(1)
        # Dead rows go anywhere: they stay dead.
        state = grammar.advance(*state, torch.where(alive, symbols, END))
    return alive.tolist()


def random_walk(
    grammar: AnswerGrammar, batch: int, seed: int
) -> tuple[list[str], list[tuple[Tensor, Tensor]]]:
    """Write random legal symbols until all rows are finished; also return the states on the way."""
    source = torch.Generator().manual_seed(seed)
    state = grammar.start(batch)
    states, written = [state], []
    while not bool((state[0] >= grammar.n_numbers).all()):
        assert len(written) <= grammar.n_numbers * 6, "the walk does not end"
        legal = grammar.legal(*state)
        assert legal.any(1).all(), "a dead end"
        written.append(torch.multinomial(legal.float(), 1, generator=source).squeeze(1))
        state = grammar.advance(*state, written[-1])
        states.append(state)
    return ["".join(CHARACTERS[int(s)] for s in row) for row in torch.stack(written, 1)], states


# ---------------------------------------------------------------- random walks


@given(n_bins=any_n_bins, n_numbers=st.integers(1, 6), seed=st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_every_random_walk_ends_and_reads_as_n_integers_in_range(
    n_bins: int, n_numbers: int, seed: int
) -> None:
    texts, _ = random_walk(make(n_bins, n_numbers), 5, seed)
    for text in texts:
        assert text.endswith(".")
        answer = text.rstrip(".")
        numbers = [int(word) for word in answer.split(" ")]
        assert answer == " ".join(map(str, numbers))  # one space between, no leading zeros
        assert len(numbers) == n_numbers
        assert 0 <= min(numbers) <= max(numbers) <= n_bins


@given(n_bins=any_n_bins, n_numbers=st.integers(1, 6), seed=st.integers(0, 2**32))
@settings(max_examples=50, deadline=None)
def test_host_tables_are_the_tensor_tables(n_bins: int, n_numbers: int, seed: int) -> None:
    grammar = make(n_bins, n_numbers)
    host = grammar.host
    texts, states = random_walk(grammar, 3, seed)
    for row, text in enumerate(texts):
        state = 0
        for position, (number, local) in enumerate(states):
            legal = grammar.legal(number, local)[row]
            assert host.legal_rows[host.legal_row(state)].tolist() == legal.tolist()
            forced = host.forced(state)
            assert (forced >= 0) == bool(grammar.forced(number, local)[row]) == (int(legal.sum()) == 1)
            assert forced < 0 or legal[forced]
            if position < len(text):
                symbol = CHARACTERS.index(text[position])
                state = host.advance(state, symbol)
        assert state == host.finished


@given(n_bins=any_n_bins, seed=st.integers(0, 2**32))
@settings(max_examples=50, deadline=None)
def test_whatever_the_grammar_writes_the_codec_reads_and_the_other_way_round(n_bins: int, seed: int) -> None:
    grammar = make(n_bins, 6)
    codec = ActionCodec(TOKENS, n_bins=n_bins, chunk_size=2, action_dim=3)
    texts, _ = random_walk(grammar, 4, seed)
    ids = torch.tensor([[int(grammar.token_ids[CHARACTERS.index(c)]) for c in text] for text in texts])
    bins = codec.decode_ids(ids)
    assert accepts(grammar, [text + "." for text in codec.bins_to_text(bins)]) == [True] * 4
    assert ids.shape[1] <= codec.max_answer_length


@given(n_bins=any_n_bins, seed=st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_rows_at_different_states_do_not_influence_each_other(n_bins: int, seed: int) -> None:
    grammar = make(n_bins, 3)
    _, states = random_walk(grammar, 3, seed)
    number, local = (torch.cat(parts) for parts in zip(*states, strict=True))
    legal, forced = grammar.legal(number, local), grammar.forced(number, local)
    symbol = legal.long().argmax(1)  # some legal one
    following = torch.stack(grammar.advance(number, local, symbol))
    for row in range(len(number)):
        one = slice(row, row + 1)
        assert torch.equal(grammar.legal(number[one], local[one]), legal[one])
        assert torch.equal(grammar.forced(number[one], local[one]), forced[one])
        assert torch.equal(
            torch.stack(grammar.advance(number[one], local[one], symbol[one])), following[:, one]
        )


# ---------------------------------------------------------------- the language, exhaustively


@pytest.mark.parametrize("n_bins", [*EXHAUSTIVE, 4000])
def test_exactly_the_integers_up_to_n_bins_are_accepted(n_bins: int) -> None:
    """Extends every living beginning by every digit until none is left: nothing is out of reach of this test."""
    grammar = make(n_bins)
    living, accepted = [""], set()
    while living:
        longer = [beginning + digit for beginning in living for digit in "0123456789"]
        living = [text for text, alive in zip(longer, accepts(grammar, longer), strict=True) if alive]
        closed = accepts(grammar, [text + "." for text in living]) if living else []
        accepted |= {text for text, whole in zip(living, closed, strict=True) if whole}
    assert accepted == {str(value) for value in range(n_bins + 1)}


@given(
    value=st.integers(0, 1_200_000), n_bins=st.one_of(st.sampled_from((4000, 99_999)), st.integers(1, 99_999))
)
@settings(max_examples=100, deadline=None)
def test_sampled_integers_are_accepted_up_to_large_n_bins(value: int, n_bins: int) -> None:
    grammar = make(n_bins)
    inside = value % (n_bins + 1)
    texts = [f"{value}.", f"{inside}.", f"{n_bins}.", f"{n_bins + 1}.", f"0{inside}."]
    assert accepts(grammar, texts) == [value <= n_bins, True, True, False, False]


@cache
def successors(n_bins: int) -> dict[str, set[str]]:
    """For each beginning of a number in range, the digits that may follow; the oracle of the automaton."""
    out: dict[str, set[str]] = {}
    for value in range(n_bins + 1):
        text = str(value)
        for length in range(len(text) + 1):
            out.setdefault(text[:length], set()).update(text[length : length + 1])
    return out


@pytest.mark.parametrize("n_bins", EXHAUSTIVE)
def test_legal_and_forced_symbols_are_those_of_the_prefix_oracle(n_bins: int) -> None:
    """At every beginning of a number, in the first and in the last of two numbers."""
    grammar = make(n_bins, 2)
    prefixes = sorted(successors(n_bins))
    for number, closing in ((0, " "), (1, ".")):
        state = (torch.full((len(prefixes),), number), torch.zeros(len(prefixes), dtype=torch.long))
        for position in range(max(map(len, prefixes))):
            more = torch.tensor([position < len(p) for p in prefixes])
            digit = torch.tensor([int(p[position]) if position < len(p) else 0 for p in prefixes])
            moved = grammar.advance(*state, digit)
            state = tuple(torch.where(more, new, old) for new, old in zip(moved, state, strict=True))  # type: ignore[assignment]
        legal = [{CHARACTERS[s] for s in range(12) if row[s]} for row in grammar.legal(*state).tolist()]
        # A beginning that is not empty is itself a number in range, so it may be closed.
        expected = [successors(n_bins)[p] | ({closing} if p else set()) for p in prefixes]
        assert legal == expected
        assert grammar.forced(*state).tolist() == [len(symbols) == 1 for symbols in expected]


def test_the_forced_symbols_of_a_thousand_bins_are_the_ones_we_count_on() -> None:
    """After 101 the space is certain; after 100 a fourth digit (0) may follow; after 1000 and 0 it may not."""
    grammar = make(1000, 2)
    forced = {}
    for text in ("", "0", "9", "10", "99", "100", "101", "999", "1000"):
        state = grammar.start(1)
        for character in text:
            state = grammar.advance(*state, torch.tensor([CHARACTERS.index(character)]))
        forced[text] = bool(grammar.forced(*state))
    assert forced == {
        "": False, "0": True, "9": False, "10": False, "99": False,
        "100": False, "101": True, "999": True, "1000": True,
    }  # fmt: skip


@given(n_bins=any_n_bins)
@settings(max_examples=50, deadline=None)
def test_no_state_is_a_dead_end(n_bins: int) -> None:
    transitions, may_end = number_automaton(n_bins)
    assert bool(((transitions >= 0).any(1) | may_end).all())
    assert not may_end[0], "a number has at least one digit"
    assert int(transitions.max()) < len(transitions)
    reached = {0} | set(transitions[transitions >= 0].tolist())
    assert reached == set(range(len(transitions))), "a state that cannot be reached"


def test_the_automaton_of_ten_is_the_one_drawn_by_hand() -> None:
    # 0 start, 1 the lone zero, 2 a one (10 may follow), 3 two to nine, 4 ten
    transitions, may_end = number_automaton(10)
    assert transitions.tolist() == [
        [1, 2, 3, 3, 3, 3, 3, 3, 3, 3],
        [-1] * 10,
        [4, *[-1] * 9],
        [-1] * 10,
        [-1] * 10,
    ]
    assert may_end.tolist() == [False, True, True, True, True]


# ---------------------------------------------------------------- ends, ids and errors


def test_a_finished_row_may_only_repeat_the_end() -> None:
    grammar = make(250, 2)
    state = grammar.start(2)
    for first, second in zip("0 7..", "250 1", strict=True):
        assert accepts(grammar, ["0 7.", "250 1."]) == [True, True]
        state = grammar.advance(*state, torch.tensor([CHARACTERS.index(first), CHARACTERS.index(second)]))
    assert state[0].tolist() == [2, 1]
    legal = grammar.legal(*state)
    assert legal[0].nonzero().flatten().tolist() == [END]
    assert legal[1].nonzero().flatten().tolist() == [*range(10), END]
    assert grammar.forced(*state).tolist() == [True, False]
    again = grammar.advance(*state, torch.tensor([END, END]))
    assert again[0].tolist() == [2, 2]
    assert grammar.legal(*again).nonzero().tolist() == [[0, END], [1, END]]


@pytest.mark.parametrize("text", ["1.", "1 2 3.", "1 .", " 1 2.", "1  2.", "1 2 .", ".", "01 2.", "1 00."])
def test_anything_but_two_numbers_and_one_space_is_refused(text: str) -> None:
    assert accepts(make(250, 2), [text]) == [False]


def test_token_ids_map_to_symbols_and_padding_to_the_end() -> None:
    grammar = make(250)
    ids = torch.tensor([*TOKENS.digits, TOKENS.space, TOKENS.end, TOKENS.pad])
    assert grammar.token_ids.tolist() == [*range(15, 25), 220, 151645]
    assert grammar.symbol_of(ids).tolist() == [*range(10), SEPARATOR, END, END]


@pytest.mark.parametrize("n_bins", [0, -1, 100_000])
def test_n_bins_out_of_range_is_refused(n_bins: int) -> None:
    with pytest.raises(ConfigError) as error:
        make(n_bins)
    assert str(error.value) == f"n_bins={n_bins} must lie in [1, 99999]."
