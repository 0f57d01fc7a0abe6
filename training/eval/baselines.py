# SPDX-License-Identifier: Apache-2.0
"""What one can score without looking: by guessing, or by knowing which answers are frequent."""

from __future__ import annotations

import collections
from collections.abc import Sequence

import numpy as np

from cosmos_reason_node.prompt import question_text

from .item import Item
from .protocol import normal

# A question asked of fewer recordings has no frequency to speak of: its most frequent answer is its answer.
COMMON = 5


def random_guess(items: Sequence[Item]) -> float:
    """Expected accuracy of guessing among the answers that are allowed."""
    return float(np.mean([item.chance for item in items]))


def best_without_video(items: Sequence[Item]) -> np.ndarray:
    """(I,) bool: whether always giving the most frequent right answer would be right.

    Frequent for the question's text where it is asked of at least COMMON recordings, else among the rare
    questions of the same group and form (there, of options, the most frequent letter). Options of which none
    is right about two recordings are rare too: the right one would be told by its own item alone. Frequencies
    are those of these very items, so for repeated questions nobody without eyes does better.
    """
    asked: dict[tuple[str, ...], set[str]] = collections.defaultdict(set)
    for item in items:
        asked[_text(item)].add(item.cluster)
    seen: dict[tuple[str, ...], dict[str, set[str]]] = collections.defaultdict(
        lambda: collections.defaultdict(set)
    )
    for item in items:
        seen[_text(item)][normal(item.wanted)].add(item.cluster)

    def common(item: Item) -> bool:
        again = (len(seen[_text(item)][normal(option)]) > 1 for option in item.query.options)
        return len(asked[_text(item)]) >= COMMON and (not item.query.options or any(again))

    keys = [_text(item) if common(item) else _rare(item) for item in items]
    counts: dict[tuple[str, ...], collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for key, item in zip(keys, items, strict=True):
        counts[key][_wanted(key, item)] += 1
    right = []
    for key, item in zip(keys, items, strict=True):
        allowed = [normal(option) for option in item.query.options] if key[0] == "text" else []
        guess = max(allowed or counts[key], key=lambda answer: counts[key][answer])
        right.append(guess == _wanted(key, item))
    return np.array(right)


def _text(item: Item) -> tuple[str, ...]:
    return ("text", item.form, question_text(item.query))


def _rare(item: Item) -> tuple[str, ...]:
    return ("rare", item.form, item.group)


def _wanted(key: tuple[str, ...], item: Item) -> str:
    return item.answer if key[0] == "rare" and item.form == "choice" else normal(item.wanted)
