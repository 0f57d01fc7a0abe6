# SPDX-License-Identifier: Apache-2.0
"""Which tokens of packed questions the losses are about: answers, options, names of things."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cosmos_reason_node import prompt
from cosmos_reason_node.models.tokenizer import TextTokenizer
from cosmos_reason_node.types import Query
from training.data.sim.physics.clip import Clip
from training.data.sim.sample import Span
from training.sft.rows import Branch

from .lookup import Asked
from .mentions import mentions
from .probe import Points

Happened = tuple[
    Clip, Span, Points
]  # a clip, its frames that are shown, and where the view's change puts points


def verdicts(branches: Sequence[Branch]) -> tuple[Tensor, Tensor]:
    """Of all verdict tokens: place among the answer tokens, and number of the question."""
    places: list[int] = []
    owners: list[int] = []
    start = 0
    for number, branch in enumerate(branches):
        first, end = branch.verdict
        places += range(start + first, start + end)
        owners += [number] * (end - first)
        start += len(branch.target)
    return torch.tensor(places), torch.tensor(owners)


def option_places(
    tokenizer: TextTokenizer, asked: Sequence[Sequence[Asked]], prefixes: Sequence[int], windows: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``WindowBatch``'s ends, letters, fits (of the first ``windows`` rows) and choices (of all)."""
    found: list[tuple[int, int, int, float]] = []
    choices: list[tuple[int, int, int]] = []
    for row, branches in enumerate(asked):
        start, columns = prefixes[row], list[int]()
        for query, answer, branch in branches:
            right = ord(answer) - ord("A") if query.options else -1
            if branch.question:  # or this is one more answer to the question before
                columns = [start + column for column in option_ends(tokenizer, query, branch.question)]
                if row < windows:
                    found += [(row, column, i, float(i == right)) for i, column in enumerate(columns)]
            start += len(branch.question)
            if columns:
                choices.append((row, start + branch.verdict[0] - 1, columns[right]))
            start += len(branch.target)
    table = torch.tensor(found, dtype=torch.float32).view(-1, 4)
    places = table[:, :3].long()
    return places[:, :2], places[:, 2], table[:, 3], torch.tensor(choices, dtype=torch.long).view(-1, 3)


def name_places(
    tokenizer: TextTokenizer,
    cells: int,
    windows: Sequence[tuple[int, Happened | None]],
    asked: Sequence[Sequence[Asked]],
    prefixes: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """``WindowBatch``'s names and shown.

    Args:
        tokenizer: of the model.
        cells: visual tokens of a pair of frames.
        windows: pairs of frames of each, and what is shown where it is a clip.
        asked: questions of each window.
        prefixes: columns before the first question of each row.
    """
    names: list[tuple[int, int]] = []
    shown: list[tuple[int, int, int]] = []
    for row, ((pairs, happened), branches) in enumerate(zip(windows, asked, strict=False)):
        if happened is None:
            continue
        start = prefixes[row]
        first = start - 1 - pairs * cells
        for query, _, branch in branches:
            about = mentions(query, branch.question, happened, cells, tokenizer)
            for column, places in about:
                shown += [(len(names), when, first + k) for when, tokens in enumerate(places) for k in tokens]
                names.append((row, start + column))
            start += len(branch.question) + len(branch.target)
    ends = torch.tensor(names, dtype=torch.long).view(-1, 2)
    return ends, torch.tensor(shown, dtype=torch.long).view(-1, 3)


def option_ends(tokenizer: TextTokenizer, query: Query, question: Sequence[int]) -> list[int]:
    """Index in ``question`` of each option's last token; empty where a part alone gives other tokens."""
    lines = prompt.user_text(query).split("\n")
    first = prompt.question_text(query).count("\n") + 1
    found = []
    for end in range(first + 1, first + 1 + len(query.options)):
        tokens = tokenizer.encode("\n".join(lines[:end]), add_special_tokens=False)
        if list(question[: len(tokens)]) != tokens:
            return []
        found.append(len(tokens) - 1)
    return found
