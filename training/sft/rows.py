# SPDX-License-Identifier: Apache-2.0
"""Rows of any length and any videos as one batch, and the loss on their answers.

A row is one window (one or more cameras, or none) with the questions asked about it:

    [ system + videos | question a, answer a | question b, answer b | ... | padding ]
    [ system + videos | question, answer 1 | answer 2 | ... | padding ]

Each question with its answer is a branch: it attends to the prefix and to itself, and its positions go on
from the prefix's end, so it is computed as it would be alone and as the engine computes it. Several answers
to one question share its tokens.

Axes: B rows, L packed tokens, A answer tokens over all rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cosmos_reason_node import prompt
from cosmos_reason_node.models.mrope import VideoGrid, text_positions
from cosmos_reason_node.models.qwen2_5_vl import LoadedModel
from cosmos_reason_node.models.spec import ModelSpec
from cosmos_reason_node.models.tokenizer import TextTokenizer
from cosmos_reason_node.types import Query


@dataclass(frozen=True, eq=False)
class Branch:
    """One question with its answer, as tokens.

    Attributes:
        question: token ids of the prompt's suffix; empty: another answer to the question of the branch before
            it in its row.
        target: token ids that the model is to say.
        weights: loss weight of each of ``target``.
        verdict: (first, end) of the answer itself in ``target``.
    """

    question: Sequence[int]
    target: Sequence[int]
    weights: Sequence[float]
    verdict: tuple[int, int]

    def compact(self) -> Branch:
        """The same as arrays: an eighth of the memory of lists, for data sets of millions of samples."""
        question, target = (np.asarray(tokens, np.int32) for tokens in (self.question, self.target))
        weights = np.asarray(self.weights, np.float32)
        return Branch(question, target, weights, self.verdict)  # type: ignore[arg-type]


@dataclass(frozen=True)
class RowBatch:
    """Rows as tensors.

    Attributes:
        patches: (rows of patches, patch_dim) of all videos, row by row.
        grids: (t, h, w) of each of those videos.
        tokens: (B, L) ids.
        positions: (3, B, L) M-RoPE positions.
        mask: (B, 1, L, L) bool, true where a token may attend.
        rows, columns: (A,) places whose hidden state predicts an answer token.
        labels: (A,) that token.
        weights: (A,) its loss weight.
        prefixes: (B,) length of each row's prefix; its last token is the <|vision_end|> of its last video.
        lengths: (B,) tokens of each row; the rest is padding.
        samples: questions in the batch.
    """

    patches: Tensor
    grids: tuple[tuple[int, int, int], ...]
    tokens: Tensor
    positions: Tensor
    mask: Tensor
    rows: Tensor
    columns: Tensor
    labels: Tensor
    weights: Tensor
    prefixes: Tensor
    lengths: Tensor
    samples: int

    @property
    def weight(self) -> float:
        """Sum of all loss weights."""
        return float(self.weights.sum())

    @property
    def size(self) -> int:
        """Tokens that are computed, padding included."""
        return self.tokens.numel()

    def to(self, device: torch.device) -> RowBatch:
        """The same on ``device``."""
        if device.type == "cpu":
            return self
        moved: Any = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **moved)


def encode_answer(
    tokenizer: TextTokenizer, query: Query, reasoning: str, answer: str, verdict_weight: float
) -> Branch:
    """A question and its answer as tokens; empty ``reasoning`` trains to answer at once.

    ``verdict_weight`` is spread over the answer's tokens, so that long answers weigh as much as short ones;
    no token weighs less than one of the reasoning.
    """
    target = prompt.encode_target(tokenizer, reasoning, answer)
    closing = len(tokenizer.encode(prompt.ANSWER_CLOSE + prompt.END_OF_TURN, add_special_tokens=False))
    verdict = len(tokenizer.encode(answer.strip(), add_special_tokens=False))
    first, end = len(target) - closing - verdict, len(target) - closing
    weights = [1.0] * len(target)
    weights[first:end] = [max(verdict_weight / verdict, min(verdict_weight, 1.0))] * verdict
    return Branch(prompt.encode_suffix(tokenizer, query), target, weights, (first, end))


def pack_rows(
    branches: Sequence[Sequence[Branch]],
    videos: Sequence[Sequence[VideoGrid]],
    patches: Sequence[np.ndarray],
    tokenizer: TextTokenizer,
    spec: ModelSpec,
) -> RowBatch:
    """Pack rows.

    Args:
        branches: of each row, at least one.
        videos: of each row; none for questions without a video.
        patches: of all videos, row by row.
        tokenizer: of the model.
        spec: of the model.

    Raises:
        ValueError: the first branch of a row has no question.
    """
    if not all(len(row[0].question) for row in branches):
        raise ValueError("the first branch of a row has no question")
    prefixes = [
        prompt.encode_prefix(tokenizer, [spec.patches.visual_tokens(v.grid) for v in row]) for row in videos
    ]
    longest = max(
        len(prefix) + sum(len(b.question) + len(b.target) for b in row)
        for prefix, row in zip(prefixes, branches, strict=True)
    )
    count = len(branches)
    tokens = np.zeros((count, longest), np.int64)
    positions = np.zeros((3, count, longest), np.int64)
    mask = np.zeros((count, 1, longest, longest), bool)
    diagonal = np.arange(longest)
    mask[:, 0, diagonal, diagonal] = True  # padding sees itself, so that softmax is defined
    places: list[tuple[int, int]] = []
    labels: list[int] = []
    weights: list[float] = []
    lengths: list[int] = []

    def put(row: int, begin: int, ids: Sequence[int], where: np.ndarray, *sees: slice) -> slice:
        """Lay out tokens that see themselves, causally, and what lies in ``sees``."""
        end = begin + len(ids)
        tokens[row, begin:end] = ids
        positions[:, row, begin:end] = where
        for part in sees:
            mask[row, 0, begin:end, part] = True
        mask[row, 0, begin:end, begin:end] = np.tri(len(ids), dtype=bool)
        return slice(begin, end)

    for row, (prefix, grids) in enumerate(zip(prefixes, videos, strict=True)):
        where, following = spec.positions(prefix, list(grids))
        last = seen = put(row, 0, prefix, where)
        for branch in branches[row]:
            asked = len(branch.question)
            if asked:
                last = question = put(row, last.stop, branch.question, text_positions(following, asked), seen)
            length = len(branch.target)
            after = text_positions(following + question.stop - question.start, length)
            last = put(row, last.stop, branch.target, after, seen, question)
            # The question's last token predicts the first of the answer, each of those the one behind it.
            places += [(row, column) for column in (question.stop - 1, *range(last.start, last.stop - 1))]
            labels.extend(branch.target)
            weights.extend(branch.weights)
        lengths.append(last.stop)
    predicting = torch.tensor(places, dtype=torch.long).view(-1, 2)
    return RowBatch(
        patches=torch.from_numpy(np.concatenate(patches))
        if patches
        else torch.zeros(0, spec.patches.patch_dim),
        grids=tuple(video.grid for row in videos for video in row),
        tokens=torch.from_numpy(tokens),
        positions=torch.from_numpy(positions),
        mask=torch.from_numpy(mask),
        rows=predicting[:, 0],
        columns=predicting[:, 1],
        labels=torch.tensor(labels, dtype=torch.long),
        weights=torch.tensor(weights, dtype=torch.float32),
        prefixes=torch.tensor([len(prefix) for prefix in prefixes]),
        lengths=torch.tensor(lengths),
        samples=sum(len(row) for row in branches),
    )


def computing(model: LoadedModel, batch: RowBatch, compute: torch.dtype) -> torch.autocast:
    """Matrix products in ``compute`` where the network's weights are of another type."""
    enabled = compute is not torch.float32 and model.dtype is not compute
    return torch.autocast(batch.tokens.device.type, compute, enabled=enabled)


def features_of(
    model: LoadedModel, batch: RowBatch, *, frozen_vision: bool = False, everywhere: bool = False
) -> Tensor | None:
    """(N, D) visual tokens of the batch, None where it has no video.

    Args:
        model: that sees the batch.
        batch: rows.
        frozen_vision: no gradients through the vision tower.
        everywhere: run the tower also where a batch has no video, on an empty picture of which (0, D) tokens
            are kept: where it is sharded, gathering its shards takes all processes.
    """
    with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen_vision):
        if batch.grids:
            return model.visual_features(batch.patches, batch.grids)
        if not everywhere:
            return None
        merge = model.spec.patches.merge
        blank = batch.patches.new_zeros(merge * merge, model.spec.patches.patch_dim)
        return model.visual_features(blank, [(1, merge, merge)])[:0]


def answer_states(model: LoadedModel, batch: RowBatch, features: Tensor | None) -> Tensor:
    """(A, D) hidden states that predict the answer tokens, after the features of ``features_of``."""
    embedded = model.embed(batch.tokens, features)
    if model.spec.hybrid:
        return _states_apart(model, batch, embedded)
    hidden = model.decode(embedded, batch.positions, attention_mask=batch.mask)
    return hidden[batch.rows, batch.columns]


def _states_apart(model: LoadedModel, batch: RowBatch, embedded: Tensor) -> Tensor:
    """``answer_states`` of a model that reads one text after the other: each branch behind its own prefix."""
    owners: list[int] = []
    ends: list[tuple[int, int]] = []  # of each branch, where what it sees is largest
    for row, column in zip(batch.rows.tolist(), batch.columns.tolist(), strict=True):
        if ends and ends[-1][0] == row and ends[-1][1] < column and batch.mask[row, 0, column, ends[-1][1]]:
            ends[-1] = (row, column)
        else:
            ends.append((row, column))
        owners.append(len(ends) - 1)
    seen = [batch.mask[row, 0, column].nonzero()[:, 0] for row, column in ends]
    texts = [embedded[row, places] for (row, _), places in zip(ends, seen, strict=True)]
    padded = nn.utils.rnn.pad_sequence(texts, batch_first=True)
    positions = batch.positions.new_zeros(3, *padded.shape[:2])
    hidden = model.decode(padded, positions)  # causal: padding at the end is not seen
    before = batch.mask[batch.rows, 0, batch.columns].sum(-1) - 1
    return hidden[torch.tensor(owners, device=hidden.device), before]


class AnswerLoss(nn.Module):
    """Weighted cross-entropy of answer tokens: the objective of supervised fine-tuning.

    Args:
        model: network, tokenizer and description.
        compute: type of matrix products where the network's weights are of another one.
        frozen_vision: no gradients through the vision tower.
    """

    def __init__(
        self, model: LoadedModel, compute: torch.dtype = torch.float32, *, frozen_vision: bool = False
    ) -> None:
        super().__init__()
        self.network: nn.Module = model.network
        self._model = model
        self._compute = compute
        self._frozen_vision = frozen_vision
        self.everywhere = False  # set where the model is sharded, see features_of

    def forward(self, batch: RowBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum (not mean) of weighted losses, and sums of measures by name."""
        model = self._model
        with computing(model, batch, self._compute):
            features = features_of(
                model, batch, frozen_vision=self._frozen_vision, everywhere=self.everywhere
            )
            logits = model.logits(answer_states(model, batch, features))
        each = F.cross_entropy(logits.float(), batch.labels, reduction="none")
        with torch.no_grad():
            right = ((logits.argmax(-1) == batch.labels) * batch.weights).sum()
        return (each * batch.weights).sum(), {"right": right}
