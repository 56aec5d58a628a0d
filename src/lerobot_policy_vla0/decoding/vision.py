"""The vision tower as one loop over its weights, with everything that depends only on the picture's size computed once.

transformers computes window order, rotary tables and sequence lengths anew for every picture and waits for the device
in every layer; its windows are attended to one by one. transformers' tower stays the oracle in the tests.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lerobot_policy_vla0.decoding.transformer import RMSNorm, rotate
from lerobot_policy_vla0.decoding.weights import Projection


@dataclass(frozen=True)
class Grid:
    """What follows from a picture's size of ``P`` patches, ``M`` image tokens.

    Attributes:
        order: ``(P,)`` int64, the patches window by window, windows of one size together.
        windows: (first patch in this order, number of windows, patches of each) for every size of window.
        back: ``(M,)`` int64, the places of the image tokens in this order.
        cos: ``(P, 1, head_dim)`` float32, in this order.
        sin: the same; negative in the first half of a head.
    """

    order: Tensor
    windows: tuple[tuple[int, int, int], ...]
    back: Tensor
    cos: Tensor
    sin: Tensor


class Block:
    """The weights of one block.

    Args:
        module: transformers' block.
        dtype: matrix products compute in it.
        windowed: whether patches attend to their own window only.
    """

    def __init__(self, module: Any, dtype: torch.dtype, windowed: bool) -> None:
        mlp = module.mlp
        self.norms = (_norm(module.norm1), _norm(module.norm2))
        self.qkv = Projection(module.attn.qkv, dtype=dtype)
        self.output = Projection(module.attn.proj, dtype=dtype)
        self.gated = hasattr(mlp, "gate_proj")  # Qwen2.5-VL
        if self.gated:
            self.up = Projection(mlp.gate_proj, mlp.up_proj, dtype=dtype)
            self.down = Projection(mlp.down_proj, dtype=dtype)
            self.activation = mlp.act_fn.forward
        else:
            self.up, self.down = Projection(mlp.fc1, dtype=dtype), Projection(mlp.fc2, dtype=dtype)
            self.activation = mlp.act.forward
        self.windowed = windowed


class VisionTower:
    """The image encoder of Qwen2-VL and Qwen2.5-VL.

    Args:
        model: transformers' tower; its weights are taken as they are now.
        dtype: matrix products have this precision.
    """

    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        self._model = model
        self.dtype = dtype
        config = model.config
        self.heads = int(config.num_heads)
        self.merge = int(config.spatial_merge_size)
        full = getattr(config, "fullatt_block_indexes", None)  # Qwen2-VL has no windows
        #: Side of a window in image tokens; None without windows.
        self.window = (
            None if full is None else int(config.window_size) // self.merge // int(config.patch_size)
        )
        self.blocks = [
            Block(module, dtype, full is not None and index not in full)
            for index, module in enumerate(model.blocks)
        ]
        self._grids: dict[tuple[int, int, int], Grid] = {}

    def __call__(self, pixel_values: Tensor, size: tuple[int, int, int]) -> Tensor:
        """Encode pictures of one size; the caller must have switched autocast off.

        Args:
            pixel_values: ``(pictures * P, C*t*p*p)``.
            size: patches along time, height and width of each picture.

        Returns:
            ``(pictures * M, hidden)``, the image tokens.
        """
        if size not in self._grids:
            self._grids[size] = self._lay_out(size, pixel_values.device)
        grid = self._grids[size]
        patches = len(grid.order)
        x = self._model.patch_embed(pixel_values).unflatten(0, (-1, patches))  # (pictures, P, hidden)
        pictures, _, hidden = x.shape
        x = x[:, grid.order].flatten(0, 1)
        for block in self.blocks:
            h = block.norms[0](x)
            # (pictures, P, 3 * heads, head_dim)
            qkv = block.qkv(h).view(pictures, patches, 3 * self.heads, -1)
            turned = rotate(qkv[:, :, : 2 * self.heads], grid.cos, grid.sin).to(qkv.dtype)
            q, k, v = turned[:, :, : self.heads], turned[:, :, self.heads :], qkv[:, :, 2 * self.heads :]
            windows = grid.windows if block.windowed else ((0, 1, patches),)
            parts = [_attend(q, k, v, *window) for window in windows]
            out = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
            block.output.add_to(x, out.reshape(pictures * patches, hidden))
            h = block.up(block.norms[1](x))
            if block.gated:
                gate, up = h.chunk(2, -1)
                h = block.activation(gate).mul_(up)
            else:
                h = block.activation(h)
            block.down.add_to(x, h)
        with torch.autocast(x.device.type, self.dtype, enabled=self.dtype != x.dtype):
            tokens: Tensor = self._model.merger(x)
        return tokens.view(pictures, len(grid.back), -1)[:, grid.back].flatten(0, 1)

    def _lay_out(self, size: tuple[int, int, int], device: torch.device) -> Grid:
        """Compute what follows from a picture's size."""
        frames, height, width = size
        rows, columns, merge = height // self.merge, width // self.merge, self.merge
        # 1. Image tokens, window by window; at the right and lower edge windows are smaller.
        tokens = torch.arange(frames * rows * columns).view(frames, rows, columns)
        windows = [tokens.flatten()]
        if self.window is not None:
            bands = [band for frame in tokens for band in frame.split(self.window)]
            windows = [window.flatten() for band in bands for window in band.split(self.window, dim=1)]
        windows.sort(key=len)
        in_order = torch.cat(windows)
        # 2. A token is a square of patches, which follow one another.
        per_token = merge**2
        order = (in_order.unsqueeze(1) * per_token + torch.arange(per_token)).flatten()
        runs, first = [], 0
        for length, alike in groupby(windows, key=len):
            count = len(list(alike))
            runs.append((first * per_token, count, length * per_token))
            first += count * length
        # 3. One half of a head's angles says a patch's row, the other its column.
        squares = (rows, columns, merge, merge)
        row = torch.arange(height).view(rows, 1, merge, 1).expand(squares)
        column = torch.arange(width).view(1, columns, 1, merge).expand(squares)
        places = torch.stack([row.flatten(), column.flatten()], 1).repeat(frames, 1)[order].to(device)
        frequencies = self._model.rotary_pos_emb.inv_freq  # (head_dim / 4,)
        angles = (places.unsqueeze(-1).to(frequencies.dtype) * frequencies).flatten(1).float()
        angles = torch.cat([-angles, angles], 1).unsqueeze(1)  # (P, 1, head_dim)
        return Grid(
            order=order.to(device),
            windows=tuple(runs),
            back=in_order.argsort().to(device),
            cos=angles.cos(),
            sin=angles.sin(),
        )


def _norm(module: Any) -> Any:
    """Return a block's norm: Qwen2.5-VL's divides by the root mean square, Qwen2-VL's is a layer norm."""
    if isinstance(module, nn.LayerNorm):
        return module
    return RMSNorm(module.weight, module.variance_epsilon)


def _attend(q: Tensor, k: Tensor, v: Tensor, first: int, count: int, length: int) -> Tensor:
    """Attend within ``count`` windows of ``length`` patches, the first of which begins at patch ``first``.

    ``(pictures, P, heads, head_dim)`` each -> ``(pictures, count * length, heads, head_dim)``.
    """

    def cut(x: Tensor) -> Tensor:
        part = x.narrow(1, first, count * length)
        return part.reshape(-1, length, *x.shape[2:]).transpose(
            1, 2
        )  # (pictures * count, heads, length, head_dim)

    out = functional.scaled_dot_product_attention(cut(q), cut(k), cut(v))
    return out.transpose(1, 2).reshape(len(q), count * length, *q.shape[2:])
