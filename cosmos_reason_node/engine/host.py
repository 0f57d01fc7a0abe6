# SPDX-License-Identifier: Apache-2.0
"""The engine in its own process, seen from the node's side. This module does not import torch.

    caller threads            host threads                                engine process (worker.py)
    submit, cancel --outbox-> writer --------------------socket---------> one step of each request in turn
    (never block)             supervisor: on_event, on_state <--socket--- events

``submit`` refuses (BUSY) when ``max_pending`` requests are unfinished, and ``observe`` drops frames while
many messages wait, so the outbox is bounded; frames cross as raw bytes. Whatever happens to the process
(exception, kill -9, out-of-memory killer, a step that hangs), every pending request ends with exactly one
failure and the process is started again after a pause that doubles up to ``max_backoff_s``. A model that
cannot be loaded is reported once and not tried again; one that has been in service is, for as long as it
takes: a disk or a GPU that is away for a while must not leave a robot without its engine.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable

from ..errors import CosmosReasonError, ErrorCode
from ..types import Window
from .base import Event, Failed, Request, Token
from .process import EngineProcess
from .spec import EngineSpec, EngineState, EngineStatistics, EngineStatus
from .wire import Cancel, Message, Observe, Ready, Reply, Report, Stop, Submit, Unusable

__all__ = ["EngineHost", "EngineSpec", "EngineState", "EngineStatus", "EventCallback", "StateCallback"]

EventCallback = Callable[[str, Event], None]
StateCallback = Callable[[EngineStatus], None]

_log = logging.getLogger(__name__)

_POLL_S = 0.1
_FIRST_BACKOFF_S = 0.5
_HEALTHY_S = 60.0  # after this long in READY the back-off starts over
_MAX_BACKLOG = 64  # messages in the outbox with which frames are no longer put behind them
_LOAD_ATTEMPTS = 3  # deaths while loading, in a row, before giving up one that was never ready


class EngineHost:
    """Starts, watches and talks to one engine process.

    Args:
        spec: what to load.
        on_event: called as ``on_event(request_id, event)`` from the supervisor thread, in order for each
            request. Per branch the last event is one ``Done`` or ``Failed``; ``Failed(branch=-1)`` ends all
            branches that have not ended yet. ``Done`` has ``latency.queue_s`` and ``first_token_s`` counted
            from ``submit``; ``window_s`` is the caller's to add. It must return quickly and may call submit
            and cancel.
        on_state: called as ``on_state(status)`` from the supervisor thread at each change of state.
        max_pending: most unfinished requests.
        step_timeout_s: a step of work (vision, prefill, one token) that takes longer is a hang: the process
            is killed and started again.
        load_timeout_s: bound on starting, loading, self-test and warm-up.
        max_backoff_s: longest pause between restarts.

    Thread-safe. Callbacks that raise are logged and do not stop the host.
    """

    def __init__(
        self,
        spec: EngineSpec,
        on_event: EventCallback,
        on_state: StateCallback | None = None,
        *,
        max_pending: int = 16,
        step_timeout_s: float = 60.0,
        load_timeout_s: float = 600.0,
        max_backoff_s: float = 30.0,
    ) -> None:
        self._spec = spec
        self._on_event = on_event
        self._on_state = on_state
        self._max_pending = max_pending
        self._step_timeout_s = step_timeout_s
        self._load_timeout_s = load_timeout_s
        self._max_backoff_s = max_backoff_s
        self._changed = threading.Condition()  # guards everything below
        self._status = EngineStatus(EngineState.STOPPED)
        self._statistics = EngineStatistics()
        self._pending: dict[str, set[int]] = {}  # request -> branches that have not ended
        self._quiet_since = 0.0  # when the process last gave a sign of life, or got work while idle
        self._process: EngineProcess | None = None
        self._supervisor: threading.Thread | None = None
        self._stopping = threading.Event()
        self._stop_by = 0.0

    @property
    def spec(self) -> EngineSpec:
        """What was asked to be loaded."""
        return self._spec

    @property
    def status(self) -> EngineStatus:
        """The newest state."""
        return self._status

    @property
    def statistics(self) -> EngineStatistics:
        """Work of the engine process, as it last reported."""
        return self._statistics

    @property
    def pid(self) -> int:
        """Process id of the engine, 0 when there is none."""
        return self._status.pid

    @property
    def pending(self) -> int:
        """Requests submitted and not ended."""
        return len(self._pending)

    def start(self) -> None:
        """Start the process and return at once; states arrive at ``on_state``.

        Does nothing when already started. In FAILED it tries again.
        """
        with self._changed:
            if self._supervisor is not None and self._supervisor.is_alive():
                if self._status.state is not EngineState.FAILED and not self._stopping.is_set():
                    return
                previous = self._supervisor
            else:
                previous = None
            self._stopping = threading.Event()
            self._status = EngineStatus(EngineState.LOADING)
            self._supervisor = threading.Thread(
                target=self._supervise, args=(self._stopping, previous), name="engine-host", daemon=True
            )
            self._supervisor.start()

    def wait_ready(self, timeout_s: float) -> EngineStatus:
        """Wait at most ``timeout_s`` for READY, FAILED or STOPPED; return the status. Not from a callback."""
        settled = (EngineState.READY, EngineState.FAILED, EngineState.STOPPED)
        with self._changed:
            self._changed.wait_for(lambda: self._status.state in settled, timeout_s)
            return self._status

    def submit(self, request: Request, *, priority: bool = False) -> None:
        """Queue a request; never blocks. Interactive requests (``priority``) start before all that wait.

        Raises:
            CosmosReasonError: ENGINE_NOT_READY (state is not READY), BUSY (``max_pending`` reached),
                INVALID_REQUEST (no query, or an id that is in use). Everything else about the request is
                answered with ``Failed``.
        """
        if not request.queries:
            raise CosmosReasonError(ErrorCode.INVALID_REQUEST, "the request has no query")
        with self._changed:
            process = self._process
            if self._status.state is not EngineState.READY or process is None or self._stopping.is_set():
                raise CosmosReasonError(
                    ErrorCode.ENGINE_NOT_READY,
                    f"the engine is {self._status.state.value}: {self._status.error_msg}".rstrip(": "),
                )
            if request.request_id in self._pending:
                raise CosmosReasonError(
                    ErrorCode.INVALID_REQUEST, f"request id {request.request_id!r} is in use"
                )
            if len(self._pending) >= self._max_pending:
                raise CosmosReasonError(
                    ErrorCode.BUSY, f"{self._max_pending} requests are unfinished: try again later"
                )
            if not self._pending:
                self._quiet_since = time.monotonic()
            self._pending[request.request_id] = set(range(len(request.queries)))
            process.outbox.put(Submit(request, priority, time.monotonic()))

    def observe(self, window: Window) -> None:
        """Show frames that requests will be about, so that their features are there by then.

        Never blocks and cannot fail: what the engine has no time for, it works out with the request.
        """
        with self._changed:
            process = self._process
            if self._status.state is not EngineState.READY or process is None:
                return
            if process.outbox.qsize() < _MAX_BACKLOG:  # a process that does not read must not fill the memory
                process.outbox.put(Observe(window))

    def cancel(self, request_id: str, branch: int | None = None) -> bool:
        """Ask that a request, or one branch, end with ``Failed(CANCELED)``; it does within one step.

        Returns:
            False when there is no such pending request or branch (it may have just ended).
        """
        with self._changed:
            branches = self._pending.get(request_id)
            if branches is None or (branch is not None and branch not in branches) or self._process is None:
                return False
            self._process.outbox.put(Cancel(request_id, branch))
            return True

    def stop(self, timeout_s: float = 5.0) -> None:
        """End the process: ask, then after half of ``timeout_s`` kill. Pending requests fail with NOT_ACTIVE.

        Returns within about ``timeout_s``; when it returns, no callback runs any more (unless it was called
        from one).
        """
        with self._changed:
            supervisor = self._supervisor
            self._stop_by = time.monotonic() + timeout_s / 2
            self._stopping.set()
        if supervisor is not None and supervisor is not threading.current_thread():
            supervisor.join(timeout_s)
        with self._changed:
            if self._status.state is EngineState.FAILED and self._supervisor is supervisor:
                self._status = dataclasses.replace(self._status, state=EngineState.STOPPED)
                self._changed.notify_all()

    # -- supervisor thread --

    def _supervise(self, stopping: threading.Event, previous: threading.Thread | None) -> None:
        if previous is not None:
            previous.join()
        try:
            self._keep_running(stopping)
        except Exception as error:  # a fault of this module; whoever waits must hear of it
            _log.exception("the engine host failed")
            message = f"the engine host failed: {error}"
            self._set_state(EngineState.FAILED, ErrorCode.ENGINE_FAILED, message)
            self._fail_pending(ErrorCode.ENGINE_FAILED, message)

    def _keep_running(self, stopping: threading.Event) -> None:
        """Run process after process until stopped or given up."""
        backoff, load_deaths, restarts, has_served = _FIRST_BACKOFF_S, 0, 0, False
        self._set_state(EngineState.LOADING)
        while not stopping.is_set():
            end = self._run_process(stopping, restarts)
            if stopping.is_set():
                break
            load_deaths = 0 if end.was_ready else load_deaths + 1
            has_served |= end.was_ready
            if not has_served and (not end.may_restart or load_deaths >= _LOAD_ATTEMPTS):
                self._set_state(EngineState.FAILED, end.code, end.message)
                self._fail_pending(end.code, end.message)
                return
            if end.ready_s > _HEALTHY_S:
                backoff = _FIRST_BACKOFF_S
            restarts += 1
            message = f"{end.message}; it is started again in {backoff:g} s"
            self._set_state(EngineState.RESTARTING, end.code, message, restarts=restarts)
            self._fail_pending(end.code, end.message)
            stopping.wait(backoff)
            backoff = min(2 * backoff, self._max_backoff_s)
        self._fail_pending(ErrorCode.NOT_ACTIVE, "the engine is being stopped")
        self._set_state(EngineState.STOPPED)

    def _run_process(self, stopping: threading.Event, restarts: int) -> _End:
        """Run one process from start to end, whatever the end."""
        try:
            process = EngineProcess(self._spec)
        except OSError as error:
            reason = f"the engine process cannot be started: {error}"
            return _End(ErrorCode.ENGINE_DIED, reason, may_restart=True)
        with self._changed:
            self._process = process
        self._set_state(self._status.state, self._status.error_code, self._status.error_msg, pid=process.pid)
        watch = _Watch(started=time.monotonic())
        end: _End | None = None
        try:
            while end is None:
                if stopping.is_set() and not watch.stop_sent:
                    watch.stop_sent = True
                    process.outbox.put(Stop())
                    self._fail_pending(ErrorCode.NOT_ACTIVE, "the engine is being stopped")
                messages = process.receive(_POLL_S)
                if messages is None:
                    end = self._died(process, watch)
                    break
                for message in messages:
                    end = self._handle(message, watch, restarts) or end
                end = end or self._overdue(watch, stopping)
        finally:
            with self._changed:
                self._process = None
            process.kill()
        return dataclasses.replace(
            end,
            was_ready=watch.ready_at is not None,
            ready_s=time.monotonic() - watch.ready_at if watch.ready_at is not None else 0.0,
        )

    def _handle(self, message: Message, watch: _Watch, restarts: int) -> _End | None:
        with self._changed:
            self._quiet_since = time.monotonic()
        if isinstance(message, Reply):
            self._deliver(message)
        elif isinstance(message, Report):
            self._statistics = message.statistics
        elif isinstance(message, Ready):
            self._statistics = EngineStatistics()
            watch.ready_at = time.monotonic()
            self._set_state(
                EngineState.READY,
                info=message.info,
                max_prompt_tokens=message.max_prompt_tokens,
                restarts=restarts,
            )
        elif isinstance(message, Unusable):
            if watch.ready_at is not None:
                return _End(ErrorCode.ENGINE_DIED, message.error_msg, may_restart=True)
            # Memory may come free; nothing else about a failed load gets better by itself.
            retry = message.error_code is ErrorCode.OUT_OF_MEMORY
            return _End(message.error_code, message.error_msg, may_restart=retry)
        return None

    def _deliver(self, reply: Reply) -> None:
        event = reply.event
        with self._changed:
            branches = self._pending.get(reply.request_id)
            if branches is None or event is None:
                return
            if not isinstance(event, Token):
                if event.branch == -1:
                    branches.clear()
                branches.discard(event.branch)
                if not branches:
                    del self._pending[reply.request_id]
        self._call(self._on_event, reply.request_id, event)

    def _overdue(self, watch: _Watch, stopping: threading.Event) -> _End | None:
        now = time.monotonic()
        if stopping.is_set():
            return _End(ErrorCode.NOT_ACTIVE, "stopped") if now >= self._stop_by else None
        if watch.ready_at is None:
            if now - watch.started < self._load_timeout_s:
                return None
            message = f"the model was not loaded within {self._load_timeout_s:g} s: raise load_timeout_s"
            return _End(ErrorCode.ENGINE_FAILED, message)
        with self._changed:
            hangs = bool(self._pending) and now - self._quiet_since > self._step_timeout_s
        if not hangs:
            return None
        message = f"a step of the engine took longer than {self._step_timeout_s:g} s and was taken for a hang"
        return _End(ErrorCode.ENGINE_DIED, message, may_restart=True)

    def _died(self, process: EngineProcess, watch: _Watch) -> _End:
        how = process.exit_reason()
        when = "" if watch.ready_at is not None else " while it loaded the model"
        return _End(ErrorCode.ENGINE_DIED, f"the engine process died{when}: {how}", may_restart=True)

    def _fail_pending(self, code: ErrorCode, message: str) -> None:
        with self._changed:
            requests, self._pending = list(self._pending), {}
        for request_id in requests:
            self._call(self._on_event, request_id, Failed(-1, code, message))

    def _set_state(self, state: EngineState, *error: object, **changes: object) -> None:
        code, message = error or (ErrorCode.NONE, "")
        with self._changed:
            pid = self._process.pid if self._process is not None else 0
            values = {"state": state, "error_code": code, "error_msg": message, "pid": pid}
            self._status = dataclasses.replace(
                self._status,
                **{**values, **changes},  # type: ignore[arg-type]
            )
            status = self._status
            self._changed.notify_all()
        if self._on_state is not None:
            self._call(self._on_state, status)

    @staticmethod
    def _call(callback: Callable[..., None], *arguments: object) -> None:
        try:
            callback(*arguments)
        except Exception:
            _log.exception("a callback of the engine host raised")


@dataclasses.dataclass(frozen=True)
class _End:
    """How a process ended."""

    code: ErrorCode
    message: str
    may_restart: bool = False
    was_ready: bool = False
    ready_s: float = 0.0


@dataclasses.dataclass
class _Watch:
    """What the supervisor knows of the process it runs. Steady seconds."""

    started: float
    ready_at: float | None = None
    stop_sent: bool = False
