# SPDX-License-Identifier: Apache-2.0
"""The executor that runs the node."""

from __future__ import annotations

import rclpy
from rclpy.executors import Executor, SingleThreadedExecutor
from rclpy.task import Future

_WAKE_S = 0.3  # longest time until a shutdown is seen


def make_executor() -> Executor:
    """The events executor where rclpy has one (Jazzy and newer), else the single-threaded one."""
    try:
        from rclpy.experimental import EventsExecutor
    except ImportError:
        return SingleThreadedExecutor()
    return EventsExecutor()


def spin(executor: Executor, stop: Future | None = None) -> None:
    """Run callbacks until the context is shut down or ``stop`` is done."""
    stop = stop or Future()
    while rclpy.ok() and not stop.done():
        executor.spin_until_future_complete(stop, timeout_sec=_WAKE_S)
