"""Passes of the backbone over a static cache: the prompt once, then a few answer tokens at a time.

A pass places its tokens in the cache, says what each attends to, and runs the backbone (`decoding.lean`). Every row of
a batch stands at its own place in its answer.
"""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from lerobot_policy_vla0.decoding.autotune import captured_width, captured_widths
from lerobot_policy_vla0.decoding.cache import AnswerCache
from lerobot_policy_vla0.decoding.cuda_graph import CaptureError, StaticCall, StaticFeed, graph_pool
from lerobot_policy_vla0.decoding.feed import Feed
from lerobot_policy_vla0.decoding.lean import LeanModel
from lerobot_policy_vla0.decoding.request import DecodeRequest
from lerobot_policy_vla0.text.prompt import rope_positions

if TYPE_CHECKING:
    from lerobot_policy_vla0.backbone.vlm import VLM
    from lerobot_policy_vla0.text.grammar import AnswerGrammar

logger = logging.getLogger(__name__)

#: Prompt lengths are rounded up to a multiple of this, so that tasks of similar length share one cache.
_BUCKET = 128
#: On fixed memory, prompts are padded to a multiple of this, so that few shapes are captured.
PADDED = 64
#: Captured prompts and picture sizes that are kept at least; the one not used for longest is dropped.
KEPT = 16
#: Caches are as many columns long as a multiple of this: GPU kernels copy masks of another length before they use them.
_ALIGNED = 16


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
        # Of the weights behind the cache, and behind the static calls; 0 if nothing may be taken over.
        self._generation = self._static_generation = 0
        self._ids = self._mask = torch.empty(0, 0)
        self._prefix_columns = 0
        self._image_mask = self._positions = torch.empty(0)
        self._prompt_length = 0
        # What passes read of the prompt; always the same memory, which graphs are captured on.
        self._base = self._following = self._valid = self._all_columns = torch.empty(0)
        #: Whether everything runs on fixed memory (captured as graphs on CUDA).
        self.static = self._device.type == "cuda"
        self._static_passes: dict[int, StaticCall] = {}
        self._static_prompts: OrderedDict[Hashable, StaticCall] = OrderedDict()
        self._static_feeds: dict[int, StaticFeed] = {}
        self._pool: Any = None
        #: Prompt tokens that the last prefill did not compute, because the cache still held their keys and values.
        self.reused_columns = 0

    # ------------------------------------------------------------------ prefill

    def encode_pictures(self, request: DecodeRequest) -> Tensor:
        """Return the image tokens ``(n, hidden)`` of a request; on fixed memory they are valid until the next call."""
        if not self.static:
            return self.model.encode_images(request.pixel_values, request.grid)
        call = self._static_pictures(request.pixel_values, request.grid)
        call.inputs[0].copy_(request.pixel_values)
        return call()

    def prefill(self, request: DecodeRequest, feed: Feed) -> NDArray[Any]:
        """Run prompt, images and the answer's first symbols; score what follows the prompt and each of them.

        Args:
            request: the prompts.
            feed: committed symbols and a draft after them, ``(B, W)`` with ``W >= 0`` and every ``starts`` 0.

        Returns:
            ``(B, 1 + W, 12)`` float32 logits.
        """
        generation = self.model.refresh()
        reusable = generation == self._generation
        if not reusable and self._cache is not None:
            self._cache.store.zero_()  # other weights may have left NaN, which no mask hides
        self._generation = 0  # an error below leaves a cache that nothing may be taken over from
        logits = None
        if self.static:
            try:
                logits = self._prefill_static(request, feed, generation)
            except CaptureError as error:
                self.static = False
                self._forget_static()
                logger.warning(
                    "decoder: %s; nothing is captured from now on, which gives the same tokens and takes longer",
                    error,
                )
        if logits is None:
            logits = self._prefill_plain(request, feed, reusable)
        out: NDArray[Any] = logits[:, : 1 + feed.symbols.shape[1]].cpu().numpy()
        self._generation = generation
        return out

    def _prefill_plain(self, request: DecodeRequest, feed: Feed, reusable: bool) -> Tensor:
        """Run the prompt from its first column that the cache does not hold."""
        start = self._place_known_prompt(request, reusable)
        return self._prompt(
            request.ids,
            self._image_mask,
            self._positions,
            self.encode_pictures(request),
            self._to_ids(feed.symbols),
            torch.from_numpy(feed.depths).to(self._device),
            torch.from_numpy(feed.visible).to(self._device),
            start=start,
        )

    def _prompt(
        self,
        ids: Tensor,
        is_image: Tensor,
        positions: Tensor,
        pictures: Tensor,
        answer: Tensor,
        depths: Tensor,
        tree: Tensor,
        *,
        start: int = 0,
    ) -> Tensor:
        """Run prompt and first answer tokens on the device; return logits ``(B, 1 + W, 12)``.

        Args:
            ids: ``(B, P)``.
            is_image: ``(B, P)`` bool.
            positions: ``(3, B, P)``.
            pictures: ``(n, hidden)`` image tokens.
            answer: ``(B, W)`` token ids.
            depths: see `Feed`.
            tree: ``Feed.visible``.
            start: the first column to compute.
        """
        cache = self._cache
        assert cache is not None
        (batch, length), width = ids.shape, answer.shape[1]
        inputs = self.model.embed_prompt(ids[:, start:], is_image[:, start:], pictures)
        positions = positions[:, :, start:]
        columns = self._all_columns[start : length + width]
        keys = self._all_columns[: length + width]
        visible = (keys <= columns.unsqueeze(-1)) & self._valid[:, None, : length + width]
        # Padding attends to itself, because a mask row without any key would give NaN.
        visible |= keys == columns.unsqueeze(-1)
        if width:
            inputs = torch.cat([inputs, self.model.embed(answer)], dim=1)
            following = (self._following.unsqueeze(1) + depths).expand(3, -1, -1)
            positions = torch.cat([positions, following], dim=2)
            visible[:, -width:, -width:] = tree
        cache.place(columns.expand(batch, -1), start=start)
        return self.model.score(inputs, positions, visible, cache, keep=1 + width)

    def _place_prompt(self, ids: Tensor, mask: Tensor, size: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
        """Write down what passes need of a prompt; return its placeholders ``(B, P)`` and positions ``(3, B, P)``."""
        merge, length = self.vlm.merge_size, ids.shape[1]
        positions, following = rope_positions(
            ids,
            mask,
            image_token_id=self.vlm.image_token_id,
            grid=(size[1] // merge, size[2] // merge),
        )
        self._following.copy_(following)
        self._base.fill_(length)
        self._valid[:, :length] = mask
        self._valid[:, length:] = True
        return (ids == self.vlm.image_token_id) & mask, positions

    def _place_known_prompt(self, request: DecodeRequest, reusable: bool) -> int:
        """Set up cache and positions for a batch of prompts; return the first column to compute.

        Columns before every row's first image depend on their ids, the padding and the weights only. If these are
        those of the prefill before, their keys and values are still in the cache.

        Args:
            request: the prompts.
            reusable: whether the cache was filled by the same weights.
        """
        ids, mask = request.ids, request.mask
        fresh = self._allocate(*ids.shape)
        if not fresh and torch.equal(ids, self._ids) and torch.equal(mask, self._mask):
            before = self._prefix_columns
        else:
            self._image_mask, self._positions = self._place_prompt(ids, mask, request.grid)
            prefix = int(self._image_mask.any(0).long().argmax())
            before = 0 if fresh else min(prefix, self._prefix_columns)
            if not (
                torch.equal(ids[:, :before], self._ids[:, :before])
                and torch.equal(mask[:, :before], self._mask[:, :before])
            ):
                before = 0
            self._ids, self._mask, self._prefix_columns = ids.clone(), mask.clone(), prefix
        self._prompt_length = ids.shape[1]
        self.reused_columns = before if reusable else 0
        return self.reused_columns

    def _allocate(self, batch: int, length: int, spare: int = 0) -> bool:
        """Make a cache unless there is one; return whether it is new.

        It never shrinks: a prompt that holds the state changes its length from frame to frame.

        Args:
            batch: rows.
            length: of the prompts.
            spare: more tokens that the next prompts may have.
        """
        cache, least = self._cache, length + self._answer_columns
        if cache is not None and self.model.fits(cache) and cache.batch == batch and cache.length >= least:
            return False
        columns = -(-(length + spare) // _BUCKET) * _BUCKET + self._answer_columns
        columns = -(-columns // _ALIGNED) * _ALIGNED
        self._forget_static()
        self._cache = self.model.new_cache(batch, columns)
        self._all_columns = torch.arange(columns, device=self._device)
        self._base = torch.zeros((), dtype=torch.long, device=self._device)  # the prompt's length
        self._following = torch.zeros(batch, dtype=torch.long, device=self._device)
        self._valid = torch.ones(batch, columns, dtype=torch.bool, device=self._device)
        return True

    # ------------------------------------------------------------------ fixed memory

    def _prefill_static(self, request: DecodeRequest, feed: Feed, generation: int) -> Tensor:
        """Run a prefill of one of few shapes: padding before the prompt and after the feed changes no score."""
        fed, more = feed.symbols.shape[1], -request.ids.shape[1] % PADDED
        ids = functional.pad(request.ids, (more, 0), value=self.vlm.tokens.pad)
        mask = functional.pad(request.mask, (more, 0), value=False)
        feed = feed.widened(max(min(captured_width(fed), self._answer_columns), fed))
        (batch, length), width = ids.shape, feed.symbols.shape[1]
        if generation != self._static_generation:
            self._forget_static()
        self._static_generation = generation
        self._allocate(batch, length, spare=PADDED)
        self._ids, self._prefix_columns = torch.empty(0, 0), 0  # nothing is taken over from here
        images = len(request.pixel_values) // math.prod(request.grid)
        # 1. Everything is captured before anything runs: a trial run writes into the cache.
        self._static_pictures(request.pixel_values, request.grid)
        if not self._static_passes:
            self._capture_all(length, request.grid, images)
        run = self._static_prompt(length, width, request.grid, images)
        # 2. What a graph returned is copied before the next one runs.
        for room, value in zip(run.inputs, (ids, mask, self.encode_pictures(request)), strict=False):
            room.copy_(value)
        self._write(feed, width)
        self._prompt_length, self.reused_columns = length, 0
        return run()

    def _capture_all(self, length: int, size: tuple[int, int, int], images: int) -> None:
        """Capture passes of all widths, and prompts of this length and the next with feeds of all widths."""
        widths = captured_widths(self._widest)[::-1]  # narrower ones fit into the memory of the widest
        for longer in (PADDED, 0):
            for width in widths:
                self._static_prompt(length + longer, width, size, images)
        self._static_passes = {
            width: self._captured(f"a pass of width {width}", self._pass, *self._feed(width).views)
            for width in widths
        }

    def _static_pictures(self, pixel_values: Tensor, size: tuple[int, int, int]) -> StaticCall:
        """Return the call that encodes pictures of one size."""

        def encode(pixel_values: Tensor) -> Tensor:
            return self.model.encode_images(pixel_values, size)

        return self._kept(
            (pixel_values.shape, pixel_values.dtype, size),
            lambda: self._captured("the vision tower", encode, torch.zeros_like(pixel_values)),
        )

    def _static_prompt(self, length: int, width: int, size: tuple[int, int, int], images: int) -> StaticCall:
        """Return the call that runs prompts ``(B, length)`` and ``width`` answer tokens; the rest is the pictures'."""

        def run(
            ids: Tensor,
            mask: Tensor,
            pictures: Tensor,
            answer: Tensor,
            _: Tensor,
            depths: Tensor,
            tree: Tensor,
        ) -> Tensor:
            is_image, positions = self._place_prompt(ids, mask, size)
            return self._prompt(ids, is_image, positions, pictures, answer, depths, tree)

        def make() -> StaticCall:
            assert self._cache is not None
            ids = torch.zeros(self._cache.batch, length, dtype=torch.long, device=self._device)
            pictures = self.model.new_pictures(images * math.prod(size) // self.vlm.merge_size**2)
            what = f"a prompt of {length} tokens with {width} of the answer"
            return self._captured(what, run, ids, ids.bool(), pictures, *self._feed(width).views)

        return self._kept((length, width, size, images), make)

    def _kept(self, key: Hashable, make: Callable[[], StaticCall]) -> StaticCall:
        """Return the call of a prompt's or picture's shape, made where there is none."""
        if key not in self._static_prompts:
            self._static_prompts[key] = make()
            needed = 1 + 2 * len(captured_widths(self._widest))  # by one task, see `_capture_all`
            if len(self._static_prompts) > max(KEPT, 2 * needed):
                self._static_prompts.popitem(last=False)
        self._static_prompts.move_to_end(key)
        return self._static_prompts[key]

    def _captured(self, what: str, function: Callable[..., Tensor], *inputs: Tensor) -> StaticCall:
        """Return a static call, in one memory pool with all others.

        Raises:
            CaptureError: naming what could not be captured.
        """
        if self._pool is None:
            self._pool = graph_pool(self._device)
        try:
            return StaticCall(function, *inputs, pool=self._pool)
        except CaptureError as error:
            raise CaptureError(f"{what} could not be captured as a CUDA graph ({error})") from error

    def _feed(self, width: int) -> StaticFeed:
        """Return the place of a feed's tokens."""
        if width not in self._static_feeds:
            assert self._cache is not None
            self._static_feeds[width] = StaticFeed(self._cache.batch, width, self._device)
        return self._static_feeds[width]

    def _write(self, feed: Feed, width: int) -> None:
        """Send a feed to the place of those of a width."""
        self._feed(width).write(self._host_ids[feed.symbols], feed.starts, feed.depths, feed.visible)

    def _forget_static(self) -> None:
        """Drop what was captured on memory or weights that are no longer used."""
        self._static_passes, self._static_feeds, self._pool = {}, {}, None
        self._static_prompts.clear()

    # ------------------------------------------------------------------ answer tokens

    def leave_out(self, finished: Sequence[bool]) -> list[int]:
        """Move unfinished rows to the front, so that the passes from now on are as small as they can be.

        Args:
            finished: for each row of the last pass, whether it needs no more passes.

        Returns:
            The rows of the next pass: for each, which row of the last pass it is.
        """
        rows = list(range(len(finished)))
        count = finished.count(False)
        if self.static or count == len(rows):  # a captured pass always has all rows
            return rows
        gaps = [row for row in rows[:count] if finished[row]]
        late = [row for row in rows[count:] if not finished[row]]
        if gaps:
            assert self._cache is not None
            self._cache.exchange(*torch.tensor([gaps, late], device=self._device))
            for gap, row in zip(gaps, late, strict=True):
                rows[gap], rows[row] = row, gap
            # What is known of the prompts follows its row: the next prefill compares prompts with these.
            all_rows = torch.tensor([*rows, *range(len(rows), self._cache.batch)], device=self._device)
            self._following, self._valid = self._following[all_rows], self._valid[all_rows]
            self._ids, self._mask = self._ids[all_rows], self._mask[all_rows]
            self._image_mask, self._positions = self._image_mask[all_rows], self._positions[:, all_rows]
        return rows[:count]

    def score(self, feed: Feed) -> NDArray[Any]:
        """Feed answer symbols and score what follows each of them: ``(B, W, 12)`` float32 logits.

        Args:
            feed: of all rows, or of those that `leave_out` left, in its order.
        """
        width = feed.symbols.shape[1]
        if self.static:
            run = self._static_passes[captured_width(width)]
            self._write(feed, captured_width(width))
            logits = run()[:, :width]
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
        batch, width = ids.shape
        columns = (self._base + starts).unsqueeze(1) + self._all_columns[:width]  # (B, W)
        positions = (self._following[:batch] + starts).unsqueeze(1) + depths
        before = self._all_columns[:attended] < columns[:, :1]  # (B, attended)
        before &= self._valid[:batch, :attended]
        visible = before.unsqueeze(1).repeat(1, width, 1)
        visible.scatter_(2, columns.unsqueeze(1).expand(-1, width, -1), tree)
        self._cache.place(columns, start=start)
        return self.model.score(self.model.embed(ids), positions, visible, self._cache)

    def keep(self, rows: NDArray[Any], sources: NDArray[Any], targets: NDArray[Any]) -> None:
        """Move accepted guesses of the last pass together in the cache, over the rejected ones between them.

        Args:
            rows: ``(n,)`` of the pass.
            sources: ``(n,)`` places in the answer where accepted guesses are.
            targets: ``(n,)`` places in the answer where they belong.
        """
        assert self._cache is not None
        moves = torch.from_numpy(np.stack([rows, sources, targets])).to(self._device)
        self._cache.move(moves[0], moves[1] + self._prompt_length, moves[2] + self._prompt_length)

    def _to_ids(self, symbols: NDArray[Any]) -> Tensor:
        return torch.from_numpy(self._host_ids[symbols]).to(self._device)
