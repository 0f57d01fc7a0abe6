# SPDX-License-Identifier: Apache-2.0
"""The engine process: loads a model, answers what its host sends. Started by ``host.EngineHost`` only.

    socket --reader thread--> inbox --main thread--> waiting: interactive | others
                     |                                  |  at most max_active (+ 1 interactive)
                     |                               active: one step of each in turn --> socket
                     └─> seen (the newest frames) --> observed: one window between steps

Cancel, deadline and stop are looked at between steps. The process ends with its host, however that ends: by
the end of the socket, or by the kernel's signal when the host is killed in the middle of a step.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import queue
import signal
import socket
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Generator
from dataclasses import dataclass, field

from ..errors import CosmosReasonError, ErrorCode
from ..parent_death import die_with
from ..types import Window
from .base import Done, Engine, Event, Failed, Observer, Request, Token
from .loading import load_engine
from .spec import EngineSpec, EngineStatistics
from .wire import (
    RECEIVE_BYTES,
    Cancel,
    Decoder,
    Message,
    Observe,
    Ready,
    Reply,
    Report,
    Stop,
    Submit,
    Unusable,
    send,
)

_MAX_SEEN = 64
_REPORT_S = 0.5
_NOTHING = Window("", (), 0, 1, 0, 0)


@dataclass(eq=False)
class _Job:
    """A request; ``steps`` is None while it waits. ``open``: branches that have not ended."""

    submit: Submit
    open: set[int]
    dropped: deque[int] = field(default_factory=deque)
    steps: Generator[Event, int | None, None] | None = None
    stepped: bool = False
    started: float = 0.0

    @property
    def request(self) -> Request:
        return self.submit.request


class Worker:
    """Takes requests from a socket and advances them in turns.

    Args:
        engine: what answers.
        connection: to the host.
        inbox: messages from the host, put there by another thread.
        seen: windows to observe, put there by another thread, which drops the oldest when there are many.
        max_active: requests that advance in turns; one interactive request more may.
    """

    def __init__(
        self,
        engine: Engine,
        connection: socket.socket,
        inbox: queue.SimpleQueue[Message],
        seen: deque[Window],
        max_active: int,
    ) -> None:
        self._engine = engine
        self._connection = connection
        self._inbox = inbox
        self._seen = seen
        self._requests = 0
        self._queue_s = 0.0
        self._queue_max_s = 0.0
        self._reported = time.monotonic()
        self._max_active = max(1, max_active)
        self._interactive: deque[_Job] = deque()
        self._others: deque[_Job] = deque()
        self._active: deque[_Job] = deque()

    def run(self) -> None:
        """Serve until told to stop."""
        while self._take_messages():
            self._expire()
            self._observe()
            self._start()
            if self._active:
                self._active.rotate(-1)
                self._step(self._active[-1])
            self._report()
        for job in list(self._active):
            self._remove(job)

    def _take_messages(self) -> bool:
        """Handle what has arrived, waiting for something only when there is no work; False to stop."""
        idle = not (self._active or self._interactive or self._others or self._seen)
        while True:
            try:
                message = self._inbox.get(block=idle)
            except queue.Empty:
                return True
            idle = False  # an Observe only wakes: its window is in self._seen
            if isinstance(message, Stop):
                return False
            if isinstance(message, Submit):
                job = _Job(message, set(range(len(message.request.queries))))
                (self._interactive if message.priority else self._others).append(job)
            elif isinstance(message, Cancel):
                self._cancel(message)

    def _observe(self) -> None:
        """Let the engine look at frames that have come, a window at a time."""
        if self._seen and isinstance(self._engine, Observer):
            self._engine.observe(self._seen.popleft())
        else:
            self._seen.clear()

    def _report(self) -> None:
        """Tell the host of the work so far, now and then."""
        now = time.monotonic()
        if now - self._reported < _REPORT_S:
            return
        self._reported = now
        statistics = getattr(self._engine, "statistics", EngineStatistics())
        send(
            self._connection,
            Report(
                dataclasses.replace(
                    statistics,
                    requests=self._requests,
                    queue_s=self._queue_s,
                    queue_max_s=self._queue_max_s,
                )
            ),
        )

    def _expire(self) -> None:
        """Fail waiting requests whose time is up."""
        now = time.monotonic()
        for job in (*self._interactive, *self._others):
            if 0 < job.request.deadline_s <= now - job.submit.submitted:
                self._fail(job, ErrorCode.DEADLINE_EXCEEDED, "its deadline passed while it waited")

    def _start(self) -> None:
        """Begin waiting requests while there is room, interactive ones first."""
        while self._interactive and len(self._active) < self._max_active + 1:
            self._begin(self._interactive.popleft())
        while self._others and len(self._active) < self._max_active:
            self._begin(self._others.popleft())

    def _begin(self, job: _Job) -> None:
        job.started = time.monotonic()
        waited = job.started - job.submit.submitted
        self._requests += 1
        self._queue_s += waited
        self._queue_max_s = max(self._queue_max_s, waited)
        request = job.request
        if request.deadline_s > 0:  # counted from submission
            left = request.deadline_s - waited
            request = dataclasses.replace(request, deadline_s=max(left, 1e-9))
        job.steps = self._engine.answer(request)
        self._active.append(job)

    def _step(self, job: _Job) -> None:
        """One step of one request; exactly one message to the host, which takes it as a sign of life."""
        assert job.steps is not None
        try:
            # A generator takes a sent value only once it has begun.
            drops = job.stepped and bool(job.dropped)
            event = job.steps.send(job.dropped.popleft()) if drops else next(job.steps)
            job.stepped = True
        except StopIteration:
            self._fail(job, ErrorCode.ENGINE_FAILED, "the engine ended without an answer")
            return
        if isinstance(event, Failed) and event.branch == -1:
            job.open.clear()
        elif event.branch not in job.open:  # canceled, and the engine did not know yet
            self._reply(job, None)
            return
        elif not isinstance(event, Token):
            job.open.discard(event.branch)
        if isinstance(event, Done):
            event = _with_queue_time(event, job.started - job.submit.submitted)
        if not job.open:
            self._remove(job)
        self._reply(job, event)

    def _cancel(self, cancel: Cancel) -> None:
        jobs = (*self._active, *self._interactive, *self._others)
        job = next((job for job in jobs if job.request.request_id == cancel.request_id), None)
        if job is None or (cancel.branch is not None and cancel.branch not in job.open):
            return  # it has just ended
        if cancel.branch is None or job.open == {cancel.branch}:
            self._fail(job, ErrorCode.CANCELED, "canceled")
        else:
            job.open.discard(cancel.branch)
            job.dropped.append(cancel.branch)
            self._reply(job, Failed(cancel.branch, ErrorCode.CANCELED, "canceled"))

    def _fail(self, job: _Job, code: ErrorCode, message: str) -> None:
        self._remove(job)
        self._reply(job, Failed(-1, code, message))

    def _remove(self, job: _Job) -> None:
        if job.steps is not None:
            job.steps.close()
        for jobs in (self._active, self._interactive, self._others):
            if job in jobs:
                jobs.remove(job)

    def _reply(self, job: _Job, event: Event | None) -> None:
        send(self._connection, Reply(job.request.request_id, event))


def _with_queue_time(done: Done, waited: float) -> Done:
    latency = dataclasses.replace(
        done.latency, queue_s=waited, first_token_s=done.latency.first_token_s + waited
    )
    return dataclasses.replace(done, latency=latency)


def serve(spec: EngineSpec, connection: socket.socket) -> int:
    """Load, then answer until told to stop; the process's exit code."""
    inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
    seen: deque[Window] = deque(maxlen=_MAX_SEEN)
    loaded = threading.Event()
    threading.Thread(
        target=_receive, args=(connection, inbox, seen, loaded), name="receive", daemon=True
    ).start()
    engine = _load(spec, connection)
    if engine is None:
        return 1
    loaded.set()
    try:
        send(connection, Ready(engine.info, engine.max_prompt_tokens))
        Worker(engine, connection, inbox, seen, spec.max_active).run()
        engine.close()
    except ConnectionError:
        return 0  # the host is gone
    except Exception as error:
        return _give_up(connection, error)
    return 0


def _load(spec: EngineSpec, connection: socket.socket) -> Engine | None:
    """The engine; None when it cannot be had, and the host knows why.

    Apart from serving, where a ConnectionError means that the host is gone.
    """
    try:
        return load_engine(spec)
    except Exception as error:
        _give_up(connection, error)
        return None


def _give_up(connection: socket.socket, error: Exception) -> int:
    """Tell the host why this process ends; its exit code."""
    if isinstance(error, CosmosReasonError):
        end = Unusable(error.code, error.message)
    else:
        traceback.print_exception(error)
        end = Unusable(ErrorCode.ENGINE_FAILED, f"the engine raised {type(error).__name__}: {error}")
    with contextlib.suppress(OSError):  # it may be gone by now
        send(connection, end)
    return 1


def _receive(
    connection: socket.socket,
    inbox: queue.SimpleQueue[Message],
    seen: deque[Window],
    loaded: threading.Event,
) -> None:
    """Move messages from the socket to the inbox; end the process when the host is gone."""
    decoder = Decoder()
    while True:
        try:
            data = connection.recv(RECEIVE_BYTES)
        except OSError:
            data = b""
        if not data:
            os._exit(0)
        for message in decoder.feed(data):
            if isinstance(message, Stop) and not loaded.is_set():
                os._exit(0)  # nothing to close yet, and loading cannot be interrupted otherwise
            if isinstance(message, Observe):
                seen.append(message.window)
                # Looked at afterwards: what was there may have been taken in between.
                if len(seen) > 1:
                    continue
                message = Observe(_NOTHING)  # the inbox is not bounded: it holds no frames twice
            inbox.put(message)


def main() -> int:
    """Entry point of ``python -m cosmos_reason_node.engine.worker``."""
    parser = argparse.ArgumentParser(description="Engine process; started by the node.")
    parser.add_argument("--spec", required=True, help="EngineSpec as JSON")
    parser.add_argument("--fd", type=int, required=True, help="inherited socket to the host")
    parser.add_argument("--parent", type=int, required=True, help="process id of the host")
    arguments = parser.parse_args()
    die_with(arguments.parent)
    # Ctrl-C in a terminal reaches every process; when to stop is the host's decision.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    spec = EngineSpec(**json.loads(arguments.spec))
    os.nice(spec.niceness)
    return serve(spec, socket.socket(fileno=arguments.fd))


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # The engine is closed; taking the interpreter with torch apart would hold up the node's end by seconds.
    os._exit(code)
