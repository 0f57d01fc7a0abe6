# SPDX-License-Identifier: Apache-2.0
"""A launch service whose event loop runs in the main thread while a test runs beside it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable

from launch import LaunchContext, LaunchDescription, LaunchService

from .actions import READY_KEY

START_TIMEOUT_S = 60.0
SHUTDOWN_TIMEOUT_S = 60.0
TEST_TIMEOUT_S = 300.0
_POLL_S = 0.02


class RunningLaunch:
    """Runs ``description`` from ``start`` to ``close``; launch reacts only while one of the methods runs.

    Args:
        description: what to start.
    """

    def __init__(self, description: LaunchDescription) -> None:
        self._loop = asyncio.new_event_loop()
        self.service = LaunchService()
        self.service.include_launch_description(description)
        self._task: asyncio.Task[int] | None = None

    @property
    def context(self) -> LaunchContext:
        """The launch service's context."""
        return self.service.context

    @property
    def ended(self) -> bool:
        """Whether launch has ended."""
        return self._task is None or self._task.done()

    def start(self) -> None:
        """Start everything and wait for ReadyToTest.

        Raises:
            RuntimeError: launch ended, or did not reach ReadyToTest in time.
        """
        asyncio.set_event_loop(self._loop)
        self._task = self._loop.create_task(self.service.run_async(shutdown_when_idle=False))
        self._run_until(self._is_ready, START_TIMEOUT_S)
        if not self._is_ready():
            why = "launch ended (see its log above)" if self.ended else f"waited {START_TIMEOUT_S:g} s"
            raise RuntimeError(f"ReadyToTest was not reached: {why}")

    def run_test(self, test: Callable[[], None]) -> None:
        """Call ``test`` in a thread while launch runs here; its exception is raised here.

        Raises:
            TimeoutError: it took too long; its thread is left behind.
        """
        raised: list[BaseException] = []

        def body() -> None:
            try:
                test()
            except BaseException as error:
                raised.append(error)

        thread = threading.Thread(target=body, name="test", daemon=True)
        thread.start()
        self._run_until(lambda: not thread.is_alive(), TEST_TIMEOUT_S)
        thread.join(TEST_TIMEOUT_S if self.ended else 0.0)
        if thread.is_alive():
            raise TimeoutError(f"the test took over {TEST_TIMEOUT_S:g} s")
        if raised:
            raise raised[0]

    def shutdown(self) -> None:
        """End all processes as ctrl-C does, and wait for them.

        Raises:
            RuntimeError: they did not end in time.
        """

        async def ask() -> None:
            asking = self.service.shutdown()
            if asking is not None:
                await asking

        if not self.ended:
            self._loop.run_until_complete(ask())
            self._run_until(lambda: False, SHUTDOWN_TIMEOUT_S)
        if not self.ended:
            raise RuntimeError(f"processes did not end within {SHUTDOWN_TIMEOUT_S:g} s of the shutdown")

    def close(self) -> None:
        """Shut down and give the loop back."""
        try:
            self.shutdown()
        finally:
            asyncio.set_event_loop(None)
            self._loop.close()

    def _run_until(self, condition: Callable[[], bool], timeout_s: float) -> None:
        """Run the loop until ``condition`` holds, launch has ended or the time is up."""

        async def wait() -> None:
            end = time.monotonic() + timeout_s
            while not condition() and not self.ended and time.monotonic() < end:
                await asyncio.sleep(_POLL_S)

        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(wait())

    def _is_ready(self) -> bool:
        return READY_KEY in self.context.get_locals_as_dict()
