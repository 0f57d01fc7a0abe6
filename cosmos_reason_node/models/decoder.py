# SPDX-License-Identifier: Apache-2.0
"""Qwen2.5's language model over preallocated key/value caches: one shared prefix, many branches behind it.

The network's own modules and weights, in the order transformers runs them, without its cache classes and mask
builders; a test holds the two against each other. What differs is where keys and values lie:

    Prefix     P tokens, one copy, read by every branch
    Branches   per branch a region of its own; a branch sees the prefix and itself, never its siblings

A step takes any number of tokens of any number of branches (rows, padded to the longest) through the network
at once, each at its own positions. Attention scores against the prefix and against the own region are joined
before one softmax, so this is exact, and the prefix is read once a step however many branches there are.

Axes: B rows, L tokens of a row, D hidden size, H heads, K key/value heads, G = H / K, C channels of a head,
P prefix tokens, S slots of a branch's region, N layers.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class Prefix:
    """Keys and values of one prefix.

    Attributes:
        keys, values: (N, K, capacity, C).
        length: tokens that are filled in.
    """

    def __init__(self, shape: tuple[int, int, int], capacity: int, like: Tensor) -> None:
        layers, heads, channels = shape
        self.keys = like.new_zeros(layers, heads, capacity, channels)
        self.values = torch.zeros_like(self.keys)
        self.length = 0

    @property
    def capacity(self) -> int:
        """Tokens it has room for."""
        return self.keys.shape[2]

    def copy_from(self, other: Prefix, length: int) -> None:
        """Take over the first ``length`` tokens of another."""
        self.keys[:, :, :length] = other.keys[:, :, :length]
        self.values[:, :, :length] = other.values[:, :, :length]
        self.length = length


class Branches:
    """Keys and values of the branches behind a prefix, one region each, dense from region 0.

    Attributes:
        keys, values: (N, regions, K, capacity, C). Never holds what is not finite: what a masked place holds
            is still multiplied, by zero.
    """

    def __init__(self, shape: tuple[int, int, int], regions: int, capacity: int, like: Tensor) -> None:
        layers, heads, channels = shape
        self.keys = like.new_zeros(layers, regions, heads, capacity, channels)
        self.values = torch.zeros_like(self.keys)

    @property
    def regions(self) -> int:
        """Branches it has room for."""
        return self.keys.shape[1]

    @property
    def capacity(self) -> int:
        """Tokens that a branch has room for."""
        return self.keys.shape[3]

    def copy_from(self, other: Branches) -> None:
        """Take over the contents of a smaller one."""
        regions, capacity = other.regions, other.capacity
        self.keys[:, :regions, :, :capacity] = other.keys
        self.values[:, :regions, :, :capacity] = other.values

    def move(self, source: int, target: int, length: int) -> None:
        """Copy a branch of ``length`` tokens into another region."""
        self.keys[:, target, :, :length] = self.keys[:, source, :, :length]
        self.values[:, target, :, :length] = self.values[:, source, :, :length]

    def wipe(self, region: int) -> None:
        """Fill a region with zeros, whatever it holds."""
        self.keys[:, region] = 0
        self.values[:, region] = 0


class Decoder:
    """Runs the language model of a network over ``Prefix`` and ``Branches``.

    Holds no copy of a weight: what is changed in the network is changed here.

    Args:
        network: transformers' Qwen2_5_VLForConditionalGeneration.
    """

    def __init__(self, network: Any) -> None:
        model = network.model.language_model
        config = model.config
        self._layers = list(model.layers)
        self._norm = model.norm
        self._head = network.lm_head
        attention = self._layers[0].self_attn
        self._channels: int = attention.head_dim
        self._heads: int = config.num_key_value_heads
        self._groups: int = config.num_attention_heads // config.num_key_value_heads
        self._scale: float = attention.scaling
        rotary = model.rotary_emb
        self._frequencies: Tensor = rotary.inv_freq.float()
        slides = any(getattr(layer.self_attn, "sliding_window", None) for layer in self._layers)
        if slides or rotary.attention_scaling != 1.0:
            raise ValueError("scaled rotary embeddings and sliding-window attention are not supported")
        sections = config.rope_parameters["mrope_section"]
        rows = [row % 3 for row, size in enumerate(sections) for _ in range(size)]
        self._row_of_channel = torch.tensor(rows, device=self._frequencies.device)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(N, K, C) of the caches."""
        return len(self._layers), self._heads, self._channels

    @property
    def bytes_per_token(self) -> int:
        """Of keys and values."""
        return 2 * len(self._layers) * self._heads * self._channels * self._norm.weight.element_size()

    def new_prefix(self, capacity: int) -> Prefix:
        """An empty prefix."""
        return Prefix(self.shape, capacity, self._norm.weight)

    def new_branches(self, regions: int, capacity: int) -> Branches:
        """Empty regions."""
        return Branches(self.shape, regions, capacity, self._norm.weight)

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) hidden states to (..., V) logits."""
        return self._head(hidden)

    def read(self, embedded: Tensor, positions: Tensor, prefix: Prefix) -> None:
        """Append tokens to a prefix.

        Args:
            embedded: (L, D).
            positions: (3, L) M-RoPE positions.
            prefix: gets their keys and values; has room for them.
        """
        length, past = len(embedded), prefix.length
        end = past + length
        rotation = self.rotation(positions[:, None], embedded.dtype)
        mask = None
        if past:  # a token sees all that was there and the new ones up to itself
            mask = torch.ones(length, end, dtype=torch.bool, device=embedded.device).tril(past)
        hidden = embedded[None]
        for i, layer in enumerate(self._layers):
            query, key, value = self._project(layer, hidden, rotation)
            prefix.keys[i, :, past:end] = key[0].transpose(0, 1)
            prefix.values[i, :, past:end] = value[0].transpose(0, 1)
            if i == len(self._layers) - 1:
                break  # nothing reads the last layer's output
            keys, values = (
                cache[i, :, :end].repeat_interleave(self._groups, 0)[None]
                for cache in (prefix.keys, prefix.values)
            )
            attended = F.scaled_dot_product_attention(
                query.transpose(1, 2), keys, values, attn_mask=mask, is_causal=mask is None, scale=self._scale
            )
            hidden = self._finish(layer, hidden, attended.transpose(1, 2).flatten(2))
        prefix.length = end

    def write(
        self,
        embedded: Tensor,
        starts: Tensor,
        lengths: Tensor,
        prefix: Prefix,
        branches: Branches,
        first: int = 0,
        *,
        prefix_room: int = 0,
        room: int = 0,
    ) -> Tensor:
        """Take tokens of branches through the network, into their regions.

        Rows shorter than L are padded at the end; padding lands in places that later tokens overwrite and
        that nothing sees before.

        Args:
            embedded: (B, L, D), row i of region ``first + i``.
            starts: (B,) text position of each row's first token.
            lengths: (B,) tokens that each region holds already.
            prefix: what all of them follow.
            branches: has room for ``lengths + L`` tokens.
            first: region of row 0.
            prefix_room: places of the prefix to attend over, masked where not filled; 0: those filled.
            room: the same of the regions; 0: as many as are filled (``lengths`` is read on the host).

        Returns:
            (B, L, D) last hidden states.
        """
        rows, length, _ = embedded.shape
        prefix_room = prefix_room or prefix.length
        room = room or int(lengths.max()) + length
        steps = torch.arange(length, device=embedded.device)
        places = lengths[:, None] + steps  # (B, L)
        rotation = _cosines((starts[:, None] + steps)[..., None] * self._frequencies, embedded.dtype)
        column = torch.arange(prefix_room + room, device=embedded.device)
        seen = torch.where(
            column < prefix_room, column < prefix.length, column - prefix_room <= places[..., None]
        )
        hides = embedded.new_zeros(seen.shape, dtype=torch.float32).masked_fill_(~seen, -torch.inf)
        # (B, 1, G*L, P+S): rows of a key/value head are its G query heads' L tokens.
        hides = hides[:, None].repeat(1, 1, self._groups, 1)
        region = torch.arange(first, first + rows, device=embedded.device)[:, None]
        hidden = embedded
        for i, layer in enumerate(self._layers):
            query, key, value = self._project(layer, hidden, rotation)
            branches.keys[i][region, :, places] = key
            branches.values[i][region, :, places] = value
            own = slice(first, first + rows)
            attended = self._attend(
                query,
                (prefix.keys[i, :, :prefix_room], prefix.values[i, :, :prefix_room]),
                (branches.keys[i, own, :, :room], branches.values[i, own, :, :room]),
                hides,
            )
            hidden = self._finish(layer, hidden, attended)
        return _normalise(self._norm, hidden)

    def rotation(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines, (B, L, 1, C/2) each, of (3, B, L) M-RoPE positions."""
        return _cosines(positions.movedim(0, -1)[..., self._row_of_channel] * self._frequencies, dtype)

    def _project(
        self, layer: Any, hidden: Tensor, rotation: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, L, H, C), keys and values (B, L, K, C) of a layer."""
        attention, normed = layer.self_attn, _normalise(layer.input_layernorm, hidden)
        query, key, value = (
            projection(normed).unflatten(-1, (-1, self._channels))
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        return rotate(query, *rotation), rotate(key, *rotation), value

    def _finish(self, layer: Any, hidden: Tensor, attended: Tensor) -> Tensor:
        """The rest of a layer: (B, L, H*C) attended values to (B, L, D) hidden states."""
        hidden = hidden + layer.self_attn.o_proj(attended)
        return hidden + layer.mlp(_normalise(layer.post_attention_layernorm, hidden))

    def _attend(
        self,
        query: Tensor,
        prefix: tuple[Tensor, Tensor],
        own: tuple[Tensor, Tensor],
        hides: Tensor,
    ) -> Tensor:
        """One softmax over prefix and own region.

        Args:
            query: (B, L, H, C).
            prefix: keys and values, (K, P, C).
            own: keys and values, (B, K, S, C).
            hides: (B, 1, G*L, P+S) float32, 0 or -inf.

        Returns:
            (B, L, H*C).
        """
        rows, length = query.shape[:2]
        own_keys, own_values = (cache.flatten(0, 1) for cache in own)  # (B*K, S, C)
        prefix_keys, prefix_values = prefix
        query = query.unflatten(2, (self._heads, self._groups)).permute(0, 2, 3, 1, 4) * self._scale
        query = query.flatten(2, 3)  # (B, K, G*L, C)
        by_head = query.transpose(0, 1).flatten(1, 2)  # (K, B*G*L, C)
        on_prefix = torch.bmm(by_head, prefix_keys.transpose(1, 2)).unflatten(1, (rows, -1)).transpose(0, 1)
        on_own = torch.bmm(query.flatten(0, 1), own_keys.transpose(1, 2)).unflatten(0, (rows, -1))
        scores = torch.cat((on_prefix, on_own), -1).float() + hides
        weights = scores.softmax(-1).to(query.dtype)
        at = prefix_keys.shape[1]
        from_prefix = torch.bmm(weights[..., :at].transpose(0, 1).flatten(1, 2), prefix_values)
        from_own = torch.bmm(weights[..., at:].flatten(0, 1), own_values)
        sums = from_prefix.unflatten(1, (rows, -1)).transpose(0, 1) + from_own.unflatten(0, (rows, -1))
        return sums.unflatten(2, (self._groups, length)).permute(0, 3, 1, 2, 4).flatten(2)


def rotate(heads: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Turn (..., C) by angles of which (..., C/2) cosines and sines are given."""
    first, second = heads.chunk(2, -1)
    return torch.cat((first * cosines - second * sines, second * cosines + first * sines), -1)


def _cosines(angles: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Of (B, L, C/2) angles, with a dimension for the heads."""
    angles = angles[:, :, None]
    return angles.cos().to(dtype), angles.sin().to(dtype)


def _normalise(norm: Any, hidden: Tensor) -> Tensor:
    """A Qwen RMS norm as one kernel."""
    return F.rms_norm(hidden, norm.weight.shape, norm.weight, norm.variance_epsilon)
