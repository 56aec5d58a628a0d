"""The probability of every number equals what spelling every number out and scoring it gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers.decoding_cases import make_request, trained_policy
from numpy.typing import NDArray

from lerobot_policy_vla0 import VLA0Policy
from lerobot_policy_vla0.decoding.distribution import NumberDistributions, central_band, expected_value
from lerobot_policy_vla0.decoding.fast import FastDecoder
from lerobot_policy_vla0.decoding.request import DecodeRequest
from lerobot_policy_vla0.errors import DecodeError
from lerobot_policy_vla0.text.grammar import SEPARATOR, AnswerGrammar, spell


@pytest.fixture(scope="module")
def policy() -> VLA0Policy:
    return trained_policy(steps=15)


def decode(
    policy: VLA0Policy, request: DecodeRequest, *, n_bins: int, shape: tuple[int, int], **options: Any
) -> tuple[FastDecoder, AnswerGrammar]:
    """Return a decoder that has just answered a request."""
    numbers = shape[0] * shape[1]
    grammar = AnswerGrammar(n_bins=n_bins, n_numbers=numbers, tokens=policy.vlm.tokens)
    decoder = FastDecoder(policy.vlm, grammar, shape=shape, **options)
    decoder.decode(request)
    return decoder, grammar


def measure(
    policy: VLA0Policy,
    request: DecodeRequest,
    grammar: AnswerGrammar,
    answers: list[list[int]],
    **options: Any,
) -> list[NDArray[Any]]:
    return NumberDistributions(policy.vlm, grammar, **options).measure(request, answers)


@torch.no_grad()
def spelled_out(
    policy: VLA0Policy,
    request: DecodeRequest,
    grammar: AnswerGrammar,
    answer: list[int],
    *,
    n_bins: int,
    penalty: float = 1.0,
) -> NDArray[Any]:
    """The oracle: write every value after the numbers before it, and multiply its symbols' probabilities."""
    tables = grammar.host
    numbers = "".join("," if s >= SEPARATOR else str(s) for s in answer).strip(",").split(",")
    belief = np.zeros((tables.n_numbers, n_bins + 1))
    for number in range(tables.n_numbers):
        before = spell([int(v) for v in numbers[:number]], tables.n_numbers)
        for value in range(n_bins + 1):
            text = spell([*map(int, numbers[:number]), value], tables.n_numbers)
            ids = torch.cat([request.ids, grammar.token_ids[text].unsqueeze(0)], dim=1)
            mask = torch.cat([request.mask, torch.ones(1, len(text), dtype=torch.bool)], dim=1)
            hidden = policy.vlm.hidden_states(ids, mask, request.pixel_values, request.grid_thw)
            logits = policy.vlm.logits(hidden)[0, request.ids.shape[1] - 1 :, grammar.token_ids].double()
            state, probability = 0, 1.0
            for place, symbol in enumerate(text):
                legal = torch.from_numpy(tables.legal_rows[tables.legal_row(state)])
                scores = logits[place].clone()
                written = torch.cat([request.ids[0], grammar.token_ids[text[:place]]])
                seen = torch.isin(grammar.token_ids, written)
                scores[seen] = torch.where(scores < 0, scores * penalty, scores / penalty)[seen]
                if place >= len(before):
                    chances = scores.masked_fill(~legal, -torch.inf).softmax(-1)
                    probability *= float(chances[symbol])
                state = tables.advance(state, symbol)
            belief[number, value] = probability
    return belief


@pytest.mark.parametrize(
    ("n_bins", "shape", "penalty"), [(12, (2, 2), 1.0), (100, (1, 2), 1.0), (12, (1, 3), 1.3)]
)
def test_every_number_has_the_probability_of_its_spelling(
    policy: VLA0Policy, n_bins: int, shape: tuple[int, int], penalty: float
) -> None:
    request = make_request(policy, seed=3, batch=1)
    decoder, grammar = decode(policy, request, n_bins=n_bins, shape=shape, repetition_penalty=penalty)
    assert decoder.last is not None
    answer = decoder.last.traces[0].symbols
    (belief,) = measure(policy, request, grammar, [answer], min_mass=0.0, repetition_penalty=penalty)
    oracle = spelled_out(policy, request, grammar, answer, n_bins=n_bins, penalty=penalty)
    np.testing.assert_allclose(oracle.sum(1), 1.0, atol=1e-6)
    np.testing.assert_allclose(belief, oracle, atol=2e-5)
    assert belief.max() < 0.99  # not a comparison of certainties


@pytest.mark.parametrize("min_mass", [0.0, 1e-3, 0.05])
def test_answers_of_a_batch_in_narrow_passes_get_what_they_get_alone(
    policy: VLA0Policy, min_mass: float
) -> None:
    request = make_request(policy, seed=5, batch=3)
    grammar = AnswerGrammar(n_bins=100, n_numbers=6, tokens=policy.vlm.tokens)
    bins = [[4, 4, 44, 0, 100, 7], [0, 0, 0, 0, 0, 0], [99, 10, 100, 100, 12, 31]]
    answers = [spell(row, 6) for row in bins]
    wide, narrow = (
        np.stack(measure(policy, request, grammar, answers, min_mass=min_mass, max_width=width))
        for width in (512, 5)
    )
    np.testing.assert_allclose(wide.sum(-1), 1.0, atol=1e-9)
    np.testing.assert_allclose(narrow, wide, atol=1e-5)
    patches = len(request.pixel_values) // 3
    for row, answer in enumerate(answers):
        alone = DecodeRequest(
            request.ids[row : row + 1, request.mask[row]],
            request.mask[row : row + 1, request.mask[row]],
            request.pixel_values[row * patches : (row + 1) * patches],
            request.grid_thw[row : row + 1],
        )
        (belief,) = measure(policy, alone, grammar, [answer], min_mass=min_mass)
        np.testing.assert_allclose(wide[row], belief, atol=1e-5)


def policy_bins(answers: list[list[int]]) -> NDArray[Any]:
    """Read the numbers of answers given as symbols."""
    texts = ["".join(" " if s >= SEPARATOR else str(s) for s in answer) for answer in answers]
    return np.array([[int(number) for number in text.split()] for text in texts])


def test_what_is_not_followed_is_spread_over_what_it_can_begin(policy: VLA0Policy) -> None:
    request = make_request(policy, seed=5, batch=1)
    decoder, grammar = decode(policy, request, n_bins=100, shape=(1, 1))
    assert decoder.last is not None
    answer = decoder.last.traces[0].symbols
    (exact,) = measure(policy, request, grammar, [answer], min_mass=0.0)
    (coarse,) = measure(policy, request, grammar, [answer], min_mass=1.0)
    for digit in range(1, 10):
        if digit == answer[0]:
            continue
        begun = [digit, *range(10 * digit, 10 * digit + 10), *([100] if digit == 1 else [])]
        np.testing.assert_allclose(coarse[0, begun], exact[0, begun].sum() / len(begun), atol=1e-6)
    np.testing.assert_allclose(coarse[0, 0], exact[0, 0], atol=1e-6)


def test_the_policy_asks_on_its_decoders_terms(policy: VLA0Policy) -> None:
    from helpers.tiny import make_batch

    batch = make_batch(policy.config, batch=2)
    policy.predict_action_chunk(batch)
    assert policy.last_decode is not None
    answers = [trace.symbols for trace in policy.last_decode.traces]
    beliefs = np.stack(policy.number_distributions(batch, answers))
    assert beliefs.shape == (2, 12, 1001)
    own = np.take_along_axis(beliefs, policy_bins(answers)[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(own, policy.last_decode.number_probability.reshape(2, 12), atol=1e-5)
    assert not policy.training


def test_nan_weights_are_an_error(policy: VLA0Policy) -> None:
    request = make_request(policy, seed=5, batch=1)
    decoder, grammar = decode(policy, request, n_bins=10, shape=(1, 1))
    assert decoder.last is not None
    weight = policy.vlm.model.lm_head.weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight[policy.vlm.tokens.digits[3]] = torch.nan
    try:
        with pytest.raises(DecodeError, match=r"NaN or infinite in batch rows \[0\]"):
            measure(policy, request, grammar, [decoder.last.traces[0].symbols])
    finally:
        with torch.no_grad():
            weight.copy_(kept)


def test_mean_and_band_of_a_known_distribution() -> None:
    belief = np.array([[0.25, 0.5, 0.25, 0.0], [0.0, 0.0, 0.0, 1.0]])
    assert expected_value(belief).tolist() == [1.0, 3.0]
    low, high = central_band(belief, 0.5)
    assert (low.tolist(), high.tolist()) == ([0, 3], [1, 3])
    low, high = central_band(belief, 0.9)
    assert (low.tolist(), high.tolist()) == ([0, 3], [2, 3])
