# SPDX-License-Identifier: Apache-2.0
"""The language model as a graph with its key/value cache outside.

Whatever decides how rows see each other comes in: positions (as cosines and sines of M-RoPE) and an additive
mask. So windows, their slides, chunks of a prompt and several questions packed into one sequence are the same
graph. Only the new rows' keys and values come out; the caller puts them behind the ones it has.

The past is two inputs, because it lies in two places: a prefix that many branches share, and what the
branches themselves hold.

Axes: R new rows, P rows of the prefix, S rows of branches, D hidden size, G key/value heads, C channels of a
head, V vocabulary. There is no batch axis: rows of several branches lie side by side.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cosmos_reason_node.models.qwen2_5_vl import LoadedModel

from .attention import Attend, rotate


class DecoderGraph(nn.Module):
    """The decoder; shares the checkpoint's parameters.

    Args:
        model: the checkpoint.
        attend: see ``attention``.
    """

    def __init__(self, model: LoadedModel, attend: Attend) -> None:
        super().__init__()
        language: Any = model.network.model.language_model
        self.layers, self.norm = language.layers, language.norm
        self._attend = attend

    @property
    def dtype(self) -> torch.dtype:
        """Type of activations and of the cache."""
        return self.norm.weight.dtype

    def forward(
        self, embeds: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, past: tuple[tuple[Tensor, ...], ...]
    ) -> tuple[Tensor, ...]:
        """Run all layers.

        Args:
            embeds: (R, D).
            cos: (R, C) float32, of the rows' M-RoPE positions.
            sin: likewise.
            mask: (R, P + S + R), 0 where a row may attend, very negative where not.
            past: for each layer keys and values of the prefix, (P, G, C), and of the branches, (S, G, C).

        Returns:
            hidden states (R, D), then keys and values (R, G, C) of the new rows, layer by layer.
        """
        hidden = embeds
        cos, sin = cos[:, None].to(self.dtype), sin[:, None].to(self.dtype)
        grown: list[Tensor] = []
        for layer, (prefix_keys, prefix_values, own_keys, own_values) in zip(self.layers, past, strict=True):
            attention = layer.self_attn
            normed = layer.input_layernorm(hidden)
            channels = attention.head_dim
            query = rotate(attention.q_proj(normed).unflatten(-1, (-1, channels)), cos, sin)
            key = rotate(attention.k_proj(normed).unflatten(-1, (-1, channels)), cos, sin)
            value = attention.v_proj(normed).unflatten(-1, (-1, channels))
            grown += [key, value]
            keys = torch.cat((prefix_keys, own_keys, key))
            values = torch.cat((prefix_values, own_values, value))
            query, keys, values = (t.transpose(0, 1)[None] for t in (query, keys, values))
            attended = self._attend(query, keys, values, mask[None, None])[0].transpose(0, 1)
            hidden = hidden + attention.o_proj(attended.flatten(1))
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        return (self.norm(hidden), *grown)


class HeadGraph(nn.Module):
    """The output layer apart from the decoder: most rows of a prompt need no logits.

    Args:
        model: the checkpoint.
    """

    def __init__(self, model: LoadedModel) -> None:
        super().__init__()
        self.lm_head = model.network.lm_head

    def forward(self, hidden: Tensor) -> Tensor:
        """(R, D) to (R, V) float32."""
        return self.lm_head(hidden).float()
