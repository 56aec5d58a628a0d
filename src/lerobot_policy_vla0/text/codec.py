"""Converts normalised actions ⇄ bins ⇄ token ids, vectorised on the device.

Actions are in ``[-1, 1]``. `encode_bins` / `decode_ids` are exact inverses; `actions_to_bins` / `bins_to_actions` lose
at most half a bin.

The text of a chunk of ``T`` steps of ``D`` dimensions is ``T*D`` integers in ``[0, n_bins]``, step by step, separated
by one space and without leading zeros. The end-of-turn token and a newline follow, as in the chat template
(arXiv 2510.13054, section III).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lerobot_policy_vla0.errors import ActionError, AnswerError, TokenizerError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORE_INDEX = -100  # torch's and transformers' label for tokens outside the loss


@dataclass(frozen=True)
class ActionTokens:
    """The token ids that action text is made of.

    Attributes:
        digits: ids of the characters ``0`` to ``9``, in that order.
        space: id of the space that separates numbers.
        end: id of the end-of-turn token (``<|im_end|>``).
        newline: id of the newline after the end token.
        mask: id of ``?``, which hides a character in masked action augmentation.
        pad: id for padding; never part of the loss.
    """

    digits: tuple[int, ...]
    space: int
    end: int
    newline: int
    mask: int
    pad: int

    @classmethod
    def from_tokenizer(cls, tokenizer: PreTrainedTokenizerBase) -> ActionTokens:
        """Read the ids from a tokenizer and check that it writes one token per character.

        Raises:
            TokenizerError: naming the tokenizer and the text that it merges or has no token for.
        """
        name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__

        def single(character: str) -> int:
            ids = tokenizer.encode(character, add_special_tokens=False)
            if len(ids) != 1:
                raise TokenizerError(
                    f"tokenizer {name!r} writes {character!r} as {len(ids)} tokens {ids}, but action text "
                    "needs one token per character. Use a backbone whose tokenizer splits digits "
                    "(Qwen2-VL, Qwen2.5-VL, Qwen3-VL)."
                )
            return int(ids[0])

        digits = tuple(single(str(d)) for d in range(10))
        space = single(" ")
        # A tokenizer may still merge neighbours ("10", " 1"); the answer's length would then depend on the values.
        # All pairs are tried, then a longer text for tokenizers that group three digits.
        characters = "0123456789 "
        pairs = [a + b for a in characters for b in characters if a + b != "  "]
        for probe in (*pairs, "0 12 345 1000 99 8 67"):
            expected = [space if c == " " else digits[int(c)] for c in probe]
            got = list(tokenizer.encode(probe, add_special_tokens=False))
            if got != expected:
                raise TokenizerError(
                    f"tokenizer {name!r} merges digits or spaces: {probe!r} became {len(got)} tokens {got}, "
                    f"expected the {len(expected)} single-character tokens {expected}. Use a backbone whose "
                    "tokenizer splits digits (Qwen2-VL, Qwen2.5-VL, Qwen3-VL)."
                )
        ids = tokenizer.encode("<|im_end|>", add_special_tokens=False)
        if len(ids) != 1:
            raise TokenizerError(
                f"tokenizer {name!r} has no token for the end of a chat turn: '<|im_end|>' became {ids}. "
                "Use an instruction-tuned Qwen-VL backbone."
            )
        pad = tokenizer.pad_token_id
        return cls(
            digits=digits,
            space=space,
            end=int(ids[0]),
            newline=single("\n"),
            mask=single("?"),
            pad=int(pad) if pad is not None else int(ids[0]),
        )


def quantise(values: Tensor, n_bins: int) -> tuple[Tensor, Tensor]:
    """Round normalised values, of any shape, to the nearest of ``n_bins + 1`` levels.

    Args:
        values: finite floats; values outside ``[-1, 1]`` are clamped.
        n_bins: the top integer.

    Returns:
        int64 bins in ``[0, n_bins]``, and bool, true where a value was clamped by more than 1e-5; shapes as ``values``.
    """
    values = values.float()
    # The normaliser computes in float32, so the dataset's extremes can lie one rounding error outside.
    clipped = values.abs() > 1.0 + 1e-5
    unit = (values.clamp(-1.0, 1.0) + 1.0) * 0.5  # [0, 1]
    return torch.round(unit * n_bins).long(), clipped


@dataclass(frozen=True)
class EncodedChunk:
    """The text of a batch of chunks, right-padded.

    Attributes:
        ids: ``(B, L)`` int64 token ids: numbers and spaces, end, newline, then padding.
        is_text: ``(B, L)`` bool, true for digits and spaces.
        is_token: ``(B, L)`` bool, false on padding.
        number: ``(B, L)`` int64 index in ``[0, T*D)`` of the token's number (a space belongs to the number after it);
            ``T*D`` for the end token, the newline and padding.
        place: ``(B, L)`` int64 decimal place of a digit (0 = units); -1 for other tokens.
        n_numbers: ``T*D``.
    """

    ids: Tensor
    is_text: Tensor
    is_token: Tensor
    number: Tensor
    place: Tensor
    n_numbers: int

    def trimmed(self, width: int) -> EncodedChunk:
        """Return the first ``width`` columns."""
        return EncodedChunk(
            ids=self.ids[:, :width],
            is_text=self.is_text[:, :width],
            is_token=self.is_token[:, :width],
            number=self.number[:, :width],
            place=self.place[:, :width],
            n_numbers=self.n_numbers,
        )


class ActionCodec:
    """Converts chunks of ``chunk_size`` x ``action_dim`` normalised actions to token ids and back.

    Args:
        tokens: the tokenizer's ids.
        n_bins: the top integer ``B``; an action is one of ``B + 1`` levels.
        chunk_size: steps per chunk ``T``.
        action_dim: dimensions per step ``D``.
    """

    def __init__(self, tokens: ActionTokens, *, n_bins: int, chunk_size: int, action_dim: int) -> None:
        self.tokens = tokens
        self.n_bins = n_bins
        self.chunk_size = chunk_size
        self.action_dim = action_dim
        self.max_digits = len(str(n_bins))

    @property
    def n_numbers(self) -> int:
        """Integers per chunk, ``T * D``."""
        return self.chunk_size * self.action_dim

    @property
    def max_answer_length(self) -> int:
        """Tokens of the longest answer, with end token and newline."""
        return self.n_numbers * (self.max_digits + 1) - 1 + 2

    # ---------------------------------------------------------------- actions ⇄ bins

    def actions_to_bins(self, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Quantise finite normalised actions ``(B, T, D)``, see `quantise`.

        Values lie outside ``[-1, 1]`` with quantile normalisation or with statistics of another dataset.

        Raises:
            ActionError: if the shape is not ``(B, chunk_size, action_dim)``.

        >>> tokens = ActionTokens(tuple(range(10)), 10, 11, 12, 13, 14)
        >>> codec = ActionCodec(tokens, n_bins=10, chunk_size=1, action_dim=3)
        >>> bins, clipped = codec.actions_to_bins(torch.tensor([[[-1.0, 0.21, 1.5]]]))
        >>> bins.tolist(), clipped.tolist()
        ([[[0, 6, 10]]], [[[False, False, True]]])
        """
        if actions.ndim != 3 or actions.shape[1:] != (self.chunk_size, self.action_dim):
            raise ActionError(
                f"actions have shape {tuple(actions.shape)}, expected (batch, chunk_size={self.chunk_size}, "
                f"action_dim={self.action_dim}). Check that the dataset's action has {self.action_dim} "
                "dimensions and that policy.chunk_size matches the checkpoint."
            )
        return quantise(actions, self.n_bins)

    def bins_to_actions(self, bins: Tensor) -> Tensor:
        """Return the float32 action of each bin; bins 0 and ``n_bins`` are exactly -1 and 1."""
        # The numerator is exact, so there is one rounding; `bins * (2 / n_bins) - 1` would not give exactly 1.
        return (2 * bins - self.n_bins).float() / self.n_bins

    # ---------------------------------------------------------------- bins ⇄ ids

    def encode_bins(self, bins: Tensor, *, trim: bool = True) -> EncodedChunk:
        """Write int64 bins ``(B, T, D)`` in ``[0, n_bins]`` as token ids.

        Args:
            bins: the numbers.
            trim: make ``L`` the length of the longest row, for which the host waits for the device. Otherwise it is
                `max_answer_length`, and nothing waits.
        """
        device = bins.device
        numbers = bins.reshape(bins.shape[0], -1)  # (B, N)
        batch, n_numbers = numbers.shape
        powers = 10 ** torch.arange(self.max_digits - 1, -1, -1, device=device)  # (K,) most significant first
        digits = numbers.unsqueeze(-1) // powers % 10  # (B, N, K)
        place = torch.arange(self.max_digits - 1, -1, -1, device=device)  # (K,)
        n_digits = (numbers.unsqueeze(-1) >= powers[:-1]).sum(-1) + 1  # (B, N); 0 has one digit

        # Slots (B, N, 1 + K): the space before a number, then its digits. A stable sort moves unused slots to the
        # right of each row.
        ids = torch.empty(batch, n_numbers, 1 + self.max_digits, dtype=torch.long, device=device)
        ids[..., 0] = self.tokens.space
        ids[..., 1:] = torch.tensor(self.tokens.digits).to(device, non_blocking=True)[digits]
        used = torch.empty_like(ids, dtype=torch.bool)
        used[..., 0] = True
        used[:, 0, 0] = False  # no space before the first number
        used[..., 1:] = place < n_digits.unsqueeze(-1)
        number = torch.arange(n_numbers, device=device).view(1, -1, 1).expand_as(ids)
        places = torch.full_like(ids, -1)
        places[..., 1:] = place

        def close(slots: Tensor, end: int, newline: int) -> Tensor:
            """Flatten to ``(B, S)`` and append the values for the end token and the newline."""
            tail = [slots.new_full((batch, 1), value) for value in (end, newline)]
            return torch.cat([slots.reshape(batch, -1), *tail], dim=1)

        keep = close(used, 1, 1)  # (B, S) bool
        order = torch.argsort((~keep).long(), dim=1, stable=True)
        length = keep.sum(1)  # (B,)
        width = int(length.max()) if trim else self.max_answer_length
        order = order[:, :width]
        is_token = torch.arange(width, device=device) < length.unsqueeze(1)
        out = close(ids, self.tokens.end, self.tokens.newline).gather(1, order)
        number = close(number, n_numbers, n_numbers).gather(1, order)
        places = close(places, -1, -1).gather(1, order)
        out = out.masked_fill(~is_token, self.tokens.pad)
        number = number.masked_fill(~is_token, n_numbers)
        places = places.masked_fill(~is_token, -1)
        return EncodedChunk(
            ids=out,
            is_text=number < n_numbers,
            is_token=is_token,
            number=number,
            place=places,
            n_numbers=n_numbers,
        )

    def decode_ids(self, ids: Tensor) -> Tensor:
        """Read bins back from token ids, the inverse of `encode_bins`.

        Args:
            ids: ``(B, L)`` int64; everything after the first end token is ignored.

        Returns:
            ``(B, T, D)`` int64 bins in ``[0, n_bins]``.

        Raises:
            AnswerError: if a row is not ``T*D`` integers in range as `encode_bins` writes them; names the row and
                its text. The decoders' grammar prevents this, so the cause is a bug or foreign token ids.
        """
        # In plain Python: an answer is some hundred ids, and tensor operations would take longer to start.
        characters = {token: str(digit) for digit, token in enumerate(self.tokens.digits)}
        characters[self.tokens.space] = " "
        bins = []
        for row, line in enumerate(ids.tolist()):
            end = line.index(self.tokens.end) if self.tokens.end in line else None
            text = "".join(characters.get(token, f"<{token}>") for token in line[:end])
            words = text.split(" ")
            values = [int(word) for word in words if word.isdecimal()]
            # Without leading zeros, a number is written as its value is.
            right = [str(value) for value in values] == words and max(values) <= self.n_bins
            if end is None or len(words) != self.n_numbers or not right:
                raise AnswerError(
                    f"row {row} is not {self.n_numbers} integers in [0, {self.n_bins}] separated by single "
                    f"spaces and an end token (chunk_size={self.chunk_size}, action_dim={self.action_dim}): {text!r}"
                )
            bins.append(values)
        shape = (len(bins), self.chunk_size, self.action_dim)
        return torch.tensor(bins, dtype=torch.long, device=ids.device).view(shape)

    # ---------------------------------------------------------------- text, for people

    def bins_to_text(self, bins: Tensor) -> list[str]:
        """Write bins ``(B, T, D)`` as the strings the model is trained to answer."""
        return [" ".join(str(v) for v in row) for row in bins.reshape(bins.shape[0], -1).tolist()]


def raise_non_finite_actions(bad: Tensor) -> None:
    """Raise an `ActionError`; ``bad`` ``(B, T, D)`` is true where an action is NaN or infinite."""
    dims = sorted({int(d) for d in bad.nonzero()[:, -1]})
    raise ActionError(
        f"actions contain {int(bad.sum())} NaN or infinite values in dimensions {dims}. Repair the dataset "
        "(or drop the episode) before training; they would be trained on as arbitrary numbers otherwise."
    )
