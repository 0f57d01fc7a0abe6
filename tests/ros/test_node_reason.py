# SPDX-License-Identifier: Apache-2.0
"""The action: text as it comes, cancel and deadline while others run; and the engine process killed."""

from __future__ import annotations

import os
import re
import signal
import time

import pytest
from action_msgs.msg import GoalStatus
from builtin_interfaces.msg import Duration
from cosmos_reason_msgs.msg import Decision, ErrorCode, QueryKind
from cosmos_reason_msgs.srv import Query, SetTask

from tests.ros.client import READY, Client
from tests.ros.node_process import running_node, until

pytestmark = pytest.mark.ros
LONG = 4000  # tokens; random weights never stop thinking by themselves


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    log = tmp_path_factory.mktemp("reason") / "node.log"
    with running_node(log, cameras=("front=image_raw",), max_stale_s=5.0, max_queries=4) as node:
        yield node


@pytest.fixture(scope="module")
def client(node):
    client = Client()
    try:
        client.camera("image_raw")
        client.ready()
        until(lambda: client.status.cameras[0].sampled >= 6, "frames")
        # A server does not wait for those who listen to its feedback: once some came, all of it does.
        first = client.goal(think_tokens=LONG)
        until(lambda: first.feedback, "the first feedback")
        first.cancel()
        first.result(10.0)
        yield client
    finally:
        client.close()


def idle(client: Client) -> None:
    until(lambda: client.status.queries_running == client.status.queries_waiting == 0, "idle")


def test_text_is_streamed_and_adds_up_to_the_decision(client):
    goal = client.goal(think_tokens=20, options=["reach", "grasp"])
    status, decision = goal.result()
    assert status == GoalStatus.STATUS_SUCCEEDED
    assert decision.error_code == ErrorCode.NONE
    assert decision.source == Decision.SOURCE_ACTION
    assert decision.reasoning.strip()
    # The budget may end within a character: what there is of it is held back, and only the decision shows it.
    begins = decision.reasoning.strip().rstrip("\ufffd")[:20]
    until(lambda: begins in "".join(said.text for said in goal.feedback if said.thinking), "feedback")
    tokens = [feedback.tokens for feedback in goal.feedback]
    assert tokens == sorted(set(tokens))
    elapsed = [feedback.elapsed.sec + feedback.elapsed.nanosec / 1e9 for feedback in goal.feedback]
    assert elapsed == sorted(elapsed)


def test_cancel_ends_one_goal_while_the_others_go_on(client):
    idle(client)
    long = client.goal(think_tokens=LONG)
    other = client.goal(think_tokens=LONG, deadline=Duration(sec=120))
    until(lambda: long.feedback and other.feedback, "both think")
    answer = client.ask("Is it there?", yes_no=True)  # a quick question passes the long ones
    assert answer.error_code == ErrorCode.NONE
    assert not long.done
    assert not other.done
    assert long.cancel().goals_canceling
    status, decision = long.result(10.0)
    assert status == GoalStatus.STATUS_CANCELED
    assert decision.error_code == ErrorCode.CANCELED
    seen = len(other.feedback)
    until(lambda: len(other.feedback) > seen + 5, "the other thinks on")
    other.cancel()
    assert other.result(10.0)[0] == GoalStatus.STATUS_CANCELED


def test_the_deadline_aborts_while_thinking(client):
    idle(client)
    started = time.monotonic()
    goal = client.goal(think_tokens=LONG, deadline=Duration(sec=1))
    status, decision = goal.result()
    assert status == GoalStatus.STATUS_ABORTED
    assert decision.error_code == ErrorCode.DEADLINE_EXCEEDED
    assert time.monotonic() - started >= 1.0
    assert goal.feedback


def test_goals_beyond_the_queue_are_aborted_as_busy(client):
    idle(client)
    goals = [client.goal(think_tokens=LONG) for _ in range(3 + 4)]  # 3 run side by side, 4 may wait
    status, decision = client.goal(think_tokens=LONG).result()
    assert status == GoalStatus.STATUS_ABORTED
    assert decision.error_code == ErrorCode.BUSY
    for goal in goals:
        goal.cancel()
    assert {goal.result()[1].error_code for goal in goals} == {ErrorCode.CANCELED}


def test_goals_that_cannot_be_served_are_aborted_by_name(client):
    status, decision = client.goal(cameras=["rear"]).result()
    assert status == GoalStatus.STATUS_ABORTED
    assert decision.error_code == ErrorCode.UNKNOWN_CAMERA
    status, decision = client.goal(kind=99).result()
    assert (status, decision.error_code) == (GoalStatus.STATUS_ABORTED, ErrorCode.INVALID_REQUEST)


def test_a_killed_engine_is_an_error_and_a_restart_and_the_node_serves_on(client, node):
    idle(client)
    client.call(SetTask, "set_task", task="open the drawer")
    until(lambda: client.status.decisions > 0, "monitors")
    goal = client.goal(think_tokens=LONG, deadline=Duration(sec=120))
    until(lambda: goal.feedback, "thinking")
    (engine,) = node.children()
    values = {entry.key: entry.value for entry in client.diagnostics["cosmos_reason: engine"].values}
    assert values["pid"] == str(engine.pid)
    before = len(client.decisions)
    os.kill(engine.pid, signal.SIGKILL)

    status, decision = goal.result()
    assert status == GoalStatus.STATUS_ABORTED
    assert decision.error_code == ErrorCode.ENGINE_DIED
    until(
        lambda: any(
            d.error_code == ErrorCode.ENGINE_DIED and d.source == Decision.SOURCE_MONITOR
            for d in client.decisions[before:]
        ),
        "published error",
    )
    # Asked while the engine is down, answered once it is back.
    fields = {"kind": QueryKind.QUESTION, "question": "still there?", "think_tokens": 0}
    waiting = client.call_async(Query, "query", deadline=Duration(sec=300), **fields)
    until(
        lambda: client.status.engine_restarts == 1 and client.status.engine_state == READY, "restart", 300.0
    )
    assert client.result(waiting, 300.0, "reply").decision.error_code == ErrorCode.NONE
    assert len(re.findall(r"\[ERROR\].*engine: restarting", node.output())) == 1
    after = len(client.decisions)
    until(
        lambda: any(
            d.error_code == ErrorCode.NONE and d.source == Decision.SOURCE_MONITOR
            for d in client.decisions[after:]
        ),
        "monitors again",
    )
    errors = [d for d in client.decisions[before:] if d.source == Decision.SOURCE_MONITOR and d.error_code]
    assert len(errors) <= 3, "one error a monitor, not a flood"
    assert node.returncode is None


def test_an_idle_engine_that_is_killed_comes_back_too(client, node):
    client.call(SetTask, "set_task")
    idle(client)
    restarts = client.status.engine_restarts
    os.kill(node.children()[0].pid, signal.SIGKILL)
    until(
        lambda: client.status.engine_restarts > restarts and client.status.engine_state == READY,
        "back",
        300.0,
    )
    assert client.ask("there?", yes_no=True).error_code == ErrorCode.NONE
