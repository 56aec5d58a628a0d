"""Builds the prompt's token ids and its multimodal rotary positions.

The prompt is Qwen's chat format with VLA-0's system message (arXiv 2510.13054, section III-B).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lerobot_policy_vla0.errors import ConfigError, PromptError, StateError, TokenizerError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

#: The protocol's system message. ``{H}`` steps, ``{D}`` dimensions, ``{N}`` = H*D numbers, ``{B}`` bins.
SYSTEM_PROMPT = (
    "Analyze the input image and predict robot actions for the next {H} timesteps. "
    "Each action has {D} dimensions. Output a single sequence of {N} integers (0-{B} each), "
    "representing the {H} timesteps sequentially. Provide only space separated numbers. Nothing else."
)

IMAGE_TOKEN = "<|image_pad|>"
_PICTURE = f"<|vision_start|>{IMAGE_TOKEN}<|vision_end|>"
#: `chat_text` as a pattern; none of its texts holds markup.
_CHAT = re.compile(
    r"<\|im_start\|>system\n(?P<system>.*?)<\|im_end\|>\n<\|im_start\|>user\n(?P<user>.*?)<\|im_end\|>\n"
    r"<\|im_start\|>assistant\n",
    re.DOTALL,
)


def format_system_prompt(template: str, *, chunk_size: int, action_dim: int, n_bins: int) -> str:
    """Fill the optional fields ``{H}``, ``{D}``, ``{N}`` and ``{B}`` of a system prompt.

    Raises:
        ConfigError: if the template has any other field.

    >>> format_system_prompt("{H}x{D} in 0-{B}", chunk_size=8, action_dim=7, n_bins=1000)
    '8x7 in 0-1000'
    """
    try:
        return template.format(H=chunk_size, D=action_dim, N=chunk_size * action_dim, B=n_bins)
    except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"system_prompt {template!r} has a field that cannot be filled ({error!r}). Known fields: {{H}} "
            "(chunk_size), {D} (action_dim), {N} (H*D), {B} (n_bins); write {{ and }} for literal braces."
        ) from None


def chat_text(
    system: str, task: str, n_images: int, *, add_vision_id: bool = False, state: Sequence[int] | None = None
) -> str:
    """Return the whole prompt as text, with one image placeholder per image.

    Args:
        system: the filled system prompt.
        task: the instruction.
        n_images: number of images before the instruction.
        add_vision_id: write ``Picture k: `` before image ``k``; the paper does not.
        state: the robot's state as integers, written on a line before the instruction; the paper has none.

    >>> print(chat_text("S", "push", 1))  # doctest: +NORMALIZE_WHITESPACE
    <|im_start|>system
    S<|im_end|>
    <|im_start|>user
    <|vision_start|><|image_pad|><|vision_end|>push<|im_end|>
    <|im_start|>assistant
    >>> print(chat_text("S", "push", 0, state=[0, 17, 1000]))  # doctest: +NORMALIZE_WHITESPACE
    <|im_start|>system
    S<|im_end|>
    <|im_start|>user
    State: 0 17 1000
    push<|im_end|>
    <|im_start|>assistant
    """
    head, tail = _around_state(system, task, n_images, add_vision_id, with_state=state is not None)
    return head + " ".join(map(str, state or ())) + tail


@dataclass(frozen=True)
class Chat:
    """A prompt as chat messages: the system message, and the user's parts in order.

    Attributes:
        system: the filled system prompt.
        parts: texts, and None for each image.
    """

    system: str
    parts: tuple[str | None, ...]


def read_chat(text: str) -> Chat:
    r"""Return the messages of a prompt that `chat_text` wrote.

    >>> read_chat(chat_text("S", "push", 2, add_vision_id=True, state=[3, 4]))
    Chat(system='S', parts=('Picture 1: ', None, 'Picture 2: ', None, 'State: 3 4\npush'))

    Raises:
        PromptError: if the text has another layout.
    """
    match = _CHAT.fullmatch(text)
    if match is None:
        raise PromptError(f"the prompt {text[:200]!r} has not the layout that this package writes.")
    parts: list[str | None] = []
    for index, piece in enumerate(match["user"].split(_PICTURE)):
        parts += ([None] if index else []) + ([piece] if piece else [])
    return Chat(match["system"], tuple(parts))


def _around_state(
    system: str, task: str, n_images: int, add_vision_id: bool, *, with_state: bool
) -> tuple[str, str]:
    """Return the text before and after the state's integers."""
    images = "".join((f"Picture {k + 1}: " if add_vision_id else "") + _PICTURE for k in range(n_images))
    label, newline = ("State: ", "\n") if with_state else ("", "")
    return (
        f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{images}{label}",
        f"{newline}{task}<|im_end|>\n<|im_start|>assistant\n",
    )


@dataclass(frozen=True)
class PromptSettings:
    """Everything a prompt depends on besides the task and the state.

    Attributes:
        system_prompt: the filled system message.
        image_tokens: number of tokens of each image (one image if cameras are tiled).
        pad_token_id: id for padding.
        add_vision_id: write ``Picture k: `` before each image.
        max_length: length of the longest accepted prompt, in tokens.
        state_dim: number of the state's integers; 0 writes no state.
        n_bins: largest integer of the state.
    """

    system_prompt: str
    image_tokens: tuple[int, ...]
    pad_token_id: int
    add_vision_id: bool = False
    max_length: int = 4096
    state_dim: int = 0
    n_bins: int = 0


#: Number of tasks whose ids are cached. Without a limit, free-text instructions would fill a server's memory.
_TASKS_KEPT = 1024


class PromptEncoder:
    """Turns tasks into token ids and caches them per task.

    The state changes with every frame, so its digits are inserted between the cached ids.

    Args:
        tokenizer: the backbone's.
        settings: see `PromptSettings`.
        what: the word for a task in error messages; `question.question_settings` go with ``question``.

    Raises:
        TokenizerError: if the tokenizer has no image placeholder.
        ConfigError: if the system prompt contains chat markup.
    """

    def __init__(self, tokenizer: Tokenizer, settings: PromptSettings, *, what: str = "task") -> None:
        image_token_id = tokenizer.token_to_id(IMAGE_TOKEN)
        if image_token_id is None:
            raise TokenizerError(
                f"the tokenizer has no image placeholder {IMAGE_TOKEN!r} among its "
                f"{tokenizer.get_vocab_size()} tokens. Use a Qwen-VL backbone."
            )
        self.tokenizer = tokenizer
        self.settings = settings
        self.what = what
        self.image_token_id: int = image_token_id
        # Ids before and after the state. A server's robots share an encoder, and this cache is safe in threads.
        self._around = lru_cache(maxsize=_TASKS_KEPT)(self._encode_around)
        self._characters = {c: self._tokenise(c) for c in "0123456789 "} if settings.state_dim else {}
        # The tokenizer would turn this text into special tokens.
        self._markup = [t.content for t in tokenizer.get_added_tokens_decoder().values() if t.special]
        for special in self._markup:
            if special in settings.system_prompt:
                raise ConfigError(
                    f"system_prompt {settings.system_prompt!r} contains the chat markup {special!r}, which would "
                    "change the layout of the prompt. Remove it from system_prompt."
                )

    def encode(self, task: str, state: Sequence[int] | None = None) -> Tensor:
        """Return the ids of one prompt, with expanded image placeholders: ``(L,)`` int64.

        Args:
            task: the instruction; it may be empty, because some datasets have one unnamed task.
            state: ``state_dim`` integers in ``[0, n_bins]``; None if ``state_dim`` is 0.

        Raises:
            PromptError: if the task is not a string, contains chat markup, or the prompt is too long.
            StateError: if the state does not have ``state_dim`` integers.
            TokenizerError: if the tokenizer merges the state's digits with the text around them.
        """
        if not isinstance(task, str):
            raise PromptError(
                f"task is {task!r} ({type(task).__name__}), expected a string. Every dataset frame and every "
                "command needs a task text (an empty one is allowed)."
            )
        if len(state or ()) != self.settings.state_dim:
            raise StateError(
                f"the state has {len(state or ())} integers, and the prompt has room for {self.settings.state_dim}. "
                "Fix policy.state_in_prompt, or the size of observation.state."
            )
        head, tail = self._around(task)
        return torch.cat([head, self._spell(state), tail]) if state else head.clone()

    def _encode_around(self, task: str) -> tuple[Tensor, Tensor]:
        """Return the ids before and after the state's integers; without a state, the second part is empty."""
        for special in self._markup:
            if special in task:
                raise PromptError(
                    f"{self.what} {task!r} contains the chat markup {special!r}, which would change the layout of "
                    f"the prompt. Remove it from the {self.what} text."
                )
        settings = self.settings
        count = len(settings.image_tokens)
        around = _around_state(
            settings.system_prompt, task, count, settings.add_vision_id, with_state=settings.state_dim > 0
        )
        if not settings.state_dim:
            head, tail = self._expand(self._tokenise("".join(around))), torch.empty(0, dtype=torch.long)
            length, longest = len(head), ""
        else:
            head, tail = (self._expand(self._tokenise(part)) for part in around)
            state = [settings.n_bins] * settings.state_dim
            text = chat_text(
                settings.system_prompt, task, count, add_vision_id=settings.add_vision_id, state=state
            )
            whole = self._expand(self._tokenise(text))
            if not torch.equal(whole, torch.cat([head, self._spell(state), tail])):
                raise TokenizerError(
                    f"the tokenizer joins the digits of the state with the text around them in {text!r}, so its length "
                    "would depend on the values. Use a backbone whose tokenizer splits digits (Qwen2-VL, Qwen2.5-VL), "
                    "or state_in_prompt=false."
                )
            length, longest = len(whole), " with the longest state"
        if length > settings.max_length:
            raise PromptError(
                f"the prompt for {self.what} {task[:80]!r} has {length} tokens{longest} "
                f"({sum(settings.image_tokens)} of them image), more than max_prompt_length={settings.max_length}. "
                f"Shorten the {self.what} text{' or system_prompt' if self.what == 'task' else ''}, use fewer or "
                "smaller images, or raise max_prompt_length."
            )
        return head, tail

    def _tokenise(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def _expand(self, ids: list[int]) -> Tensor:
        """Repeat each image placeholder once per token of its image."""
        counts = iter(self.settings.image_tokens)
        expanded: list[int] = []
        for token in ids:
            expanded += [token] * next(counts) if token == self.image_token_id else [token]
        return torch.tensor(expanded, dtype=torch.long)

    def _spell(self, state: Sequence[int]) -> Tensor:
        text = " ".join(map(str, state))
        return torch.tensor([id_ for c in text for id_ in self._characters[c]], dtype=torch.long)

    def encode_batch(
        self, tasks: Sequence[str], states: Sequence[Sequence[int]] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Encode one prompt per row, padded on the left so that all answers begin in one column.

        Returns:
            ids ``(B, L)`` int64 and mask ``(B, L)`` bool, false on padding.

        Raises:
            StateError: if the numbers of states and tasks differ. `encode` raises further errors.
        """
        if states is not None and len(states) != len(tasks):
            raise StateError(
                f"the batch has {len(tasks)} task(s) and {len(states)} state(s); every sample needs both. Pass one "
                "task per sample."
            )
        given = states if states is not None else [None] * len(tasks)
        rows = [self.encode(task, state) for task, state in zip(tasks, given, strict=True)]
        width = max(len(row) for row in rows)
        ids = torch.full((len(rows), width), self.settings.pad_token_id, dtype=torch.long)
        mask = torch.zeros(len(rows), width, dtype=torch.bool)
        for i, row in enumerate(rows):
            ids[i, width - len(row) :] = row
            mask[i, width - len(row) :] = True
        return ids, mask


def rope_positions(
    ids: Tensor, mask: Tensor, *, image_token_id: int, grid: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Compute Qwen's three-axis rotary positions for rows whose images all have one size.

    The result equals transformers' ``Qwen2_5_VLModel.get_rope_index``, which loops over the batch. A text token
    advances all three axes by one. Inside an image the first axis stays and the other two count rows and columns; the
    text after it continues at the image's start plus its longer side.

    Args:
        ids: ``(B, L)`` int64.
        mask: ``(B, L)`` bool, false on padding.
        image_token_id: the placeholder's id.
        grid: (rows, columns) of image tokens of each image.

    Returns:
        positions ``(3, B, L)`` int64 (1 on padding, as in transformers), and the position of the next token ``(B,)``.
    """
    rows, columns = grid
    per_image = rows * columns
    is_image = (ids == image_token_id) & mask
    index = is_image.cumsum(1) - is_image.long()  # image tokens before this one
    image = index // per_image  # images completed before this token
    within = index % per_image
    text_before = (mask & ~is_image).cumsum(1) - (mask & ~is_image).long()
    start = text_before + image * max(rows, columns)  # (B, L)
    positions = start.expand(3, -1, -1).clone()
    positions[1] += torch.where(is_image, within // columns, 0)
    positions[2] += torch.where(is_image, within % columns, 0)
    positions = positions.masked_fill(~mask, 1)
    n_images = is_image.sum(1) // per_image
    following = (mask & ~is_image).sum(1) + n_images * max(rows, columns)
    return positions, following
