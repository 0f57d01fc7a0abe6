# SPDX-License-Identifier: Apache-2.0
"""Whatever happens, in whatever order: every query gets exactly one reply, and everything stays bounded."""

import random

import pytest

from cosmos_reason_node.engine.base import Failed, Token
from cosmos_reason_node.engine.spec import EngineState
from cosmos_reason_node.errors import ErrorCode
from cosmos_reason_node.monitors import Task
from cosmos_reason_node.pipeline import MAX_QUERIES_RUNNING
from tests.unit.pipeline_bench import PERIOD_NS, Bench

STEPS = 400


class Chaos:
    """Random clients, cameras and engine around one pipeline."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.bench = Bench(max_queries=3, deadline_s=5.0)
        self.asked: list[str] = []

    def step(self) -> None:
        actions = [*[self.frame] * 4, self.ask, self.ask, self.cancel, self.event, self.event]
        actions += [self.finish, self.finish, self.crash, self.task, self.jump, self.wait, self.poll]
        self.random.choice(actions)()

    def frame(self) -> None:
        self.bench.frames(self.random.randint(1, 3), self.random.choice(("front", "wrist")))

    def ask(self) -> None:
        cameras = self.random.choice(((), ("wrist",), ("front", "wrist"), ("rear",)))
        self.asked.append(
            self.bench.ask(cameras=cameras, deadline_s=self.random.choice((0.0, 0.1, 2.0, 2.0, -1.0)))
        )

    def cancel(self) -> None:
        self.bench.pipeline.cancel(self.random.choice([*self.asked, "nobody"]))

    def event(self) -> None:
        ids = [*self.bench.engine.order, "unknown"]
        event = self.random.choice((Token(0, "x", True), Failed(1, ErrorCode.ENGINE_FAILED, "odd")))
        request_id = self.random.choice(ids[-6:])
        self.bench.pipeline.engine_event(request_id, event)

    def finish(self) -> None:
        if self.bench.engine.requests:
            self.bench.finish(self.random.choice(list(self.bench.engine.requests)))

    def crash(self) -> None:
        if self.bench.engine.status.state is not EngineState.READY:
            self.bench.state(EngineState.READY)
            return
        lost = list(self.bench.engine.requests)
        self.bench.engine.requests.clear()
        if self.random.random() < 0.5:
            self.bench.state(EngineState.RESTARTING, ErrorCode.ENGINE_DIED)
        for request_id in lost:
            self.bench.pipeline.engine_event(request_id, Failed(-1, ErrorCode.ENGINE_DIED, "gone"))

    def task(self) -> None:
        self.bench.pipeline.set_task(Task(self.random.choice(("", "open the drawer", "close it"))))

    def jump(self) -> None:
        if self.random.random() < 0.2:
            self.bench.now_ns -= 50 * PERIOD_NS
            self.bench.pipeline.clock_jumped()

    def wait(self) -> None:
        self.bench.advance(self.random.choice((0.01, 0.1, 0.3, 0.3, 3.0)))

    def poll(self) -> None:
        self.bench.pipeline.poll()


@pytest.mark.parametrize("seed", range(25))
def test_every_query_gets_exactly_one_reply(seed):
    chaos = Chaos(seed)
    bench = chaos.bench
    for _ in range(STEPS):
        chaos.step()
        interactive = [i for i in bench.engine.requests if i in chaos.asked]
        assert len(interactive) <= MAX_QUERIES_RUNNING
        assert len(bench.engine.requests) - len(interactive) <= 1
        assert bench.pipeline.waiting <= 3
    bench.pipeline.close(ErrorCode.NOT_ACTIVE, "end")
    assert sorted(reply.decision_id for reply in bench.replies) == sorted(chaos.asked)
    assert len({d.decision_id for d in bench.published}) == len(bench.published)
    assert {ErrorCode.NONE, ErrorCode.ENGINE_DIED, ErrorCode.NOT_ACTIVE} & set(bench.codes())
