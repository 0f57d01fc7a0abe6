# SPDX-License-Identifier: Apache-2.0
"""Simulated time: everything is stamped by it, it may jump back or stand still."""

from __future__ import annotations

import threading
import time

import pytest
from action_msgs.msg import GoalStatus
from builtin_interfaces.msg import Duration, Time
from cosmos_reason_msgs.msg import Decision, ErrorCode
from cosmos_reason_msgs.srv import SetTask
from rosgraph_msgs.msg import Clock

from tests.ros.client import Client
from tests.ros.node_process import running_node, until

pytestmark = pytest.mark.ros
START_S = 50_000


class SimulatedClock:
    """Publishes /clock from a thread; may be set and stopped."""

    def __init__(self, client: Client) -> None:
        self._publisher = client.node.create_publisher(Clock, "/clock", 10)
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self.set(START_S)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def now_ns(self) -> int:
        with self._lock:
            elapsed = time.monotonic() - self._since if self._running else 0.0
            return round((self._base_s + elapsed) * 1e9)

    def set(self, seconds: float) -> None:
        """It is ``seconds`` now, and time goes on."""
        with self._lock:
            self._base_s, self._since, self._running = seconds, time.monotonic(), True

    def hold(self) -> None:
        """Time stands still."""
        now_s = self.now_ns() / 1e9
        with self._lock:
            self._base_s, self._running = now_s, False

    def close(self) -> None:
        self._stop.set()
        self._thread.join(10.0)

    def _run(self) -> None:
        while not self._stop.wait(0.01):
            now_ns = self.now_ns()
            self._publisher.publish(Clock(clock=Time(sec=now_ns // 10**9, nanosec=now_ns % 10**9)))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    log = tmp_path_factory.mktemp("time") / "node.log"
    client = Client()
    clock = SimulatedClock(client)
    settings = {
        "cameras": ("front=image_raw",),
        "fps": 8.0,
        "monitors": ("completion",),
        "status_period_s": 0.2,
    }
    try:
        with running_node(log, use_sim_time=True, **settings):
            client.camera("image_raw", now_ns=clock.now_ns)
            client.ready()
            client.call(SetTask, "set_task", task="open the drawer")
            yield client, clock
    finally:
        clock.close()
        client.close()


def newest(client: Client, before_s: float) -> Decision | None:
    """The newest answer about a moment before simulated ``before_s``."""
    answers = [d for d in client.decisions if not d.error_code and d.header.stamp.sec < before_s]
    return answers[-1] if answers else None


def test_everything_is_stamped_with_simulated_time(world):
    client, _ = world
    decision = until(lambda: newest(client, START_S + 1000), "a decision")
    assert decision.header.stamp.sec >= START_S
    assert START_S <= decision.published.sec < START_S + 1000
    assert decision.age.sec < 30
    assert START_S <= client.status.stamp.sec < START_S + 1000


def test_a_backward_jump_starts_the_window_anew(world):
    client, clock = world
    until(lambda: newest(client, START_S + 1000), "a decision")
    clock.set(START_S - 1000)
    until(lambda: client.status.cameras[0].clock_jumps > 0, "jump counted")
    decision = until(lambda: newest(client, START_S), "a decision about the new time")
    (window,) = decision.windows
    assert START_S - 1000 <= window.start.sec <= window.end.sec < START_S
    assert decision.age.sec >= 0
    assert client.ask("there?", yes_no=True).error_code == ErrorCode.NONE


def test_deadlines_hold_while_time_stands_still(world):
    client, clock = world
    until(lambda: client.ask("there?", yes_no=True).error_code == ErrorCode.NONE, "serving")
    clock.hold()
    stamps = len(client.statuses)
    goal = client.goal(think_tokens=4000, deadline=Duration(sec=1))
    status, decision = goal.result(30.0)
    assert (status, decision.error_code) == (GoalStatus.STATUS_ABORTED, ErrorCode.DEADLINE_EXCEEDED)
    until(lambda: len(client.statuses) > stamps + 3, "status goes on")
