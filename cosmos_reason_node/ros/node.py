# SPDX-License-Identifier: Apache-2.0
"""The lifecycle node ``cosmos_reason``: when things start and stop, and what is said about it.

    unconfigured
       | configure   check all settings and the checkpoint        ^ cleanup     stop the engine
       v                                                          |
    inactive  -----------------------------------------------------
       | activate    start the engine, load, warm up; subscribe   ^ deactivate  answer all NOT_ACTIVE,
       v                                                          |             unsubscribe; model stays
    active  -------------------------------------------------------

Everything but the engine's own process and the recorder's writer runs in one executor thread. Activation
holds that thread while the model loads (bounded by load_timeout_s); status and diagnostics go on meanwhile.
"""

from __future__ import annotations

import dataclasses
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import rclpy
from cosmos_reason_msgs.msg import Status
from rclpy.clock import Clock, ClockType
from rclpy.executors import Executor
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.signals import SignalHandlerOptions
from rclpy.task import Future
from rclpy.timer import Timer

from ..config import Config
from ..deployment import transport_environment
from ..engine.base import Event
from ..engine.host import EngineHost
from ..engine.spec import EngineState, EngineStatistics, EngineStatus
from ..errors import CosmosReasonError, ErrorCode
from ..monitors import Task
from .actions import ReasonAction
from .diagnostics import Diagnostics
from .executor import Resumer, caught, make_executor, spin
from .handover import EngineEvents
from .messages import camera_msg, engine_fields, work_fields
from .model_swap import ModelSwap, Served, stop_later
from .outlets import Outlets
from .parameters import Parameters
from .services import NOT_ACTIVE, Services
from .session import Session, Setup, check_topics
from .transport import tune_process

NAME = "cosmos_reason"
POLL_PERIOD_S = 0.05
GOODBYE_S = 0.5  # for replies and the last status to leave
_LOAD_SLICE_S = 0.2
_OFF = EngineStatus(EngineState.STOPPED)


class ReasonNode(LifecycleNode):
    """Wires parameters, cameras, pipeline, engine, services and topics together.

    Args:
        stopping: whether the process was asked to end.
    """

    def __init__(self, stopping: Callable[[], bool] = lambda: False) -> None:
        super().__init__(NAME)
        self.session: Session | None = None
        self.stopped: Future = Future()
        self.finalized = False
        self._stopping = stopping
        self._served: Served | None = None
        self._task: Task | None = None
        self._error = ""
        self._engine_error = ""  # said last
        self.parameters = Parameters(self, lambda: self._served is not None, self._settings_changed)
        self._outlets = Outlets(self)
        self._diagnostics = Diagnostics(self)
        self._swap = ModelSwap(self._other_model, self._adopt)
        resumer = Resumer(self)
        self._service_servers = Services(
            self, lambda: self.session, self._publish_status, self._swap, resumer
        )
        self._action = ReasonAction(self, lambda: self.session, resumer)
        # Steady time: deadlines and heartbeats go on while simulated time stands still.
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(POLL_PERIOD_S, caught(self, self._poll), clock=self._steady)
        self._report_period_s = min(60.0, max(0.1, self.parameters.get("status_period_s")))
        self._report_timer = self._reporting()
        self._answer_every_transition()

    # -- lifecycle --

    def autostart(self) -> bool:
        """Configure and activate. False: it failed; the reason is logged and in the diagnostics."""
        done = TransitionCallbackReturn.SUCCESS
        return self.trigger_configure() == done and self.trigger_activate() == done

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Check all settings and the checkpoint's files."""
        return self._transition("configure", self._configure)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the model and subscribe to the cameras."""
        return self._transition("activate", self._activate)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Answer everyone with NOT_ACTIVE and unsubscribe; the model stays loaded."""
        return self._transition("deactivate", self._deactivate)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop the engine process; settings may change again."""
        return self._transition("cleanup", self._cleanup)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """End everything, from any state."""
        self.finalized = True
        return self._transition("shutdown", self._cleanup)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Back to unconfigured, whatever is left standing; the reason stays in the diagnostics."""
        reason = self._error
        result = self._transition("error processing", self._cleanup)
        self._error = self._error or reason
        return result

    def destroy_node(self) -> None:
        """Free everything; the engine process is gone afterwards."""
        self._cleanup()
        self._action.destroy()
        super().destroy_node()

    def _configure(self) -> None:
        self._served = None
        setup = Setup.check(self.parameters.read())
        check_topics(self, setup.config)
        if setup.config.status_period_s != self._report_period_s:
            self._report_period_s = setup.config.status_period_s
            self.destroy_timer(self._report_timer)
            self._report_timer = self._reporting()
        self._served = self._serve(setup)

    def _reporting(self) -> Timer:
        return self.create_timer(self._report_period_s, caught(self, self._report), clock=self._steady)

    def _answer_every_transition(self) -> None:
        """Refuse transitions that the current state does not have.

        rclpy raises there: that would end the process, and the client would wait for ever.
        """
        change = self._service_change_state.callback

        def answered(request: Any, response: Any) -> Any:
            try:
                return change(request, response)
            except rclpy_implementation.RCLError:
                asked = request.transition.label or request.transition.id
                allowed = [f"{label} ({key})" for key, label, *_ in self._state_machine.available_transitions]
                self.get_logger().error(
                    f"transition {asked} refused: the node is {self._state_machine.current_state[1]}; "
                    f"possible now: {', '.join(allowed) or 'none'}"
                )
                response.success = False
                return response

        self._service_change_state.callback = answered

    def _serve(self, setup: Setup) -> Served:
        """An engine that is listened to while it is the one in service."""

        def in_service() -> bool:
            return self._served is not None and self._served.host is host

        def on_event(request_id: str, event: Event) -> None:
            if in_service():
                self._engine_event(request_id, event)

        def on_state(status: EngineStatus) -> None:
            if in_service():
                self._engine_state(status)

        events = EngineEvents(self, on_event, on_state)
        host = EngineHost(
            setup.engine_spec(),
            events.event,
            events.state,
            step_timeout_s=setup.config.step_timeout_s,
            load_timeout_s=setup.config.load_timeout_s,
        )
        return Served(setup, host, events)

    def _activate(self) -> None:
        assert self._served is not None
        served = self._served
        self.get_logger().info(f"loading {served.setup.config.model}")
        if not self.parameters.read().model:
            self.get_logger().warning(
                "the parameter `model` is empty: this is the bundled nano, which knows one simulated scene"
            )
        self._load(served.host, served.setup.config.load_timeout_s)
        served.events.drain()  # what happened while loading is no news to the session
        self.session = Session(self, served.setup, served.host, self._outlets, self._task)

    def _other_model(self, path: str) -> Served:
        """For ModelSwap: settings as they are, with another checkpoint."""
        if self.session is None:
            raise CosmosReasonError(ErrorCode.NOT_ACTIVE, NOT_ACTIVE)
        if not path.strip():
            raise CosmosReasonError(ErrorCode.INVALID_REQUEST, "path is empty: name a checkpoint directory")
        setup = Setup.check(dataclasses.replace(self.parameters.read(), model=path))
        self.get_logger().info(f"loading {path} beside {self.session.setup.config.model}")
        return self._serve(setup)

    def _adopt(self, served: Served) -> None:
        """For ModelSwap: open queries end, cameras start new windows, recordings go on."""
        old, before = self._served, self.session
        if old is None or before is None:
            raise CosmosReasonError(ErrorCode.NOT_ACTIVE, NOT_ACTIVE)
        # Live settings may have changed while it was loading.
        served = dataclasses.replace(served, setup=served.setup.with_live(old.setup.config))
        task, self.session = before.pipeline.task, None
        before.hand_over()
        self._served = served
        served.events.drain()  # what happened while loading is no news
        try:
            self.session = Session(self, served.setup, served.host, self._outlets, task, before)
        except BaseException:
            self._served = old
            self.session = Session(self, old.setup, old.host, self._outlets, task, before)
            raise
        stop_later(old.host)
        self._publish_status()

    def _load(self, host: EngineHost, timeout_s: float) -> None:
        """Start the engine and wait until it is ready; CosmosReasonError otherwise."""
        end, next_report = time.monotonic() + timeout_s, 0.0
        host.start()
        while (status := host.wait_ready(_LOAD_SLICE_S)).state is not EngineState.READY:
            if status.state is EngineState.FAILED:
                raise CosmosReasonError(status.error_code, status.error_msg)
            if status.state is EngineState.STOPPED or self._stopping() or not self.context.ok():
                host.stop()
                raise CosmosReasonError(ErrorCode.CANCELED, "stopped while the model was loading")
            if time.monotonic() > end:
                host.stop()
                raise CosmosReasonError(
                    ErrorCode.ENGINE_NOT_READY,
                    f"the model was not ready within {timeout_s:g} s "
                    f"({status.error_msg or 'still loading'}): raise load_timeout_s or take a smaller model",
                )
            if time.monotonic() >= next_report:
                next_report = time.monotonic() + self._report_period_s
                self._report()
        info = status.info
        if info is not None:
            self.get_logger().info(f"{info.model_id} is ready on {info.device} ({info.dtype})")

    def _deactivate(self) -> None:
        self._swap.cancel(ErrorCode.NOT_ACTIVE, "the node was deactivated while the model was loading")
        if self.session is not None:
            session, self.session = self.session, None
            self._task = session.pipeline.task
            session.close()

    def _cleanup(self) -> None:
        self._deactivate()
        self._task = None
        if self._served is not None:
            served, self._served = self._served, None
            served.host.stop()

    def _transition(self, name: str, action: Callable[[], None]) -> TransitionCallbackReturn:
        """Run a transition; say what went wrong (rclpy swallows exceptions here)."""
        self._error = ""
        result = TransitionCallbackReturn.SUCCESS
        try:
            action()
        except CosmosReasonError as error:
            self._error = f"{name} failed: {error.code.name}: {error.message}"
            result = TransitionCallbackReturn.FAILURE
        except Exception as error:
            self._error = f"{name} failed: {type(error).__name__}: {error}"
            self.get_logger().error(traceback.format_exc())
            result = TransitionCallbackReturn.ERROR
        if self._error:
            self.get_logger().error(self._error)
        else:
            self.get_logger().info(f"{name}: done")
        if self.context.ok():
            self._report()
        return result

    # -- what happens --

    def _engine_event(self, request_id: str, event: Event) -> None:
        if self.session is not None:
            self.session.pipeline.engine_event(request_id, event)

    def _engine_state(self, status: EngineStatus) -> None:
        if self.session is None:
            return
        # While it is started again, the state comes once more, with the new process and the old error.
        if status.error_code is ErrorCode.NONE or status.error_msg == self._engine_error:
            self.get_logger().info(f"engine: {status.state.value} (process {status.pid})")
        else:
            self.get_logger().error(f"engine: {status.state.value}: {status.error_msg}")
        self._engine_error = status.error_msg
        self.session.pipeline.engine_state(status)
        self._publish_status()

    def _settings_changed(self, config: Config) -> None:
        if self._served is None:
            return
        self._served = dataclasses.replace(self._served, setup=self._served.setup.with_live(config))
        if self.session is not None:
            self.session.update(self._served.setup.config)

    def _poll(self) -> None:
        if self._stopping() and not self.stopped.done():
            self.stopped.set_result(None)
        if self._served is not None:
            self._served.events.drain()
        self._swap.poll()
        if self.session is not None:
            self.session.pipeline.poll()

    # -- what is said --

    def _report(self) -> None:
        """Status and diagnostics."""
        session = self.session
        if session is not None:
            session.refresh()
        reports = {} if session is None else {n: camera.report() for n, camera in session.cameras.items()}
        self._diagnostics.publish(self._engine_status(), self._engine_work(), session, reports, self._error)
        self._publish_status()

    def _publish_status(self) -> None:
        session = self.session
        msg = Status(
            stamp=self.get_clock().now().to_msg(),
            **engine_fields(self._engine_status()),
            **work_fields(self._engine_work()),
        )
        if session is not None:
            pipeline, recording = session.pipeline, session.recorder.report()
            msg.task = pipeline.task.text
            msg.affordance_action = pipeline.task.affordance_action
            msg.action_options = list(pipeline.task.action_options)
            msg.cameras = [camera_msg(camera.report()) for camera in session.cameras.values()]
            msg.queries_waiting = pipeline.waiting
            msg.queries_running = pipeline.running
            msg.decisions = pipeline.decisions
            msg.superseded = pipeline.superseded
            msg.recording = recording.recording
            msg.capturing = recording.capturing
            msg.recording_bytes = recording.bytes_written
        self._outlets.publish_status(msg)

    def _engine_work(self) -> EngineStatistics:
        return EngineStatistics() if self._served is None else self._served.host.statistics

    def _engine_status(self) -> EngineStatus:
        return _OFF if self._served is None else self._served.host.status


class StopSignals:
    """SIGINT and SIGTERM ask for an orderly end; one more, a second or more later, ends the process at once.

    Wrappers (timeout, container runtimes) deliver one request several times within a moment.
    """

    def __init__(self) -> None:
        self._first: float | None = None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask)

    def __call__(self) -> bool:
        """Whether the process was asked to end."""
        return self._first is not None

    def _ask(self, number: int, frame: object) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = now
        elif now - self._first > 1.0:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)


def say_goodbye(node: ReasonNode, executor: Executor) -> None:
    """Answer everyone, let the answers leave, and finish the lifecycle."""
    if node.session is not None:
        node.trigger_deactivate()
    end = time.monotonic() + GOODBYE_S
    while time.monotonic() < end:
        executor.spin_once(timeout_sec=0.05)
    if not node.finalized:
        node.trigger_shutdown()


def main(args: Sequence[str] | None = None) -> int:
    """Run the node until SIGINT or SIGTERM.

    Returns:
        Exit code: 0, or 1 when it was to start by itself and could not.
    """
    tune_process(transport_environment())
    # Our own signal handlers: the context lives on while goals are answered and the engine is stopped.
    rclpy.init(args=list(args) if args is not None else None, signal_handler_options=SignalHandlerOptions.NO)
    stopping = StopSignals()
    executor = make_executor()
    node = ReasonNode(stopping)
    executor.add_node(node)
    code = 0
    try:
        if not node.parameters.get("autostart") or node.autostart():
            spin(executor, node.stopped)
        elif not stopping():
            code = 1
        say_goodbye(node, executor)
    finally:
        node.destroy_node()
        executor.shutdown(timeout_sec=1.0)
        rclpy.try_shutdown()
    return code


if __name__ == "__main__":
    sys.exit(main())
