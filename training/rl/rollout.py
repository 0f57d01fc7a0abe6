# SPDX-License-Identifier: Apache-2.0
"""Answers to a ticket's question, by the node's own engine.

Video, system text and question are read once a group, whose answers are branches of one request. They are
written without the grammar, so that a broken format is seen, at temperature 1 and top_p 1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from cosmos_reason_node.decision import DEFAULT_MIN_CONFIDENCE
from cosmos_reason_node.engine.base import Done, Failed, Request, Sampling
from cosmos_reason_node.engine.torch import TorchEngine
from cosmos_reason_node.models.qwen2_5_vl import LoadedModel
from cosmos_reason_node.types import Answer
from training.data.media import MediaError

from .books import Group, RolloutError, Sampled, Ticket
from .config import RlConfig
from .publish import WeightStore
from .tasks import Task, TaskSampler

_ANSWER_TOKENS = 48  # of the budget; an engine bounds reasoning and answer apart


class Roller:
    """Answers tickets.

    Args:
        config: of the run.
        sampler: knows the tickets' questions.
        model: in inference precision; its weights are replaced in place.
    """

    def __init__(self, config: RlConfig, sampler: TaskSampler, model: LoadedModel) -> None:
        self._config, self.sampler, self._model = config, sampler, model
        # Keeps nothing from one request to the next, so new weights in place are all it needs.
        self._engine = TorchEngine(model, min_confidence=DEFAULT_MIN_CONFIDENCE, join=True)
        self.version = -1

    def load(self, store: WeightStore) -> None:
        """Take the newest weights."""
        self.version = store.load(self._model.network)

    def roll(self, ticket: Ticket) -> Group:
        """A group of answers.

        Raises:
            RolloutError: the media cannot be read, the engine refuses, or the deadline has passed.
        """
        task = self.sampler.draw(ticket)
        try:
            windows = task.windows(self.sampler.window)
        except MediaError as error:
            raise RolloutError(f"{task.name}: {error.message}") from error
        rollout = self._config.rollout
        answer_tokens = min(_ANSWER_TOKENS, rollout.max_tokens - 1)
        query = dataclasses.replace(task.query, think_tokens=rollout.max_tokens - answer_tokens)
        size = self._config.grpo.group_size
        request = Request(
            str(ticket),
            windows,
            (query,) * size,
            max_answer_tokens=answer_tokens,
            sampling=Sampling(temperature=1.0, top_p=1.0),
            deadline_s=rollout.deadline_s,
            free=True,
            branch_seeds=branch_seeds(self._config.run.seed, ticket, size),
        )
        answers = [self._sampled(answer) for answer in self._ask(request, task)]
        return Group(ticket, task.source, tuple(answers), none=task.none)

    def _ask(self, request: Request, task: Task) -> Sequence[Answer]:
        got: dict[int, Answer] = {}
        for event in self._engine.answer(request):
            if isinstance(event, Failed):
                raise RolloutError(f"{task.name}: {event.error_code.name}: {event.error_msg}")
            if isinstance(event, Done):
                got[event.branch] = event.answer
        return [got[branch] for branch in range(len(request.queries))]

    def _sampled(self, answer: Answer) -> Sampled:
        return Sampled(
            text=answer.answer,
            tokens=answer.token_ids,
            log_probs=answer.log_probs,
            versions=(self.version,) * len(answer.token_ids),
            cut=answer.think_closed_by_budget,
        )


def branch_seeds(seed: int, ticket: Ticket, count: int) -> tuple[int, ...]:
    """A seed for each answer of a ticket, whoever writes it."""
    entropy = np.random.SeedSequence([seed, ticket.iteration, ticket.place, ticket.attempt])
    return tuple(int(value) for value in entropy.generate_state(count, np.uint64) >> np.uint64(16))
