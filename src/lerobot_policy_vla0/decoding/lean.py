"""The backbone as the fast decoders run it, over its current weights: vision tower, embeddings, transformer, head."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from lerobot_policy_vla0.decoding.cache import AnswerCache
from lerobot_policy_vla0.decoding.head import AnswerHead
from lerobot_policy_vla0.decoding.transformer import Transformer
from lerobot_policy_vla0.decoding.vision import VisionTower
from lerobot_policy_vla0.decoding.weight_watch import WeightWatch

if TYPE_CHECKING:
    from lerobot_policy_vla0.backbone.vlm import VLM


class LeanModel:
    """Runs a backbone with few operations; see `decoding.transformer` and `decoding.vision`.

    Args:
        vlm: the backbone, with transformers' modules, whose weights are used.
        token_ids: ``(12,)`` ids of the answer's symbols, on the device.
    """

    def __init__(self, vlm: VLM, token_ids: Tensor) -> None:
        self._vlm = vlm
        self._token_ids = token_ids
        self._kind = token_ids.device.type
        self._embedding: Any = vlm.model.get_input_embeddings()
        self._watch = WeightWatch(vlm)
        #: Grows whenever the weights are not those of the last `refresh`: what was computed from them is outdated.
        self.generation = 0
        self._transformer: Transformer | None = None
        self._vision: VisionTower | None = None
        self._head: AnswerHead | None = None

    def refresh(self) -> int:
        """Take the weights as they are now, once per query; return `generation`."""
        dtype: torch.dtype = self._embedding.weight.dtype
        if torch.is_autocast_enabled(self._kind):
            dtype = torch.get_autocast_dtype(self._kind)
        if self._watch.changed() or self._transformer is None or self._transformer.dtype != dtype:
            self._transformer = self._vision = None  # an error below leaves nothing that could be used
            self._watch.let_go()  # layer by layer, fusing frees the memory that weights had
            model = self._vlm.model.model
            self._head = AnswerHead(self._vlm, self._token_ids)
            self._vision = VisionTower(model.visual, dtype)
            self._transformer = Transformer(model.language_model, dtype)
            self._watch.changed()  # fusing moved parameters
            self.generation += 1
        return self.generation

    def new_cache(self, batch: int, length: int) -> AnswerCache:
        """Return an empty cache for a batch of rows."""
        assert self._transformer is not None
        return self._transformer.new_cache(batch, length)

    def fits(self, cache: AnswerCache) -> bool:
        """Tell whether a cache holds keys and values of this model's precision."""
        return self._transformer is not None and cache.dtype == self._transformer.dtype

    def embed(self, ids: Tensor) -> Tensor:
        """Return token embeddings ``(..., hidden)`` of ids ``(...)``."""
        out: Tensor = self._embedding(ids)
        return out

    def embed_prompt(self, ids: Tensor, is_image: Tensor, pictures: Tensor) -> Tensor:
        """Return the inputs ``(B, L, hidden)`` of prompts: token embeddings, and image tokens at placeholders.

        Args:
            ids: ``(B, L)`` int64.
            is_image: ``(B, L)`` bool, true at the placeholders.
            pictures: ``(n, hidden)`` image tokens, all in the order of the placeholders.
        """
        embeddings = self.embed(ids)
        # `masked_scatter_` counts every number of every token on a GPU; this counts tokens.
        place = is_image.flatten().cumsum(0).view_as(is_image).sub_(1).clamp_(min=0)
        return torch.where(is_image.unsqueeze(-1), pictures.to(embeddings.dtype)[place], embeddings)

    def new_pictures(self, count: int) -> Tensor:
        """Return room for ``count`` image tokens, ``(count, hidden)``."""
        return torch.zeros_like(self._embedding.weight[:1].detach()).repeat(count, 1)

    def encode_images(self, pixel_values: Tensor, size: tuple[int, int, int]) -> Tensor:
        """Return the image tokens ``(n, hidden)`` of pictures; see `VisionTower.__call__`."""
        assert self._vision is not None
        with torch.autocast(self._kind, enabled=False), self._attention():
            return self._vision(pixel_values, size)

    def score(
        self, inputs: Tensor, positions: Tensor, visible: Tensor, cache: AnswerCache, keep: int | None = None
    ) -> Tensor:
        """Run tokens and return the logits ``(B, keep, 12)`` float32 of what follows; see `Transformer.__call__`."""
        assert self._transformer is not None and self._head is not None
        with torch.autocast(self._kind, enabled=False), self._attention():
            hidden = self._transformer(inputs, positions, visible, cache, keep)
        return self._head.project(hidden)

    def _attention(self) -> AbstractContextManager[Any]:
        """Leave out cuDNN's attention on CUDA: it builds a plan for every exact shape, in every thread."""
        if self._kind != "cuda":
            return nullcontext()
        return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])
