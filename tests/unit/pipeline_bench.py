# SPDX-License-Identifier: Apache-2.0
"""A pipeline with its clocks, cameras, engine and outputs in the test's hands."""

import dataclasses

import numpy as np

from cosmos_reason_node.config import Config
from cosmos_reason_node.engine.base import Done, Failed, Request
from cosmos_reason_node.engine.spec import EngineState, EngineStatus
from cosmos_reason_node.errors import CosmosReasonError, ErrorCode
from cosmos_reason_node.pipeline import Pipeline
from cosmos_reason_node.types import (
    Answer,
    Decision,
    Frame,
    Latency,
    ModelInfo,
    Query,
    QueryKind,
    Source,
    Verdict,
    Window,
)
from cosmos_reason_node.window import Offer

PERIOD_NS = 250_000_000
START_NS = 1_000_000 * PERIOD_NS  # an even tick
YES = Answer(Verdict.YES, "yes", -1, 0.9, "because", 100, 3)


class ScriptedEngine:
    """Keeps requests; the test finishes them."""

    def __init__(self) -> None:
        self.status = EngineStatus(EngineState.READY, info=ModelInfo(model_id="scripted"))
        self.requests: dict[str, Request] = {}
        self.order: list[str] = []
        self.canceled: list[str] = []
        self.observed: list[Window] = []

    def observe(self, window: Window) -> None:
        self.observed.append(window)

    def submit(self, request: Request, *, priority: bool = False) -> None:
        if self.status.state is not EngineState.READY:
            raise CosmosReasonError(ErrorCode.ENGINE_NOT_READY, "not ready")
        assert request.request_id not in self.requests
        self.requests[request.request_id] = request
        self.order.append(request.request_id)

    def cancel(self, request_id: str, branch: int | None = None) -> bool:
        self.canceled.append(request_id)
        return self.requests.pop(request_id, None) is not None


class Bench:
    """A pipeline with its clocks, cameras and outputs in the test's hands."""

    def __init__(self, **settings: object) -> None:
        base = {"fps": 4.0, "window_frames": 4, "cameras": ("front=a", "wrist=b"), "task": "open the drawer"}
        self.now_ns = START_NS
        self.steady_s = 100.0
        self.engine = ScriptedEngine()
        self.published: list[Decision] = []
        self.replies: list[Decision] = []
        self.texts: list[tuple[str, bool, int]] = []
        self.pipeline = Pipeline(
            Config(**{**base, **settings}),
            self.engine,
            self.published.append,
            lambda: self.now_ns,
            lambda: self.steady_s,
            session="s",
        )

    def frames(
        self, count: int, camera: str = "front", size: int = 28, past: bool = False, ahead_s: float = 0.0
    ) -> None:
        """Let ``count`` frames arrive, one a tick, 10 ms after their capture.

        ``past``: all arrive now instead. ``ahead_s``: the camera's clock runs ahead of the node's.
        """
        tick = self.now_ns // PERIOD_NS - count + 1 if past else -(-self.now_ns // PERIOD_NS)
        for i in range(count):
            stamp_ns = (tick + i) * PERIOD_NS
            if not past:
                self.advance((stamp_ns + 10_000_000 - self.now_ns) / 1e9)
            self.frame(stamp_ns + round(ahead_s * 1e9), camera, size)

    def frame(self, stamp_ns: int, camera: str = "front", size: int = 28) -> None:
        """Let one frame arrive now."""
        buffer = self.pipeline.buffer(camera)
        assert buffer.offer(stamp_ns) is Offer.SAMPLE
        frame = Frame(camera, stamp_ns, buffer.grid.tick(stamp_ns), np.zeros((size, size, 3), np.uint8))
        buffer.put(frame)
        self.pipeline.frame_added(frame)

    def advance(self, seconds: float) -> None:
        self.now_ns += round(seconds * 1e9)
        self.steady_s += seconds

    def finish(self, request_id: str, answer: Answer = YES) -> None:
        request = self.engine.requests.pop(request_id)
        for branch in range(len(request.queries)):
            latency = Latency(queue_s=0.01, vision_s=0.02, prefill_s=0.03, decode_s=0.04, first_token_s=0.05)
            self.pipeline.engine_event(request_id, Done(branch, answer, latency))

    def fail(self, request_id: str, code: ErrorCode) -> None:
        self.engine.requests.pop(request_id)
        self.pipeline.engine_event(request_id, Failed(-1, code, "gone"))

    def state(self, state: EngineState, code: ErrorCode = ErrorCode.NONE) -> None:
        self.engine.status = dataclasses.replace(
            self.engine.status, state=state, error_code=code, error_msg="gone"
        )
        self.pipeline.engine_state(self.engine.status)

    def ask(self, text: str = "What is on the table?", **settings: object) -> str:
        query = settings.pop("query", Query(QueryKind.QUESTION, question=text))
        return self.pipeline.ask(
            query,
            source=Source.SERVICE,
            on_reply=self.replies.append,
            on_text=lambda *text: self.texts.append(text),
            **settings,
        )

    def codes(self) -> list[ErrorCode]:
        return [reply.error_code for reply in self.replies]
