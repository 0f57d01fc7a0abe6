# SPDX-License-Identifier: Apache-2.0
"""What the pipeline needs of an engine process; EngineHost satisfies it."""

from __future__ import annotations

from typing import Protocol

from ..types import Window
from .base import Request
from .spec import EngineStatus


class EnginePort(Protocol):
    """The part of engine.host.EngineHost used here."""

    @property
    def status(self) -> EngineStatus:
        """The newest state."""
        ...

    def submit(self, request: Request, *, priority: bool = False) -> None:
        """Queue a request; CosmosReasonError ENGINE_NOT_READY or BUSY."""
        ...

    def observe(self, window: Window) -> None:
        """Show frames that requests will be about; never blocks."""
        ...

    def cancel(self, request_id: str, branch: int | None = None) -> bool:
        """Ask that a request end."""
        ...
