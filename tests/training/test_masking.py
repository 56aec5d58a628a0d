"""masking.py: exact counts, the two probabilities, and what must never be hidden."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lerobot_policy_vla0.text.codec import IGNORE_INDEX, ActionCodec, ActionTokens, EncodedChunk
from lerobot_policy_vla0.training.masking import apply_mask, draw_mask

TOKENS = ActionTokens(digits=tuple(range(15, 25)), space=220, end=151645, newline=198, mask=30, pad=151643)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_chunk(
    batch: int, chunk_size: int = 8, action_dim: int = 7, n_bins: int = 1000, seed: int = 1
) -> EncodedChunk:
    """Rows of different lengths: small numbers are as likely as large ones."""
    codec = ActionCodec(TOKENS, n_bins=n_bins, chunk_size=chunk_size, action_dim=action_dim)
    exponent = torch.rand(batch, chunk_size, action_dim, generator=generator(seed))
    return codec.encode_bins(((n_bins + 1) ** exponent - 1).long())


def draw(chunk: EncodedChunk, seed: int = 0, **options: Any) -> Tensor:
    settings_: dict[str, Any] = {"max_ratio": 0.4, "skip_prob": 0.1, "unit": "char"}
    return draw_mask(chunk, generator=generator(seed), **{**settings_, **options})


def ratios(batch: int, seed: int, max_ratio: float, skip_prob: float) -> Tensor:
    """The ratio of each row: a uniform one, then the coin that sets it to 0."""
    source = generator(seed)
    ratio = torch.rand(batch, generator=source) * max_ratio
    skipped = torch.rand(batch, generator=source) < skip_prob
    return torch.tensor([0.0 if skip else float(r) for r, skip in zip(ratio, skipped, strict=True)])


@given(
    batch=st.integers(1, 6),
    chunk_size=st.integers(1, 4),
    action_dim=st.integers(1, 4),
    n_bins=st.sampled_from((1, 9, 250, 99_999)),
    max_ratio=st.floats(0, 1),
    skip_prob=st.sampled_from((0.0, 0.1, 0.5)),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=60, deadline=None)
def test_each_row_hides_exactly_the_drawn_share_of_its_characters(
    batch: int, chunk_size: int, action_dim: int, n_bins: int, max_ratio: float, skip_prob: float, seed: int
) -> None:
    chunk = random_chunk(batch, chunk_size, action_dim, n_bins)
    drawn = ratios(batch, seed, max_ratio, skip_prob)

    hidden = draw(chunk, seed, max_ratio=max_ratio, skip_prob=skip_prob)
    assert hidden.dtype == torch.bool
    assert hidden.sum(1).tolist() == (drawn * chunk.is_text.sum(1)).floor().tolist()
    assert not (hidden & ~chunk.is_text).any()

    numbers = draw(chunk, seed, max_ratio=max_ratio, skip_prob=skip_prob, unit="number")
    n_numbers = chunk_size * action_dim
    chosen = [len({int(n) for n in chunk.number[row][numbers[row]]}) for row in range(batch)]
    assert chosen == (drawn * n_numbers).floor().tolist()


def test_whole_numbers_lose_all_their_digits_and_no_spaces() -> None:
    chunk = random_chunk(64)
    hidden = draw(chunk, unit="number", skip_prob=0.0)
    is_digit = chunk.place >= 0
    assert hidden.any()
    assert not (hidden & ~is_digit).any()
    for row in range(64):
        chosen = set(chunk.number[row][hidden[row]].tolist())
        expected = [
            bool(d) and int(n) in chosen for d, n in zip(is_digit[row], chunk.number[row], strict=True)
        ]
        assert hidden[row].tolist() == expected


def test_single_characters_include_spaces_and_leave_parts_of_numbers() -> None:
    chunk = random_chunk(64)
    hidden = draw(chunk, skip_prob=0.0)
    is_digit = chunk.place >= 0
    assert (hidden & chunk.is_text & ~is_digit).any(), "no space was ever hidden"
    partly = 0
    for row in range(64):
        for number in range(56):
            digits = is_digit[row] & (chunk.number[row] == number)
            partly += 0 < int((hidden[row] & digits).sum()) < int(digits.sum())
    assert partly > 0


@pytest.mark.parametrize("unit", ["char", "number"])
def test_a_tenth_of_the_samples_is_left_alone(unit: str) -> None:
    batch = 4000
    chunk = random_chunk(batch, 4, 5)
    hidden = draw(chunk, max_ratio=1.0, skip_prob=0.1, unit=unit)
    # Untouched: the coin (0.1), or a ratio below one character's share.
    pieces = chunk.is_text.sum(1).float() if unit == "char" else torch.tensor(20.0)
    expected = float((0.1 + 0.9 / pieces).mean())
    share = float((~hidden.any(1)).float().mean())
    assert share == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / batch))


def test_the_ratio_is_uniform_up_to_its_maximum() -> None:
    batch = 4000
    chunk = random_chunk(batch, 8, 7)
    hidden = draw(chunk, max_ratio=0.4, skip_prob=0.0)
    share = hidden.sum(1) / chunk.is_text.sum(1)
    assert float(share.max()) <= 0.4
    # Floors take half a character, of about 150, off the ratio.
    quartiles = torch.quantile(share, torch.tensor([0.25, 0.5, 0.75])).tolist()
    assert quartiles == pytest.approx([0.1, 0.2, 0.3], abs=0.015)


def test_every_character_is_as_likely_to_be_hidden_as_any_other() -> None:
    batch = 4000
    codec = ActionCodec(TOKENS, n_bins=1000, chunk_size=2, action_dim=3)
    chunk = codec.encode_bins(torch.full((batch, 2, 3), 123))
    hidden = draw(chunk, max_ratio=0.4, skip_prob=0.0)
    per_column = hidden[:, :23].float().mean(0)
    assert per_column.tolist() == pytest.approx(
        [float(per_column.mean())] * 23, abs=4.5 * math.sqrt(0.2 / batch)
    )
    assert not hidden[:, 23:].any()


@pytest.mark.parametrize("unit", ["char", "number"])
def test_end_newline_and_padding_stay_even_if_everything_else_is_hidden(unit: str) -> None:
    chunk = random_chunk(500, 2, 3)
    assert (~chunk.is_token).any(), "the rows should differ in length"
    hidden = draw(chunk, max_ratio=1.0, skip_prob=0.0, unit=unit)
    assert not hidden[~chunk.is_text].any()
    ids, labels = apply_mask(chunk.ids, chunk.ids, hidden, TOKENS.mask)
    assert torch.equal(ids[~chunk.is_text], chunk.ids[~chunk.is_text])
    assert torch.equal(labels[~chunk.is_text], chunk.ids[~chunk.is_text])


@pytest.mark.parametrize("unit", ["char", "number"])
def test_the_same_seed_hides_the_same_characters_and_another_seed_others(unit: str) -> None:
    chunk = random_chunk(8)
    assert torch.equal(draw(chunk, 3, unit=unit), draw(chunk, 3, unit=unit))
    assert not torch.equal(draw(chunk, 3, unit=unit), draw(chunk, 4, unit=unit))


def test_the_global_generator_is_neither_read_nor_advanced() -> None:
    chunk = random_chunk(4)
    before = torch.random.get_rng_state()
    draw(chunk)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("unit", ["char", "number"])
@pytest.mark.parametrize("options", [{"max_ratio": 0.0}, {"skip_prob": 1.0, "max_ratio": 1.0}], ids=str)
def test_nothing_is_hidden_when_augmentation_is_off(unit: str, options: dict[str, float]) -> None:
    chunk = random_chunk(200)
    hidden = draw(chunk, unit=unit, **options)
    assert not hidden.any()
    ids, labels = apply_mask(chunk.ids, chunk.ids, hidden, TOKENS.mask)
    assert torch.equal(ids, chunk.ids)
    assert torch.equal(labels, chunk.ids)


def test_hiding_given_characters_gives_the_ids_and_labels_spelt_out_here() -> None:
    codec = ActionCodec(TOKENS, n_bins=1000, chunk_size=1, action_dim=2)
    chunk = codec.encode_bins(torch.tensor([[[12, 7]], [[305, 1000]]]))
    #          "12 7" end newline padding                  "305 1000" end newline
    assert chunk.ids.tolist() == [
        [16, 17, 220, 22, 151645, 198, *[151643] * 4],
        [18, 15, 20, 220, 16, 15, 15, 15, 151645, 198],
    ]
    labels = chunk.ids.masked_fill(~chunk.is_token, IGNORE_INDEX)
    hidden = torch.zeros_like(chunk.is_text)
    hidden[0, [1, 2]] = True  # "1??7"
    hidden[1, [0, 4, 7]] = True  # "?05 ?00?"
    ids, new_labels = apply_mask(chunk.ids, labels, hidden, TOKENS.mask)
    assert ids.tolist() == [
        [16, 30, 30, 22, 151645, 198, *[151643] * 4],
        [30, 15, 20, 220, 30, 15, 15, 30, 151645, 198],
    ]
    assert new_labels.tolist() == [
        [16, -100, -100, 22, 151645, 198, *[-100] * 4],
        [-100, 15, 20, 220, -100, 15, 15, -100, 151645, 198],
    ]


def test_applying_a_mask_leaves_its_arguments_alone() -> None:
    chunk = random_chunk(3, 2, 2)
    ids, labels, hidden = chunk.ids.clone(), chunk.ids.clone(), chunk.is_text.clone()
    apply_mask(ids, labels, hidden, TOKENS.mask)
    assert torch.equal(ids, chunk.ids)
    assert torch.equal(labels, chunk.ids)
    assert torch.equal(hidden, chunk.is_text)


def test_drawing_a_mask_leaves_the_chunk_alone() -> None:
    chunk = random_chunk(3, 2, 2)
    copies = {
        name: getattr(chunk, name).clone() for name in ("ids", "is_text", "is_token", "number", "place")
    }
    draw(chunk)
    draw(chunk, unit="number")
    for name, copy in copies.items():
        assert torch.equal(getattr(chunk, name), copy), name
