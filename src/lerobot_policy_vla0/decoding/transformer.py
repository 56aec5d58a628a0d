"""The language model's layers as one loop over their weights: what every pass of the fast decoders runs.

transformers' modules compute the same from the same weights, one small operation after the other; a pass over a few
tokens spends most of its time starting them. Here a layer is about 14 operations instead of 45. transformers' modules
stay the oracle: tests hold hidden states and logits of both equal.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lerobot_policy_vla0.decoding.cache import AnswerCache
from lerobot_policy_vla0.decoding.weights import Projection


class Layer:
    """The weights of one decoder layer.

    Args:
        module: transformers' layer.
        dtype: matrix products compute in it.
        eps: of the norms.
    """

    def __init__(self, module: Any, dtype: torch.dtype, eps: float) -> None:
        attention, mlp = module.self_attn, module.mlp
        self.before_attention = RMSNorm(module.input_layernorm.weight, eps)
        self.qkv = Projection(attention.q_proj, attention.k_proj, attention.v_proj, dtype=dtype)
        self.output = Projection(attention.o_proj, dtype=dtype)
        self.before_mlp = RMSNorm(module.post_attention_layernorm.weight, eps)
        self.gate_up = Projection(mlp.gate_proj, mlp.up_proj, dtype=dtype)
        self.down = Projection(mlp.down_proj, dtype=dtype)
        self.activation = mlp.act_fn.forward


class Transformer:
    """Decoder layers and the last norm of Qwen2-VL and Qwen2.5-VL.

    Args:
        model: transformers' language model; its weights are taken as they are now.
        dtype: matrix products, keys and values have this precision. The states between layers keep that of the token
            embeddings, as under autocast.
    """

    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        config = model.config
        self.dtype = dtype
        self.heads = int(config.num_attention_heads)
        self.kv_heads = int(config.num_key_value_heads)
        self.head_dim = int(config.hidden_size) // self.heads
        eps = float(config.rms_norm_eps)
        self.layers = [Layer(module, dtype, eps) for module in model.layers]
        self.norm = RMSNorm(model.norm.weight, eps)
        # Rotary positions. Half a head's numbers turn with the other half; each frequency belongs to one of the three
        # axes (time, row, column).
        frequencies = model.rotary_emb.inv_freq.float()  # (head_dim / 2,)
        self._scale = float(model.rotary_emb.attention_scaling)
        sections = config.rope_parameters["mrope_section"]
        axes = torch.arange(3).repeat_interleave(torch.tensor(sections)).repeat(2)  # (head_dim,)
        self._axes = axes.to(frequencies.device)
        self._frequencies = torch.cat([-frequencies, frequencies])  # the sign is the sine's, see `rotate`

    def new_cache(self, batch: int, length: int) -> AnswerCache:
        """Return an empty cache that fits this model."""
        return AnswerCache(
            layers=len(self.layers),
            heads=self.kv_heads,
            head_dim=self.head_dim,
            batch=batch,
            length=length,
            dtype=self.dtype,
            device=self._frequencies.device,
        )

    def __call__(
        self, states: Tensor, positions: Tensor, visible: Tensor, cache: AnswerCache, keep: int | None = None
    ) -> Tensor:
        """Run tokens through all layers; their keys and values are written where `AnswerCache.place` said.

        The caller must have switched autocast off.

        Args:
            states: ``(B, W, hidden)`` token embeddings.
            positions: ``(3, B, W)`` int64 rotary positions, or ``(B, W)`` where the three axes agree (text).
            visible: ``(B, W, attended)`` bool, which columns of the cache each token attends to; at least one.
            cache: of the batch, or of a larger one whose first rows these are.
            keep: last tokens to return the states of; None is all. The last layer computes no others.

        Returns:
            ``(B, keep, hidden)`` normalised states.
        """
        batch, width, hidden = states.shape
        keep = width if keep is None else keep
        x = states.reshape(batch * width, hidden).clone()
        cos, sin = self._rotary_tables(positions, x.dtype)
        mask = self._attention_mask(visible)
        attended = visible.shape[2]
        queries, keys = self.heads, self.heads + self.kv_heads
        for index, layer in enumerate(self.layers):
            h = layer.before_attention(x)
            qkv = layer.qkv(h).view(batch * width, -1, self.head_dim)
            turned = rotate(qkv[:, :keys], cos, sin)
            cache.write(index, turned[:, queries:], qkv[:, keys:])
            q = turned[:, :queries]
            if q.dtype is not self.dtype:
                q = q.to(self.dtype)
            if keep < width and layer is self.layers[-1]:
                q = q.view(batch, width, -1)[:, -keep:].reshape(batch * keep, -1, self.head_dim)
                x = x.view(batch, width, -1)[:, -keep:].reshape(batch * keep, -1)
                mask = self._attention_mask(visible[:, -keep:])
                width = keep
            h = self._attend(
                q.view(batch, width, queries, self.head_dim),
                cache.keys[index][:batch, :, :attended],
                cache.values[index][:batch, :, :attended],
                mask,
            )
            layer.output.add_to(x, h)
            h = layer.before_mlp(x)
            gate, up = layer.gate_up(h).chunk(2, -1)
            layer.down.add_to(x, layer.activation(gate).mul_(up))
        return self.norm(x).view(batch, width, hidden)

    def _rotary_tables(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return cosine and signed sine, each ``(B * W, 1, head_dim)``.

        Products are taken one by one: as a matrix product, a GPU could round positions to ten bits (TF32).
        """
        if positions.ndim == 3:
            angles = positions[self._axes].permute(1, 2, 0) * self._frequencies  # (B, W, head_dim)
        else:
            angles = positions.unsqueeze(-1) * self._frequencies
        angles = angles.view(-1, 1, self.head_dim)
        cos, sin = angles.cos(), angles.sin()
        if self._scale != 1.0:
            cos, sin = cos * self._scale, sin * self._scale
        return cos.to(dtype), sin.to(dtype)

    def _attention_mask(self, visible: Tensor) -> Tensor:
        """Return what is added to the scores, ``(B, 1, W * queries per key head, attended)``: 0 or minus infinity."""
        mask = torch.zeros(visible.shape, dtype=self.dtype, device=visible.device)
        mask = mask.masked_fill_(~visible, -torch.inf).unsqueeze(1)
        shared = self.heads // self.kv_heads
        return mask if shared == 1 else mask.repeat_interleave(shared, 2)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """Return ``(B * W, heads * head_dim)`` of queries ``(B, W, heads, head_dim)``.

        The queries that share a key head are seen as further tokens, so keys and values are not repeated: SDPA's own
        ``enable_gqa`` repeats them where there is a mask.
        """
        batch, width, heads, size = q.shape
        shared = heads // self.kv_heads
        if shared == 1:
            out = functional.scaled_dot_product_attention(q.transpose(1, 2), k, v, mask)
            return out.transpose(1, 2).reshape(batch * width, heads * size)
        q = q.view(batch, width, self.kv_heads, shared, size).transpose(1, 2)
        q = q.reshape(batch, self.kv_heads, width * shared, size)
        out = functional.scaled_dot_product_attention(q, k, v, mask)
        out = out.view(batch, self.kv_heads, width, shared, size).transpose(1, 2)
        return out.reshape(batch * width, heads * size)


class RMSNorm:
    """Divides each row by its root mean square, and multiplies by the weight.

    Args:
        weight: ``(hidden,)``.
        eps: is added to the mean square.
    """

    def __init__(self, weight: Tensor, eps: float) -> None:
        self._weight = weight.detach()
        self._eps = eps
        # PyTorch has one kernel for this on GPUs. On a CPU it starts fifteen operations; this starts four.
        self._plain = weight.dtype != torch.float32 or weight.device.type != "cpu"
        size = len(weight)
        self._scaled = self._weight if self._plain else self._weight * size**0.5
        self._floor = torch.tensor((eps * size) ** 0.5)

    def __call__(self, x: Tensor) -> Tensor:
        """Return ``(N, hidden)`` of ``(N, hidden)``."""
        if self._plain or x.dtype != torch.float32:
            return functional.rms_norm(x, x.shape[-1:], self._weight, self._eps)
        length = torch.linalg.vector_norm(x, dim=1, keepdim=True)
        return x.div(length.hypot_(self._floor)).mul_(self._scaled)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn ``x`` ``(N, heads, head_dim)`` by angles ``(N, 1, head_dim)``; the sine is negative in the first half."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)
