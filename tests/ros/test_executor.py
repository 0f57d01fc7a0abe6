# SPDX-License-Identifier: Apache-2.0
"""What ros/executor.py says about the events executor, tried again."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import rclpy
from rclpy.context import Context
from rclpy.executors import Executor, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.task import Future
from std_srvs.srv import Trigger

from cosmos_reason_node.ros.executor import Resumer, call_soon, create_async_service, make_executor, spin

pytestmark = pytest.mark.ros


@pytest.fixture(
    params=[make_executor, lambda context: SingleThreadedExecutor(context=context)], ids=["events", "single"]
)
def running(request: pytest.FixtureRequest) -> Iterator[tuple[Node, Executor]]:
    context = Context()
    rclpy.init(context=context)
    executor = request.param(context)
    node = Node("tested", context=context)
    executor.add_node(node)
    yield node, executor
    executor.shutdown()
    node.destroy_node()
    context.try_shutdown()


def run_until(executor: Executor, met: Callable[[], bool], timeout_s: float = 30.0) -> None:
    stop = Future()
    end = time.monotonic() + timeout_s
    while not met():
        assert time.monotonic() < end
        executor.spin_until_future_complete(stop, timeout_sec=0.02)


def test_call_soon_runs_in_the_executors_thread_and_survives_exceptions(running: tuple[Node, Executor]):
    node, executor = running
    seen: list[object] = []

    def fail() -> None:
        raise RuntimeError("of a callback")

    def from_another_thread() -> None:
        call_soon(node, fail)
        call_soon(node, lambda number: seen.append((number, threading.current_thread())), 7)

    thread = threading.Thread(target=from_another_thread)
    thread.start()
    run_until(executor, lambda: bool(seen))
    thread.join(5)
    assert seen == [(7, threading.current_thread())]


def test_services_answer_when_their_coroutines_are_done(running: tuple[Node, Executor]):
    node, executor = running
    gates = [Future(executor=executor) for _ in range(3)]
    waiting = list(gates)

    async def answer(request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        response.message = await waiting.pop(0)
        return response

    create_async_service(node, Trigger, "ask", answer, lambda error, response: response)
    client = node.create_client(Trigger, "ask")
    run_until(executor, client.service_is_ready)
    replies = [client.call_async(Trigger.Request()) for _ in gates]
    run_until(executor, lambda: not waiting)  # all three have begun: none blocks another
    for gate, text in reversed(list(zip(gates, ("first", "second", "third"), strict=True))):
        threading.Thread(target=gate.set_result, args=(text,)).start()
    run_until(executor, lambda: all(reply.done() for reply in replies))
    assert {reply.result().message for reply in replies} == {"first", "second", "third"}


def test_a_coroutine_goes_on_though_nothing_else_happens(running: tuple[Node, Executor]):
    node, executor = running
    resumer, gate, ended = Resumer(node), Future(executor=executor), Future()

    async def wait() -> None:
        ended.set_result(await gate)

    executor.create_task(wait)
    executor.spin_until_future_complete(gate, timeout_sec=0.5)  # it has begun
    threading.Timer(0.3, call_soon, (node, resumer.set_result, gate, "the answer")).start()
    executor.spin_until_future_complete(ended, timeout_sec=30.0)
    assert ended.done()
    assert ended.result() == "the answer"


def test_a_service_replies_even_when_its_coroutine_fails(running: tuple[Node, Executor]):
    node, executor = running

    async def fail(request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        raise ValueError("what went wrong")

    def explain(error: Exception, response: Trigger.Response) -> Trigger.Response:
        response.message = str(error)
        return response

    create_async_service(node, Trigger, "ask", fail, explain)
    client = node.create_client(Trigger, "ask")
    run_until(executor, client.service_is_ready)
    reply = client.call_async(Trigger.Request())
    run_until(executor, reply.done)
    assert reply.result().message == "what went wrong"


def test_spin_ends_when_told(running: tuple[Node, Executor]):
    node, executor = running
    stop = Future()
    threading.Timer(0.1, call_soon, (node, stop.set_result, None)).start()
    spin(executor, stop)
    assert stop.done()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_spin_and_the_clean_up_runs(number: signal.Signals):
    script = """
        import rclpy
        from rclpy.node import Node
        from cosmos_reason_node.ros.executor import make_executor, spin
        rclpy.init()
        executor, node = make_executor(), Node("tested")
        executor.add_node(node)
        node.create_timer(0.05, lambda: print("running", flush=True))
        spin(executor)
        executor.shutdown()
        node.destroy_node()
        print("cleaned up", flush=True)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True, env=os.environ
    )
    try:
        assert process.stdout.readline() == "running\n"
        process.send_signal(number)
        rest, _ = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait(10)
    assert rest.endswith("cleaned up\n")
    assert process.returncode == 0


def test_an_idle_node_is_idle(running: tuple[Node, Executor]):
    _, executor = running
    run_until(executor, lambda: True)
    stop = Future()
    before = time.process_time()
    for _ in range(4):
        executor.spin_until_future_complete(stop, timeout_sec=0.25)
    assert time.process_time() - before < 0.3  # of 1 s; a busy loop takes all of it
