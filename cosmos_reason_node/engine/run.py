# SPDX-License-Identifier: Apache-2.0
"""One request to the torch engine: its branches, and what they have said and nobody has heard yet."""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from typing import TYPE_CHECKING

from .. import prompt
from ..errors import CosmosReasonError, ErrorCode
from ..types import Latency, Query
from .base import Done, Event, Failed, Request, Sampling, Token
from .batch import Batch
from .free import FreeBranch
from .grammar import Branch
from .sampling import branch_generator
from .writing import Writing

if TYPE_CHECKING:
    from .torch import TorchEngine

MAX_THINK_TOKENS = 8192
MAX_ANSWER_TOKENS = 1024
# Of a question, read in one pass: attention takes memory by its square, and lack of it ends a whole batch.
MAX_QUESTION_TOKENS = 4096
# Room for the forced pieces of the output, which no budget counts.
FORCED_TOKENS = 64


class Run:
    """One request: its branches in a batch, and the events that it has not handed over yet.

    Times are steady seconds.
    """

    def __init__(self, engine: TorchEngine, request: Request) -> None:
        self._engine = engine
        self._request = request
        self._started = time.monotonic()
        self._events: deque[Event] = deque()
        if len(request.branch_seeds) not in (0, len(request.queries)):
            raise CosmosReasonError(
                ErrorCode.INVALID_REQUEST,
                f"give a seed for each of the {len(request.queries)} queries or none, not "
                f"{len(request.branch_seeds)}",
            )
        self._batch: Batch | None = engine.batch(request)
        self._prefix_tokens = len(self._batch.plan.tokens)
        # Per query its branches: one for each order of its options.
        self._open: dict[int, list[Writing]] = {}
        for index, query in enumerate(request.queries):
            try:
                self._open[index] = self._writings(index, query)
            except CosmosReasonError as error:
                self._events.append(Failed(index, error.code, error.message))
        for writings in self._open.values():
            for writing in writings:
                self._batch.add(writing)

    @property
    def finished(self) -> bool:
        """Whether every query has ended and all is said."""
        return not self._open and not self._events

    def next(self) -> Event:
        """Hand over an event, doing a step of work where there is none."""
        self.keep_deadline()
        if not self._events:
            self.batch.step()
        return self._events.popleft() if self._events else Token(min(self._open), "", False)

    @property
    def batch(self) -> Batch:
        """Where it is written, until it is closed."""
        assert self._batch is not None
        return self._batch

    def keep_deadline(self) -> None:
        """DEADLINE_EXCEEDED where it is over."""
        deadline = self._request.deadline_s
        if deadline > 0 and time.monotonic() - self._started > deadline:
            raise CosmosReasonError(
                ErrorCode.DEADLINE_EXCEEDED, f"not answered within its deadline of {deadline:g} s"
            )

    def said(self) -> list[Event]:
        """What has happened since it was last asked, without doing anything for it."""
        events = list(self._events)
        self._events.clear()
        return events

    def drop(self, index: int) -> None:
        """Forget a query."""
        for writing in self._open.pop(index, ()):
            assert self._batch is not None
            self._batch.drop(writing)
        self._events = deque(event for event in self._events if event.branch != index)

    def close(self) -> None:
        """Leave the batch."""
        for index in list(self._open):
            self.drop(index)
        if self._batch is not None:
            self._engine.leave(self._batch)
            self._batch = None

    def _say(self, writing: Writing, event: Token | Failed) -> None:
        if isinstance(event, Failed):
            self.drop(writing.index)
            self._events.append(event)
        elif writing in self._open.get(writing.index, ())[:1]:
            self._events.append(event)

    def _end(self, writing: Writing) -> None:
        """A branch is complete: its query is when all its orders are."""
        writings = self._open.get(writing.index, [])
        if not writings or not all(other.grammar.done for other in writings):
            return
        now, first, batch = time.monotonic(), writings[0], self._batch
        del self._open[writing.index]
        assert batch is not None
        if len(writings) > 1:
            _average(writings)
        seen = max(batch.seen_at, self._started)
        latency = Latency(
            vision_s=seen - self._started,
            prefill_s=first.prefilled - seen,
            decode_s=now - first.prefilled,
            first_token_s=first.prefilled - self._started,
        )
        prompt_tokens = self._prefix_tokens + len(first.suffix)
        answer = first.grammar.result(prompt_tokens, self._engine.min_confidence)
        answer = dataclasses.replace(answer, shares=tuple(first.shares))
        self._events.append(Done(writing.index, answer, latency))

    def _writings(self, index: int, query: Query) -> list[Writing]:
        """Check one query against the model's bounds and make its branches."""
        wanted = 1 if self._request.free else self._request.option_orders  # a raw text has no probabilities
        orders = max(1, min(wanted, len(query.options)))
        turned = [query.options[order:] + query.options[:order] for order in range(orders)]
        return [self._writing(index, dataclasses.replace(query, options=options)) for options in turned]

    def _writing(self, index: int, query: Query) -> Writing:
        engine, request, model = self._engine, self._request, self._engine.model
        assert model is not None
        suffix = prompt.encode_suffix(model.tokenizer, query)
        opening = ""
        if request.free and request.at_once:
            suffix = suffix + prompt.encode_opening(model.tokenizer)
            opening = prompt.THINK_OPEN + prompt.THINK_CLOSE
        length = self._prefix_tokens + len(suffix)
        if length > engine.max_prompt_tokens:
            raise too_long(length, engine.max_prompt_tokens)
        if len(suffix) > MAX_QUESTION_TOKENS:
            raise CosmosReasonError(
                ErrorCode.QUESTION_TOO_LONG,
                f"the question has {len(suffix)} tokens, the limit is {MAX_QUESTION_TOKENS}: "
                "use shorter texts",
            )
        think = query.think_tokens if query.think_tokens >= 0 else engine.default_think_tokens
        if think > MAX_THINK_TOKENS or not 1 <= request.max_answer_tokens <= MAX_ANSWER_TOKENS:
            raise CosmosReasonError(
                ErrorCode.INVALID_REQUEST,
                f"think_tokens may be up to {MAX_THINK_TOKENS}, max_answer_tokens 1 to {MAX_ANSWER_TOKENS}; "
                f"they are {think} and {request.max_answer_tokens}",
            )
        output = think + request.max_answer_tokens + FORCED_TOKENS
        if length + output > engine.context:
            raise CosmosReasonError(
                ErrorCode.QUESTION_TOO_LONG,
                f"a prompt of {length} tokens, {think} of thought and {request.max_answer_tokens} of answer "
                f"do not fit into the model's {engine.context}: ask for less",
            )
        own = engine.max_own_tokens
        if 0 < own < len(suffix) + output:
            most = own - len(suffix) - output + think
            raise CosmosReasonError(
                ErrorCode.QUESTION_TOO_LONG,
                f"a question of {len(suffix)} tokens, {think} of thought and {request.max_answer_tokens} of "
                f"answer do not fit into the {own} that the graphs have for one: "
                + (f"ask for at most {most} think_tokens" if most >= 0 else "use shorter texts"),
            )
        grammar = (
            FreeBranch(engine.vocabulary, think + request.max_answer_tokens, request.min_tokens, opening)
            if request.free
            else Branch(engine.vocabulary, query, think, request.max_answer_tokens)
        )
        assert self._batch is not None
        drafts = self._batch.drafts
        seeds = request.branch_seeds
        generator = (
            branch_generator(Sampling(seed=seeds[index]), 0)
            if seeds
            else branch_generator(request.sampling, index)
        )
        return Writing(
            index=index,
            suffix=suffix,
            grammar=grammar,
            sampling=request.sampling,
            generator=generator,
            calibration=model.spec.calibration(query.kind),
            most=len(suffix) + output,
            say=self._say,
            end=self._end,
            draft=drafts.of(self._batch.question(suffix)) if drafts is not None else None,
        )


def _average(writings: list[Writing]) -> None:
    """Let the orders of one query's options decide together; the first branch gets the outcome.

    Order ``r`` shows option ``(i + r) % n`` in place ``i``.
    """
    n = len(writings[0].shares)
    means = [
        sum(writing.shares[(option - order) % n] for order, writing in enumerate(writings)) / len(writings)
        for option in range(n)
    ]
    best = max(range(n), key=means.__getitem__)
    writings[0].shares = means
    grammar = writings[0].grammar
    assert isinstance(grammar, Branch)
    grammar.settle(best, means[best])


def too_long(tokens: int, limit: int) -> CosmosReasonError:
    """The error of a prompt over its bound."""
    return CosmosReasonError(
        ErrorCode.QUESTION_TOO_LONG,
        f"the prompt has {tokens} tokens, the limit is {limit}: use shorter texts, fewer or smaller frames",
    )
