# SPDX-License-Identifier: Apache-2.0
"""The engine in its own process, seen from the node's side. This module does not import torch.

    caller threads              supervisor thread                     engine process (worker.py)
    submit/cancel --outbox--> writer thread ==socket==> reader thread --inbox--> loop: one step of each
       never block               on_event, on_state  <=====socket=====              active request in turn

``submit`` refuses (BUSY) when ``max_pending`` requests are unfinished, so the outbox is bounded; frames cross as raw uint8
bytes. Whatever happens to the process (exception, kill -9, out-of-memory killer, a step that hangs), every pending request
ends with exactly one failure and the process is started again after a pause that doubles up to ``max_backoff_s``. A model that
cannot be loaded is reported once and not tried again.
"""

from __future__ import annotations

from collections.abc import Callable

from .base import Event, Request
from .spec import EngineSpec, EngineState, EngineStatus

__all__ = ["EngineHost", "EngineSpec", "EngineState", "EngineStatus", "EventCallback", "StateCallback"]

EventCallback = Callable[[str, Event], None]
StateCallback = Callable[[EngineStatus], None]


class EngineHost:
    """Starts, watches and talks to one engine process.

    Args:
        spec: what to load.
        on_event: called as ``on_event(request_id, event)`` from the supervisor thread, in order for each request. Per branch the
            last event is one ``Done`` or ``Failed``; ``Failed(branch=-1)`` ends all branches that have not ended yet. ``Done`` has
            ``latency.queue_s`` and ``first_token_s`` counted from ``submit``; ``window_s`` is the caller's to add. It must return
            quickly and may call submit and cancel.
        on_state: called as ``on_state(status)`` from the supervisor thread at each change of state.
        max_pending: most unfinished requests.
        step_timeout_s: a step of work (vision, prefill, one token) that takes longer is a hang: the process is killed and
            started again.
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
    ) -> None: ...

    @property
    def spec(self) -> EngineSpec:
        """What was asked to be loaded."""
        ...

    @property
    def status(self) -> EngineStatus:
        """The newest state."""
        ...

    @property
    def pid(self) -> int:
        """Process id of the engine, 0 when there is none."""
        ...

    @property
    def pending(self) -> int:
        """Requests submitted and not ended."""
        ...

    def start(self) -> None:
        """Start the process and return at once; states arrive at ``on_state``. Does nothing when already started.

        In FAILED it tries again.
        """
        ...

    def wait_ready(self, timeout_s: float) -> EngineStatus:
        """Wait until READY, FAILED or STOPPED, at most ``timeout_s``; return the status reached. Not from a callback."""
        ...

    def submit(self, request: Request, *, priority: bool = False) -> None:
        """Queue a request; never blocks. Interactive requests (``priority``) start before all others that wait.

        Raises:
            CosmosReasonError: ENGINE_NOT_READY (state is not READY), BUSY (``max_pending`` reached), INVALID_REQUEST (an
                id that is in use). Everything else about the request is answered with ``Failed``.
        """
        ...

    def cancel(self, request_id: str, branch: int | None = None) -> bool:
        """Ask that a request, or one of its branches, end with ``Failed(CANCELED)``; it does within one step.

        Returns:
            False when there is no such pending request (it may have just ended).
        """
        ...

    def stop(self, timeout_s: float = 5.0) -> None:
        """End the process: ask, then after half of ``timeout_s`` kill. Pending requests fail with NOT_ACTIVE.

        Returns within about ``timeout_s``; when it returns, no callback runs any more (unless called from one).
        """
        ...
