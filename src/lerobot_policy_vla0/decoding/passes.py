"""Passes of the backbone over a static cache: the prompt once, then a few answer tokens at a time.

Composes transformers' own modules (vision tower, embedding, language model) with this package's cache,
positions and a head of twelve rows. Every row of a batch stands at its own place in its answer. Knows which
columns, positions and masks a pass needs; knows nothing about drafts or what is accepted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from lerobot_policy_vla0.decoding import DecodeRequest
from lerobot_policy_vla0.decoding.cache import AnswerCache
from lerobot_policy_vla0.prompt import rope_positions

if TYPE_CHECKING:
    from lerobot_policy_vla0.decoding.grammar import AnswerGrammar
    from lerobot_policy_vla0.vlm import VLM

#: Prompt lengths are rounded up to a multiple of this, so that tasks of similar length share one cache.
_BUCKET = 128


class PassRunner:
    """Prefills prompts and scores answer tokens against the cache.

    Column ``c`` of the cache holds prompt token ``c``, column ``P + t`` answer token ``t`` of its row.

    Args:
        vlm: the backbone.
        grammar: gives the ids of the twelve symbols.
        max_answer: tokens of the longest answer.
        max_width: tokens of the widest pass.
    """

    def __init__(self, vlm: VLM, grammar: AnswerGrammar, *, max_answer: int, max_width: int) -> None:
        self.vlm = vlm
        self.max_answer = max_answer
        self.max_width = max_width
        self._language_model: Any = vlm.model.model.language_model
        self._token_ids = grammar.token_ids  # (12,) on the device
        self._host_ids = grammar.token_ids.cpu()
        self._device = grammar.token_ids.device
        self._cache: AnswerCache | None = None
        self._weights_seen: int | None = None
        self._ids = self._mask = torch.empty(0)
        self._prefix_columns = 0
        self._image_mask = torch.empty(0)
        self._positions = self._following = torch.empty(0)
        self._prompt_length = 0
        self._valid = torch.empty(0)
        self._all_columns = torch.empty(0)
        self._head = torch.empty(0)
        self._head_bias: Tensor | None = None
        #: Prompt tokens whose keys and values the last prefill took over from the one before.
        self.reused_columns = 0

    # ------------------------------------------------------------------ prefill

    def prefill(self, request: DecodeRequest, committed: Sequence[Sequence[int]]) -> NDArray[Any]:
        """Run prompt, images and committed answer symbols; score what follows.

        Args:
            request: the prompts.
            committed: per row, the answer's first symbols, already decided.

        Returns:
            ``(B, 12)`` float32 logits of the next symbol of each row.
        """
        start = self._prepare(request)
        length = self._prompt_length
        batch = len(request.ids)
        embeddings = self._language_model.embed_tokens(request.ids[:, start:])
        features = self.vlm.model.model.get_image_features(
            request.pixel_values, request.grid_thw
        ).pooler_output
        pictures = torch.cat(list(features), dim=0).to(embeddings.dtype)
        embeddings = embeddings.masked_scatter(self._image_mask[:, start:].unsqueeze(-1), pictures)
        positions = self._positions[:, :, start:]

        extra = max(map(len, committed))
        if extra:
            symbols = np.zeros((batch, extra), dtype=np.int64)
            for row, given in enumerate(committed):
                symbols[row, : len(given)] = given
            embeddings = torch.cat([embeddings, self._embed(symbols)], dim=1)
            steps = torch.arange(extra, device=self._device)
            answer = (self._following.unsqueeze(1) + steps).expand(3, -1, -1)
            positions = torch.cat([positions, answer], dim=2)

        columns = torch.arange(start, length + extra, device=self._device).expand(batch, -1)
        hidden = self._run(embeddings, positions, columns, start=start, attended=length + extra)
        last = [length - start - 1 + len(given) for given in committed]
        at = torch.tensor(last, device=self._device)
        return self._score(hidden[torch.arange(batch, device=self._device), at])

    def _prepare(self, request: DecodeRequest) -> int:
        """Set up cache, positions and head for a batch of prompts; return the first column to compute.

        Columns before every row's first image depend on nothing but their ids: if these, the padding and the
        weights are those of the prefill before, their keys and values are still in the cache.
        """
        ids, mask = request.ids, request.mask
        weights = self._weights_fingerprint()
        same_weights = weights == self._weights_seen
        same_prompt = (
            ids.shape == self._ids.shape
            and bool(torch.equal(ids, self._ids))
            and bool(torch.equal(mask, self._mask))
        )
        if not same_weights:
            self._weights_seen = weights
            self._take_head()
        if same_prompt:
            self.reused_columns = self._prefix_columns if same_weights else 0
            return self.reused_columns

        batch, length = ids.shape
        is_image = (ids == self.vlm.image_token_id) & mask
        prefix = int(is_image.any(0).long().argmax())
        columns = self._columns_for(length)
        fresh = self._cache is None or self._cache.batch != batch or self._cache.length != columns
        before = min(prefix, self._prefix_columns)
        reusable = (
            not fresh
            and same_weights
            and bool(torch.equal(ids[:, :before], self._ids[:, :before]))
            and bool(torch.equal(mask[:, :before], self._mask[:, :before]))
        )
        if fresh:
            self._cache = AnswerCache(batch, columns)
            self._all_columns = torch.arange(columns, device=self._device)
        merge = self.vlm.merge_size
        _, height, width = request.grid_thw[0].tolist()
        self._positions, self._following = rope_positions(
            ids, mask, image_token_id=self.vlm.image_token_id, grid=(height // merge, width // merge)
        )
        self._ids, self._mask, self._image_mask = ids.clone(), mask.clone(), is_image
        self._prefix_columns = prefix
        self._prompt_length = length
        self._valid = torch.ones(batch, columns, dtype=torch.bool, device=self._device)
        self._valid[:, :length] = mask
        self.reused_columns = before if reusable else 0
        return self.reused_columns

    def _columns_for(self, prompt_length: int) -> int:
        return -(-prompt_length // _BUCKET) * _BUCKET + self.max_answer + self.max_width

    def _weights_fingerprint(self) -> int:
        """Return a number that changes when a weight is replaced or modified in place."""
        # Optimizers and load_state_dict raise a tensor's version; `.to()` gives it other memory.
        return hash(tuple((p._version, p.data_ptr()) for p in self.vlm.parameters()))

    def _take_head(self) -> None:
        """Cut the vocabulary projection to the twelve symbols."""
        head = self.vlm.model.lm_head
        self._head = head.weight.detach()[self._token_ids]
        self._head_bias = None if head.bias is None else head.bias.detach()[self._token_ids]

    # ------------------------------------------------------------------ answer tokens

    def score(self, symbols: NDArray[Any], starts: NDArray[Any]) -> NDArray[Any]:
        """Feed answer symbols and score what follows each of them.

        Args:
            symbols: ``(B, W)`` int64, the symbols of each row at its answer tokens ``starts .. starts + W``.
            starts: ``(B,)`` int64; everything before must have been fed.

        Returns:
            ``(B, W, 12)`` float32 logits.
        """
        width = symbols.shape[1]
        first = int(starts[0])
        shared = first if bool((starts == first).all()) else None
        places = torch.from_numpy(starts[:, None] + np.arange(width)).to(self._device)  # (B, W)
        positions = (self._following.unsqueeze(1) + places).expand(3, -1, -1)
        hidden = self._run(
            self._embed(symbols),
            positions,
            self._prompt_length + places,
            start=None if shared is None else self._prompt_length + shared,
            attended=self._prompt_length + int(starts.max()) + width,
        )
        return self._score(hidden)

    # ------------------------------------------------------------------ shared

    def _embed(self, symbols: NDArray[Any]) -> Tensor:
        ids = self._host_ids[torch.from_numpy(symbols)].to(self._device)
        out: Tensor = self._language_model.embed_tokens(ids)
        return out

    def _run(
        self, embeddings: Tensor, positions: Tensor, columns: Tensor, *, start: int | None, attended: int
    ) -> Tensor:
        """Run the language model on tokens at ``columns`` ``(B, W)``; return hidden states ``(B, W, hidden)``."""
        assert self._cache is not None
        self._cache.place(columns, start=start, attended=attended)
        keys = self._all_columns[:attended]
        visible = (keys <= columns.unsqueeze(-1)) & self._valid[:, None, :attended]
        # Padding looks at itself: a row of the mask without any key would give NaN.
        visible |= keys == columns.unsqueeze(-1)
        mask = visible.unsqueeze(1)  # (B, 1, W, attended)
        if self._language_model.config._attn_implementation == "eager":  # adds its mask
            lowest = torch.finfo(embeddings.dtype).min
            mask = torch.zeros_like(mask, dtype=embeddings.dtype).masked_fill(~mask, lowest)
        output = self._language_model(
            inputs_embeds=embeddings,
            position_ids=positions,
            attention_mask={"full_attention": mask},
            past_key_values=self._cache,
            use_cache=True,
        )
        hidden: Tensor = output.last_hidden_state
        return hidden

    def _score(self, hidden: Tensor) -> NDArray[Any]:
        logits = functional.linear(hidden, self._head, self._head_bias)
        out: NDArray[Any] = logits.float().cpu().numpy()
        return out
