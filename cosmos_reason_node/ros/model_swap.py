# SPDX-License-Identifier: Apache-2.0
"""Another checkpoint for a running node: loaded and tested beside the one in service, then put in its place.

    load_model -> check files -> second engine process: load, self-test, warm-up -> swap -> stop the old one
                       |                  |
                       +-- wrong: error --+    the old one has served all the while, and goes on

Both models are in memory for as long as that takes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from rclpy.task import Future

from ..engine.host import EngineHost
from ..engine.spec import EngineState
from ..errors import CosmosReasonError, ErrorCode
from .handover import EngineEvents
from .session import Setup


@dataclass(frozen=True)
class Served:
    """A checkpoint with its engine.

    Attributes:
        setup: checked settings for it.
        host: its engine.
        events: of that engine.
    """

    setup: Setup
    host: EngineHost
    events: EngineEvents


class ModelSwap:
    """Loads one checkpoint at a time. All methods are called in the executor's thread.

    Args:
        make: checks a checkpoint directory and makes an engine for it, not started.
        adopt: puts a ready engine in service and stops the one before it; CosmosReasonError when it cannot.
    """

    def __init__(self, make: Callable[[str], Served], adopt: Callable[[Served], None]) -> None:
        self._make, self._adopt = make, adopt
        self._candidate: tuple[Served, Future, float] | None = None

    async def load(self, path: str) -> None:
        """Put the checkpoint at ``path`` in service.

        Raises:
            CosmosReasonError: BUSY while another one is loading; whatever is wrong with this one; nothing has
                changed then.
        """
        if self._candidate is not None:
            raise CosmosReasonError(
                ErrorCode.BUSY, f"{self._candidate[0].setup.config.model} is being loaded: ask again later"
            )
        served = self._make(path)
        done: Future = Future()
        self._candidate = (served, done, time.monotonic() + served.setup.config.load_timeout_s)
        served.host.start()
        error = await done
        if error is not None:
            raise error

    def poll(self) -> None:
        """See whether the engine is ready; often."""
        if self._candidate is None:
            return
        served, done, end_s = self._candidate
        status = served.host.status
        if status.state is EngineState.READY:
            self._candidate = None
            failure: CosmosReasonError | None = None
            try:
                self._adopt(served)
            except CosmosReasonError as error:
                failure = error
            except Exception as error:  # whoever waits must hear of it
                failure = CosmosReasonError(ErrorCode.ENGINE_FAILED, f"the swap failed: {error}")
            if failure is not None:
                stop_later(served.host)
            done.set_result(failure)
        elif status.state is EngineState.FAILED:
            self.cancel(status.error_code, status.error_msg)
        elif time.monotonic() > end_s:
            limit_s = served.setup.config.load_timeout_s
            self.cancel(
                ErrorCode.ENGINE_NOT_READY,
                f"the model was not ready within {limit_s:g} s ({status.error_msg or 'still loading'}): "
                "raise load_timeout_s or take a smaller model",
            )

    def cancel(self, code: ErrorCode, message: str) -> None:
        """Give up what is being loaded, if anything."""
        if self._candidate is not None:
            (served, done, _), self._candidate = self._candidate, None
            stop_later(served.host)
            done.set_result(CosmosReasonError(code, message))


def stop_later(host: EngineHost) -> None:
    """Stop an engine without holding up the executor."""
    threading.Thread(target=host.stop, name="engine-stop", daemon=True).start()
