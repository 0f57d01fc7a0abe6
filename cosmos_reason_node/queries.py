# SPDX-License-Identifier: Apache-2.0
"""Interactive queries (service, action) on their way to an answer.

Deadlines run in steady time from acceptance, waiting included: a client waits in real seconds, and must be
answered when simulated time stands still.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from .config import Config
from .errors import CosmosReasonError, ErrorCode
from .monitors import Task, monitor_queries
from .prompt import check_query
from .types import Decision, Latency, ModelInfo, Query, QueryKind, Source

MAX_DEADLINE_S = 3600.0
MAX_THINK_TOKENS = 4096

ReplyCallback = Callable[[Decision], None]
TextCallback = Callable[[str, bool, int], None]


@dataclass(eq=False)
class Ticket:
    """One accepted query.

    Attributes:
        ticket_id: becomes the decision's id.
        query: complete: defaults are filled in.
        cameras: names, in the order of the prompt.
        source: who asked.
        deadline_s: seconds from acceptance.
        deadline: the same as a moment of steady time, seconds.
        on_reply: called exactly once, with the decision or the failure.
        on_text: called as ``on_text(text, thinking, tokens)`` with new text; None: not wanted.
        tokens: pieces of text so far.
    """

    ticket_id: str
    query: Query
    cameras: tuple[str, ...]
    source: Source
    deadline_s: float
    deadline: float
    on_reply: ReplyCallback
    on_text: TextCallback | None = None
    tokens: int = 0


class QueryQueue:
    """First come, first served, at most ``limit`` waiting."""

    def __init__(self, limit: int) -> None:
        self._waiting: deque[Ticket] = deque()
        self._limit = limit

    def __len__(self) -> int:
        return len(self._waiting)

    def push(self, ticket: Ticket) -> None:
        """Let ``ticket`` wait.

        Raises:
            CosmosReasonError: BUSY when the queue is full.
        """
        if len(self._waiting) >= self._limit:
            raise CosmosReasonError(
                ErrorCode.BUSY,
                f"{self._limit} queries are waiting already: try again later or raise max_queries",
            )
        self._waiting.append(ticket)

    def first(self) -> Ticket | None:
        """The one to serve next; it stays in the queue."""
        return self._waiting[0] if self._waiting else None

    def find(self, ticket_id: str) -> Ticket | None:
        """The waiting ticket of that id."""
        return next((ticket for ticket in self._waiting if ticket.ticket_id == ticket_id), None)

    def remove(self, ticket: Ticket) -> None:
        """Take ``ticket`` out."""
        self._waiting.remove(ticket)

    def expired(self, now: float) -> list[Ticket]:
        """Tickets whose deadline has passed at steady time ``now``; they stay in the queue."""
        return [ticket for ticket in self._waiting if ticket.deadline <= now]

    def all(self) -> list[Ticket]:
        """All waiting tickets, oldest first."""
        return list(self._waiting)


def complete_query(query: Query, task: Task, config: Config) -> Query:
    """Fill in what the client left to the node, and check the whole.

    Raises:
        CosmosReasonError: NO_TASK, QUESTION_TOO_LONG or INVALID_REQUEST, with what to change.
    """
    if query.think_tokens > MAX_THINK_TOKENS:
        raise CosmosReasonError(
            ErrorCode.INVALID_REQUEST,
            f"think_tokens must be at most {MAX_THINK_TOKENS}, not {query.think_tokens}",
        )
    action = query.action
    if query.kind is QueryKind.AFFORDANCE and not action.strip() and not query.task.strip():
        action = task.affordance_action
    complete = Query(
        kind=query.kind,
        task=query.task if query.task.strip() else task.text,
        action=action,
        question=query.question,
        options=query.options,
        yes_no=query.yes_no,
        think_tokens=config.query_think_tokens if query.think_tokens == -1 else query.think_tokens,
    )
    check_query(complete)
    return complete


def check_task(task: Task, config: Config) -> None:
    """Refuse a task that the configured monitors cannot ask about.

    Raises:
        CosmosReasonError: QUESTION_TOO_LONG or INVALID_REQUEST, with what to change.
    """
    for query in monitor_queries(task, config.monitors, 0):
        check_query(query)


def complete_deadline(deadline_s: float, config: Config) -> float:
    """The client's deadline, or the node's default for 0. Seconds.

    Raises:
        CosmosReasonError: INVALID_REQUEST for a negative or absurdly long one.
    """
    if not 0.0 <= deadline_s <= MAX_DEADLINE_S:
        raise CosmosReasonError(
            ErrorCode.INVALID_REQUEST,
            f"deadline must be between 0 and {MAX_DEADLINE_S:.0f} s, not {deadline_s:g} s",
        )
    return deadline_s or config.deadline_s


def choose_cameras(wanted: tuple[str, ...], configured: tuple[str, ...]) -> tuple[str, ...]:
    """Cameras of a query: those it names, or the first configured one.

    Raises:
        CosmosReasonError: UNKNOWN_CAMERA, or INVALID_REQUEST for a camera named twice.
    """
    unknown = [name for name in wanted if name not in configured]
    if unknown:
        raise CosmosReasonError(
            ErrorCode.UNKNOWN_CAMERA,
            f"there is no camera {', '.join(map(repr, unknown))}; configured: {', '.join(configured)}",
        )
    if len(set(wanted)) < len(wanted):
        raise CosmosReasonError(ErrorCode.INVALID_REQUEST, "a camera is named twice")
    return wanted or configured[:1]


def refusal(query: Query, source: Source, code: ErrorCode, message: str, now_ns: int) -> Decision:
    """The reply to a query that never reached a pipeline: the node is not active, or it makes no sense."""
    return Decision(
        decision_id="",
        source=source,
        query=query,
        windows=(),
        answer=None,
        model=ModelInfo(),
        latency=Latency(),
        published_ns=now_ns,
        valid_until_ns=0,
        error_code=code,
        error_msg=message,
    )
