# SPDX-License-Identifier: Apache-2.0
"""A ticket, its answers and their rewards: what the roles hand one another, and a line of the journal."""

from __future__ import annotations

import json
from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Ticket:
    """One question to be answered by a group.

    Attributes:
        iteration: that trains on it.
        place: in the iteration's batch.
        attempt: 0, or how many questions in this place were replaced before.
    """

    iteration: int
    place: int
    attempt: int


@dataclass(frozen=True)
class Sampled:
    """One answer.

    Attributes:
        text: as written, format errors included.
        tokens: ids; the last is <|im_end|> unless the answer was ``cut`` by its budget.
        log_probs: of each token when it was sampled.
        versions: of the weights that each token was sampled with.
        cut: it did not end within its budget.
    """

    text: str
    tokens: tuple[int, ...]
    log_probs: tuple[float, ...]
    versions: tuple[int, ...]
    cut: bool


@dataclass(frozen=True)
class Judgement:
    """Rewards of one answer: ``format`` and ``accuracy`` in [0, 1], ``reward`` their weighted sum."""

    format: float
    accuracy: float
    reward: float


@dataclass(frozen=True)
class Group:
    """All answers to one ticket's question.

    Attributes:
        ticket: which.
        source: data set of the question.
        answers: one a member of the group.
        judgements: of each answer; () before the reward worker has seen them.
        none: rejecting all options was right.
        beside: places and attempts of all tickets that were answered in one round with it, its own included;
            () = it was answered alone.
    """

    ticket: Ticket
    source: str
    answers: tuple[Sampled, ...]
    judgements: tuple[Judgement, ...] = ()
    none: bool = False
    beside: tuple[tuple[int, int], ...] = ()

    @property
    def rewards(self) -> list[float]:
        """One an answer."""
        return [judgement.reward for judgement in self.judgements]


def read_group(line: str) -> Group | None:
    """A line of the journal; None where it is not whole."""
    try:
        value = json.loads(line)
        answers = tuple(
            Sampled(
                answer["text"],
                tuple(answer["tokens"]),
                tuple(answer["log_probs"]),
                tuple(answer["versions"]),
                answer["cut"],
            )
            for answer in value.pop("answers")
        )
        judgements = tuple(Judgement(**judgement) for judgement in value.pop("judgements"))
        beside = tuple((int(place), int(attempt)) for place, attempt in value.pop("beside", ()))
        ticket = Ticket(**value.pop("ticket"))
        return Group(ticket, answers=answers, judgements=judgements, beside=beside, **value)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
