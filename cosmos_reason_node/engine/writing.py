# SPDX-License-Identifier: Apache-2.0
"""One branch on its way: what it may say, what it said, and where it stands."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from .base import Failed, Sampling, Token
from .drafts import Draft
from .free import FreeBranch
from .grammar import Branch
from .sampling import draw


@dataclass(eq=False)
class Writing:
    """A branch.

    Attributes:
        index: number of the query in its request.
        suffix: tokens of the question.
        grammar: what may be written.
        sampling, generator: how tokens are chosen.
        calibration: temperature of the confidence.
        most: tokens that its region must have room for.
        say: called with each event; ``Failed`` is the last.
        end: called when the text is complete.
        draft: guesses what it says next; None: it is not guessed at.
        pending: tokens chosen or forced, and not fed yet.
        shares: probability of each choice, once chosen.
        points: random numbers drawn for tokens that were not chosen after all; the next ones.
        length: tokens in its region.
        prefilled: steady time of its first token.
    """

    index: int
    suffix: list[int]
    grammar: Branch | FreeBranch
    sampling: Sampling
    generator: torch.Generator
    calibration: float
    most: int
    say: Callable[[Writing, Token | Failed], None]
    end: Callable[[Writing], None]
    draft: Draft | None = None
    pending: list[int] = field(default_factory=list)
    points: deque[float] = field(default_factory=deque)
    shares: list[float] = field(default_factory=list)
    length: int = 0
    prefilled: float = 0.0

    def take(self) -> None:
        """Note what the grammar wants fed next."""
        self.pending = self.grammar.take()
        if self.draft is not None:
            self.draft.said += self.pending

    def point(self) -> float:
        """The random number that decides next."""
        return self.points.popleft() if self.points else draw(self.sampling, self.generator)
