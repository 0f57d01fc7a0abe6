# SPDX-License-Identifier: Apache-2.0
"""The Engine protocol: the only thing that the node, RL rollouts and the evaluator know of a model.

An engine answers a request as a generator of events, one step of work per ``next()``. Whoever drives it (the
engine process, ``worker.Worker``; a rollout worker; a test) decides when to stop: closing the generator frees
all that the request held. So cancel and deadline take effect within one token step, and several requests
interleave by taking turns. Requests about the same windows that run at the same time may share steps: what
one's turn worked out for the others, theirs only hand over.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from ..errors import ErrorCode
from ..types import Answer, Latency, ModelInfo, Query, Window


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        temperature: 0 is greedy.
        top_p: nucleus mass in (0, 1].
        seed: of the request's own generator; the same request and seed give the same tokens.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Request:
    """Queries about the same windows, answered as branches after one shared prefix.

    Attributes:
        request_id: unique among running requests.
        windows: one per camera, in the order the prompt shows them.
        queries: one branch each.
        max_answer_tokens: bound on a free-form answer.
        sampling: applied to every branch.
        deadline_s: seconds of engine time after which the request fails with DEADLINE_EXCEEDED; 0 = none.
        free: let the model write without the grammar: each answer is then its raw text (at most the query's
            ``think_tokens`` plus ``max_answer_tokens`` tokens), verdict UNKNOWN, and the caller parses it.
            For evaluation and RL, which must see a model break the format.
        branch_seeds: a seed for each query instead of ``sampling.seed``: what a branch samples then does not
            depend on the branches beside it. () = none.
        option_orders: ask queries with options under this many orders (rotations) of them, at most as many as
            there are options, and average the options' probabilities, so that no place in the list is
            favoured. Reasoning and text are those of the first order. Not of ``free`` texts.
        min_tokens: of a ``free`` text before it may end.
        at_once: a ``free`` text begins with an empty thought and the opening of its answer, which are given
            and not sampled: part of its text, not of ``Answer.token_ids``. Not of remote engines.
    """

    request_id: str
    windows: tuple[Window, ...]
    queries: tuple[Query, ...]
    max_answer_tokens: int = 48
    sampling: Sampling = Sampling()
    deadline_s: float = 0.0
    free: bool = False
    branch_seeds: tuple[int, ...] = ()
    option_orders: int = 1
    min_tokens: int = 0
    at_once: bool = False


@dataclass(frozen=True)
class Token:
    """A piece of output text; empty for a step of work. ``thinking`` is true inside <think></think>."""

    branch: int
    text: str
    thinking: bool


@dataclass(frozen=True)
class Done:
    """Branch ``branch`` has its answer. Only the caller knows window_s and queue_s of ``latency``."""

    branch: int
    answer: Answer
    latency: Latency


@dataclass(frozen=True)
class Failed:
    """Branch ``branch`` has none, or, with ``branch`` -1, the whole request."""

    branch: int
    error_code: ErrorCode
    error_msg: str


Event = Token | Done | Failed


class Engine(Protocol):
    """A loaded model."""

    @property
    def info(self) -> ModelInfo:
        """Which model, where."""
        ...

    @property
    def max_prompt_tokens(self) -> int:
        """Most tokens of prompt (visual included) that a request may have."""
        ...

    def answer(self, request: Request) -> Generator[Event, int | None, None]:
        """Answer ``request``, yielding after each step of work, and end.

        Every branch ends with exactly one ``Done`` or ``Failed`` unless the generator is closed first. A bad
        request is a ``Failed`` event; an exception out of the generator means that the engine itself is
        broken. ``send(branch)`` instead of ``next()`` says that a branch is not wanted any more: it costs no
        more work and ends without an event.
        """
        ...

    def close(self) -> None:
        """Free memory. The engine is unusable afterwards; calling it again does nothing."""
        ...


@runtime_checkable
class Observer(Protocol):
    """What an engine may also do: look at frames before anyone asks."""

    def observe(self, window: Window) -> None:
        """Frames that windows of coming requests will hold: a whole number of temporal patches.

        What it keeps of them is bounded, and requests are answered the same whether or not it was called.
        """
        ...
