# SPDX-License-Identifier: Apache-2.0
"""The engine's events on their way from the host's thread to the executor's."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from rclpy.node import Node

from ..engine.base import Event
from ..engine.spec import EngineStatus
from .executor import call_soon


class EngineEvents:
    """Calls ``on_event`` and ``on_state`` in the executor's thread, in the order in which they happened.

    Args:
        node: whose executor runs them.
        on_event: as EngineHost's.
        on_state: as EngineHost's.
    """

    def __init__(
        self,
        node: Node,
        on_event: Callable[[str, Event], None],
        on_state: Callable[[EngineStatus], None],
    ) -> None:
        self._node = node
        self._on_event = on_event
        self._on_state = on_state
        # Bounded by what the engine yields for the few requests it may have, at one event a token.
        self._waiting: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()

    def event(self, request_id: str, event: Event) -> None:
        """Take an event; any thread."""
        self._put(self._on_event, request_id, event)

    def state(self, status: EngineStatus) -> None:
        """Take a change of state; any thread."""
        self._put(self._on_state, status)

    def drain(self) -> None:
        """Hand over what waits; the executor's thread."""
        while self._waiting:
            callback, args = self._waiting.popleft()
            callback(*args)

    def _put(self, callback: Callable[..., None], *args: Any) -> None:
        self._waiting.append((callback, args))
        call_soon(self._node, self.drain)
