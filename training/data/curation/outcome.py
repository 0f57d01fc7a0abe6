# SPDX-License-Identifier: Apache-2.0
"""How an item leaves a stage, and the books: nothing enters a stage without leaving it counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

STAGES = ("select", "caption", "write", "check", "blind", "trace", "clean")


class Rejected(Exception):
    """An item is not good enough.

    Args:
        reason: one word of a rule, counted.
        detail: what exactly, for people.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


class Unfinished(Exception):
    """An item waits for a later run: the budget is spent, or an endpoint does not answer. As ``Rejected``."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class Loss:
    """An item that did not become what the stage makes.

    Attributes:
        stage: of STAGES.
        item: id of the video, the question set or the question.
        reason, detail: as in Rejected.
        final: False = unfinished, a later run tries again.
        video: the file that it is about, as it was found.
    """

    stage: str
    item: str
    reason: str
    detail: str
    final: bool
    video: str = ""


@dataclass
class Count:
    """What became of a stage's items; after a run ``entered == kept + sum(rejected) + sum(unfinished)``."""

    entered: int = 0
    kept: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    unfinished: Counter[str] = field(default_factory=Counter)

    @property
    def balanced(self) -> bool:
        """Whether every item is accounted for."""
        return self.entered == self.kept + self.rejected.total() + self.unfinished.total()


class Books:
    """Counts and losses of one run."""

    def __init__(self) -> None:
        self.counts = {stage: Count() for stage in STAGES}
        self.losses: list[Loss] = []

    @contextmanager
    def item(self, stage: str, name: str, video: str = "") -> Iterator[None]:
        """An item of a video in a stage: kept unless the block raises Rejected or Unfinished, which go on."""
        count = self.counts[stage]
        count.entered += 1
        try:
            yield
        except (Rejected, Unfinished) as loss:
            final = isinstance(loss, Rejected)
            (count.rejected if final else count.unfinished)[loss.reason] += 1
            self.losses.append(Loss(stage, name, loss.reason, loss.detail, final, video))
            raise
        count.kept += 1

    @property
    def balanced(self) -> bool:
        """Whether every item of every stage is accounted for."""
        return all(count.balanced for count in self.counts.values())

    @property
    def complete(self) -> bool:
        """Whether no item waits for a later run."""
        return not any(count.unfinished for count in self.counts.values())
