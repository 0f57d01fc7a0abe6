# SPDX-License-Identifier: Apache-2.0
"""Groups of answers as one forward pass, the network's opinion of their tokens, and the objective.

A row is one question with as many answers of its group as fit, packed behind one copy of the video
and of the question (training.sft.rows). Axes: B rows, L packed tokens, A answer tokens over all rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cosmos_reason_node import prompt
from cosmos_reason_node.engine.grammar import Vocabulary
from cosmos_reason_node.models.mrope import VideoGrid
from cosmos_reason_node.models.qwen2_5_vl import LoadedModel
from cosmos_reason_node.models.spec import ModelSpec
from cosmos_reason_node.vision.patchify import patchify
from training.data.media import WindowSpec
from training.sft.rows import Branch, RowBatch, answer_states, computing, features_of, pack_rows

from .advantages import group_advantages
from .config import GrpoConfig, RlConfig
from .groups import Group, Sampled
from .loss import LossSettings, token_losses
from .tasks import Task

LOGIT_TOKENS = 4096  # answer tokens whose logits are held at a time


@dataclass(frozen=True)
class RlBatch:
    """Rows of answers. Satisfies training.sft.loop.Batch.

    Attributes:
        rows: what is computed; its weights say what each token counts.
        sampled: (A,) log probabilities that tokens were sampled with.
        advantages: (A,) of the answers that they belong to.
        total: what the sum of losses is divided by.
        proximal: (A,) log probabilities at the iteration's start, or None: those are the present ones.
    """

    rows: RowBatch
    sampled: Tensor
    advantages: Tensor
    total: float
    proximal: Tensor | None = None

    @property
    def weight(self) -> float:
        """What the objective's sum is divided by to make a mean."""
        return self.total

    @property
    def samples(self) -> int:
        """Answers in it."""
        return self.rows.samples if self.total else 0

    @property
    def size(self) -> int:
        """Tokens that are computed."""
        return self.rows.size

    def to(self, device: torch.device) -> RlBatch:
        """The same on ``device``."""
        moved: Any = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return dataclasses.replace(self, rows=self.rows.to(device), **moved)

    def without_weight(self) -> RlBatch:
        """The same, counting for nothing: sharded processes have to compute equally often."""
        rows = dataclasses.replace(self.rows, weights=torch.zeros_like(self.rows.weights))
        return dataclasses.replace(self, rows=rows, total=0.0)


@dataclass(frozen=True)
class AnswerRow:
    """Some answers of a group, as a row.

    Attributes:
        task: the question.
        branches: the answers, with their tokens' weights.
        sampled, advantages: of all their tokens in turn.
        answers: how many.
        length: bound on the row's tokens.
    """

    task: Task
    branches: tuple[Branch, ...]
    sampled: tuple[float, ...]
    advantages: tuple[float, ...]
    answers: int
    length: int


class RowPacker:
    """Groups to rows to batches.

    Args:
        model: tokenizer and description.
        config: of the run.
        window: what windows look like.
    """

    def __init__(self, model: LoadedModel, config: RlConfig, window: WindowSpec) -> None:
        self._model, self._config, self._window = model, config, window

    def rows(self, group: Group, task: Task) -> list[AnswerRow]:
        """Rows of a group, each with as many answers as ``data.max_tokens`` allows."""
        grpo, tokenizer = self._config.grpo, self._model.tokenizer
        question = prompt.encode_suffix(tokenizer, task.query)
        if task.at_once:
            question = question + prompt.encode_opening(tokenizer)
        visual = visual_tokens(self._model.spec, self._window, len(task.sample.media))
        shared = len(prompt.encode_prefix(tokenizer, [])) + visual + len(question)
        advantages = group_advantages(group.rewards, normalize=grpo.normalize_advantages)
        rows: list[AnswerRow] = []
        held: list[tuple[Sampled, float]] = []
        length = shared

        def close() -> None:
            branches = tuple(
                Branch(
                    [] if place else question,
                    list(answer.tokens),
                    self._weights(answer),
                    (0, len(answer.tokens)),
                )
                for place, (answer, _) in enumerate(held)
            )
            sampled = tuple(value for answer, _ in held for value in answer.log_probs)
            spread = tuple(value for answer, value in held for _ in answer.tokens)
            rows.append(AnswerRow(task, branches, sampled, spread, len(held), length))
            held.clear()

        for answer, advantage in zip(group.answers, advantages.tolist(), strict=True):
            if held and length + len(answer.tokens) > self._config.data.max_tokens:
                close()
                length = shared
            held.append((answer, advantage))
            length += len(answer.tokens)
        close()
        return rows

    def batch(self, rows: Sequence[AnswerRow]) -> RlBatch:
        """One forward pass; MediaError where a video cannot be read."""
        spec = self._model.spec
        patches: list[np.ndarray] = []
        videos: list[list[VideoGrid]] = []
        for row in rows:
            grids = []
            for window in row.task.windows(self._window):
                frames = window.pixels()
                patches.append(patchify(frames, spec.patches)[0])
                count, height, width, _ = frames.shape
                grids.append(spec.video_grid(count, height, width, window.fps))
            videos.append(grids)
        packed = pack_rows([row.branches for row in rows], videos, patches, self._model.tokenizer, spec)
        answers = sum(row.answers for row in rows)
        by_tokens = self._config.grpo.loss_aggregation == "token"
        return RlBatch(
            rows=packed,
            sampled=torch.tensor([value for row in rows for value in row.sampled]),
            advantages=torch.tensor([value for row in rows for value in row.advantages], dtype=torch.float32),
            total=float(len(packed.labels)) if by_tokens else float(answers),
        )

    def _weights(self, answer: Sampled) -> list[float]:
        count = len(answer.tokens)
        each = {"sequence": 1.0 / count, "token": 1.0, "constant": 1.0 / self._config.rollout.max_tokens}
        return [each[self._config.grpo.loss_aggregation]] * count


def visual_tokens(spec: ModelSpec, window: WindowSpec, videos: int) -> int:
    """Bound on the tokens of so many full windows, with those before and after each."""
    height, width = window.frame_size or (spec.patches.factor, window.max_pixels // spec.patches.factor)
    pairs = window.num_frames // spec.patches.temporal_patch
    return videos * (2 + pairs * (height * width) // spec.patches.factor**2)


class Policy(nn.Module):
    """What a network says of answer tokens, as the engine computes it: control tokens left out, T = 1.

    Args:
        model: network, tokenizer and description.
        compute: type of matrix products where the network's weights are of another one.
        frozen_vision: no gradients through the vision tower.
    """

    def __init__(self, model: LoadedModel, compute: torch.dtype, *, frozen_vision: bool) -> None:
        super().__init__()
        self.network: nn.Module = model.network
        self._model, self._compute, self.frozen_vision = model, compute, frozen_vision
        rows = model.network.lm_head.weight.shape[0]
        forbidden = torch.from_numpy(Vocabulary(model.tokenizer, rows).in_text)
        self.register_buffer("_forbidden", forbidden, persistent=False)
        self.everywhere = False  # as in AnswerLoss

    def forward(
        self, batch: RowBatch, features: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """(A,) log probabilities of the labels, (A,) entropies, and the batch's visual tokens.

        Args:
            batch: rows.
            features: its visual tokens where they are known, of an earlier call; None: they are computed.
        """
        with computing(self._model, batch, self._compute):
            if features is None:
                features = features_of(
                    self._model, batch, frozen_vision=self.frozen_vision, everywhere=self.everywhere
                )
            chosen = answer_states(self._model, batch, features)
            read = [
                checkpoint(self._read, part, labels, use_reentrant=False)
                if len(chosen) > LOGIT_TOKENS and torch.is_grad_enabled()
                else self._read(part, labels)
                for part, labels in zip(
                    chosen.split(LOGIT_TOKENS), batch.labels.split(LOGIT_TOKENS), strict=True
                )
            ]
        log_probs, entropy = (torch.cat(parts) for parts in zip(*read, strict=True))
        return log_probs, entropy, features

    def _read(self, hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = self._model.logits(hidden).float().masked_fill(self._forbidden, -torch.inf)  # type: ignore[arg-type]
        log_probs = logits.log_softmax(-1)
        with torch.no_grad():
            entropy = -(log_probs.exp() * log_probs.masked_fill(self._forbidden, 0.0)).sum(-1)  # type: ignore[arg-type]
        return log_probs.gather(-1, labels[:, None])[:, 0], entropy


class GrpoLoss(nn.Module):
    """The objective of training.sft.loop: sums of weighted token losses.

    Args:
        policy: that is trained.
        reference: of the KL term, or None.
        settings: of the algorithm.
    """

    def __init__(self, policy: Policy, reference: Policy | None, settings: GrpoConfig) -> None:
        super().__init__()
        self.policy = policy
        self._reference = (reference,)  # in a tuple: it is no part of what is trained and stored
        self._settings = LossSettings(
            settings.clip_low, settings.clip_high, settings.importance_cap, settings.kl_coefficient
        )

    def forward(self, batch: RlBatch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Sum (not mean) of weighted losses, and sums of measures by name."""
        log_probs, entropy, features = self.policy(batch.rows)
        reference = self._reference[0]
        theirs = None
        if reference is not None:
            # A tower that is not trained sees the same as its reference: it is run once for both.
            shared = features if self.policy.frozen_vision else None
            with torch.no_grad():
                theirs = reference(batch.rows, shared)[0]
        losses, measures = token_losses(
            log_probs,
            batch.sampled,
            batch.advantages,
            self._settings,
            proximal=batch.proximal,
            reference=theirs,
        )
        if theirs is None:
            del measures["kl"]
        weights = batch.rows.weights
        # The loop divides by the same total as the loss; measures are means over weights whatever that is.
        shares = weights * (batch.total / weights.sum().clamp(min=1e-12))
        measured = {"entropy": entropy, **measures}
        return (losses * weights).sum(), {name: (value * shares).sum() for name, value in measured.items()}

    @torch.no_grad()
    def log_probs(self, batch: RlBatch) -> Tensor:
        """(A,) of the answers' tokens under the present weights."""
        return self.policy(batch.rows)[0]
