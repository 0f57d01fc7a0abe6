# SPDX-License-Identifier: Apache-2.0
"""Batches that are written in step: one pass of the language model advances the rows of all of them.

A step of few rows costs mostly the starting of its operations, whatever the rows; answers about other
windows come along for little more. Prefixes are padded to the longest, and lie beside one another. Row r of
batch x is row r * X + x of the pass, so what is left lies dense while each batch lets go of its own rows.

    batches    x = 0       x = 1       x = 2
    rows       0 3 6 ...   1 4 7 ...   2 5 8 ...     a batch with fewer rows than another has idle ones
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import CosmosReasonError, ErrorCode
from .batch import Batch
from .machine import Machine


class Together:
    """Advances batches that nothing else advances.

    Args:
        machine: what they work with; its decoder ``can_interleave``.
        batches: all new, with all their branches waiting.

    Raises:
        CosmosReasonError: one of them is being written already.
    """

    def __init__(self, machine: Machine, batches: Sequence[Batch]) -> None:
        if any(batch.rows for batch in batches):
            raise CosmosReasonError(
                ErrorCode.INVALID_REQUEST,
                "a request about one of these windows is being answered: end it first",
            )
        self._machine, self._batches = machine, list(batches)
        self._prefixes: Tensor | None = None
        self._filled = torch.empty(0)
        waiting = [writing for batch in batches for writing in batch.waiting]
        count, width = max(len(batch.waiting) for batch in batches), len(batches)
        self._regions = machine.regions(count * width, max((w.most for w in waiting), default=1))
        for x, batch in enumerate(batches):
            batch.lend(self._regions.every(width, x))

    def step(self) -> None:
        """Read a prefix, start a batch's branches, or advance what has begun."""
        for batch in self._batches:
            if batch.waiting:
                batch.step()
                return
        with torch.inference_mode():
            self._write()

    def _write(self) -> None:
        """A pass for every row, its choices, and what each batch makes of them."""
        rows = [list(batch.rows) for batch in self._batches]
        deepest = max(map(len, rows))
        if not deepest:
            return
        logits = self._logits(deepest)
        order = [(x, r) for x, of in enumerate(rows) for r in range(len(of))]
        writings = [rows[x][r] for x, r in order]
        fed = [len(writing.pending) for writing in writings]
        none: list[list[int]] = [[] for _ in writings]
        self._machine.counters.decode_steps += 1
        says = self._batches[0].choose(writings, none, logits[[r * len(rows) + x for x, r in order]])
        first = 0
        for batch, of in zip(self._batches, rows, strict=True):
            mine = slice(first, first + len(of))
            if of:
                batch.finish(of, fed[mine], none[mine], says[mine])
            first += len(of)

    def _logits(self, deepest: int) -> Tensor:
        """(deepest * X, V) after what each row has pending; those of idle rows mean nothing."""
        machine, device = self._machine, self._machine.model.device
        if self._prefixes is None:
            self._stack()
        assert self._prefixes is not None
        chunks, lengths, starts = [], [], []
        for r in range(deepest):
            for batch in self._batches:
                writing = batch.rows[r] if r < len(batch.rows) else None
                chunks.append(writing.pending if writing else [0])
                lengths.append(writing.length if writing else 0)
                starts.append(lengths[-1] + batch.plan.following)
        longest = max(map(len, chunks))
        tokens = torch.tensor([chunk + [0] * (longest - len(chunk)) for chunk in chunks]).to(device)
        ends = [len(chunk) - 1 for chunk in chunks]
        hidden = machine.decoder.through(
            machine.model.embed(tokens),
            torch.tensor(starts).to(device),
            torch.tensor(lengths).to(device),
            torch.tensor(ends).to(device),
            self._filled.repeat(deepest)[:, None, None],
            self._prefixes,
            self._regions.cache[..., : max(lengths) + longest, :],
        )
        return machine.decoder.logits(hidden)

    def _stack(self) -> None:
        """Put the prefixes beside one another."""
        prefixes = {x: prefix for x, batch in enumerate(self._batches) if (prefix := batch.prefix)}
        layers, two, heads, _, channels = next(iter(prefixes.values())).cache.shape
        longest = max(prefix.length for prefix in prefixes.values())
        self._prefixes = self._regions.cache.new_zeros(
            layers, two, len(self._batches) * heads, longest, channels
        )
        for x, prefix in prefixes.items():
            part = self._prefixes[:, :, x * heads : (x + 1) * heads, : prefix.length]
            part.copy_(prefix.cache[..., : prefix.length, :])
        lengths = [prefixes[x].length if x in prefixes else 0 for x in range(len(self._batches))]
        self._filled = torch.tensor(lengths, device=self._prefixes.device)
