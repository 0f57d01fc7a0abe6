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
P prefix tokens, S slots of a branch's region, N layers, X prefixes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Prefix:
    """Keys and values of one prefix.

    Attributes:
        cache: (N, 2, K, capacity, C), keys and values.
        length: tokens that are filled in.
    """

    def __init__(self, shape: tuple[int, int, int], capacity: int, like: Tensor) -> None:
        layers, heads, channels = shape
        self.cache = like.new_zeros(layers, 2, heads, capacity, channels)
        self.length = 0

    @property
    def capacity(self) -> int:
        """Tokens it has room for."""
        return self.cache.shape[3]

    @property
    def nbytes(self) -> int:
        """Memory of it."""
        return self.cache.nbytes

    def usable(self, length: int) -> int:
        """Tokens, at most ``length``, behind which others can be read."""
        return length

    def copy_from(self, other: Prefix, length: int) -> None:
        """Take over the first ``length`` tokens of another."""
        self.cache[..., :length, :] = other.cache[..., :length, :]
        self.length = length


class Branches:
    """Keys and values of the branches behind a prefix, one region each, dense from region 0.

    Attributes:
        cache: (N, 2, regions, K, capacity, C), keys and values. Never holds what is not finite: what a masked
            place holds is still multiplied, by zero.
    """

    def __init__(self, shape: tuple[int, int, int], regions: int, capacity: int, like: Tensor) -> None:
        layers, heads, channels = shape
        self.cache = like.new_zeros(layers, 2, regions, heads, capacity, channels)

    @property
    def regions(self) -> int:
        """Branches it has room for."""
        return self.cache.shape[2]

    def every(self, step: int, first: int) -> Branches:
        """The regions ``first``, ``first + step`` and so on, in the same memory."""
        part = copy.copy(self)
        part.cache = self.cache[:, :, first::step]
        return part

    @property
    def capacity(self) -> int:
        """Tokens that a branch has room for."""
        return self.cache.shape[4]

    def copy_from(self, other: Branches) -> None:
        """Take over the contents of a smaller one."""
        self.cache[:, :, : other.regions, :, : other.capacity] = other.cache

    def move(self, source: int, target: int, length: int) -> None:
        """Copy a branch of ``length`` tokens into another region."""
        self.cache[:, :, target, :, :length] = self.cache[:, :, source, :, :length]

    def wipe(self, region: int) -> None:
        """Fill a region with zeros, whatever it holds."""
        self.cache[:, :, region] = 0


class _Layer:
    """One layer's operations on (B, L, ...) tensors.

    ``join`` puts projections with one input behind one another in memory, so that each group is one product:
    the network's parameters become views of that memory. Without it, the modules themselves are called.
    """

    def __init__(self, layer: Any, join: bool) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.before, self.between = layer.input_layernorm, layer.post_attention_layernorm
        self.project = _joined((attention.q_proj, attention.k_proj, attention.v_proj), join)
        self.out = _joined((attention.o_proj,), join)
        self._widen = _joined((mlp.gate_proj, mlp.up_proj), join)
        self._narrow = _joined((mlp.down_proj,), join)
        self._act = mlp.act_fn

    def mlp(self, hidden: Tensor) -> Tensor:
        """(B, L, D) to (B, L, D)."""
        gate, up = self._widen(hidden).chunk(2, -1)
        return self._narrow(self._act(gate) * up)


class Decoder:
    """Runs the language model of a network over ``Prefix`` and ``Branches``.

    Holds no copy of a weight: what is changed in place in the network is changed here. ``can_draft`` says
    that ``write`` takes ``every``, ``can_interleave`` that ``through`` takes several prefixes.

    Args:
        network: transformers' Qwen2_5_VLForConditionalGeneration.
        join: join products that share their input (see ``_Layer``); for networks that are only read.
    """

    can_draft = True
    can_interleave = True

    def __init__(self, network: Any, *, join: bool = False) -> None:
        model = network.model.language_model
        config = model.config
        self._layers = [_Layer(layer, join) for layer in model.layers]
        self._norm = model.norm
        self._head = network.lm_head
        attention = model.layers[0].self_attn
        self._channels: int = attention.head_dim
        self._heads: int = config.num_key_value_heads
        self._groups: int = config.num_attention_heads // config.num_key_value_heads
        self._scale: float = attention.scaling
        rotary = model.rotary_emb
        self._frequencies: Tensor = rotary.inv_freq.float()
        slides = any(getattr(layer.self_attn, "sliding_window", None) for layer in model.layers)
        if slides or rotary.attention_scaling != 1.0:
            raise ValueError("scaled rotary embeddings and sliding-window attention are not supported")
        sections = config.rope_parameters["mrope_section"]
        rows = [row % 3 for row, size in enumerate(sections) for _ in range(size)]
        self._row_of_channel = torch.tensor(rows, device=self._frequencies.device)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(N, K, C) of the caches."""
        return len(self._layers), self._heads, self._channels

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
            query, stored = self._project(layer, hidden, rotation)
            prefix.cache[i, ..., past:end, :] = stored[0].permute(1, 2, 0, 3)
            if i == len(self._layers) - 1:
                break  # nothing reads the last layer's output
            keys, values = prefix.cache[i, ..., :end, :].repeat_interleave(self._groups, 1)[:, None]
            attended = F.scaled_dot_product_attention(
                query.transpose(1, 2), keys, values, attn_mask=mask, is_causal=mask is None, scale=self._scale
            )
            hidden = hidden + layer.out(attended.transpose(1, 2).flatten(2))
            hidden = hidden + layer.mlp(_normalise(layer.between, hidden))
        prefix.length = end

    def slide(self, prefix: Prefix, source: int, target: int, count: int, moved: Tensor) -> None:
        """Move tokens to another place and other positions: an approximation, see engine/prefix.py.

        Keys are rotated on; what the deeper layers saw of tokens that are gone stays in them.

        Args:
            prefix: is changed.
            source: first place of the tokens.
            target: their first place from now on.
            count: n tokens.
            moved: (3, n) by how much their M-RoPE positions change.
        """
        piece = prefix.cache[..., source : source + count, :].clone()  # (N, 2, K, n, C)
        cosines, sines = (part[0, :, 0] for part in self.rotation(moved[:, None], piece.dtype))
        rotate(piece[:, 0], cosines, sines)
        prefix.cache[..., target : target + count, :] = piece

    def write(
        self,
        embedded: Tensor,
        starts: Tensor,
        lengths: Tensor,
        ends: Tensor,
        prefix: Prefix,
        branches: Branches,
        first: int = 0,
        *,
        prefix_room: int = 0,
        room: int = 0,
        every: bool = False,
    ) -> Tensor:
        """Take tokens of branches through the network, into their regions.

        Rows shorter than L are padded at the end; padding lands in places that later tokens overwrite and
        that nothing sees before.

        Args:
            embedded: (B, L, D), row i of region ``first + i``.
            starts: (B,) text position of each row's first token.
            lengths: (B,) tokens that each region holds already.
            ends: (B,) place of each row's last token, from 0 to L - 1.
            prefix: what all of them follow.
            branches: has room for ``lengths + L`` tokens.
            first: region of row 0.
            prefix_room: places of the prefix to attend over, masked where not filled; 0: those filled.
            room: the same of the regions; 0: as many as are filled (``lengths`` is read on the host).
            every: give the last hidden states of all tokens.

        Returns:
            (B, D) last hidden state of each row's last token, or (B, L, D).
        """
        length = embedded.shape[1]
        return self.through(
            embedded,
            starts,
            lengths,
            ends,
            prefix.length,
            prefix.cache[..., : prefix_room or prefix.length, :],
            branches.cache[..., : room or int(lengths.max()) + length, :],
            first,
            every=every,
        )

    def through(
        self,
        embedded: Tensor,
        starts: Tensor,
        lengths: Tensor,
        ends: Tensor,
        filled: int | Tensor,
        prefix: Tensor,
        branches: Tensor,
        first: int = 0,
        *,
        every: bool = False,
    ) -> Tensor:
        """``write`` on tensors alone, so that it can be compiled and captured.

        ``filled`` of the P places of ``prefix`` (N, 2, X*K, P, C) hold something; ``branches`` is
        (N, 2, regions, K, S, C). With X prefixes row i follows prefix i % X, and ``filled`` is (B, 1, 1).
        """
        rows, length, _ = embedded.shape
        row = torch.arange(rows, device=embedded.device)
        steps = torch.arange(length, device=embedded.device)
        places = lengths[:, None] + steps  # (B, L)
        rotation = _cosines((starts[:, None] + steps)[..., None] * self._frequencies, embedded.dtype)
        prefix_room = prefix.shape[-2]
        hides = hidden_places(places, prefix_room, branches.shape[-2], filled, self._groups)
        region = row[:, None] + first
        own = slice(first, first + rows)
        hidden = embedded
        for i, layer in enumerate(self._layers):
            query, stored = self._project(layer, hidden, rotation)
            branches[i][:, region, :, places] = stored
            if i == len(self._layers) - 1 and length > 1 and not every:  # nothing reads its other outputs
                hidden, query = hidden[row, ends][:, None], query[row, ends][:, None]
                hides = hides.view(rows, self._groups, length, -1)[row, :, ends][:, None]
            # (2, B*K, S, C): regions are dense, so this is a view.
            attended = attend(query, prefix[i], branches[i][:, own].flatten(1, 2), hides, self._scale)
            hidden = hidden + layer.out(attended)
            hidden = hidden + layer.mlp(_normalise(layer.between, hidden))
        return _normalise(self._norm, hidden if every else hidden[:, 0])

    def rotation(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines for ``rotate``, (B, L, 1, C) each, of (3, B, L) M-RoPE positions."""
        return _cosines(positions.movedim(0, -1)[..., self._row_of_channel] * self._frequencies, dtype)

    def _project(
        self, layer: _Layer, hidden: Tensor, rotation: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Queries (B, L, H, C), and what the cache stores: keys and values, (B, L, 2, K, C)."""
        rows, length, _ = hidden.shape
        heads = layer.project(_normalise(layer.before, hidden)).view(rows, length, -1, self._channels)
        queries = self._groups * self._heads
        rotate(heads[:, :, : queries + self._heads], *rotation)
        return heads[:, :, :queries], heads[:, :, queries:].unflatten(2, (2, self._heads))


def hidden_places(places: Tensor, prefix_room: int, room: int, filled: int | Tensor, groups: int) -> Tensor:
    """What rows must not see: of the prefix what is not filled, of their own region what comes after them.

    Args:
        places: (B, L) place of each token in its row's region.
        prefix_room: P.
        room: S.
        filled: places of the prefix that hold something; (B, 1, 1) where rows follow several.
        groups: G query heads of a key/value head, whose L tokens are its rows.

    Returns:
        (B, 1, G*L, P+S) float32, 0 or -inf.
    """
    column = torch.arange(prefix_room + room, device=places.device)
    seen = torch.where(column < prefix_room, column < filled, column - prefix_room <= places[..., None])
    hides = torch.zeros(seen.shape, device=places.device).masked_fill_(~seen, -torch.inf)
    return hides[:, None, None].expand(-1, -1, groups, -1, -1).flatten(2, 3)


def attend(query: Tensor, prefix: Tensor, own: Tensor, hides: Tensor, scale: float) -> Tensor:
    """One softmax over a shared prefix and each row's own region.

    Args:
        query: (B, L, H, C).
        prefix: keys and values, (2, X*K, P, C); row i follows prefix i % X.
        own: keys and values, (2, B*K, S, C).
        hides: (B, 1, G*L, P+S) float32, 0 or -inf.
        scale: of the scores.

    Returns:
        (B, L, H*C).
    """
    rows, length, every, channels = query.shape
    heads, at = own.shape[1] // rows, prefix.shape[2]
    groups, prefixes = every // heads, prefix.shape[1] // heads
    among = groups * length
    apart = (rows // prefixes, prefixes, heads, among)  # of rows, in their order
    joint = (prefixes, heads, rows // prefixes, among)  # rows of a prefix beside one another
    query = query.view(rows, length, heads, groups, channels).permute(0, 2, 3, 1, 4)
    by_row = query.reshape(rows * heads, among, channels)
    by_head = by_row.view(*apart, channels).permute(1, 2, 0, 3, 4).reshape(prefixes * heads, -1, channels)
    on_prefix = _scores(by_head, prefix[0]).view(*joint, -1).permute(2, 0, 1, 3, 4)
    on_own = _scores(by_row, own[0]).view(*apart, -1)
    scores = torch.cat((on_prefix, on_own), -1).view(rows, heads, among, -1)
    weights = torch.add(hides, scores, alpha=scale).softmax(-1).to(query.dtype)
    to_prefix = weights[..., :at].view(*apart, at).permute(1, 2, 0, 3, 4)
    to_own = weights[..., at:].reshape(rows * heads, among, -1)
    sums = torch.bmm(to_own, own[1]).view(*apart, channels)
    of_prefix = torch.bmm(to_prefix.reshape(prefixes * heads, -1, at), prefix[1]).view(*joint, channels)
    sums = sums + of_prefix.permute(2, 0, 1, 3, 4)
    sums = sums.view(rows, heads, groups, length, channels)
    return sums.permute(0, 3, 1, 2, 4).reshape(rows, length, -1)


def _scores(query: Tensor, keys: Tensor) -> Tensor:
    """Products of (N, R, C) queries and (N, S, C) keys, in float32 whatever their precision.

    Biases of Qwen2.5's projections make some heads' products exceed 65,504: more than float16 holds, and
    where a step of bfloat16 is 256, which after scaling is worth 22 nats.
    """
    if query.is_cuda and query.dtype != torch.float32:
        return torch.bmm(query, keys.transpose(1, 2), out_dtype=torch.float32)
    return torch.bmm(query.float(), keys.float().transpose(1, 2))


def rotate(heads: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Turn (..., C) in place by angles of which (..., C) cosines and sines are given; returns ``heads``."""
    swapped = heads.roll(heads.shape[-1] // 2, -1)
    return heads.mul_(cosines).addcmul_(swapped, sines)


def _cosines(angles: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Of (B, L, C/2) angles, for both halves of the channels, with a dimension for the heads."""
    cosines, sines = angles.cos(), angles.sin()
    both = torch.cat((cosines, cosines), -1), torch.cat((-sines, sines), -1)
    return both[0].to(dtype)[:, :, None], both[1].to(dtype)[:, :, None]


def _normalise(norm: Any, hidden: Tensor) -> Tensor:
    """A Qwen RMS norm."""
    weight, epsilon = norm.weight, norm.variance_epsilon
    if hidden.is_cuda or hidden.dtype != torch.float32:
        return torch.rms_norm(hidden, weight.shape, weight, epsilon)
    # On the CPU torch's own is made of eight operations; these are five.
    length = torch.linalg.vector_norm(hidden, 2, -1, True)
    inverse = (length * length).mul_(1 / hidden.shape[-1]).add_(epsilon).rsqrt_()
    return (hidden * inverse).mul_(weight)


def _joined(modules: Sequence[nn.Module], join: bool) -> Callable[[Tensor], Tensor]:
    """One product for all modules: their outputs, behind one another in the last dimension."""
    plain = [m for m in modules if type(m) is nn.Linear and type(m.weight) is nn.Parameter]
    if not join or len(plain) < len(modules):
        if len(modules) == 1:
            return modules[0]
        return lambda hidden: torch.cat([module(hidden) for module in modules], -1)
    weight = _gathered([module.weight for module in plain])
    biases = [module.bias for module in plain if module.bias is not None]
    bias = _gathered(biases) if len(biases) == len(plain) else None
    return lambda hidden: F.linear(hidden, weight, bias)


def _gathered(parameters: Sequence[Tensor]) -> Tensor:
    """Parameters behind one another in one tensor, whose parts they become."""
    if len(parameters) == 1:
        return parameters[0].detach()
    whole = torch.cat([parameter.detach() for parameter in parameters])
    for parameter, part in zip(parameters, whole.split([len(p) for p in parameters]), strict=True):
        parameter.data = part
    return whole
