"""training.py: the loss equals torch's over full logits, the metrics a plain Python count."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lerobot_policy_vla0.text.codec import IGNORE_INDEX, ActionCodec, ActionTokens, EncodedChunk
from lerobot_policy_vla0.training.loss import AnswerLoss, answer_loss, answer_metrics, positions_per_chunk

# Small ids in an order that is not the digits' own, so that an id is never mistaken for its value.
TOKENS = ActionTokens(digits=(12, 3, 7, 1, 9, 14, 5, 11, 2, 8), space=0, end=4, newline=6, mask=10, pad=13)
VOCABULARY = 16


def random_labels(batch: int, length: int, share_ignored: float, source: torch.Generator) -> Tensor:
    labels = torch.randint(0, VOCABULARY, (batch, length), generator=source)
    ignored = torch.rand(batch, length, generator=source) < share_ignored
    return labels.masked_fill(ignored, IGNORE_INDEX)


@given(
    batch=st.integers(1, 4),
    length=st.integers(1, 7),
    share_ignored=st.sampled_from((0.0, 0.3, 0.8)),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=40, deadline=None)
def test_the_loss_and_its_gradient_are_cross_entropys_over_full_logits(
    batch: int, length: int, share_ignored: float, seed: int
) -> None:
    source = torch.Generator().manual_seed(seed)
    hidden = torch.randn(batch, length, 6, generator=source)
    weight = torch.randn(VOCABULARY, 6, generator=source)
    labels = random_labels(batch, length, share_ignored, source)
    labels[0, 0] = 5  # torch's mean over nothing is NaN

    ours, theirs = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    per_sample = answer_loss(ours, labels, lambda h: h @ weight.T).per_sample
    expected = F.cross_entropy((theirs @ weight.T).flatten(0, 1), labels.flatten(), ignore_index=IGNORE_INDEX)
    assert per_sample.shape == (batch,)
    torch.testing.assert_close(per_sample.mean(), expected)

    per_sample.mean().backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_per_sample_losses_are_the_rows_own_token_losses() -> None:
    source = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 5, VOCABULARY, generator=source)
    labels = random_labels(3, 5, 0.4, source)
    labels[1] = IGNORE_INDEX  # nothing to learn from in this row
    per_sample = answer_loss(logits, labels, nn.Identity()).per_sample
    n_labelled = int((labels != IGNORE_INDEX).sum())
    for row in range(3):
        tokens = F.cross_entropy(logits[row], labels[row], ignore_index=IGNORE_INDEX, reduction="sum")
        torch.testing.assert_close(per_sample[row], tokens * 3 / n_labelled)
    assert per_sample[1] == 0


def test_without_any_label_the_loss_is_zero_and_can_be_differentiated() -> None:
    hidden = torch.randn(2, 3, VOCABULARY, requires_grad=True)
    result = answer_loss(hidden, torch.full((2, 3), IGNORE_INDEX), nn.Identity())
    assert result.per_sample.tolist() == [0.0, 0.0]
    result.per_sample.mean().backward()
    assert hidden.grad is not None
    assert not hidden.grad.any()


def test_only_labelled_positions_meet_the_vocabulary() -> None:
    seen: list[Tensor] = []

    def project(states: Tensor) -> Tensor:
        seen.append(states)
        return states

    hidden = torch.arange(2 * 3 * VOCABULARY).float().view(2, 3, VOCABULARY)
    labels = torch.tensor([[IGNORE_INDEX, 1, IGNORE_INDEX], [2, IGNORE_INDEX, 3]])
    result = answer_loss(hidden, labels, project)
    assert torch.equal(torch.cat(seen), torch.stack([hidden[0, 1], hidden[1, 0], hidden[1, 2]]))
    assert result.row.tolist() == [0, 1, 1]
    assert result.column.tolist() == [1, 0, 2]


def test_losses_of_half_precision_states_are_computed_in_float32() -> None:
    hidden = torch.randn(1, 4, VOCABULARY, generator=torch.Generator().manual_seed(0)).bfloat16()
    labels = torch.tensor([[1, 2, 3, 4]])
    per_sample = answer_loss(hidden, labels, nn.Identity()).per_sample
    assert per_sample.dtype == torch.float32
    torch.testing.assert_close(per_sample.mean(), F.cross_entropy(hidden[0].float(), labels[0]))


@given(
    batch=st.integers(1, 4),
    length=st.integers(1, 9),
    share_ignored=st.sampled_from((0.0, 0.3, 1.0)),
    chunk=st.integers(1, 12),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=40, deadline=None)
def test_in_chunks_it_is_the_same_loss(
    batch: int, length: int, share_ignored: float, chunk: int, seed: int
) -> None:
    source = torch.Generator().manual_seed(seed)
    hidden = torch.randn(batch, length, 6, generator=source)
    labels = random_labels(batch, length, share_ignored, source)
    results = []
    for size in (None, chunk):
        states = hidden.clone().requires_grad_()
        weight = torch.randn(VOCABULARY, 6, generator=torch.Generator().manual_seed(1)).requires_grad_()
        result = answer_loss(states, labels, lambda h, weight=weight: h @ weight.T, chunk=size)
        result.per_sample.mean().backward()
        results.append((result, states.grad, weight.grad))
    (whole, *gradients), (parts, *chunked) = results
    assert torch.equal(whole.predicted, parts.predicted)
    assert torch.equal(whole.correct, parts.correct)
    torch.testing.assert_close(parts.per_sample, whole.per_sample, rtol=1e-6, atol=1e-6)
    for ours, theirs in zip(chunked, gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_no_more_logits_than_a_chunk_are_kept_for_the_backward_pass() -> None:
    """Counts what autograd saves: with one chunk all logits, with ten a tenth at a time, none of it kept."""
    states, labels = torch.randn(1, 1000, 4, requires_grad=True), torch.randint(0, 512, (1, 1000))
    weight = torch.randn(512, 4)

    def saved(chunk: int | None) -> int:
        sizes: list[int] = []

        def pack(tensor: Tensor) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            answer_loss(states, labels, lambda h: h @ weight.T, chunk=chunk)
        return max(sizes)

    assert saved(None) >= 1000 * 512
    assert saved(100) < 100 * 512


def test_a_projection_sees_no_more_positions_than_the_chunk() -> None:
    seen: list[int] = []

    def project(states: Tensor) -> Tensor:
        seen.append(len(states))
        return states

    hidden = torch.randn(2, 5, VOCABULARY, requires_grad=True)
    answer_loss(hidden, torch.ones(2, 5, dtype=torch.long), project, chunk=4).per_sample.sum().backward()
    assert seen[:3] == [4, 4, 2]
    assert max(seen) == 4
    seen.clear()
    answer_loss(hidden, torch.ones(2, 5, dtype=torch.long), project, chunk=10)
    assert seen == [10]  # nothing is recomputed where everything fits


def test_chunks_fit_the_vocabulary() -> None:
    assert positions_per_chunk(152_064) == 441
    assert positions_per_chunk(263) > 64 * 300  # the tiny model's batches are never split
    assert positions_per_chunk(10**9) == 1


# ---------------------------------------------------------------- metrics


def predict(tokens: Tensor, labels: Tensor) -> AnswerLoss:
    """The result of a model whose most likely token is the given one, everywhere."""
    return answer_loss(F.one_hot(tokens, VOCABULARY).float(), labels, nn.Identity())


def metrics_oracle(
    chunk: EncodedChunk,
    bins: list[list[int]],
    labels: list[list[int]],
    predicted: list[list[int]],
    action_dim: int,
) -> dict[str, float]:
    correct, first_step, first_digit, errors = [], [], [], []
    value_of = {id_: value for value, id_ in enumerate(TOKENS.digits)}
    for row, numbers in enumerate(bins):
        column = 0
        for index, number in enumerate(numbers):
            if index > 0:
                if labels[row][column] != IGNORE_INDEX:
                    correct.append(predicted[row][column] == TOKENS.space)
                    if index < action_dim:
                        first_step.append(correct[-1])
                column += 1
            guess, complete = 0, True
            for k, digit in enumerate(str(number)):
                complete &= labels[row][column] != IGNORE_INDEX
                if labels[row][column] != IGNORE_INDEX:
                    correct.append(predicted[row][column] == TOKENS.digits[int(digit)])
                    if k == 0:
                        first_digit.append(correct[-1])
                    if index < action_dim:
                        first_step.append(correct[-1])
                guess = 10 * guess + value_of.get(predicted[row][column], 0)
                column += 1
            if complete:
                errors.append(abs(guess - number))

    def mean(values: list[bool] | list[int]) -> float:
        return sum(values) / len(values) if values else 0.0

    return {
        "token_accuracy": mean(correct),
        "first_digit_accuracy": mean(first_digit),
        "first_step_accuracy": mean(first_step),
        "bin_error": mean(errors),
    }


@given(
    batch=st.integers(1, 3),
    chunk_size=st.integers(1, 3),
    action_dim=st.integers(1, 3),
    n_bins=st.sampled_from((9, 250, 99_999)),
    share_ignored=st.sampled_from((0.0, 0.2, 1.0)),
    share_wrong=st.sampled_from((0.0, 0.3, 1.0)),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=60, deadline=None)
def test_the_metrics_are_those_counted_character_by_character(
    batch: int,
    chunk_size: int,
    action_dim: int,
    n_bins: int,
    share_ignored: float,
    share_wrong: float,
    seed: int,
) -> None:
    source = torch.Generator().manual_seed(seed)
    codec = ActionCodec(TOKENS, n_bins=n_bins, chunk_size=chunk_size, action_dim=action_dim)
    bins = ((n_bins + 1) ** torch.rand(batch, chunk_size, action_dim, generator=source) - 1).long()
    chunk = codec.encode_bins(bins)
    shape = chunk.ids.shape
    hidden = (torch.rand(shape, generator=source) < share_ignored) & chunk.is_text
    labels = chunk.ids.masked_fill(~chunk.is_token | hidden, IGNORE_INDEX)
    wrong = torch.rand(shape, generator=source) < share_wrong
    predicted = torch.where(wrong, torch.randint(0, VOCABULARY, shape, generator=source), chunk.ids)

    metrics = answer_metrics(predict(predicted, labels), chunk, TOKENS.digits, action_dim)
    expected = metrics_oracle(
        chunk, bins.flatten(1).tolist(), labels.tolist(), predicted.tolist(), action_dim
    )
    assert {name: float(value) for name, value in metrics.items()} == pytest.approx(expected)


def test_metrics_of_a_chunk_worked_out_by_hand() -> None:
    codec = ActionCodec(TOKENS, n_bins=1000, chunk_size=2, action_dim=1)
    chunk = codec.encode_bins(torch.tensor([[[507], [92]]]))
    labels = chunk.ids.clone()
    d = TOKENS.digits
    #                       5     0     7    ' '           9     2     end           newline
    answer = torch.tensor([[d[5], d[1], d[4], TOKENS.space, d[9], d[0], TOKENS.digits[3], TOKENS.newline]])
    metrics = answer_metrics(predict(answer, labels), chunk, d, action_dim=1)
    # 514 instead of 507 is 7 off, 90 instead of 92 is 2 off. The end token counts in no metric.
    assert float(metrics["bin_error"]) == pytest.approx((7 + 2) / 2)
    assert float(metrics["token_accuracy"]) == pytest.approx(3 / 6)  # 5, the space, 9
    assert float(metrics["first_digit_accuracy"]) == 1  # 5 and 9
    assert float(metrics["first_step_accuracy"]) == pytest.approx(1 / 3)  # 5

    labels[0, 5] = IGNORE_INDEX  # the 2 of 92 is hidden: that number is not scored any more
    metrics = answer_metrics(predict(answer, labels), chunk, d, action_dim=1)
    assert float(metrics["bin_error"]) == 7
    assert float(metrics["token_accuracy"]) == pytest.approx(3 / 5)


def test_metrics_carry_no_gradient() -> None:
    codec = ActionCodec(TOKENS, n_bins=9, chunk_size=1, action_dim=1)
    chunk = codec.encode_bins(torch.tensor([[[3]]]))
    hidden = torch.randn(1, 3, VOCABULARY, requires_grad=True)
    metrics = answer_metrics(answer_loss(hidden, chunk.ids, nn.Identity()), chunk, TOKENS.digits, 1)
    assert not any(value.requires_grad for value in metrics.values())
