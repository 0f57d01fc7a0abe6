# SPDX-License-Identifier: Apache-2.0
"""One token of every branch at shapes that do not change, as one CUDA graph.

Decoding is hundreds of small kernels a token; launched one by one from Python they take longer than they
compute. At fixed shapes (caches are attended over whole, what is not filled in is masked) they are launched
as one. The result is that of ``Decoder.write``. On a CPU the same step runs as it is, for tests.

B rows, V vocabulary.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .decoder import Branches, Decoder, Prefix

MAX_GRAPHS = 16
_Inputs = tuple[Tensor, Tensor, Tensor, Tensor]  # tokens, starts, lengths, filled places of the prefix
_WARM_UPS = 2


@dataclass(frozen=True, eq=False)
class _Graph:
    """A captured step on the memory of one prefix and one set of regions."""

    graph: Any
    inputs: tuple[Tensor, ...]
    logits: Tensor
    prefix: weakref.ref[Prefix]
    branches: weakref.ref[Branches]


class FixedStep:
    """Advances the first B branches by one token each.

    Args:
        decoder: the language model.
        embed: (B, 1) ids to (B, 1, D).
        device: where it runs.
    """

    def __init__(self, decoder: Decoder, embed: Callable[[Tensor], Tensor], device: torch.device) -> None:
        self._decoder = decoder
        self._embed = embed
        self._graphs: OrderedDict[tuple[int, int, int], _Graph] = OrderedDict()
        self._is_graph = device.type == "cuda"
        self._pool = torch.cuda.graph_pool_handle() if self._is_graph else None

    def __call__(
        self, tokens: Tensor, starts: Tensor, lengths: Tensor, prefix: Prefix, branches: Branches
    ) -> Tensor:
        """Feed one token to each branch.

        Args:
            tokens: (B, 1) ids, of regions 0 to B - 1.
            starts: (B,) their text positions.
            lengths: (B,) tokens that each region holds already.
            prefix: what all of them follow.
            branches: has room for one token more.

        Returns:
            (B, V) logits; the next call overwrites them.
        """
        filled = torch.tensor(prefix.length).to(tokens.device, non_blocking=True)
        inputs = (tokens, starts, lengths, filled)
        if not self._is_graph:
            return self._step(*inputs, prefix.cache, branches.cache)
        key = (id(prefix), id(branches), len(tokens))
        graph = self._graphs.get(key)
        if graph is None or graph.prefix() is not prefix or graph.branches() is not branches:
            graph = self._graphs[key] = self._capture(inputs, prefix, branches)
            while len(self._graphs) > MAX_GRAPHS:
                self._graphs.popitem(last=False)
        self._graphs.move_to_end(key)
        for ours, given in zip(graph.inputs, inputs, strict=True):
            ours.copy_(given)
        graph.graph.replay()
        return graph.logits

    def _step(
        self,
        tokens: Tensor,
        starts: Tensor,
        lengths: Tensor,
        filled: Tensor,
        prefix: Tensor,
        branches: Tensor,
    ) -> Tensor:
        ends = torch.zeros_like(lengths)
        hidden = self._decoder.through(self._embed(tokens), starts, lengths, ends, filled, prefix, branches)
        return self._decoder.logits(hidden)

    def _capture(self, inputs: _Inputs, prefix: Prefix, branches: Branches) -> _Graph:
        """Record a step. It writes what the first replay writes again, so nothing is lost by it."""
        tokens, starts, lengths, filled = (tensor.clone() for tensor in inputs)
        ours = (tokens, starts, lengths, filled)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UPS):
                self._step(*ours, prefix.cache, branches.cache)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            logits = self._step(*ours, prefix.cache, branches.cache)
        return _Graph(graph, ours, logits, weakref.ref(prefix), weakref.ref(branches))
