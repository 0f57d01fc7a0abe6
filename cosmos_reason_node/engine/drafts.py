# SPDX-License-Identifier: Apache-2.0
"""Guesses at what a branch says next, from what was said to the same question a moment ago.

A window that slid by two frames mostly gets the answer that the one before got. So the tokens of that answer
are fed ahead of being chosen, several in one pass; each is kept only where the model then chooses exactly it.
What is written is therefore what would have been written without guesses, in fewer passes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence

MAX_ANSWERS = 64
FEWEST, MOST = 4, 32  # tokens guessed at a time
_CONTEXT = 3  # tokens by which a place in an earlier text is recognised


class Drafts:
    """The newest answer to each question."""

    def __init__(self) -> None:
        self._answers: OrderedDict[Hashable, tuple[int, ...]] = OrderedDict()

    def of(self, question: Hashable) -> Draft:
        """A guesser for a new answer to ``question``."""
        return Draft(self._answers.get(question, ()))

    def keep(self, question: Hashable, answer: Sequence[int]) -> None:
        """``answer`` was given; the longest unused go first."""
        self._answers[question] = tuple(answer)
        self._answers.move_to_end(question)
        while len(self._answers) > MAX_ANSWERS:
            self._answers.popitem(last=False)

    def forget(self) -> None:
        """Drop everything."""
        self._answers.clear()


class Draft:
    """Guesses for one answer on its way.

    Args:
        earlier: the answer to the same question the last time.
    """

    def __init__(self, earlier: tuple[int, ...]) -> None:
        self.said: list[int] = []
        self._earlier = earlier
        self._ahead = FEWEST

    def guess(self, most: int) -> list[int]:
        """Up to ``most`` tokens that may follow ``said``: as last time, or as earlier in this answer."""
        at, count = len(self.said), min(most, self._ahead)
        if count < 1:
            return []
        if self._earlier[:at] == tuple(self.said):
            return list(self._earlier[at : at + count])
        text = [*self._earlier, *self.said]
        context = text[-_CONTEXT:]
        for place in range(len(text) - _CONTEXT - 1, -1, -1):
            if text[place : place + _CONTEXT] == context:
                return text[place + _CONTEXT : place + _CONTEXT + count]
        return []

    def learn(self, guessed: int, right: int) -> None:
        """``right`` of ``guessed`` tokens came true."""
        if guessed:
            self._ahead = min(2 * self._ahead, MOST) if right == guessed else FEWEST
