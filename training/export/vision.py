# SPDX-License-Identifier: Apache-2.0
"""The vision tower as a graph that ONNX parsers take: one frame size, everything that depends on it computed.

transformers' forward does not export: its window order and its segments depend on data. For a fixed frame
size they are constants, and every temporal patch is computed apart from all others, so the tower is a
function of B independent temporal patches.

Axes: B temporal patches, N = h*w patches of one, P values of a patch, W windows of one, L rows of a window,
H heads, C channels of a head, D width; T = N / merge^2 visual tokens, O width of the language model.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cosmos_reason_node.models.qwen2_5_vl import LoadedModel

from .attention import Attend, rotate

MASKED = -30000.0  # added to a score that must not count; finite in float16


class VisionGraph(nn.Module):
    """Visual features of B temporal patches; shares the checkpoint's parameters.

    Args:
        model: the checkpoint.
        frame_size: (height, width) in pixels, multiples of ``model.spec.patches.factor``.
        attend: see ``attention``.
    """

    blocks: Any
    merger: Any
    order: Tensor
    inverse: Tensor
    cos: Tensor
    sin: Tensor
    slots: Tensor
    gather: Tensor
    window_mask: Tensor

    def __init__(self, model: LoadedModel, frame_size: tuple[int, int], attend: Attend) -> None:
        super().__init__()
        visual: Any = model.network.model.visual
        patches = model.spec.patches
        _, h, w = patches.grid(patches.temporal_patch, *frame_size)
        self._attend = attend
        self._merge_rows = patches.merge**2
        self.patch_embed = nn.Linear(patches.patch_dim, visual.patch_embed.proj.weight.shape[0], bias=False)
        self.patch_embed.weight = nn.Parameter(
            visual.patch_embed.proj.weight.detach().flatten(1), requires_grad=False
        )
        self.blocks, self.merger = visual.blocks, visual.merger
        self._full = frozenset(visual.fullatt_block_indexes)
        self._heads = visual.blocks[0].attn.qkv.weight.shape[1] // _head_dim(visual)
        dtype = self.patch_embed.weight.dtype

        side = visual.window_size // patches.patch // patches.merge
        order, window = window_order(h // patches.merge, w // patches.merge, side)
        rows = (order[:, None] * self._merge_rows + np.arange(self._merge_rows)).reshape(-1)
        self.register_buffer("order", torch.from_numpy(rows), persistent=False)
        self.register_buffer("inverse", torch.from_numpy(np.argsort(order)), persistent=False)
        cos, sin = _rotary(visual, h, w, patches.merge)
        self.register_buffer("cos", cos[rows][:, None], persistent=False)  # (N, 1, C)
        self.register_buffer("sin", sin[rows][:, None], persistent=False)
        # Windows that an edge cuts are shorter: padded to the longest, padding masked.
        per_window = np.bincount(window) * self._merge_rows
        self._windows, self._longest = len(per_window), int(per_window.max())
        self._is_even = bool((per_window == self._longest).all())
        slots = np.concatenate([w * self._longest + np.arange(n) for w, n in enumerate(per_window)])
        filled = np.zeros(self._windows * self._longest, bool)
        filled[slots] = True
        gather = np.zeros(len(filled), np.int64)
        gather[slots] = np.arange(len(slots))
        mask = torch.where(torch.from_numpy(filled), 0.0, MASKED).view(self._windows, 1, 1, self._longest)
        self.register_buffer("slots", torch.from_numpy(slots), persistent=False)
        self.register_buffer("gather", torch.from_numpy(gather), persistent=False)
        self.register_buffer("window_mask", mask.to(dtype), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Run the tower.

        Args:
            pixels: (B, N, P) float32, rows as ``patchify`` orders them.

        Returns:
            (B, T, O) features in the type of the weights.
        """
        hidden = self.patch_embed(pixels.to(self.patch_embed.weight.dtype))
        hidden = hidden.index_select(1, self.order)  # (B, N, D)
        for index, block in enumerate(self.blocks):
            attended = self._attention(block.attn, block.norm1(hidden), index in self._full)
            hidden = hidden + attended
            hidden = hidden + block.mlp(block.norm2(hidden))
        merged = self.merger.ln_q(hidden).reshape(-1, len(self.inverse), self._merge_rows * hidden.shape[-1])
        return self.merger.mlp(merged).index_select(1, self.inverse)

    def _attention(self, attention: Any, hidden: Tensor, full: bool) -> Tensor:
        batch, rows, _ = hidden.shape
        qkv = attention.qkv(hidden).reshape(batch, rows, 3, self._heads, -1)
        query, key, value = qkv.unbind(2)  # (B, N, H, C)
        # In float32, as the checkpoint was trained.
        query, key = (rotate(t.float(), self.cos, self.sin).to(t.dtype) for t in (query, key))
        if full:
            query, key, value = (t.transpose(1, 2) for t in (query, key, value))
            attended = self._attend(query, key, value, None).transpose(1, 2)
        else:
            attended = self._within_windows(query, key, value)
        return attention.proj(attended.reshape(batch, rows, -1))

    def _within_windows(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        batch, heads = query.shape[0], self._heads
        windows = []
        for tensor in (query, key, value):
            if not self._is_even:
                tensor = tensor.index_select(1, self.gather)
            windows.append(tensor.reshape(-1, self._longest, heads, tensor.shape[-1]).transpose(1, 2))
        mask = None if self._is_even else self.window_mask.repeat(batch, 1, 1, 1)
        attended = self._attend(windows[0], windows[1], windows[2], mask).transpose(1, 2)
        attended = attended.reshape(batch, self._windows * self._longest, heads, -1)
        return attended if self._is_even else attended.index_select(1, self.slots)


def window_order(rows: int, columns: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Visual tokens of a grid in the order of their attention windows.

    Args:
        rows: of the merged grid.
        columns: of it.
        side: of a window, in merged tokens.

    Returns:
        order: (rows*columns,) raster indices, window by window.
        window: (rows*columns,) window of each entry of ``order``, counted up from 0.
    """
    row, column = np.divmod(np.arange(rows * columns), columns)
    window = row // side * math.ceil(columns / side) + column // side
    order = np.argsort(window, kind="stable")
    return order, window[order]


def _head_dim(visual: Any) -> int:
    return int(visual.config.hidden_size // visual.config.num_heads)


def _rotary(visual: Any, h: int, w: int, merge: int) -> tuple[Tensor, Tensor]:
    """(N, C) float32 cosines and sines of one temporal patch, rows as ``patchify`` orders them."""
    channels = _head_dim(visual)
    theta = float((getattr(visual.config, "rope_parameters", None) or {}).get("rope_theta", 10000.0))
    frequencies = theta ** -(torch.arange(0, channels // 2, 2, dtype=torch.float32) / (channels // 2))
    row, column = np.divmod(np.arange(h * w).reshape(h // merge, merge, w // merge, merge), w)
    places = [torch.from_numpy(axis.transpose(0, 2, 1, 3).reshape(-1)) for axis in (row, column)]
    angles = torch.cat([place[:, None].float() * frequencies for place in places], dim=-1).repeat(1, 2)
    return angles.cos(), angles.sin()
