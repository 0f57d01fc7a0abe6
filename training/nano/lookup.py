# SPDX-License-Identifier: Apache-2.0
"""Letters of options, without a video: the reasoning names an option, the answer is its letter.

To answer a lettered question, the words that fit have to be found among the options, and the letter in front
of them said. Here every option of a question is named in turn, and only letters count.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import chain

import numpy as np

from cosmos_reason_node import prompt
from cosmos_reason_node.models.tokenizer import TextTokenizer
from cosmos_reason_node.types import Query
from training.sft.rows import Branch

ROW = 4  # questions packed together
Asked = tuple[Query, str, Branch]  # a question, its answer, and both as tokens


def conclusion(option: str) -> str:
    """How reasoning ends that chooses among options."""
    return f"The answer is: {option}."


def lookups(
    queries: Sequence[Query], count: int, tokenizer: TextTokenizer, weight: float, rng: np.random.Generator
) -> list[list[Asked]]:
    """Rows of ``ROW`` questions, ``count`` in all, their options shuffled, with an answer for each option.

    Args:
        queries: with options, to draw from; of none, no rows are made.
        count: of questions.
        tokenizer: of the model.
        weight: of a letter's loss; all other tokens have none.
        rng: draws.
    """
    chosen = [queries[int(i)] for i in rng.integers(len(queries), size=count)] if queries else []
    asked = [_answers(query, tokenizer, weight, rng) for query in chosen]
    return [list(chain(*asked[first : first + ROW])) for first in range(0, len(asked), ROW)]


def _answers(query: Query, tokenizer: TextTokenizer, weight: float, rng: np.random.Generator) -> list[Asked]:
    query = dataclasses.replace(
        query, options=tuple(str(option) for option in rng.permutation(query.options))
    )
    question: list[int] = prompt.encode_suffix(tokenizer, query)
    closing = len(tokenizer.encode(prompt.ANSWER_CLOSE + prompt.END_OF_TURN, add_special_tokens=False))
    asked = []
    for index, option in enumerate(query.options):
        target = prompt.encode_target(tokenizer, conclusion(option), prompt.letter(index))
        place = len(target) - closing - 1  # a letter is one token
        weights = [0.0] * len(target)
        weights[place] = weight
        asked.append((query, prompt.letter(index), Branch(question, target, weights, (place, place + 1))))
        question = []  # the others answer the same question
    return asked
