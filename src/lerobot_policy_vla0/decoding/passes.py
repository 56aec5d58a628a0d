"""Passes of the backbone over a static cache: the prompt once, then a few answer tokens at a time.

A pass runs transformers' own modules (vision tower, embedding, language model) with this package's cache, columns,
positions and masks, and projects onto the twelve rows of the vocabulary that an answer can hold. Every row of a batch
stands at its own place in its answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lerobot_policy_vla0.backbone.shared_prefix import base_attention
from lerobot_policy_vla0.decoding.autotune import captured_width
from lerobot_policy_vla0.decoding.cache import AnswerCache
from lerobot_policy_vla0.decoding.cuda_graph import StaticPass
from lerobot_policy_vla0.decoding.drafts import Draft
from lerobot_policy_vla0.decoding.request import DecodeRequest
from lerobot_policy_vla0.decoding.weights import AnswerWeights
from lerobot_policy_vla0.text.prompt import rope_positions

if TYPE_CHECKING:
    from lerobot_policy_vla0.backbone.vlm import VLM
    from lerobot_policy_vla0.text.grammar import AnswerGrammar

#: Prompt lengths are rounded up to a multiple of this, so that tasks of similar length share one cache.
_BUCKET = 128


@dataclass(frozen=True)
class Feed:
    """Answer tokens of a pass. Each row's begin at their own place of the answer.

    Attributes:
        symbols: ``(B, W)`` int64.
        starts: ``(B,)`` int64, tokens of each row's answer that are in the cache already.
        depths: ``(B, W)`` int64, how many tokens of the pass come before each on its path; tokens on different
            branches of a draft can have the same.
        visible: ``(B, W, W)`` bool, which tokens of the pass each one attends to (itself, and those before it on its
            path).
    """

    symbols: NDArray[Any]
    starts: NDArray[Any]
    depths: NDArray[Any]
    visible: NDArray[Any]

    @classmethod
    def chain(cls, symbols: NDArray[Any], starts: NDArray[Any]) -> Feed:
        """Return a pass without branches."""
        batch, width = symbols.shape
        depths = np.broadcast_to(np.arange(width), (batch, width)).copy()
        visible = np.broadcast_to(np.tri(width, dtype=bool), (batch, width, width)).copy()
        return cls(symbols, starts, depths, visible)

    @classmethod
    def lay_out(cls, settled: list[list[int]], drafts: list[Draft], starts: NDArray[Any]) -> Feed:
        """Return a pass of each row's settled symbols and its draft; shorter rows are filled up with zeros."""
        ends = [len(text) + len(draft) for text, draft in zip(settled, drafts, strict=True)]
        feed = cls.chain(np.zeros((len(ends), max(ends)), dtype=np.int64), starts)
        for row, (text, draft, end) in enumerate(zip(settled, drafts, ends, strict=True)):
            first = len(text)
            feed.symbols[row, :end] = text + draft.symbols
            if len(draft):
                feed.depths[row, first:end] = first + np.array(draft.depths())
                feed.visible[row, first:end, first:end] = draft.visibility()
        return feed


class PassRunner:
    """Prefills prompts and scores answer tokens against the cache.

    Column ``c`` of the cache holds prompt token ``c``, column ``P + t`` answer token ``t`` of its row.

    Args:
        vlm: the backbone.
        grammar: gives the ids of the twelve symbols and the length of the longest answer.
        max_width: tokens of the widest pass.
    """

    def __init__(self, vlm: VLM, grammar: AnswerGrammar, *, max_width: int) -> None:
        self.vlm = vlm
        self.weights = AnswerWeights(vlm, grammar.token_ids)
        #: Columns after the prompt's: a captured pass writes its whole width.
        self._answer_columns = grammar.longest_answer + captured_width(max_width)
        self._language_model: Any = vlm.model.model.language_model
        self._host_ids = grammar.token_ids.cpu().numpy()
        self._device = grammar.token_ids.device
        self._cache: AnswerCache | None = None
        self._weights_seen: int | None = None
        self._ids = self._mask = torch.empty(0)
        self._prefix_columns = 0
        self._image_mask = torch.empty(0)
        self._positions = self._following = torch.empty(0)
        self._prompt_length = 0
        self._valid = torch.empty(0)
        self._base = self._all_columns = torch.empty(0)
        #: Whether passes run on fixed memory (captured as graphs on CUDA).
        self.static = self._device.type == "cuda"
        self._static_passes: dict[int, StaticPass] = {}
        #: Prompt tokens that the last prefill did not compute, because the cache still held their keys and values.
        self.reused_columns = 0

    # ------------------------------------------------------------------ prefill

    def prefill(self, request: DecodeRequest, feed: Feed) -> NDArray[Any]:
        """Run prompt, images and the answer's first symbols; score what follows the prompt and each of them.

        Args:
            request: the prompts.
            feed: committed symbols and a draft after them, ``(B, W)`` with ``W >= 0`` and every ``starts`` 0.

        Returns:
            ``(B, 1 + W, 12)`` float32 logits.
        """
        weights = self.weights.fingerprint()
        start = self._prepare(request, weights)
        self._weights_seen = None  # an error below leaves a cache that nothing may be taken over from
        length = self._prompt_length
        batch, width = feed.symbols.shape
        embeddings = self.vlm.embed(
            request.ids[:, start:], self._image_mask[:, start:], request.pixel_values, request.grid_thw
        )
        positions = self._positions[:, :, start:]
        columns = torch.arange(start, length + width, device=self._device).expand(batch, -1)
        keys = self._all_columns[: length + width]
        visible = (keys <= columns.unsqueeze(-1)) & self._valid[:, None, : length + width]
        # Padding attends to itself, because a mask row without any key would give NaN.
        visible |= keys == columns.unsqueeze(-1)
        if width:
            embeddings = torch.cat([embeddings, self._embed(feed.symbols)], dim=1)
            depths = torch.from_numpy(feed.depths).to(self._device)
            answer = (self._following.unsqueeze(1) + depths).expand(3, -1, -1)
            positions = torch.cat([positions, answer], dim=2)
            visible[:, -width:, -width:] = torch.from_numpy(feed.visible).to(self._device)
        hidden = self._run(embeddings, positions, columns, visible, start=start, attended=length + width)
        logits = self.weights.project(hidden[:, -1 - width :])
        out: NDArray[Any] = logits.float().cpu().numpy()
        self._weights_seen = weights
        return out

    def _prepare(self, request: DecodeRequest, weights: int) -> int:
        """Set up cache, positions and head for a batch of prompts; return the first column to compute.

        Columns before every row's first image depend on their ids, the padding and the weights only. If these are
        those of the prefill before, their keys and values are still in the cache.
        """
        ids, mask = request.ids, request.mask
        same_weights = weights == self._weights_seen
        same_prompt = (
            ids.shape == self._ids.shape
            and bool(torch.equal(ids, self._ids))
            and bool(torch.equal(mask, self._mask))
        )
        if not same_weights:
            self.weights.refresh(cast=self.static)
            self._static_passes.clear()
        if same_prompt:
            self.reused_columns = self._prefix_columns if same_weights else 0
            return self.reused_columns

        batch, length = ids.shape
        is_image = (ids == self.vlm.image_token_id) & mask
        prefix = int(is_image.any(0).long().argmax())
        columns = -(-length // _BUCKET) * _BUCKET + self._answer_columns
        # The cache never shrinks: a prompt that holds the state changes its length from frame to frame.
        fresh = self._cache is None or self._cache.batch != batch or self._cache.length < columns
        before = min(prefix, self._prefix_columns)
        reusable = (
            not fresh
            and same_weights
            and bool(torch.equal(ids[:, :before], self._ids[:, :before]))
            and bool(torch.equal(mask[:, :before], self._mask[:, :before]))
        )
        if fresh:
            # Passes are captured on this memory, so what changes from prompt to prompt is written into it.
            self._static_passes.clear()
            self._cache = AnswerCache(batch, columns)
            self._all_columns = torch.arange(columns, device=self._device)
            self._base = torch.zeros((), dtype=torch.long, device=self._device)  # the prompt's length
            self._following = torch.zeros(batch, dtype=torch.long, device=self._device)
            self._valid = torch.ones(batch, columns, dtype=torch.bool, device=self._device)
        merge = self.vlm.merge_size
        _, height, width = request.grid_thw[0].tolist()
        self._positions, following = rope_positions(
            ids, mask, image_token_id=self.vlm.image_token_id, grid=(height // merge, width // merge)
        )
        self._ids, self._mask, self._image_mask = ids.clone(), mask.clone(), is_image
        self._prefix_columns = prefix
        self._prompt_length = length
        self._following.copy_(following)
        self._base.fill_(length)
        self._valid.fill_(True)
        self._valid[:, :length] = mask
        self.reused_columns = before if reusable else 0
        return self.reused_columns

    # ------------------------------------------------------------------ answer tokens

    def score(self, feed: Feed) -> NDArray[Any]:
        """Feed answer symbols and score what follows each of them: ``(B, W, 12)`` float32 logits."""
        width = feed.symbols.shape[1]
        ids = self._host_ids[feed.symbols]
        if self.static:
            logits = self._static_pass(width)(ids, feed.starts, feed.depths, feed.visible)
        else:
            first = int(feed.starts[0])
            shared = self._prompt_length + first if bool((feed.starts == first).all()) else None
            logits = self._pass(
                torch.from_numpy(ids).to(self._device),
                torch.from_numpy(feed.starts).to(self._device),
                torch.from_numpy(feed.depths).to(self._device),
                torch.from_numpy(feed.visible).to(self._device),
                start=shared,
                attended=self._prompt_length + int(feed.starts.max()) + width,
            )
        out: NDArray[Any] = logits.float().cpu().numpy()
        return out

    def _pass(
        self,
        ids: Tensor,
        starts: Tensor,
        depths: Tensor,
        tree: Tensor,
        *,
        start: int | None = None,
        attended: int | None = None,
    ) -> Tensor:
        """Run answer tokens on the device; return logits ``(B, W, 12)``.

        Args:
            ids: ``(B, W)`` token ids.
            starts: see `Feed`.
            depths: see `Feed`.
            tree: ``Feed.visible``.
            start: the first column, if all rows write the same ones.
            attended: columns to attend to, from the first on; None is all of them.
        """
        width = ids.shape[1]
        columns = (self._base + starts).unsqueeze(1) + self._all_columns[:width]  # (B, W)
        positions = (self._following + starts).unsqueeze(1) + depths
        before = (self._all_columns[:attended] < columns[:, :1]) & self._valid[:, :attended]  # (B, attended)
        visible = before.unsqueeze(1).repeat(1, width, 1)
        visible.scatter_(2, columns.unsqueeze(1).expand(-1, width, -1), tree)
        hidden = self._run(
            self._language_model.embed_tokens(ids),
            positions.expand(3, -1, -1),
            columns,
            visible,
            start=start,
            attended=visible.shape[2],
        )
        return self.weights.project(hidden)

    def _static_pass(self, width: int) -> StaticPass:
        """Return the captured pass that holds ``width`` tokens."""
        assert self._cache is not None
        width = captured_width(width)
        if width not in self._static_passes:
            self._static_passes[width] = StaticPass(
                partial(self.weights.with_cast_weights, self._pass),
                batch=self._cache.batch,
                width=width,
                device=self._device,
                spare=self._cache.length - self._prompt_length - width,
            )
        return self._static_passes[width]

    def keep(self, row: int, start: int, path: list[int]) -> None:
        """Move accepted guesses of the last pass together in the cache, over the rejected ones between them.

        Args:
            row: of the batch.
            start: the answer's place where the draft began.
            path: the accepted guesses' indices in the draft, ascending.
        """
        assert self._cache is not None
        base = self._prompt_length + start
        source = torch.tensor(path, device=self._device) + base
        target = torch.arange(len(path), device=self._device) + base
        self._cache.move(row, source, target)

    # ------------------------------------------------------------------ shared

    def _embed(self, symbols: NDArray[Any]) -> Tensor:
        ids = torch.from_numpy(self._host_ids[symbols]).to(self._device)
        out: Tensor = self._language_model.embed_tokens(ids)
        return out

    def _run(
        self,
        embeddings: Tensor,
        positions: Tensor,
        columns: Tensor,
        visible: Tensor,
        *,
        start: int | None,
        attended: int,
    ) -> Tensor:
        """Run the language model on tokens at ``columns`` ``(B, W)``; return hidden states ``(B, W, hidden)``.

        ``visible`` ``(B, W, attended)`` says which columns each token attends to.
        """
        assert self._cache is not None
        self._cache.place(columns, start=start, attended=attended)
        mask = visible.unsqueeze(1)  # (B, 1, W, attended)
        if base_attention(self._language_model.config._attn_implementation) == "eager":  # adds its mask
            lowest = torch.finfo(embeddings.dtype).min
            mask = torch.zeros_like(mask, dtype=embeddings.dtype).masked_fill(~mask, lowest)
        with _masked_attention(self._language_model.config):
            output = self._language_model(
                inputs_embeds=embeddings,
                position_ids=positions,
                attention_mask={"full_attention": mask},
                past_key_values=self._cache,
                use_cache=True,
            )
        hidden: Tensor = output.last_hidden_state
        return hidden


@contextmanager
def _masked_attention(config: Any) -> Iterator[None]:
    """Use sdpa for a pass where the backbone uses flash attention, whose kernels accept no mask."""
    configured = config._attn_implementation
    if "flash" in configured:
        config._attn_implementation = "sdpa"
    try:
        yield
    finally:
        if "flash" in configured:
            config._attn_implementation = configured
