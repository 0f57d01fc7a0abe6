# SPDX-License-Identifier: Apache-2.0
"""Which wrong answers are worth looking at."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .report import is_new
from .scoring import Given, Outcome

MOST = 160


@dataclass(frozen=True)
class Failure:
    """A question that was answered wrongly.

    Attributes:
        outcome: all that was said about it.
        given: the surest of its wrong answers.
        wrong: number of runs that were wrong.
        tags: what it can be filtered by: its kind, "unparsed", "error", "new_task".
    """

    outcome: Outcome
    given: Given
    wrong: int
    tags: tuple[str, ...]


def choose(
    outcomes: Sequence[Outcome], held_out_tasks: Iterable[str] = (), most: int = MOST
) -> list[Failure]:
    """At most ``most`` failures: the kinds take turns, the surest wrong answers of each come first."""
    new = set(held_out_tasks)
    by_kind: dict[str, list[Failure]] = {}
    for outcome in outcomes:
        wrong = [given for given in outcome.seeing if not given.right]
        if not wrong:
            continue
        given = max(wrong, key=lambda given: given.prediction.confidence)
        tags = [outcome.item.group]
        if not given.choice.text:
            tags.append("error" if given.prediction.error else "unparsed")
        if is_new(outcome.item, new):
            tags.append("new_task")
        by_kind.setdefault(outcome.item.group, []).append(Failure(outcome, given, len(wrong), tuple(tags)))
    for own in by_kind.values():
        own.sort(key=lambda failure: -failure.given.prediction.confidence)
    turns = [(place, kind) for kind in sorted(by_kind) for place in range(len(by_kind[kind]))]
    return [by_kind[kind][place] for place, kind in sorted(turns)[:most]]
