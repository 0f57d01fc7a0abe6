# SPDX-License-Identifier: Apache-2.0
"""A question in one of its three forms, and how it is put into words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cosmos_reason_node.prompt import letter
from cosmos_reason_node.types import Query, QueryKind

from ..physics.clip import Clip


@dataclass(frozen=True)
class Question:
    """A question about a window with its answer and the reasoning that leads to it.

    Attributes:
        group: name under which it is scored: one of kinds.GROUPS.
        query: as the node would be asked.
        answer: "yes", "no", an option's letter, or words.
        reasoning: one or two short sentences from the simulator's state.
    """

    group: str
    query: Query
    answer: str
    reasoning: str


def one_of(rng: np.random.Generator, *texts: str) -> str:
    """One of the texts."""
    return texts[int(rng.integers(len(texts)))]


def pick(rng: np.random.Generator, items: Sequence[int]) -> int:
    """One of the items."""
    return int(items[int(rng.integers(len(items)))])


def coin(rng: np.random.Generator, share: float = 0.5) -> bool:
    """True in this share of calls."""
    return bool(rng.random() < share)


def upper(text: str) -> str:
    """With a capital at the start."""
    return text[:1].upper() + text[1:]


def the(clip: Clip, index: int) -> str:
    """A thing in words: "the red ball"."""
    return f"the {clip.names[index]}"


def yes_no(group: str, text: str, truth: bool, reasoning: str) -> Question:
    """Answered yes or no."""
    query = Query(QueryKind.QUESTION, question=text, yes_no=True)
    return Question(group, query, "yes" if truth else "no", upper(reasoning))


def free(group: str, text: str, answer: str, reasoning: str) -> Question:
    """Answered in words."""
    return Question(group, Query(QueryKind.QUESTION, question=text), answer, upper(reasoning))


def choice(
    group: str, text: str, right: str, wrong: Sequence[str], reasoning: str, rng: np.random.Generator
) -> Question:
    """Multiple choice among ``right`` and at most three of ``wrong``, shuffled."""
    options = [str(option) for option in rng.permutation([right, *rng.permutation(wrong)[:3]])]
    query = Query(QueryKind.QUESTION, question=text, options=tuple(options))
    return Question(group, query, letter(options.index(right)), upper(reasoning))


def either(
    group: str, text: str, right: str, wrong: Sequence[str], reasoning: str, rng: np.random.Generator
) -> Question:
    """Multiple choice or free form, by chance: in the latter the choices are not shown."""
    if coin(rng, 0.6):
        return choice(group, text, right, wrong, reasoning, rng)
    return free(group, text, right, reasoning)
