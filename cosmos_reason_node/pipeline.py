# SPDX-License-Identifier: Apache-2.0
"""From frames and questions to decisions: what to ask the engine, when, and who gets the answer.

    frames ──> window buffers ──> monitor schedule (latest wins) ──┐ one request at a time
    queries ─> queue (bounded: BUSY) ─> newest window when it is ──┴─> engine ──> events ──> Decision
               its turn; deadline from acceptance                      (at most MAX_QUERIES_RUNNING)

Single-threaded: every method is called on one thread, which also hands over the engine's events. Ages and
stamps are in node time (simulated or not); deadlines are in steady time. Every query gets exactly one reply.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from .cameras import CameraWindows
from .config import Config
from .engine.base import Done, Event, Failed, Request, Sampling, Token
from .engine.port import EnginePort
from .engine.spec import EngineState, EngineStatus
from .errors import CosmosReasonError, ErrorCode
from .monitors import MonitorSchedule, Task, monitor_queries
from .queries import (
    QueryQueue,
    ReplyCallback,
    TextCallback,
    Ticket,
    check_task,
    choose_cameras,
    complete_deadline,
    complete_query,
)
from .types import Decision, Frame, Latency, ModelInfo, Query, Source, Window
from .window import WindowBuffer

# Interactive requests that the engine has at a time; it takes turns between them and one monitor request.
MAX_QUERIES_RUNNING = 3
_STARTING = (EngineState.LOADING, EngineState.RESTARTING)


@dataclass
class _Running:
    """A request that the engine has. ``ticket`` is None for a monitor's."""

    request: Request
    open: set[int]
    window_s: float
    waited_s: float
    ticket: Ticket | None = None


class Pipeline:
    """The node's heart between activation and deactivation.

    Args:
        config: settings with the model's defaults filled in (``fps`` and ``window_frames`` are not 0).
        engine: where requests go. Its events must be handed to ``engine_event`` and ``engine_state`` on the
            pipeline's thread.
        publish: called with every decision, monitors' and replies alike.
        clock: node time, nanoseconds.
        steady: steady time, seconds.
        session: prefix of decision ids; unique to this activation.
    """

    def __init__(
        self,
        config: Config,
        engine: EnginePort,
        publish: Callable[[Decision], None],
        clock: Callable[[], int],
        steady: Callable[[], float] = time.monotonic,
        session: str = "",
    ) -> None:
        self.config = config
        self.decisions = 0
        self._engine = engine
        self._publish = publish
        self._clock = clock
        self._steady = steady
        self._session = session or uuid.uuid4().hex[:8]
        self._ids = itertools.count(1)
        self._cameras = CameraWindows(config, clock)
        self._schedule = MonitorSchedule(self._cameras, config.monitor_stride)
        self._queue = QueryQueue(config.max_queries)
        self._running: dict[str, _Running] = {}
        self._last_code: dict[tuple[str, int], ErrorCode] = {}
        self._since_s = steady()
        self._closed = False
        self.task = Task()
        self.set_task(Task(config.task, config.affordance_action, config.action_options))

    # -- what the status shows --

    @property
    def superseded(self) -> int:
        """Monitor windows dropped for a newer one, or for a new task."""
        return self._schedule.superseded

    @property
    def waiting(self) -> int:
        """Interactive queries in the queue."""
        return len(self._queue)

    @property
    def running(self) -> int:
        """Requests the engine works on, monitors' included."""
        return len(self._running)

    def buffer(self, camera: str) -> WindowBuffer:
        """Window buffer of ``camera``: whoever receives its images offers, decodes and puts them there."""
        return self._cameras.buffer(camera)

    def camera_error(self, camera: str) -> CosmosReasonError | None:
        """Why ``camera`` cannot be answered from now: NO_FRAMES, STALE_FRAMES, BAD_IMAGE; None: it can."""
        try:
            self._cameras.check_fresh(camera, self.config.max_stale_s)
        except CosmosReasonError as error:
            return error
        return None

    def ahead_s(self, camera: str) -> float:
        """Seconds that the newest frame's stamp was ahead of node time when it came; negative: behind."""
        return self._cameras.ahead_s(camera)

    # -- frames --

    def frame_added(self, frame: Frame) -> None:
        """A sampled frame was put into its camera's buffer: ask the monitors if the window moved."""
        last_tick = self._cameras.added(frame)
        if last_tick is not None:
            if self.config.encode_ahead:
                self._engine.observe(self._cameras.arrived(frame.camera, last_tick))
            self._schedule.window_moved(frame.camera, last_tick, self._clock())
            if not self._monitors_on():
                self._schedule.skip(frame.camera)
            self._serve()

    def bad_image(self, camera: str, reason: str) -> None:
        """An image of ``camera`` arrived that cannot be used."""
        self._cameras.bad_image(camera, reason)

    def clock_jumped(self) -> None:
        """Node time was set back: windows start anew, running monitor requests are dropped."""
        self._cameras.clear()
        self._since_s = self._steady()
        self._schedule.forget()
        self._drop_monitors()

    # -- what to ask --

    def set_task(self, task: Task) -> None:
        """Monitors ask about ``task`` from now on; running requests about the old one are dropped.

        Raises:
            CosmosReasonError: INVALID_REQUEST or QUESTION_TOO_LONG; the old task stays.
        """
        check_task(task, self.config)
        if task == self.task:
            return
        self.task = task
        self._last_code.clear()
        self._drop_monitors()
        self._schedule.ask_again()
        self._serve()

    def update(self, config: Config) -> None:
        """Take over live settings; the others are read at activation only."""
        self.config = config

    def ask(
        self,
        query: Query,
        *,
        source: Source,
        on_reply: ReplyCallback,
        cameras: tuple[str, ...] = (),
        deadline_s: float = 0.0,
        on_text: TextCallback | None = None,
    ) -> str:
        """Ask about the newest window. Never blocks and never raises: refusals come to ``on_reply`` too.

        What is accepted is also published, whatever becomes of it; refusals are not.

        Args:
            query: what is asked; an empty task means the current one.
            source: SERVICE or ACTION.
            on_reply: called exactly once, possibly before this returns.
            cameras: names; empty = the first configured one.
            deadline_s: from now; 0 = the node's default.
            on_text: wants the text as it comes.

        Returns:
            Id for ``cancel``; also the id of the decision.
        """
        ticket_id = self._new_id()
        try:
            if self._closed:
                raise CosmosReasonError(ErrorCode.NOT_ACTIVE, "the node is being deactivated")
            query = complete_query(query, self.task, self.config)
            deadline_s = complete_deadline(deadline_s, self.config)
            ticket = Ticket(
                ticket_id,
                query,
                choose_cameras(cameras, tuple(self._cameras)),
                source,
                deadline_s,
                self._steady() + deadline_s,
                on_reply,
                on_text,
            )
            self._windows(ticket.cameras)
            self._check_engine()
            self._queue.push(ticket)
        except CosmosReasonError as error:
            on_reply(self._decision(ticket_id, source, query).with_error(error.code, error.message))
        else:
            self._serve()
        return ticket_id

    def cancel(self, ticket_id: str) -> bool:
        """End a query with CANCELED, waiting or running. False: it has ended already."""
        ticket = self._find(ticket_id)
        if ticket is None:
            return False
        self._fail(ticket, ErrorCode.CANCELED, "cancelled by the client")
        self._serve()
        return True

    # -- what the engine says --

    def engine_event(self, request_id: str, event: Event) -> None:
        """Hand over an event of the engine."""
        running = self._running.get(request_id)
        if running is None:
            return  # it ended here before: deadline, cancel, superseded
        if isinstance(event, Token):
            ticket = running.ticket
            if ticket is not None and event.text:
                ticket.tokens += 1
                if ticket.on_text is not None:
                    ticket.on_text(event.text, event.thinking, ticket.tokens)
            return
        ended = sorted(running.open) if event.branch < 0 else sorted(running.open & {event.branch})
        running.open.difference_update(ended)
        if not running.open:
            del self._running[request_id]
        for branch in ended:
            self._finish(running, branch, event)
        self._serve()

    def engine_state(self, status: EngineStatus) -> None:
        """Hand over a change of the engine's state."""
        if status.error_code is not ErrorCode.NONE and status.state is not EngineState.READY:
            for name in self._cameras:
                self._monitors_fail(name, status.error_code, status.error_msg)
        if status.state is EngineState.FAILED:
            for ticket in self._queue.all():
                self._fail(ticket, status.error_code, status.error_msg)
        self._serve()

    def poll(self) -> None:
        """Enforce deadlines and notice cameras that went silent. Call it every 50 ms or so."""
        self._expire()
        # In steady time: simulated time starts with a jump past any pause.
        settled = self._steady() - self._since_s > self.config.max_stale_s
        if self._monitors_on():
            for name in self._cameras:
                error = self.camera_error(name)
                if error and settled:
                    self._schedule.skip(name)
                    self._monitors_fail(name, error.code, error.message)
        self._serve()

    def close(self, code: ErrorCode, message: str) -> None:
        """End everything that waits or runs with ``code``; later queries are refused."""
        self._closed = True
        running = [r.ticket for r in self._running.values() if r.ticket is not None]
        for ticket in [*running, *self._queue.all()]:
            self._fail(ticket, code, message)
        self._drop_monitors()

    # -- serving --

    def _serve(self) -> None:
        """Give the engine what it can take: queries first, then the monitors of one camera."""
        if self._closed or self._engine.status.state is not EngineState.READY:
            return
        while (ticket := self._queue.first()) and self._count(interactive=True) < MAX_QUERIES_RUNNING:
            if not self._start_query(ticket):
                return
        while self._count(interactive=False) == 0 and (name := self._schedule.next()):
            if not self._start_monitors(name):
                return

    def _start_query(self, ticket: Ticket) -> bool:
        """Submit the queue's first ticket. False: the engine takes no more now, the ticket stays."""
        now_ns = self._clock()
        try:
            windows = self._windows(ticket.cameras)
        except CosmosReasonError as error:
            self._fail(ticket, error.code, error.message)
            return True
        remaining_s = max(0.001, ticket.deadline - self._steady())
        request = self._request(ticket.ticket_id, windows, (ticket.query,), remaining_s)
        if not self._submit(request, priority=True):
            return False
        self._queue.remove(ticket)
        window_s = (now_ns - max(window.end_ns for window in windows)) / 1e9
        self._running[request.request_id] = _Running(request, {0}, window_s, 0.0, ticket)
        return True

    def _start_monitors(self, name: str) -> bool:
        """Submit the newest window of camera ``name``. False: the engine takes no more now."""
        queries = self._monitor_queries()
        now_ns = self._clock()
        try:
            window = self._cameras.fresh(name, self.config.max_stale_s)
        except CosmosReasonError:
            queries = ()  # poll() reports it
        if not queries:
            self._schedule.skip(name)
            return True
        request = self._request(self._new_id(), (window,), queries)
        if not self._submit(request, priority=False):
            return False
        ready_ns = self._schedule.asked(name, window.first_tick + len(window.frames) - 1)
        window_s = (ready_ns - window.end_ns) / 1e9
        waited_s = max(0.0, (now_ns - ready_ns) / 1e9)
        self._running[request.request_id] = _Running(request, set(range(len(queries))), window_s, waited_s)
        return True

    def _submit(self, request: Request, *, priority: bool) -> bool:
        try:
            self._engine.submit(request, priority=priority)
        except CosmosReasonError:
            return False  # it died this moment, or still ends what was cancelled; poll() tries again
        return True

    def _finish(self, running: _Running, branch: int, event: Done | Failed) -> None:
        """One branch has its last event: build the decision, publish it, reply."""
        ticket = running.ticket
        decision = self._decision(
            ticket.ticket_id if ticket else self._new_id(),
            ticket.source if ticket else Source.MONITOR,
            running.request.queries[branch],
            running.request.windows,
        )
        camera = running.request.windows[0].camera
        if isinstance(event, Done):
            latency = dataclasses.replace(
                event.latency,
                window_s=running.window_s,
                queue_s=event.latency.queue_s + running.waited_s,
                first_token_s=event.latency.first_token_s + running.waited_s,
            )
            decision = dataclasses.replace(decision, answer=event.answer, latency=latency)
            if ticket is None:
                self._last_code[camera, decision.query.kind] = ErrorCode.NONE
        else:
            decision = decision.with_error(event.error_code, event.error_msg)
            if ticket is None and self._repeats(camera, decision.query, event.error_code):
                return
        self._send(decision)
        if ticket is not None:
            ticket.on_reply(decision)

    def _fail(self, ticket: Ticket, code: ErrorCode, message: str) -> None:
        """End a waiting or running ticket with an error."""
        running = self._running.pop(ticket.ticket_id, None)
        windows: tuple[Window, ...] = ()
        if running is not None:
            windows = running.request.windows
            self._engine.cancel(ticket.ticket_id)
        else:
            self._queue.remove(ticket)
        decision = self._decision(ticket.ticket_id, ticket.source, ticket.query, windows)
        decision = decision.with_error(code, message)
        self._send(decision)
        ticket.on_reply(decision)

    def _expire(self) -> None:
        now = self._steady()
        running = [r.ticket for r in self._running.values() if r.ticket and r.ticket.deadline <= now]
        for ticket in running:
            self._fail(ticket, ErrorCode.DEADLINE_EXCEEDED, f"no answer within {ticket.deadline_s:g} s")
        state = self._engine.status.state
        for ticket in self._queue.expired(now):
            if state is EngineState.READY:
                code, why = ErrorCode.DEADLINE_EXCEEDED, "other queries went first"
            else:
                code, why = ErrorCode.ENGINE_NOT_READY, f"the engine was {state.value}"
            self._fail(ticket, code, f"not started within {ticket.deadline_s:g} s: {why}")

    def _drop_monitors(self) -> None:
        """Cancel running monitor requests; their windows count as superseded."""
        for request_id in [key for key, running in self._running.items() if running.ticket is None]:
            del self._running[request_id]
            self._engine.cancel(request_id)
            self._schedule.superseded += 1

    # -- checks --

    def _windows(self, cameras: tuple[str, ...]) -> tuple[Window, ...]:
        """The newest window of each camera; CosmosReasonError of group 2xx when one has none."""
        return tuple(self._cameras.fresh(name, self.config.max_stale_s) for name in cameras)

    def _check_engine(self) -> None:
        """Raise unless the engine runs or is about to."""
        status = self._engine.status
        if status.state is not EngineState.READY and status.state not in _STARTING:
            message = status.error_msg or "the engine is not running"
            raise CosmosReasonError(ErrorCode.ENGINE_NOT_READY, message)

    def _monitor_queries(self) -> tuple[Query, ...]:
        config = self.config
        return monitor_queries(
            self.task, config.monitors, config.monitor_think_tokens, config.monitors_at_once
        )

    def _monitors_on(self) -> bool:
        return bool(self.config.monitors and self.task.text.strip()) and not self._closed

    def _monitors_fail(self, name: str, code: ErrorCode, message: str) -> None:
        """Publish an error of each monitor of camera ``name``, once per change."""
        for query in self._monitor_queries():
            if not self._repeats(name, query, code):
                decision = self._decision(self._new_id(), Source.MONITOR, query, self._cameras.newest(name))
                self._send(decision.with_error(code, message))

    def _repeats(self, camera: str, query: Query, code: ErrorCode) -> bool:
        """Whether this monitor's last outcome was the same error; notes it."""
        key = (camera, query.kind)
        before, self._last_code[key] = self._last_code.get(key, ErrorCode.NONE), code
        return before is code

    # -- records --

    def _request(
        self,
        request_id: str,
        windows: tuple[Window, ...],
        queries: tuple[Query, ...],
        deadline_s: float = 0.0,
    ) -> Request:
        config = self.config
        sampling = Sampling(config.temperature, config.top_p, config.seed)
        return Request(
            request_id,
            windows,
            queries,
            config.max_answer_tokens,
            sampling,
            deadline_s,
            option_orders=config.option_orders,
        )

    def _decision(
        self, decision_id: str, source: Source, query: Query, windows: tuple[Window, ...] = ()
    ) -> Decision:
        """A decision without answer or error yet."""
        newest_ns = max((window.end_ns for window in windows), default=0)
        return Decision(
            decision_id=decision_id,
            source=source,
            query=query,
            windows=windows,
            answer=None,
            model=self._engine.status.info or ModelInfo(),
            latency=Latency(),
            published_ns=self._clock(),
            valid_until_ns=newest_ns + round(self.config.valid_for_s * 1e9) if windows else 0,
        )

    def _send(self, decision: Decision) -> None:
        self.decisions += 1
        self._publish(decision)

    def _new_id(self) -> str:
        return f"{self._session}-{next(self._ids):06d}"

    def _find(self, ticket_id: str) -> Ticket | None:
        running = self._running.get(ticket_id)
        return running.ticket if running is not None else self._queue.find(ticket_id)

    def _count(self, *, interactive: bool) -> int:
        return sum((running.ticket is not None) is interactive for running in self._running.values())
