# SPDX-License-Identifier: Apache-2.0
"""Nemotron-H's layers, Mamba-2 (M), attention (*) and MLP (-), over one prefix and the branches behind it.

What models/decoder.py does for Qwen2.5, with a second kind of memory: a recurrent layer remembers a prefix as
a state of fixed size, whatever its length, and a state cannot be cut off. Hence

    HybridPrefix     keys and values of the attention layers; states where others may go on (``marks``):
                     before the videos, after them, at the end
    HybridBranches   per branch keys and values, and states that begin as the prefix's

There are no positions: attention layers see order through the recurrent ones (Nemotron-H, arXiv 2504.03624).
States are float32; of the 56B model one takes 0.84 GiB, and a prefix keeps up to three.

Axes: B rows, L tokens, D hidden size, K key/value heads, C channels of one, A attention layers, M recurrent
layers; F, W, H, N as in mamba.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .decoder import Branches, Prefix, attend, hidden_places
from .mamba import State, mix, widths

_MARKS = 3


class HybridPrefix(Prefix):
    """What layers remember of one prefix.

    Attributes:
        cache: (A, 2, K, capacity, C), keys and values.
        length: tokens that are filled in.
        marks: by length, the recurrent layers' states behind so many tokens.
    """

    def __init__(self, shape: tuple[int, int, int], capacity: int, like: Tensor) -> None:
        super().__init__(shape, capacity, like)
        self.marks: dict[int, list[State]] = {}

    @property
    def nbytes(self) -> int:
        """Memory of it; states that it shares with others included."""
        states = [state for kept in self.marks.values() for state in kept]
        return self.cache.nbytes + sum(state.inputs.nbytes + state.memory.nbytes for state in states)

    def usable(self, length: int) -> int:
        """Tokens, at most ``length``, behind which a state is known."""
        return max((mark for mark in self.marks if mark <= length), default=0)

    def copy_from(self, other: Prefix, length: int) -> None:
        """Take over the first ``length`` tokens of another. States are shared: nobody writes into them."""
        super().copy_from(other, length)
        assert isinstance(other, HybridPrefix)
        self.marks = {at: states for at, states in other.marks.items() if at <= length}

    def cut(self) -> None:
        """Forget states further on than what is filled in: they are behind other tokens."""
        self.marks = {at: states for at, states in self.marks.items() if at <= self.length}

    def mark(self, states: list[State]) -> None:
        """Keep the states behind what is filled in."""
        while len(self.marks) >= _MARKS:  # the first one, before the videos, serves every window
            del self.marks[sorted(self.marks)[1]]
        self.marks[self.length] = states


class HybridBranches(Branches):
    """What layers remember of the branches.

    Attributes:
        cache: (A, 2, regions, K, capacity, C), keys and values.
        inputs: (M, regions, F, W - 1).
        memory: (M, regions, H, C, N) float32.
    """

    def __init__(
        self, shape: tuple[int, int, int], regions: int, capacity: int, like: Tensor, states: list[State]
    ) -> None:
        super().__init__(shape, regions, capacity, like)
        nothing = like.new_zeros(0, regions)
        self.inputs = torch.stack([state.inputs for state in states]) if states else nothing
        self.memory = torch.stack([state.memory for state in states]) if states else nothing

    def copy_from(self, other: Branches) -> None:
        """Take over the contents of a smaller one."""
        super().copy_from(other)
        assert isinstance(other, HybridBranches)
        self.inputs[:, : other.regions] = other.inputs
        self.memory[:, : other.regions] = other.memory

    def move(self, source: int, target: int, length: int) -> None:
        """Copy a branch of ``length`` tokens into another region."""
        super().move(source, target, length)
        self.inputs[:, target] = self.inputs[:, source]
        self.memory[:, target] = self.memory[:, source]

    def wipe(self, region: int) -> None:
        """Fill a region with zeros, whatever it holds."""
        super().wipe(region)
        self.inputs[:, region] = 0
        self.memory[:, region] = 0


class HybridDecoder:
    """Runs a Nemotron-H language model over ``HybridPrefix`` and ``HybridBranches``.

    Stands in for decoder.Decoder; ``recurrent`` says that a prefix is to be read in the parts behind which
    others may go on. Holds no copy of a weight.

    Args:
        network: models.hybrid's network.
    """

    can_draft = False  # a guess that does not come true would have to be taken out of the states again
    recurrent = True

    def __init__(self, network: Any) -> None:
        model = network.model.language_model
        self._layers = list(model.layers)
        self._norm, self._head = model.norm_f, network.lm_head
        self._config = model.config
        kinds = [layer.block_type for layer in self._layers]
        self._attention = [i for i, kind in enumerate(kinds) if kind == "full_attention"]
        self._recurrent = [i for i, kind in enumerate(kinds) if kind == "linear_attention"]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(A, K, C) of the caches."""
        return len(self._attention), self._config.num_key_value_heads, self._config.head_dim

    def new_prefix(self, capacity: int) -> HybridPrefix:
        """An empty prefix."""
        return HybridPrefix(self.shape, capacity, self._weight)

    def new_branches(self, regions: int, capacity: int) -> HybridBranches:
        """Empty regions."""
        return HybridBranches(self.shape, regions, capacity, self._weight, self._states(regions))

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) hidden states to (..., V) logits."""
        return self._head(hidden)

    def read(self, embedded: Tensor, positions: Tensor, prefix: HybridPrefix) -> None:
        """Append tokens to a prefix, and keep the states behind them.

        Args:
            embedded: (L, D).
            positions: of no use here.
            prefix: has room for them, and a state behind its last token.
        """
        prefix.cut()
        length, past = len(embedded), prefix.length
        end = past + length
        states = prefix.marks[past] if past else self._states(1)
        after: list[State] = []
        lengths = torch.tensor([length], device=embedded.device)
        mask = torch.ones(length, end, dtype=torch.bool, device=embedded.device).tril(past) if past else None

        def attention(place: int, mixer: Any, hidden: Tensor) -> Tensor:
            query, stored = self._project(mixer, hidden)
            prefix.cache[place, ..., past:end, :] = stored[0].permute(1, 2, 0, 3)
            keys, values = prefix.cache[place, ..., :end, :].repeat_interleave(mixer.num_key_value_groups, 1)
            attended = F.scaled_dot_product_attention(
                query.transpose(1, 2),
                keys[None],
                values[None],
                attn_mask=mask,
                is_causal=mask is None,
                scale=mixer.scaling,
            )
            return attended.transpose(1, 2).flatten(2)

        def recurrent(place: int, mixer: Any, hidden: Tensor) -> Tensor:
            out, state = mix(mixer, hidden, states[place], lengths)
            after.append(state)
            return out

        self._through(embedded[None], attention, recurrent)
        prefix.length = end
        prefix.mark(after)

    def write(
        self,
        embedded: Tensor,
        starts: Tensor,
        lengths: Tensor,
        ends: Tensor,
        prefix: HybridPrefix,
        branches: HybridBranches,
        first: int = 0,
        *,
        room: int = 0,
    ) -> Tensor:
        """Take tokens of branches through the network, into their regions; see Decoder.write.

        A region that holds nothing yet (``lengths`` 0) goes on from the prefix's state.
        """
        rows, length, _ = embedded.shape
        places = lengths[:, None] + torch.arange(length, device=embedded.device)
        room = room or int(lengths.max()) + length
        own = slice(first, first + rows)
        region = torch.arange(first, first + rows, device=embedded.device)[:, None]
        new = lengths == 0
        begins = bool(new.any())

        def attention(place: int, mixer: Any, hidden: Tensor) -> Tensor:
            query, stored = self._project(mixer, hidden)
            cache = branches.cache[place, ..., :room, :]
            cache[:, region, :, places] = stored
            shared = prefix.cache[place, ..., : prefix.length, :]
            groups = mixer.num_key_value_groups
            hides = hidden_places(places, prefix.length, room, prefix.length, groups)
            return attend(query, shared, cache[:, own].flatten(1, 2), hides, mixer.scaling)

        def recurrent(place: int, mixer: Any, hidden: Tensor) -> Tensor:
            state = State(branches.inputs[place, own], branches.memory[place, own])
            if begins:
                before = prefix.marks[prefix.length][place]
                state = State(
                    torch.where(new[:, None, None], before.inputs, state.inputs),
                    torch.where(new[:, None, None, None], before.memory, state.memory),
                )
            out, state = mix(mixer, hidden, state, ends + 1)
            branches.inputs[place, own], branches.memory[place, own] = state.inputs, state.memory
            return out

        hidden = self._through(embedded, attention, recurrent)
        return self._norm(hidden[torch.arange(rows, device=hidden.device), ends])

    def _through(
        self,
        hidden: Tensor,
        attention: Callable[[int, Any, Tensor], Tensor],
        recurrent: Callable[[int, Any, Tensor], Tensor],
    ) -> Tensor:
        """All layers; the functions get the number of the layer among those of its kind, and its mixer."""
        for i, layer in enumerate(self._layers):
            mixer, normed = layer.mixer, layer.norm(hidden.to(layer.norm.weight.dtype))
            if layer.block_type == "full_attention":
                change = mixer.o_proj(attention(self._attention.index(i), mixer, normed))
            elif layer.block_type == "linear_attention":
                change = recurrent(self._recurrent.index(i), mixer, normed)
            else:
                change = mixer(normed)
            hidden = hidden + change
        return hidden

    def _project(self, mixer: Any, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Queries (B, L, H, C), and keys and values (B, L, 2, K, C)."""
        query, key, value = (
            project(hidden).unflatten(-1, (-1, mixer.head_dim))
            for project in (mixer.q_proj, mixer.k_proj, mixer.v_proj)
        )
        return query, torch.stack((key, value), 2)

    def _states(self, rows: int) -> list[State]:
        """Of every recurrent layer, before any token."""
        states = []
        for i in self._recurrent:
            inputs, memory = widths(self._layers[i].mixer)
            states.append(
                State(
                    self._weight.new_zeros(rows, *inputs),
                    self._weight.new_zeros(rows, *memory, dtype=torch.float32),
                )
            )
        return states

    @property
    def _weight(self) -> Tensor:
        return self._head.weight
