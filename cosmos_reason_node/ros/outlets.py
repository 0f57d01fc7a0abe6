# SPDX-License-Identifier: Apache-2.0
"""The topics that the node publishes: decisions, status, debug image. What is published is also recorded."""

from __future__ import annotations

from cosmos_reason_msgs.msg import Decision as DecisionMsg
from cosmos_reason_msgs.msg import Status
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.serialization import serialize_message
from sensor_msgs.msg import CompressedImage

from ..debug_image import DebugImage
from ..types import Decision
from .messages import time_msg
from .recorder import Recorder

DECISIONS_QOS = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)
LATCHED_QOS = QoSProfile(
    depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL
)


class Outlets:
    """Publishers of ``node``; they exist in every lifecycle state."""

    def __init__(self, node: Node) -> None:
        self._decisions = node.create_publisher(DecisionMsg, "decisions", DECISIONS_QOS)
        self._status = node.create_publisher(Status, "status", LATCHED_QOS)
        self._debug = node.create_publisher(CompressedImage, "debug_image/compressed", 1)
        self._debug_image = DebugImage()
        self._recorder: Recorder | None = None

    def record_with(self, recorder: Recorder | None) -> None:
        """Record what is published from now on; None: no more."""
        self._recorder = recorder
        if recorder is not None:
            recorder.add_topic(self._decisions.topic_name, "cosmos_reason_msgs/msg/Decision", [DECISIONS_QOS])
            recorder.add_topic(self._status.topic_name, "cosmos_reason_msgs/msg/Status", [LATCHED_QOS])

    def publish_decision(self, msg: DecisionMsg) -> None:
        """Publish on ``decisions``."""
        self._publish(self._decisions, serialize_message(msg))

    def publish_status(self, msg: Status) -> None:
        """Publish on ``status``."""
        self._publish(self._status, serialize_message(msg))

    def publish_debug_image(self, decision: Decision) -> None:
        """Publish the newest window with the latest verdicts, if anybody looks."""
        self._debug_image.add(decision)
        if not self._debug.get_subscription_count():
            return
        jpeg = self._debug_image.jpeg()
        if jpeg is not None:
            msg = CompressedImage(format="jpeg", data=jpeg)
            msg.header.stamp = time_msg(decision.stamp_ns)
            msg.header.frame_id = decision.windows[0].frames[-1].frame_id if decision.windows else ""
            self._debug.publish(msg)

    def _publish(self, publisher: Publisher, serialized: bytes) -> None:
        publisher.publish(serialized)
        if self._recorder is not None:
            self._recorder.record(publisher.topic_name, serialized)
