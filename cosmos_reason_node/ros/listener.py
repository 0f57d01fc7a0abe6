# SPDX-License-Identifier: Apache-2.0
"""A client of the reason node: decisions, status and images come in, tasks and questions go out.

For programs that are not ROS nodes themselves (the demo, tests). Everything runs in the caller's thread, and
nothing waits without a bound. Decisions are plain values as ``messages.decision_json`` makes them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import numpy as np
import rclpy
from builtin_interfaces.msg import Duration as DurationMsg
from cosmos_reason_msgs.action import Reason
from cosmos_reason_msgs.msg import Decision, Status
from cosmos_reason_msgs.srv import Query, SetTask
from rclpy.action import ActionClient
from rclpy.client import Client
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from rclpy.task import Future
from sensor_msgs.msg import CompressedImage, Image

from ..errors import CosmosReasonError
from ..types import QueryKind
from .cdr import read_compressed_image, read_image, read_stamp
from .convert import SizeRule, convert_compressed, convert_image
from .messages import decision_json
from .qos import image_qos

# Index: Status.engine_state.
ENGINE_STATES = ("stopped", "loading", "ready", "restarting", "failed")

# Time to discover a service or an action server, seconds.
_DISCOVERY_S = 5.0
# What the node may take longer than a deadline that it was given, seconds.
_DEADLINE_MARGIN_S = 5.0

OnDecision = Callable[[dict[str, Any]], None]
OnImage = Callable[[int, np.ndarray], None]
OnFeedback = Callable[[str, bool], None]


class NodeUnavailable(Exception):
    """The node did not answer in time; the message says to what."""


class Listener:
    """Connects on construction; use as a context manager, or call ``close``.

    Args:
        on_decision: called with every decision on the ``decisions`` topic.
        image_topic: camera topic to watch, "" for none; ends in /compressed for CompressedImage.
        on_image: called with the capture stamp (ns) and pixels, (h, w, 3) uint8 RGB, of every image that can
            be decoded.
        size_rule: size of the images handed on; see convert.SizeRule.
        namespace: of the reason node.

    Attributes:
        status: fields of the newest Status message, ``cameras`` as a list of dicts; None before the first.
    """

    def __init__(
        self,
        on_decision: OnDecision,
        *,
        image_topic: str = "",
        on_image: OnImage | None = None,
        size_rule: SizeRule = lambda height, width: (height, width),
        namespace: str = "/",
    ) -> None:
        self.status: dict[str, Any] | None = None
        self._on_decision = on_decision
        self._on_image = on_image
        self._size_rule = size_rule
        self._compressed = image_topic.endswith("/compressed")
        self._context = Context()
        # Signals stay the program's own: it has more to clean up than this node.
        rclpy.init(context=self._context, signal_handler_options=SignalHandlerOptions.NO)
        self._node = rclpy.create_node("listener", context=self._context, namespace=namespace)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        latched = QoSProfile(
            depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL
        )
        self._node.create_subscription(Decision, "decisions", self._decision, 100)
        self._node.create_subscription(Status, "status", self._status, latched)
        if image_topic:
            self._node.create_subscription(
                CompressedImage if self._compressed else Image,
                image_topic,
                self._image,
                image_qos(reliable=True, depth=4),
                raw=True,
            )
        self._set_task = self._node.create_client(SetTask, "set_task")
        self._query = self._node.create_client(Query, "query")
        self._reason = ActionClient(self._node, Reason, "reason")

    def __enter__(self) -> Listener:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def engine_state(self) -> str:
        """One of ENGINE_STATES; "" while no status has arrived."""
        return ENGINE_STATES[self.status["engine_state"]] if self.status else ""

    def spin(self, seconds: float) -> None:
        """Take in what arrives during ``seconds``."""
        self._wait(Future(), seconds)

    def set_task(
        self, task: str, action: str = "", options: Sequence[str] = (), timeout_s: float = 10.0
    ) -> None:
        """Tell the monitors what the robot is doing.

        Raises:
            CosmosReasonError: the node refuses.
            NodeUnavailable: no answer in time.
        """
        request = SetTask.Request(task=task, affordance_action=action, action_options=list(options))
        response = self._call(self._set_task, request, timeout_s)
        if response.error_code:
            raise CosmosReasonError(response.error_code, response.error_msg)

    def ask(self, deadline_s: float, **fields: Any) -> dict[str, Any]:
        """Ask through the ``query`` service.

        Args:
            deadline_s: given to the node, seconds.
            fields: of the request, e.g. ``kind=QueryKind.QUESTION, question="..."``.

        Returns:
            The decision, which may hold an error.

        Raises:
            NodeUnavailable: no answer in time.
        """
        request = Query.Request(**_request_fields(fields, deadline_s))
        response = self._call(self._query, request, deadline_s + _DEADLINE_MARGIN_S)
        return decision_json(response.decision)

    def reason(self, on_feedback: OnFeedback, deadline_s: float, **fields: Any) -> dict[str, Any]:
        """Ask through the ``reason`` action; as ``ask``, and ``on_feedback`` gets (new text, thinking)."""
        if not self._reason.wait_for_server(timeout_sec=_DISCOVERY_S):
            raise NodeUnavailable("there is no action server `reason`")
        end_s = time.monotonic() + deadline_s + _DEADLINE_MARGIN_S
        accepted = self._reason.send_goal_async(
            Reason.Goal(**_request_fields(fields, deadline_s)),
            feedback_callback=lambda message: on_feedback(message.feedback.text, message.feedback.thinking),
        )
        self._wait(accepted, end_s - time.monotonic())
        handle = accepted.result() if accepted.done() else None
        if handle is None or not handle.accepted:
            raise NodeUnavailable("the action server `reason` did not accept the goal")
        finished = handle.get_result_async()
        self._wait(finished, end_s - time.monotonic())
        if not finished.done():
            handle.cancel_goal_async()
            self.spin(1.0)  # so that the request leaves
            raise NodeUnavailable(f"the action `reason` did not end within {deadline_s:g} s")
        return decision_json(finished.result().result.decision)

    def close(self) -> None:
        """Leave the graph."""
        self._executor.shutdown()
        self._node.destroy_node()
        self._context.try_shutdown()

    def _call(self, client: Client, request: Any, timeout_s: float) -> Any:
        if not client.wait_for_service(timeout_sec=_DISCOVERY_S):
            raise NodeUnavailable(f"there is no service `{client.srv_name}`")
        future = client.call_async(request)
        self._wait(future, timeout_s)
        if not future.done():
            client.remove_pending_request(future)
            raise NodeUnavailable(f"the service `{client.srv_name}` did not answer within {timeout_s:g} s")
        return future.result()

    def _wait(self, future: Future, timeout_s: float) -> None:
        self._executor.spin_until_future_complete(future, timeout_sec=max(0.0, timeout_s))

    def _decision(self, message: Decision) -> None:
        self._on_decision(decision_json(message))

    def _status(self, message: Status) -> None:
        status = {name: getattr(message, name) for name in message.get_fields_and_field_types()}
        status["cameras"] = [
            {name: getattr(camera, name) for name in camera.get_fields_and_field_types()}
            for camera in message.cameras
        ]
        self.status = status

    def _image(self, serialized: bytes) -> None:
        if self._on_image is None:
            return
        try:
            stamp_ns = read_stamp(serialized)
            if self._compressed:
                image = convert_compressed(read_compressed_image(serialized), self._size_rule)
            else:
                image = convert_image(read_image(serialized), self._size_rule)
        except CosmosReasonError:
            return  # the node counts and reports bad images
        self._on_image(stamp_ns, image.rgb)


def _request_fields(fields: dict[str, Any], deadline_s: float) -> dict[str, Any]:
    seconds = int(deadline_s)
    values = {
        "kind": QueryKind.QUESTION,
        "think_tokens": -1,
        **fields,
        "deadline": DurationMsg(sec=seconds, nanosec=round((deadline_s - seconds) * 1e9)),
    }
    values["kind"] = int(values["kind"])
    if "options" in values:
        values["options"] = list(values["options"])
    return values
