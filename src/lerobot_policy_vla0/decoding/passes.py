"""Passes of the backbone over a static cache: the prompt once, then a few answer tokens at a time.

A pass places its tokens in the cache, says what each attends to, and runs the backbone (`decoding.lean`). Every row of
a batch stands at its own place in its answer.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from lerobot_policy_vla0.decoding.autotune import captured_width, captured_widths
from lerobot_policy_vla0.decoding.cache import AnswerCache
from lerobot_policy_vla0.decoding.cuda_graph import StaticPass, graph_pool
from lerobot_policy_vla0.decoding.drafts import Draft
from lerobot_policy_vla0.decoding.lean import LeanModel
from lerobot_policy_vla0.decoding.request import DecodeRequest
from lerobot_policy_vla0.text.prompt import rope_positions

if TYPE_CHECKING:
    from lerobot_policy_vla0.backbone.vlm import VLM
    from lerobot_policy_vla0.text.grammar import AnswerGrammar

logger = logging.getLogger(__name__)

#: Prompt lengths are rounded up to a multiple of this, so that tasks of similar length share one cache.
_BUCKET = 128
#: On fixed memory, prompts are padded to a multiple of this: a GPU's libraries prepare for every shape anew.
_PADDED = 64
#: Caches are as many columns long as a multiple of this: GPU kernels copy masks of another length before they use them.
_ALIGNED = 16


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
        depths = np.empty((batch, width), dtype=np.int64)
        depths[:] = np.arange(width)
        visible = np.empty((batch, width, width), dtype=bool)
        visible[:] = np.tri(width, dtype=bool)
        return cls(symbols, starts, depths, visible)

    @classmethod
    def lay_out(cls, settled: list[list[int]], drafts: list[Draft], starts: NDArray[Any]) -> Feed:
        """Return a pass of each row's settled symbols and its draft; shorter rows are filled up with zeros."""
        ends = [len(text) + len(draft) for text, draft in zip(settled, drafts, strict=True)]
        feed = cls.chain(np.zeros((len(ends), max(ends)), dtype=np.int64), starts)
        for row, (text, draft, end) in enumerate(zip(settled, drafts, ends, strict=True)):
            first = len(text)
            feed.symbols[row, :end] = text + draft.symbols
            if not draft.is_chain:
                feed.depths[row, first:end] = first + np.array(draft.depths())
                feed.visible[row, first:end, first:end] = draft.visibility()
        return feed

    def widened(self, width: int) -> Feed:
        """Return a pass of ``width`` tokens per row; the added ones attend to themselves, and no other to them."""
        batch, fed = self.symbols.shape
        wider = Feed.chain(np.zeros((batch, width), dtype=np.int64), self.starts)
        wider.symbols[:, :fed] = self.symbols
        wider.depths[:, :fed] = self.depths
        wider.visible[:] = np.eye(width, dtype=bool)
        wider.visible[:, :fed, :fed] = self.visible
        return wider


class PassRunner:
    """Prefills prompts and scores answer tokens against the cache.

    Column ``c`` of the cache holds prompt token ``c``, column ``P + t`` answer token ``t`` of its row.

    Args:
        vlm: the backbone.
        grammar: gives the ids of the twelve symbols and the length of the longest answer.
        max_width: tokens of the widest pass.
        model: runs the backbone; None builds one. Runners of one policy can share it.
    """

    def __init__(
        self, vlm: VLM, grammar: AnswerGrammar, *, max_width: int, model: LeanModel | None = None
    ) -> None:
        self.vlm = vlm
        self.model = LeanModel(vlm, grammar.token_ids) if model is None else model
        #: Columns after the prompt's: a captured pass writes its whole width.
        self._answer_columns = grammar.longest_answer + captured_width(max_width)
        self._widest = max_width
        self._host_ids = grammar.token_ids.cpu().numpy()
        self._device = grammar.token_ids.device
        self._cache: AnswerCache | None = None
        self._generation = 0  # of the weights behind the cache; 0 if nothing may be taken over from it
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
        generation = self.model.refresh()
        fed = feed.symbols.shape[1]
        if self.static:
            request, feed = self._padded(request, feed)
        frames, height, breadth = request.grid_thw[0].tolist()
        start = self._prepare(request, generation, (height, breadth))
        self._generation = 0  # an error below leaves a cache that nothing may be taken over from
        cache, length = self._cache, self._prompt_length
        assert cache is not None
        batch, width = feed.symbols.shape
        inputs = self.model.embed_prompt(
            request.ids[:, start:],
            self._image_mask[:, start:],
            request.pixel_values,
            (frames, height, breadth),
        )
        positions = self._positions[:, :, start:]
        columns = self._all_columns[start : length + width]
        keys = self._all_columns[: length + width]
        visible = (keys <= columns.unsqueeze(-1)) & self._valid[:, None, : length + width]
        # Padding attends to itself, because a mask row without any key would give NaN.
        visible |= keys == columns.unsqueeze(-1)
        if width:
            inputs = torch.cat([inputs, self.model.embed(self._to_ids(feed.symbols))], dim=1)
            depths = torch.from_numpy(feed.depths).to(self._device)
            answer = (self._following.unsqueeze(1) + depths).expand(3, -1, -1)
            positions = torch.cat([positions, answer], dim=2)
            visible[:, -width:, -width:] = torch.from_numpy(feed.visible).to(self._device)
        cache.place(columns.expand(batch, -1), start=start)
        logits = self.model.score(inputs, positions, visible, cache, keep=1 + width)
        out: NDArray[Any] = logits[:, : 1 + fed].cpu().numpy()
        self._generation = generation
        if self.static and not self._static_passes:
            self._capture()
        return out

    def _padded(self, request: DecodeRequest, feed: Feed) -> tuple[DecodeRequest, Feed]:
        """Return a prefill of one of few shapes with the same scores: padding before the prompt and after the feed."""
        ids, mask, fed = request.ids, request.mask, feed.symbols.shape[1]
        more = -ids.shape[1] % _PADDED
        request = replace(
            request,
            ids=functional.pad(ids, (more, 0), value=self.vlm.tokens.pad),
            mask=functional.pad(mask, (more, 0), value=False),
        )
        return request, feed.widened(max(min(captured_width(fed), self._answer_columns), fed))

    def _prepare(self, request: DecodeRequest, generation: int, size: tuple[int, int]) -> int:
        """Set up cache and positions for a batch of prompts; return the first column to compute.

        Columns before every row's first image depend on their ids, the padding and the weights only. If these are
        those of the prefill before, their keys and values are still in the cache.

        Args:
            request: the prompts.
            generation: of the weights.
            size: patches of each image along height and width.
        """
        ids, mask = request.ids, request.mask
        same_weights = generation == self._generation
        same_prompt = (
            self._cache is not None
            and self.model.fits(self._cache)
            and ids.shape == self._ids.shape
            and bool(torch.equal(ids, self._ids))
            and bool(torch.equal(mask, self._mask))
        )
        if not same_weights:
            self._static_passes.clear()
        if same_prompt:
            self.reused_columns = self._prefix_columns if same_weights else 0
            return self.reused_columns

        batch, length = ids.shape
        is_image = (ids == self.vlm.image_token_id) & mask
        prefix = int(is_image.any(0).long().argmax())
        columns = -(-(-(-length // _BUCKET) * _BUCKET + self._answer_columns) // _ALIGNED) * _ALIGNED
        # The cache never shrinks: a prompt that holds the state changes its length from frame to frame.
        fresh = (
            self._cache is None
            or not self.model.fits(self._cache)
            or self._cache.batch != batch
            or self._cache.length < columns
        )
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
            self._cache = self.model.new_cache(batch, columns)
            self._all_columns = torch.arange(columns, device=self._device)
            self._base = torch.zeros((), dtype=torch.long, device=self._device)  # the prompt's length
            self._following = torch.zeros(batch, dtype=torch.long, device=self._device)
            self._valid = torch.ones(batch, columns, dtype=torch.bool, device=self._device)
        merge = self.vlm.merge_size
        self._positions, following = rope_positions(
            ids, mask, image_token_id=self.vlm.image_token_id, grid=(size[0] // merge, size[1] // merge)
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
        if self.static:
            ids = self._host_ids[feed.symbols]
            run = self._static_passes[captured_width(width)]
            logits = run(ids, feed.starts, feed.depths, feed.visible)
        else:
            first = int(feed.starts[0])
            shared = self._prompt_length + first if bool((feed.starts == first).all()) else None
            logits = self._pass(
                self._to_ids(feed.symbols),
                torch.from_numpy(feed.starts).to(self._device),
                torch.from_numpy(feed.depths).to(self._device),
                torch.from_numpy(feed.visible).to(self._device),
                start=shared,
                attended=self._prompt_length + int(feed.starts.max()) + width,
            )
        out: NDArray[Any] = logits.cpu().numpy()
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
        assert self._cache is not None
        width = ids.shape[1]
        columns = (self._base + starts).unsqueeze(1) + self._all_columns[:width]  # (B, W)
        positions = (self._following + starts).unsqueeze(1) + depths
        before = (self._all_columns[:attended] < columns[:, :1]) & self._valid[:, :attended]  # (B, attended)
        visible = before.unsqueeze(1).repeat(1, width, 1)
        visible.scatter_(2, columns.unsqueeze(1).expand(-1, width, -1), tree)
        self._cache.place(columns, start=start)
        return self.model.score(self.model.embed(ids), positions, visible, self._cache)

    def _capture(self) -> None:
        """Capture passes of all widths, once for this memory and these weights; do without from now on if one fails."""
        assert self._cache is not None
        pool = graph_pool(self._device)
        for width in reversed(
            captured_widths(self._widest)
        ):  # narrower ones fit into the memory of the widest
            try:
                self._static_passes[width] = StaticPass(
                    self._pass,
                    batch=self._cache.batch,
                    width=width,
                    device=self._device,
                    spare=self._cache.length - self._prompt_length - width,
                    pool=pool,
                )
            except RuntimeError as error:
                self.static = False
                self._static_passes.clear()
                logger.warning(
                    "decoder: a pass of width %d could not be captured as a CUDA graph (%s); passes run uncaptured "
                    "from now on, which gives the same tokens and takes longer",
                    width,
                    error,
                )
                return

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

    def _to_ids(self, symbols: NDArray[Any]) -> Tensor:
        return torch.from_numpy(self._host_ids[symbols]).to(self._device)
