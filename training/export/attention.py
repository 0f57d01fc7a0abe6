# SPDX-License-Identifier: Apache-2.0
"""Attention in the two spellings that parsers know, and rotary embedding.

Axes: B batch, H query heads, G key/value heads (H is a multiple), R query rows, S key rows, C channels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

# (query (B, H, R, C), key (B, G, S, C), value (B, G, S, C), additive mask or None) -> (B, H, R, C)
Attend = Callable[[Tensor, Tensor, Tensor, "Tensor | None"], Tensor]


def attend_by_products(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Matrix products and a softmax: operators of any opset, the pattern that TensorRT fuses.

    Key/value heads are never repeated: the query heads that share one are rows of the same product. Scores
    are formed in float32: biases of Qwen2.5's projections make some larger than float16 holds, and so large
    that bfloat16 rounds them by tens of nats.
    """
    batch, heads, rows, channels = query.shape
    groups = key.shape[1]
    shared = heads // groups
    if shared > 1:
        query = query.reshape(batch, groups, shared, rows, channels)
        key, value = key[:, :, None], value[:, :, None]
        mask = mask if mask is None else mask[:, :, None]
    scores = (query.float() * channels**-0.5) @ key.float().transpose(-1, -2)
    if mask is not None:
        scores = scores + mask
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    return (weights @ value).reshape(batch, heads, rows, channels)


def attend_by_operator(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """One ``Attention`` node (opset 23)."""
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, enable_gqa=query.shape[1] != key.shape[1]
    )


def rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of (..., C) with cosines and sines that broadcast to it."""
    first, second = heads.chunk(2, dim=-1)
    return heads * cos + torch.cat((-second, first), dim=-1) * sin
