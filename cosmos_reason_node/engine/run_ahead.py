# SPDX-License-Identifier: Apache-2.0
"""Decoding on a GPU without waiting for it: the next step is queued before the tokens of this one are read.

    device   | step 1 | step 2 | step 3 | step 4 |
    host        queue 2, read 1 | queue 3, read 2 | ...

A step takes its tokens from the one before on the device. What it assumes of the grammar (each row feeds just
the token it chose, and may choose from the same tokens again) is checked once that token is read; where it
does not hold for a row, the queued step is void: its keys and values are overwritten by the step that takes
its place, and the random numbers that it used are used again.

B rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..models.decoder import Branches, Prefix
from ..models.fixed_step import FixedStep
from .sampling import sample_tokens
from .writing import Writing


@dataclass(frozen=True, eq=False)
class _Queued:
    """A step on the device: (B,) tokens there, and both results on their way to the host."""

    rows: list[Writing]
    tokens: Tensor
    on_host: Tensor
    arrived: Any
    points: list[float]


class RunAhead:
    """Advances the rows of one batch, one token each.

    Args:
        step: the language model at fixed shapes.
        following: text position of a branch's first token.
    """

    def __init__(self, step: FixedStep, following: int) -> None:
        self._step = step
        self._following = following
        self._queued: _Queued | None = None

    def advance(
        self, rows: Sequence[Writing], mask: Tensor, prefix: Prefix, regions: Branches
    ) -> list[tuple[int, float]]:
        """The next token of each row and its log probability.

        Args:
            rows: all rows of the batch, in the order of their regions; each has one token pending.
            mask: (B, V) or (V,) bool, forbidden tokens.
            prefix: what the rows follow.
            regions: where they write.
        """
        now = self._queued
        if now is None:
            pending = torch.tensor([writing.pending for writing in rows]).to(mask.device)
            now = self._queue(rows, 0, pending, mask, prefix, regions)
        self._queued = self._queue(rows, 1, now.tokens[:, None], mask, prefix, regions)
        if now.arrived is not None:
            now.arrived.synchronize()
        ids, log_probs = now.on_host.tolist()
        return [(int(token), log_prob) for token, log_prob in zip(ids, log_probs, strict=True)]

    def cancel(self) -> None:
        """The queued step does not count."""
        if self._queued is not None:
            for writing, point in zip(self._queued.rows, self._queued.points, strict=True):
                if writing.sampling.temperature > 0:
                    writing.points.appendleft(point)
        self._queued = None

    def _queue(
        self,
        rows: Sequence[Writing],
        ahead: int,
        tokens: Tensor,
        mask: Tensor,
        prefix: Prefix,
        regions: Branches,
    ) -> _Queued:
        is_cuda = mask.is_cuda
        on_host = torch.tensor([writing.length + ahead for writing in rows], pin_memory=is_cuda)
        lengths = on_host.to(mask.device, non_blocking=True)
        logits = self._step(tokens, lengths + self._following, lengths, prefix, regions)
        points = [writing.point() for writing in rows]
        chosen, log_probs = sample_tokens(logits, mask, [writing.sampling for writing in rows], points)
        both = torch.stack((chosen.double(), log_probs.double()))
        result, arrived = both, None
        if is_cuda:
            result = torch.empty(both.shape, dtype=both.dtype, pin_memory=True)
            result.copy_(both, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        return _Queued(list(rows), chosen, result, arrived, points)
