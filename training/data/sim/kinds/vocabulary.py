# SPDX-License-Identifier: Apache-2.0
"""The closed set of words that questions, options, answers and reasoning about clips are made of."""

from __future__ import annotations

_WORDS = ""


def words() -> tuple[str, ...]:
    """All words, as they are spelled inside a sentence, sorted; a test proves that no other is ever used."""
    return tuple(sorted(set(_WORDS.split())))
