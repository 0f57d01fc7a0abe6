# SPDX-License-Identifier: Apache-2.0
"""The executor that runs the node, and what its callbacks have to know about it.

The events executor (rclpy.experimental, Jazzy and newer) takes a message for a fraction of what the wait-set
executors cost. What was tried with it in rclpy 7.1 (tests/ros/test_executor.py runs it again):

- works: timers, subscriptions, QoS events, services, clients, actions (feedback, cancel), coroutines that
  await futures, ``executor.create_task`` and ``Future.set_result`` from any thread (0.3 ms until it runs);
- a coroutine that awaits a future is looked at again only after the next timer, message or service: let a
  ``Resumer`` set the result;
- ``spin()`` without a bound burns a core; with one (``spin``, below) the idle node takes 0.2 % of a core;
- guard conditions are refused: wake the node with ``call_soon`` instead;
- a service callback that is a coroutine function is not awaited: use ``create_async_service``;
- an exception that leaves a task kills the process with a segmentation fault: ``call_soon`` and
  ``create_async_service`` catch it, ``caught`` does for others;
"""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable
from typing import Any

from rclpy.callback_groups import CallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.context import Context
from rclpy.executors import Executor, ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.service import Service
from rclpy.task import Future

_WAKE_S = 0.3  # longest time until a shutdown is seen


def make_executor(context: Context | None = None) -> Executor:
    """The events executor where rclpy has one, else the single-threaded one. Call after rclpy.init()."""
    try:
        from rclpy.experimental import EventsExecutor
    except ImportError:
        return SingleThreadedExecutor(context=context)
    return EventsExecutor(context=context)


def spin(executor: Executor, stop: Future | None = None) -> None:
    """Run callbacks until the context is shut down (SIGINT, SIGTERM, rclpy.shutdown()) or ``stop`` is done.

    Returns in each of these cases, so that the caller's clean-up runs; an exception of a callback propagates.
    """
    # Whatever was imported and built so far stays; the garbage collector need not walk over it with every few
    # hundred messages (a tenth of the cost of a camera frame).
    gc.collect()
    gc.freeze()
    stop = stop or Future()
    try:
        while executor.context.ok() and not stop.done():
            executor.spin_until_future_complete(stop, timeout_sec=_WAKE_S)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass


def caught(node: Node, callback: Callable[..., Any]) -> Callable[..., None]:
    """``callback`` with its exceptions logged instead of raised, where one would end the process."""

    def safely(*args: Any) -> None:
        try:
            callback(*args)
        except Exception:
            node.get_logger().error(f"exception in a callback:\n{traceback.format_exc()}")

    return safely


def call_soon(node: Node, callback: Callable[..., Any], *args: Any) -> None:
    """Run ``callback(*args)`` in the executor's thread, from any thread. Exceptions are logged."""
    executor = node.executor
    if executor is not None:
        executor.create_task(caught(node, callback), *args)


class Resumer:
    """Sets results for which coroutines wait, and has the executor go on with those at once.

    Made and used in the executor's thread.

    Args:
        node: spun by that executor.
    """

    def __init__(self, node: Node) -> None:
        # A timer that fires is one of the events after which the events executor looks at its tasks. It fires
        # once for each time it is reset.
        self._timer = node.create_timer(
            1e-6, lambda: self._timer.cancel(), clock=Clock(clock_type=ClockType.STEADY_TIME)
        )
        self._timer.cancel()

    def set_result(self, future: Future, result: Any) -> None:
        """As ``future.set_result(result)``."""
        future.set_result(result)
        self._timer.reset()


def create_async_service(
    node: Node,
    srv_type: Any,
    name: str,
    callback: Callable[[Any, Any], Any],
    on_error: Callable[[Exception, Any], Any],
    *,
    callback_group: CallbackGroup | None = None,
) -> Service:
    """A service whose callback is a coroutine function, on either executor.

    Args:
        node: owner of the service, spun by an executor.
        srv_type: service type.
        name: service name.
        callback: ``async (request, response) -> response``.
        on_error: ``(exception, response) -> response`` for an exception of ``callback``: clients wait without
            a bound for a reply, so there always is one.
        callback_group: of the service.
    """

    async def answered(request: Any, response: Any) -> Any:
        try:
            return await callback(request, response)
        except Exception as error:
            node.get_logger().error(f"exception in service {name}:\n{traceback.format_exc()}")
            return on_error(error, response)

    def begin(request: Any, response: Any) -> Any:
        # A plain function, so that both executors pass what it returns, a coroutine, on to send_response.
        return answered(request, response)

    service = node.create_service(srv_type, name, begin, callback_group=callback_group)
    send = service.send_response

    def send_when_done(answer: Any, header: Any) -> None:
        async def finish() -> None:
            response = await answer
            caught(node, send)(response, header)

        executor = node.executor
        if executor is None:  # the node is being taken down
            answer.close()
        else:
            executor.create_task(finish)

    service.send_response = send_when_done  # type: ignore[method-assign, assignment]
    return service
