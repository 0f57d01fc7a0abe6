# SPDX-License-Identifier: Apache-2.0
"""Answers to tickets' questions, by the node's own engine.

Video, system text and question are read once a group, whose answers are branches of one request; the groups
of a round are written in step. They are written without the grammar, so that a broken format is seen, at
temperature 1 and top_p 1.
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

from .books import RolloutError
from .config import RlConfig
from .groups import Group, Sampled, Ticket
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
        groups, failures = self.roll_round((ticket,))
        if failures:
            raise RolloutError(failures[0][1])
        return groups[0]

    def roll_round(self, tickets: Sequence[Ticket]) -> tuple[list[Group], list[tuple[Ticket, str]]]:
        """Groups of the tickets that could be answered, and the others with why not, as ``roll`` has it."""
        asked: list[tuple[Ticket, Task, Request]] = []
        failures: list[tuple[Ticket, str]] = []
        for ticket in tickets:
            task = self.sampler.draw(ticket)
            try:
                asked.append((ticket, task, self._request(ticket, task)))
            except MediaError as error:
                failures.append((ticket, f"{task.name}: {error.message}"))
        beside = tuple((ticket.place, ticket.attempt) for ticket, _, _ in asked) if len(asked) > 1 else ()
        got: list[dict[int, Answer]] = [{} for _ in asked]
        failed: dict[int, str] = {}
        for place, event in self._engine.answer_together([request for _, _, request in asked]):
            if isinstance(event, Failed):
                failed.setdefault(place, f"{event.error_code.name}: {event.error_msg}")
            elif isinstance(event, Done):
                got[place][event.branch] = event.answer
        groups = []
        for place, (ticket, task, request) in enumerate(asked):
            if place in failed:
                failures.append((ticket, f"{task.name}: {failed[place]}"))
                continue
            answers = [self._sampled(got[place][branch]) for branch in range(len(request.queries))]
            groups.append(Group(ticket, task.source, tuple(answers), none=task.none, beside=beside))
        if failed:  # those that failed are no part of what has to come back whole
            kept = tuple((group.ticket.place, group.ticket.attempt) for group in groups)
            groups = [dataclasses.replace(group, beside=kept if beside else ()) for group in groups]
        return groups, failures

    def _request(self, ticket: Ticket, task: Task) -> Request:
        rollout, size = self._config.rollout, self._config.grpo.group_size
        answer_tokens = min(_ANSWER_TOKENS, rollout.max_tokens - 1)
        think = 0 if task.at_once else rollout.max_tokens - answer_tokens
        query = dataclasses.replace(task.query, think_tokens=think)
        return Request(
            str(ticket),
            task.windows(self.sampler.window),
            (query,) * size,
            max_answer_tokens=answer_tokens,
            sampling=Sampling(temperature=1.0, top_p=1.0),
            deadline_s=rollout.deadline_s,
            free=True,
            branch_seeds=branch_seeds(self._config.run.seed, ticket, size),
            at_once=task.at_once,
        )

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
