# SPDX-License-Identifier: Apache-2.0
"""A test's side of the ROS graph: clients, listeners and cameras, spun by a thread of their own."""

from __future__ import annotations

import collections
import copy
import threading
import time
from array import array
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import rclpy
from builtin_interfaces.msg import Time
from cosmos_reason_msgs.action import Reason
from cosmos_reason_msgs.msg import Decision, Status
from cosmos_reason_msgs.srv import Query
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.action import ActionClient
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.task import Future
from sensor_msgs.msg import CompressedImage, Image

from cosmos_reason_node import deployment
from cosmos_reason_node.ros.transport import tune_process
from cosmos_reason_node.types import QueryKind
from tests.ros.node_process import until

# As camera drivers should: the middleware's default transport drops large best-effort images.
tune_process(deployment.transport_environment())

LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
READY = Status.ENGINE_READY


class Client:
    """One node that hears everything and asks.

    Args:
        namespace: of the node it listens to.
    """

    def __init__(self, namespace: str = "") -> None:
        self._context = rclpy.Context()
        rclpy.init(context=self._context)
        self.node = rclpy.create_node("test_client", context=self._context, namespace=namespace)
        self.decisions: list[Decision] = []
        self.statuses: list[Status] = []
        self.diagnostics: dict[str, DiagnosticStatus] = collections.defaultdict(
            lambda: DiagnosticStatus(level=DiagnosticStatus.STALE)
        )
        self.node.create_subscription(Decision, "decisions", self.decisions.append, 100)
        self.node.create_subscription(Status, "status", self.statuses.append, LATCHED)
        self.node.create_subscription(DiagnosticArray, "/diagnostics", self._diagnosed, 10)
        self._reason = ActionClient(self.node, Reason, "reason")
        # Beside the action client, which forgets the feedback that lies in the queue when the result comes.
        self.feedback: dict[bytes, list[Reason.Feedback]] = collections.defaultdict(list)
        self.node.create_subscription(
            Reason.Impl.FeedbackMessage,
            "reason/_action/feedback",
            lambda message: self.feedback[bytes(message.goal_id.uuid)].append(message.feedback),
            1000,
        )
        self._clients: dict[str, Any] = {}
        self._cameras: list[CameraSource] = []
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        self._thread = threading.Thread(target=self._spin)
        self._thread.start()

    def close(self) -> None:
        """Stop the cameras and leave the graph."""
        for camera in self._cameras:
            camera.stop()
        self._context.try_shutdown()
        self._thread.join(10.0)
        self.node.destroy_node()

    @property
    def status(self) -> Status:
        """The newest status."""
        return self.statuses[-1] if self.statuses else Status()

    def ready(self, timeout_s: float = 300.0) -> Status:
        """Wait until the node's engine is ready and its cameras are subscribed."""
        until(lambda: self.status.engine_state == READY and self.status.cameras, "ready", timeout_s)
        return self.status

    def camera(self, topic: str = "image_raw", **kwargs: Any) -> CameraSource:
        """A camera that publishes at once and until the end."""
        camera = CameraSource(self, topic, **kwargs)
        self._cameras.append(camera)
        return camera

    def call(self, srv_type: type, name: str, timeout_s: float = 60.0, **fields: Any) -> Any:
        """Response of a service."""
        return self.result(self.call_async(srv_type, name, **fields), timeout_s, name)

    def call_async(self, srv_type: type, name: str, **fields: Any) -> Future:
        """Future of a service's response."""
        client = self._clients.get(name)
        if client is None:
            client = self._clients[name] = self.node.create_client(srv_type, name)
        assert client.wait_for_service(30.0), f"there is no service {name}"
        return client.call_async(srv_type.Request(**fields))

    def ask(
        self, question: str = "What is on the table?", timeout_s: float = 60.0, **fields: Any
    ) -> Decision:
        """Decision of the query service."""
        fields = {"kind": int(QueryKind.QUESTION), "question": question, "think_tokens": 0, **fields}
        return self.call(Query, "query", timeout_s, **fields).decision

    def goal(self, **fields: Any) -> Goal:
        """Send a goal to the action and wait until it is accepted."""
        assert self._reason.wait_for_server(30.0), "there is no action reason"
        fields = {"kind": int(QueryKind.QUESTION), "question": "What next?", **fields}
        return Goal(self, self._reason, Reason.Goal(**fields))

    def result(self, future: Future, timeout_s: float, what: str) -> Any:
        """Result of a future that this client's executor resolves."""
        until(future.done, what, timeout_s)
        return future.result()

    def from_executor(self, send: Callable[[], Future]) -> Future:
        """``send()`` called by the thread that takes in the responses, and what it returned.

        An rclpy action client notes a request after it left: where another thread spins, a quick response is
        "unexpected" and its future never done (ros2/rclpy issue 1123).
        """
        return self.result(self._executor.create_task(send), 30.0, "turn of the executor")

    def _diagnosed(self, array: DiagnosticArray) -> None:
        self.diagnostics.update({status.name: status for status in array.status})

    def _spin(self) -> None:
        try:
            self._executor.spin()
        except ExternalShutdownException:
            pass
        finally:
            self._executor.shutdown()


class Goal:
    """A goal of the action: its feedback so far, its result."""

    def __init__(self, client: Client, action: ActionClient, goal: Reason.Goal) -> None:
        self._client = client
        sent = client.from_executor(lambda: action.send_goal_async(goal))
        self._handle = client.result(sent, 30.0, "goal response")
        assert self._handle.accepted
        self._result = client.from_executor(self._handle.get_result_async)

    @property
    def feedback(self) -> list[Reason.Feedback]:
        """So far."""
        return self._client.feedback[bytes(self._handle.goal_id.uuid)]

    @property
    def done(self) -> bool:
        """Whether the result is there."""
        return self._result.done()

    def cancel(self) -> Any:
        """Ask to cancel; the response."""
        asked = self._client.from_executor(self._handle.cancel_goal_async)
        return self._client.result(asked, 30.0, "cancel response")

    def result(self, timeout_s: float = 60.0) -> tuple[int, Decision]:
        """(GoalStatus, decision)."""
        response = self._client.result(self._result, timeout_s, "goal result")
        return response.status, response.result.decision


class CameraSource:
    """Publishes images from a thread of its own.

    Args:
        client: owner of the publisher.
        topic: where it publishes.
        rate: images per second.
        height, width: pixels.
        reliable: offered reliability.
        depth: images that the middleware keeps.
        jpeg: publish sensor_msgs/CompressedImage instead (end ``topic`` in /compressed).
        now_ns: clock of the stamps.

    Attributes:
        spoil: applied to every message before it is published; may be changed while it runs.
        paused: publish nothing for now.
        stamps_ns: stamps of the images published, before they are spoiled.
    """

    def __init__(
        self,
        client: Client,
        topic: str,
        rate: float = 20.0,
        height: int = 120,
        width: int = 160,
        reliable: bool = True,
        depth: int = 8,
        jpeg: bool = False,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        reliability = ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT
        qos = QoSProfile(depth=depth, reliability=reliability)
        self.publisher = client.node.create_publisher(CompressedImage if jpeg else Image, topic, qos)
        self._now_ns = now_ns
        self.spoil: Any = None
        self.paused = False
        self.stamps_ns: list[int] = []
        self._period_s = 1.0 / rate
        noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
        # An array: bytes would be copied value by value at every assignment.
        self._image: Image | CompressedImage
        if jpeg:
            data = array("B", cv2.imencode(".jpg", noise)[1].tobytes())
            self._image = CompressedImage(format="jpeg", data=data)
        else:
            data = array("B", noise.tobytes())
            self._image = Image(height=height, width=width, encoding="rgb8", step=3 * width, data=data)
        self._image.header.frame_id = "camera_optical"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        """Publish no more."""
        self._stop.set()
        self._thread.join(10.0)

    def message(self) -> Image | CompressedImage:
        """The next image, stamped now."""
        self._stamp_ns = now_ns = self._now_ns()
        self._image.header.stamp = Time(sec=now_ns // 10**9, nanosec=now_ns % 10**9)
        if self.spoil is None:
            return self._image
        spoiled = copy.copy(self._image)
        spoiled.header = copy.deepcopy(self._image.header)
        self.spoil(spoiled)
        return spoiled

    def _run(self) -> None:
        due = time.monotonic()
        while not self._stop.wait(max(0.0, due - time.monotonic())):
            due += self._period_s
            if not self.paused:
                self.publisher.publish(self.message())
                self.stamps_ns.append(self._stamp_ns)
