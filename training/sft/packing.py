# SPDX-License-Identifier: Apache-2.0
"""Packs all questions about a window behind one copy of its tokens.

    [ system + video | question a, answer a | question b, answer b | ... ]

Every branch attends to the prefix and to itself, and its positions go on from the prefix's end, so a branch
is computed exactly as it would be alone (and as the engine computes it); a test compares the two.

Axes: B windows, L packed tokens, A answer tokens over all windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cosmos_reason_node import prompt
from cosmos_reason_node.models.mrope import VideoGrid, text_positions
from cosmos_reason_node.models.spec import ModelSpec
from cosmos_reason_node.models.tokenizer import TextTokenizer
from training.data.sample import Sample

VERDICT_WEIGHT = 16.0  # of an answer, spread over its tokens, against a token of reasoning or format


@dataclass(frozen=True)
class Branch:
    """One question with its answer, as tokens.

    Attributes:
        question: token ids of the prompt's suffix.
        target: token ids that the model is to say.
        weights: loss weight of each of ``target``.
    """

    question: list[int]
    target: list[int]
    weights: list[float]


@dataclass(frozen=True)
class Packed:
    """A batch of windows of one length.

    Attributes:
        tokens: (B, L) ids.
        positions: (3, B, L) M-RoPE positions.
        mask: (B, 1, L, L) bool, true where a row may attend.
        rows, columns: (A,) places whose hidden state predicts an answer token.
        labels: (A,) that token.
        weights: (A,) its weight.
        shared: length of the prefix; its last token is <|vision_end|>.
    """

    tokens: Tensor
    positions: Tensor
    mask: Tensor
    rows: Tensor
    columns: Tensor
    labels: Tensor
    weights: Tensor
    shared: int


def encode_branch(tokenizer: TextTokenizer, sample: Sample, *, think: bool) -> Branch:
    """Tokens of a sample; without ``think`` the reasoning is left out, as with a thinking budget of 0."""
    reasoning = sample.reasoning if think else ""
    target = prompt.encode_target(tokenizer, reasoning, sample.answer)
    weights = np.ones(len(target))
    closing = len(tokenizer.encode(prompt.ANSWER_CLOSE + prompt.END_OF_TURN, add_special_tokens=False))
    answer = len(tokenizer.encode(sample.answer.strip(), add_special_tokens=False))
    weights[-closing - answer : -closing] = max(VERDICT_WEIGHT / answer, 1.0)
    return Branch(prompt.encode_suffix(tokenizer, sample.query), target, weights.tolist())


def pack(
    branches: Sequence[Sequence[Branch]], tokenizer: TextTokenizer, spec: ModelSpec, video: VideoGrid | None
) -> Packed:
    """Pack windows.

    Args:
        branches: per window its questions, at least one.
        tokenizer: of the model.
        spec: of the model.
        video: grid of each window's video (the same for all); None for questions without a video.
    """
    videos = [video] if video else []
    prefix = prompt.encode_prefix(tokenizer, [spec.patches.visual_tokens(v.grid) for v in videos])
    prefix_positions, following = spec.positions(prefix, videos)
    shared = len(prefix)
    longest = shared + max(sum(len(b.question) + len(b.target) for b in window) for window in branches)
    count = len(branches)
    tokens = np.zeros((count, longest), np.int64)
    positions = np.zeros((3, count, longest), np.int64)
    mask = np.zeros((count, 1, longest, longest), bool)
    mask[:, 0, np.arange(longest), np.arange(longest)] = (
        True  # padding sees itself, so that softmax is defined
    )
    tokens[:, :shared] = prefix
    positions[:, :, :shared] = prefix_positions[:, None]
    mask[:, 0, :shared, :shared] = np.tril(np.ones((shared, shared), bool))
    rows: list[int] = []
    columns: list[int] = []
    labels: list[int] = []
    weights: list[float] = []
    for row, window in enumerate(branches):
        start = shared
        for branch in window:
            ids = branch.question + branch.target
            end = start + len(ids)
            tokens[row, start:end] = ids
            positions[:, row, start:end] = text_positions(following, len(ids))
            mask[row, 0, start:end, :shared] = True
            mask[row, 0, start:end, start:end] = np.tril(np.ones((len(ids), len(ids)), bool))
            first = start + len(branch.question)
            rows += [row] * len(branch.target)
            columns += range(first - 1, end - 1)
            labels += branch.target
            weights += branch.weights
            start = end
    as_tensor = torch.from_numpy
    return Packed(
        as_tensor(tokens),
        as_tensor(positions),
        as_tensor(mask),
        torch.tensor(rows),
        torch.tensor(columns),
        torch.tensor(labels),
        torch.tensor(weights),
        shared,
    )
