"""codec.py: literal chunks, a plain Python oracle for the text's layout, and exact round trips."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lerobot_policy_vla0.backbone.tiny import build_tiny_tokenizer
from lerobot_policy_vla0.errors import ActionError, AnswerError
from lerobot_policy_vla0.text.codec import ActionCodec, ActionTokens, EncodedChunk, raise_non_finite_actions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Qwen2.5's own ids: digits, space, <|im_end|>, newline, '?', <|endoftext|>.
QWEN = ActionTokens(digits=tuple(range(15, 25)), space=220, end=151645, newline=198, mask=30, pad=151643)
N_BINS = (1, 9, 10, 99, 100, 250, 1000, 4000, 99_999)
any_n_bins = st.one_of(st.sampled_from(N_BINS), st.integers(1, 99_999))


def make(
    n_bins: int = 1000, chunk_size: int = 1, action_dim: int = 1, tokens: ActionTokens = QWEN
) -> ActionCodec:
    return ActionCodec(tokens, n_bins=n_bins, chunk_size=chunk_size, action_dim=action_dim)


def to_ids(text: str, tokens: ActionTokens = QWEN) -> list[int]:
    """Qwen's ids of action text; ``.`` stands for the end token, ``/`` for the newline, ``_`` for padding."""
    others = {" ": tokens.space, ".": tokens.end, "/": tokens.newline, "_": tokens.pad}
    return [others[c] if c in others else tokens.digits[int(c)] for c in text]


def oracle(rows: list[list[int]], tokens: ActionTokens = QWEN) -> dict[str, list[list[object]]]:
    """Every field of an `EncodedChunk`, written character by character."""
    fields: dict[str, list[list[object]]] = {k: [] for k in ("ids", "is_text", "is_token", "number", "place")}
    width = max(len(" ".join(map(str, row))) for row in rows) + 2
    for row in rows:
        columns: list[tuple[object, ...]] = []  # (id, is_text, is_token, number, place)
        for index, number in enumerate(row):
            if index > 0:
                columns.append((tokens.space, True, True, index, -1))
            digits = str(number)
            columns += [
                (tokens.digits[int(digit)], True, True, index, len(digits) - 1 - k)
                for k, digit in enumerate(digits)
            ]
        columns.append((tokens.end, False, True, len(row), -1))
        columns.append((tokens.newline, False, True, len(row), -1))
        columns += [(tokens.pad, False, False, len(row), -1)] * (width - len(columns))
        for name, values in zip(fields, zip(*columns, strict=True), strict=True):
            fields[name].append(list(values))
    return fields


def as_lists(chunk: EncodedChunk) -> dict[str, list[list[object]]]:
    return {name: getattr(chunk, name).tolist() for name in ("ids", "is_text", "is_token", "number", "place")}


@st.composite
def bins_and_codec(draw: st.DrawFn) -> tuple[Tensor, ActionCodec]:
    """A batch of bins with small and large values mixed, and the codec it belongs to."""
    n_bins = draw(any_n_bins)
    batch, chunk_size, action_dim = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 4))
    value = st.one_of(st.integers(0, n_bins), st.sampled_from((0, min(9, n_bins), min(10, n_bins), n_bins)))
    size = batch * chunk_size * action_dim
    flat = draw(st.lists(value, min_size=size, max_size=size))
    bins = torch.tensor(flat).view(batch, chunk_size, action_dim)
    return bins, make(n_bins, chunk_size, action_dim)


# ---------------------------------------------------------------- actions ⇄ bins


@given(n_bins=any_n_bins, values=st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=6))
@settings(max_examples=100, deadline=None)
def test_an_action_comes_back_within_half_a_bin(n_bins: int, values: list[float]) -> None:
    codec = make(n_bins, 1, len(values))
    actions = torch.tensor(values).view(1, 1, -1)
    bins, clipped = codec.actions_to_bins(actions)
    back = codec.bins_to_actions(codec.decode_ids(codec.encode_bins(bins).ids))
    half_a_bin = 1 / n_bins  # the range [-1, 1] is 2 wide
    assert (back - actions).abs().max() <= half_a_bin + 2e-7  # float32's own rounding
    assert not clipped.any()


@pytest.mark.parametrize("n_bins", N_BINS)
def test_every_bin_survives_the_round_trip_through_its_action(n_bins: int) -> None:
    bins = torch.arange(n_bins + 1).view(-1, 1, 1)
    codec = make(n_bins)
    actions = codec.bins_to_actions(bins)
    assert actions.dtype == torch.float32
    back, clipped = codec.actions_to_bins(actions)
    assert torch.equal(back, bins)
    assert not clipped.any()


def test_the_lowest_and_highest_bins_are_the_ends_of_the_range_exactly() -> None:
    for n_bins in (*range(1, 1500), 4000, 65_537, 99_999):
        ends = make(n_bins).bins_to_actions(torch.tensor([0, n_bins]))
        assert ends.tolist() == [-1.0, 1.0], f"n_bins={n_bins}"


def test_bins_are_symmetric_about_zero() -> None:
    for n_bins in N_BINS:
        actions = make(n_bins).bins_to_actions(torch.arange(n_bins + 1))
        assert torch.equal(actions, -actions.flip(0)), f"n_bins={n_bins}"


def test_actions_land_in_the_bins_computed_by_hand() -> None:
    # round((a + 1) / 2 * 1000): (-0.5 + 1) / 2 = 0.25; (0.3339 + 1) / 2 = 0.66695
    actions = torch.tensor([[[-1.0, -0.5, 0.0], [0.3339, 0.9994, 1.0]]])
    bins, _ = make(1000, 2, 3).actions_to_bins(actions)
    assert bins.dtype == torch.int64
    assert bins.tolist() == [[[0, 250, 500], [667, 1000, 1000]]]


def test_bins_become_the_actions_computed_by_hand() -> None:
    actions = make(4, 1, 5).bins_to_actions(torch.tensor([[[0, 1, 2, 3, 4]]]))
    assert actions.tolist() == [[[-1.0, -0.5, 0.0, 0.5, 1.0]]]


def test_values_outside_the_range_are_clamped_and_reported() -> None:
    actions = torch.tensor([[[-1.5, -1.0, 0.0, 1.0, 1.001, float("inf"), -float("inf")]]])
    bins, clipped = make(250, 1, 7).actions_to_bins(actions)
    assert bins.tolist() == [[[0, 0, 125, 250, 250, 250, 0]]]
    assert clipped.tolist() == [[[True, False, False, False, True, True, True]]]


def test_rounding_errors_of_the_normaliser_are_not_reported_as_clipped() -> None:
    above = torch.nextafter(torch.tensor(1.0), torch.tensor(2.0))
    bins, clipped = make(10, 1, 2).actions_to_bins(torch.stack([above, -above]).view(1, 1, 2))
    assert bins.tolist() == [[[10, 0]]]
    assert not clipped.any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_actions_of_any_float_type_are_binned(dtype: torch.dtype) -> None:
    bins, _ = make(1000, 1, 3).actions_to_bins(torch.tensor([[[-1.0, 0.5, 1.0]]], dtype=dtype))
    assert bins.tolist() == [[[0, 750, 1000]]]


@pytest.mark.parametrize("shape", [(2, 8, 6), (2, 7, 7), (8, 7), (2, 1, 8, 7)])
def test_actions_of_the_wrong_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ActionError) as error:
        make(1000, 8, 7).actions_to_bins(torch.zeros(shape))
    assert str(error.value) == (
        f"actions have shape {shape}, expected (batch, chunk_size=8, action_dim=7). Check that the dataset's "
        "action has 7 dimensions and that policy.chunk_size matches the checkpoint."
    )


def test_the_error_for_bad_values_counts_them_and_names_their_dimensions() -> None:
    actions = torch.zeros(2, 3, 4)
    actions[0, 1, 2] = float("nan")
    actions[1, 0, 2] = float("nan")
    actions[1, 2, 0] = -float("inf")
    with pytest.raises(
        ActionError, match=r"^actions contain 3 NaN or infinite values in dimensions \[0, 2\]\."
    ):
        raise_non_finite_actions(~torch.isfinite(actions))


# ---------------------------------------------------------------- bins ⇄ ids


def test_a_chunk_is_written_as_the_ids_spelt_out_here() -> None:
    bins = torch.tensor([[[0, 10], [507, 1000]], [[1, 2], [3, 4]]])
    chunk = make(1000, 2, 2).encode_bins(bins)
    #  0      10         507             1000
    first = [15, 220, 16, 15, 220, 20, 15, 22, 220, 16, 15, 15, 15, 151645, 198]
    #  1       2        3        4
    second = [16, 220, 17, 220, 18, 220, 19, 151645, 198, *[151643] * 6]
    assert chunk.ids.tolist() == [first, second]
    assert chunk.number.tolist() == [
        [0, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 3, 4, 4],
        [0, 1, 1, 2, 2, 3, 3, *[4] * 8],
    ]
    assert chunk.place.tolist() == [
        [0, -1, 1, 0, -1, 2, 1, 0, -1, 3, 2, 1, 0, -1, -1],
        [0, -1, 0, -1, 0, -1, 0, *[-1] * 8],
    ]
    assert chunk.is_text.tolist() == [[True] * 13 + [False] * 2, [True] * 7 + [False] * 8]
    assert chunk.is_token.tolist() == [[True] * 15, [True] * 9 + [False] * 6]


@given(bins_and_codec())
@settings(max_examples=100, deadline=None)
def test_every_field_of_a_chunk_equals_the_character_by_character_oracle(
    case: tuple[Tensor, ActionCodec],
) -> None:
    bins, codec = case
    chunk = codec.encode_bins(bins)
    assert as_lists(chunk) == oracle(bins.flatten(1).tolist())
    assert chunk.ids.shape[1] <= codec.max_answer_length


@given(bins_and_codec())
@settings(max_examples=100, deadline=None)
def test_ids_decode_to_the_bins_they_were_written_from(case: tuple[Tensor, ActionCodec]) -> None:
    bins, codec = case
    assert torch.equal(codec.decode_ids(codec.encode_bins(bins).ids), bins)


@pytest.mark.parametrize("n_bins", N_BINS)
def test_the_longest_answer_has_exactly_the_length_promised(n_bins: int) -> None:
    codec = make(n_bins, 2, 3)
    chunk = codec.encode_bins(torch.full((1, 2, 3), n_bins))
    assert chunk.ids.shape[1] == codec.max_answer_length


def check_against(tokenizer: PreTrainedTokenizerBase) -> None:
    tokens = ActionTokens.from_tokenizer(tokenizer)
    generator = torch.Generator().manual_seed(0)
    for n_bins in N_BINS:
        codec = make(n_bins, 2, 3, tokens)
        bins = torch.randint(0, n_bins + 1, (4, 2, 3), generator=generator)
        bins[0] = torch.tensor([[0, n_bins, 1], [min(9, n_bins), min(10, n_bins), n_bins]])
        chunk = codec.encode_bins(bins)
        texts = codec.bins_to_text(bins)
        assert texts == [" ".join(map(str, row)) for row in bins.flatten(1).tolist()]
        for row, used, text in zip(chunk.ids, chunk.is_token, texts, strict=True):
            assert row[used].tolist() == tokenizer.encode(text + "<|im_end|>\n", add_special_tokens=False)


def test_ids_equal_what_the_byte_level_tokenizer_makes_of_the_text() -> None:
    check_against(build_tiny_tokenizer())


def test_ids_equal_what_qwens_tokenizer_makes_of_the_text(qwen_tokenizer: PreTrainedTokenizerBase) -> None:
    check_against(qwen_tokenizer)


def test_what_follows_the_end_token_is_ignored() -> None:
    ids = torch.tensor([to_ids("12 7./__"), to_ids("1 250.99")])
    assert make(250, 1, 2).decode_ids(ids).tolist() == [[[12, 7]], [[1, 250]]]


@pytest.mark.parametrize(
    ("why", "text"),
    [
        ("too few numbers", "1 2."),
        ("too many numbers", "1 2 3 4."),
        ("a leading zero", "1 02 3."),
        ("two zeros", "1 2 00."),
        ("a double space", "1  2 3."),
        ("a double space instead of a number", "1  3."),
        ("a leading space", " 1 2 3."),
        ("a leading space instead of a number", " 2 3."),
        ("a trailing space", "1 2 3 ."),
        ("a trailing space instead of a number", "1 2 ."),
        ("one more than n_bins", "1 2 251."),
        ("a number longer than n_bins", "1 2 1000."),
        ("a number that overflows 64 bits", f"1 2 {2**64 + 3}."),
        ("a number of 40 digits", f"1 2 {'9' * 40}."),
        ("no digits at all", "."),
        ("nothing before the end", "./"),
    ],
)
def test_text_that_is_not_n_integers_in_range_is_refused(why: str, text: str) -> None:
    good = to_ids("1 2 3.")
    bad = to_ids(text)
    width = max(len(good), len(bad))
    ids = torch.tensor([[*row, *[QWEN.pad] * (width - len(row))] for row in (good, bad)])
    with pytest.raises(AnswerError) as error:
        make(250, 3, 1).decode_ids(ids)
    assert str(error.value) == (
        "row 1 is not 3 integers in [0, 250] separated by single spaces and an end token (chunk_size=3, action_dim=1): "
        f"{text.split('.')[0]!r}"
    ), why


@pytest.mark.parametrize("foreign", [30, 198, 151643, 0], ids=["?", "newline", "padding", "!"])
def test_a_foreign_token_is_refused_and_shown_by_its_id(foreign: int) -> None:
    ids = torch.tensor([[*to_ids("1 2"), foreign, *to_ids(" 3.")]])
    with pytest.raises(AnswerError) as error:
        make(250, 3, 1).decode_ids(ids)
    assert str(error.value) == (
        "row 0 is not 3 integers in [0, 250] separated by single spaces and an end token (chunk_size=3, action_dim=1): "
        f"'1 2<{foreign}> 3'"
    )


def test_an_empty_answer_is_refused() -> None:
    with pytest.raises(AnswerError, match=r"row 0 is not 1 integers in \[0, 10\].*: ''$"):
        make(10).decode_ids(torch.zeros(1, 0, dtype=torch.long))


@given(st.text(alphabet="0129 .", max_size=9))
@settings(max_examples=200, deadline=None)
def test_exactly_the_legal_texts_are_accepted(text: str) -> None:
    codec = make(129, 2, 1)
    words = text.split(".")[0].split(" ")
    legal = len(words) == 2 and all(word == str(int(word)) and int(word) <= 129 for word in words if word)
    legal = legal and all(words) and "." in text  # an answer without its end token may have been cut off
    ids = torch.tensor([to_ids(text)], dtype=torch.long).view(1, -1)
    if legal:
        assert codec.decode_ids(ids).flatten().tolist() == [int(word) for word in words]
    else:
        with pytest.raises(AnswerError):
            codec.decode_ids(ids)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator")
def test_the_accelerator_writes_and_reads_what_the_cpu_does() -> None:
    for n_bins, action_dim in itertools.product(N_BINS, (1, 7)):
        codec = make(n_bins, 8, action_dim)
        bins = torch.randint(0, n_bins + 1, (5, 8, action_dim))
        there = codec.encode_bins(bins.cuda())
        assert as_lists(there) == as_lists(codec.encode_bins(bins))
        assert torch.equal(codec.decode_ids(there.ids).cpu(), bins)
        actions = torch.rand(5, 8, action_dim) * 2.2 - 1.1
        for here, other in zip(
            codec.actions_to_bins(actions), codec.actions_to_bins(actions.cuda()), strict=True
        ):
            assert torch.equal(here, other.cpu())
