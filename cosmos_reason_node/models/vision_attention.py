# SPDX-License-Identifier: Apache-2.0
"""Attention of the vision tower, over all of its segments at once.

The tower attends within segments (windows, or whole temporal patches) that are given by their borders.
transformers' class runs them one after the other: hundreds of small calls a layer. Segments of one length are
independent problems of one shape, so they are one batch here; there are at most four lengths (inner windows,
and those cut by the right edge, the lower edge, and both).

Axes: N rows (patches), S segments of one length, L rows of a segment, H heads, C channels of a head.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SegmentAttention(nn.Module):
    """Drop-in for transformers' Qwen2_5_VLVisionAttention; takes over its weights under their names.

    Args:
        attention: the module to stand in for.
    """

    def __init__(self, attention: Any) -> None:
        from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision

        super().__init__()
        self.qkv: nn.Linear = attention.qkv
        self.proj: nn.Linear = attention.proj
        self._heads: int = attention.num_heads
        self._rotate = apply_rotary_pos_emb_vision

    def forward(
        self,
        hidden_states: Tensor,
        cu_seqlens: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        **_: Any,
    ) -> Tensor:
        """Attend within segments.

        Args:
            hidden_states: (N, H*C).
            cu_seqlens: (segments + 1,) borders, from 0 to N.
            position_embeddings: cosines and sines, (N, C) each.

        Returns:
            (N, H*C).
        """
        rows = len(hidden_states)
        query, key, value = self.qkv(hidden_states).view(rows, 3, self._heads, -1).unbind(1)
        query, key = self._rotate(query, key, *position_embeddings)
        lengths = cu_seqlens.diff()
        kinds = set(lengths.tolist())
        if len(kinds) == 1:
            attended = _attend(query, key, value, kinds.pop())
        else:
            attended = torch.empty_like(query)
            length_of_row = torch.repeat_interleave(lengths, lengths)
            for length in kinds:
                of_kind = (length_of_row == length).nonzero()[:, 0]
                attended[of_kind] = _attend(query[of_kind], key[of_kind], value[of_kind], length)
        return self.proj(attended.reshape(rows, -1))


def _attend(query: Tensor, key: Tensor, value: Tensor, length: int) -> Tensor:
    """(S*L, H, C) of S segments, each ``length`` rows."""
    heads = [t.unflatten(0, (-1, length)).transpose(1, 2) for t in (query, key, value)]  # (S, H, L, C)
    return F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(0, 1)
