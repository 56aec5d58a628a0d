"""The training loss and its metrics, computed from hidden states and labels.

Only positions with a label are projected onto the vocabulary, so the prompt, the images and hidden characters have no
logits. The projection works in chunks of positions, in the backward pass too.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lerobot_policy_vla0.text.codec import IGNORE_INDEX, EncodedChunk

logger = logging.getLogger(__name__)

#: Largest number of logits in memory at once: 256 MB in float32, 441 positions with Qwen's 152,064 tokens. With fewer
#: positions the matrix product would be too small to use an accelerator well.
MAX_LOGITS = 2**26


@dataclass(frozen=True)
class AnswerLoss:
    """The loss per sample, and results at the ``M`` positions with a label.

    Attributes:
        per_sample: ``(B,)`` float32, scaled so that its mean is the mean over all labelled tokens.
        correct: ``(M,)`` bool, whether the most likely token is the label.
        predicted: ``(M,)`` int64, the most likely token id.
        row: ``(M,)`` int64, the token's sample.
        column: ``(M,)`` int64, the token's column in the answer.
    """

    per_sample: Tensor
    correct: Tensor
    predicted: Tensor
    row: Tensor
    column: Tensor


def positions_per_chunk(vocabulary: int, max_logits: int = MAX_LOGITS) -> int:
    """Return how many positions are projected onto a vocabulary at once, at least one.

    >>> positions_per_chunk(151_936), positions_per_chunk(263)
    (441, 255166)
    """
    return max(1, max_logits // vocabulary)


def answer_loss(
    hidden: Tensor,
    labels: Tensor,
    project: Callable[[Tensor], Tensor],
    *,
    chunk: int | None = None,
    labelled: int | None = None,
) -> AnswerLoss:
    """Return the cross-entropy over the full vocabulary at labelled answer tokens.

    With more labelled tokens than ``chunk``, each chunk's logits are discarded and computed again in the backward pass.
    This costs one more projection and limits memory: 64 LIBERO answers have 13,000 tokens, whose logits, softmax and
    gradient would take 8 GB each in float32. The loss is the same; gradients are summed in another order.

    Args:
        hidden: ``(B, L, hidden)`` states, each the one *before* its answer token.
        labels: ``(B, L)`` int64, `IGNORE_INDEX` for tokens outside the loss.
        project: the vocabulary projection, ``(M, hidden) -> (M, V)``.
        chunk: most positions projected at once, at least 1 (see `positions_per_chunk`); None for no limit.
        labelled: how many labels there are; None counts them, for which the host waits for the device.
    """
    ignored = (labels == IGNORE_INDEX).flatten()
    if labelled is None:
        labelled = len(ignored) - int(ignored.sum())
    # Those with a label, in order, in front: unlike `nonzero`, this has a known size.
    places = ignored.int().argsort(stable=True)[:labelled]  # (M,)
    row, column = places // labels.shape[1], places % labels.shape[1]
    target = labels[row, column]
    states = hidden[row, column]  # (M, hidden)

    def score(states: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        logits = project(states).float()
        return F.cross_entropy(logits, target, reduction="none"), logits.detach().argmax(-1)

    if chunk is None or len(target) <= chunk:
        per_token, predicted = score(states, target)  # (M,), (M,)
    else:
        parts = [
            checkpoint(
                score,
                states[start : start + chunk],
                target[start : start + chunk],
                use_reentrant=False,
                preserve_rng_state=False,
            )
            for start in range(0, len(target), chunk)
        ]
        per_token, predicted = (torch.cat(values) for values in zip(*parts, strict=True))
    total = torch.zeros(labels.shape[0], device=hidden.device).index_add(0, row, per_token)
    # All rows are divided by the mean number of tokens, so that mean(per_sample) is the mean over tokens.
    per_sample = total * (labels.shape[0] / max(1, row.numel()))
    return AnswerLoss(
        per_sample=per_sample, correct=predicted == target, predicted=predicted, row=row, column=column
    )


def answer_metrics(
    loss: AnswerLoss, chunk: EncodedChunk, digits: tuple[int, ...], action_dim: int
) -> dict[str, Tensor]:
    """Measure the accuracy of the answer with teacher forcing.

    Args:
        loss: from `answer_loss`.
        chunk: the encoded answers.
        digits: ids of ``0`` to ``9``.
        action_dim: numbers per step.

    Returns:
        Scalars on the device. ``token_accuracy``: share of labelled digits and spaces that are predicted exactly;
        ``first_digit_accuracy``: the same for the first digit of each number, which decides most of its value;
        ``first_step_accuracy``: the same for the first step, which cannot be copied from an earlier one;
        ``bin_error``: mean absolute error in bins over numbers whose digits all have a label.
    """
    device = loss.correct.device
    text = chunk.is_text[loss.row, loss.column]
    number = chunk.number[loss.row, loss.column]
    place = chunk.place[loss.row, loss.column]
    is_digit = chunk.place >= 0
    leading = is_digit & ~F.pad(is_digit, (1, 0))[:, :-1]  # no digit before it
    first_digit = leading[loss.row, loss.column]
    correct = loss.correct.float()

    def share(chosen: Tensor) -> Tensor:
        return (correct * chosen).sum() / chosen.sum().clamp(min=1)

    # A number's error is the sum of its digits' errors, weighted by their place. A non-digit counts as 0.
    ids = torch.tensor(digits).to(device, non_blocking=True)
    batch, n_slots = chunk.ids.shape[0], int(chunk.ids.shape[1]) + 1
    values = torch.arange(10, device=device)

    def value_of(tokens: Tensor) -> Tensor:
        return ((tokens.unsqueeze(-1) == ids) * values).sum(-1)

    target = chunk.ids[loss.row, loss.column]
    weight = torch.where(place >= 0, 10 ** place.clamp(min=0), 0)
    slot = loss.row * n_slots + number
    zeros = torch.zeros(batch * n_slots, dtype=torch.long, device=device)
    error = zeros.index_add(0, slot, (value_of(loss.predicted) - value_of(target)) * weight)
    scored = zeros.index_add(0, slot, (place >= 0).long())
    n_digits = torch.zeros_like(zeros).index_add(
        0,
        (torch.arange(batch, device=device).unsqueeze(1) * n_slots + chunk.number).flatten(),
        (chunk.place >= 0).long().flatten(),
    )
    complete = (scored == n_digits) & (n_digits > 0)
    return {
        "token_accuracy": share(text.float()),
        "first_digit_accuracy": share(first_digit.float()),
        "first_step_accuracy": share((text & (number < action_dim)).float()),
        "bin_error": (error.abs() * complete).sum() / complete.sum().clamp(min=1),
    }


def warn_about_clipping(clipped: Tensor) -> None:
    """Log how many action values lie outside the range of the statistics; ``clipped`` is ``(B, T, D)`` bool."""
    per_dimension = clipped.sum((0, 1)).tolist()
    logger.warning(
        "%d of %d action values lie outside the normalised range and were clipped to it (per dimension: "
        "%s); logged from now on as clipped_fraction. Expected with quantile normalisation; otherwise the "
        "statistics belong to another dataset.",
        sum(per_dimension),
        clipped.numel(),
        per_dimension,
    )
