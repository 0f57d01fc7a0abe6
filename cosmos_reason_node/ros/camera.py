# SPDX-License-Identifier: Apache-2.0
"""One camera: from its topic to the frames of a window.

::

    topic --(serialized bytes)--> _on_message --> tap (the recorder keeps the bytes themselves)
                                      |
                                  stamp only --> WindowBuffer.offer --> not wanted: done, nothing was parsed
                                      |
                                  SAMPLE: parse, convert, resize --> WindowBuffer.put --> on_frame

All of it runs in the executor's thread and nothing waits. At 30 images a second and 4 frames a second in the
window, 26 of 30 images cost no more than the middleware's delivery.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from rclpy.callback_groups import CallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.node import Node
from rclpy.qos import ReliabilityPolicy
from rclpy.subscription import Subscription
from sensor_msgs.msg import CompressedImage, Image

from ..errors import CosmosReasonError
from ..types import Frame
from ..window import Offer, WindowBuffer
from . import cdr, qos
from .convert import Converted, SizeRule, convert_compressed, convert_image

IMAGE, COMPRESSED_IMAGE = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
NO_STAMP = "header.stamp is zero or invalid: let the driver fill in the time of capture"
_WATCH_S = 0.5
_MOST_LOOKS = 4
# (topic, serialized message): see Recorder.record.
Tap = Callable[[str, bytes], None]


def message_type_of(*names: str) -> str:
    """Type carried by a camera topic, by image_transport's naming: as configured, or as remapped."""
    return COMPRESSED_IMAGE if any(name.endswith("/compressed") for name in names) else IMAGE


@dataclass(frozen=True)
class CameraReport:
    """State of a camera; all fields but ``problems`` are those of cosmos_reason_msgs/msg/CameraStatus.

    ``problems`` are sentences for diagnostics: publishers that cannot be heard, and what to do.
    """

    name: str
    topic: str
    type: str
    encoding: str
    width: int
    height: int
    rate: float
    qos: str
    received: int
    sampled: int
    skipped: int
    duplicates: int
    out_of_order: int
    invalid_stamps: int
    gaps: int
    held: int
    clock_jumps: int
    bad_images: int
    last_error: str
    problems: tuple[str, ...] = ()


class Camera:
    """Subscription of one camera that fills a window's buffer.

    Used from the executor's thread only. Twice a second it looks for publishers that came or went, and
    subscribes again when another reliability fits them better. The old subscription stays until the new one
    has brought a message, or for a few looks, because the new one hears nobody at first; what both bring
    counts once.

    Args:
        node: owner of the subscription.
        name: configured name; frames carry it.
        topic: relative or absolute topic, remapped by the node; the end of either name decides the message
            type.
        buffer: receives the frames.
        size_rule: (height, width) of the camera's image -> (height, width) of the frame; ValueError when the
            image cannot be used.
        reliability: Config.qos_reliability.
        depth: Config.qos_depth.
        on_frame: called after a frame was put into the buffer.
        on_bad_image: called with the camera's name and the reason when an image cannot be used.
        tap: gets every message's serialized bytes with the topic's resolved name; must not block.
        callback_group: of the subscription.
    """

    def __init__(
        self,
        node: Node,
        name: str,
        topic: str,
        buffer: WindowBuffer,
        size_rule: SizeRule,
        *,
        reliability: str = qos.AUTO,
        depth: int = 8,
        on_frame: Callable[[Frame], None] | None = None,
        on_bad_image: Callable[[str, str], None] | None = None,
        tap: Tap | None = None,
        callback_group: CallbackGroup | None = None,
    ) -> None:
        self.name = name
        self.topic = node.resolve_topic_name(topic)
        self.type = message_type_of(topic, self.topic)
        self.buffer = buffer
        self._node = node
        self._size_rule = size_rule
        self._reliability = reliability
        self._depth = depth
        self._on_frame = on_frame
        self._on_bad_image = on_bad_image
        self._tap = tap
        self._callback_group = callback_group
        self._encoding, self._width, self._height = "", 0, 0
        self._bad_images = 0
        self._last_error = ""
        self._rate = 0.0
        self._rate_from = (time.monotonic(), 0)
        self._retired: list[Subscription] = []
        self._subscriptions = 0  # made so far
        self._looks = 0  # since the last was made
        # Messages since the last look, or since the one before a change of subscriptions, which may bring one
        # twice: stamp, or hash without one -> number of the subscription that brought it.
        self._brought: dict[int, int] = {}
        self._fit = qos.fit(qos.offers_of(node, self.topic), self.topic, self.type, reliability)
        self._subscription = self._subscribe(self._fit.reliable)
        self._watch = node.create_timer(
            _WATCH_S, self._match_publishers, clock=Clock(clock_type=ClockType.STEADY_TIME)
        )

    def refresh(self) -> None:
        """Begin a new period of the rate; call it once per status period."""
        now, received = time.monotonic(), self.buffer.counters.received
        since, before = self._rate_from
        if now - since > 0.1:
            self._rate = (received - before) / (now - since)
            self._rate_from = (now, received)

    def report(self) -> CameraReport:
        """State now; ``rate`` is that of the last refresh."""
        counters = self.buffer.counters
        in_use = qos.describe(self._profile)
        return CameraReport(
            name=self.name,
            topic=self.topic,
            type=self.type,
            encoding=self._encoding,
            width=self._width,
            height=self._height,
            rate=self._rate,
            qos="; ".join((in_use, *self._fit.problems)),
            received=counters.received,
            sampled=counters.sampled,
            skipped=counters.skipped,
            duplicates=counters.duplicates,
            out_of_order=counters.out_of_order,
            invalid_stamps=counters.invalid_stamps,
            gaps=counters.gaps,
            held=counters.held,
            clock_jumps=counters.clock_jumps,
            bad_images=self._bad_images,
            last_error=self._last_error,
            problems=self._fit.problems,
        )

    @property
    def profile(self) -> qos.QoSProfile:
        """QoS in use."""
        return self._profile

    def close(self) -> None:
        """Destroy the subscription."""
        self._node.destroy_timer(self._watch)
        self._node.destroy_subscription(self._subscription)
        self._destroy_retired()

    def _destroy_retired(self) -> None:
        while self._retired:
            self._node.destroy_subscription(self._retired.pop())

    def _subscribe(self, reliable: bool) -> Subscription:
        self._profile = qos.image_qos(reliable, self._depth)
        self._subscriptions += 1
        return self._node.create_subscription(
            Image if self.type == IMAGE else CompressedImage,
            self.topic,
            partial(self._on_message, self._subscriptions),
            self._profile,
            raw=True,
            # No event callbacks: the events executor raises when an event of a subscription that has been
            # destroyed meanwhile is still queued. The graph tells the same, and who it is.
            event_callbacks=SubscriptionEventCallbacks(use_default_callbacks=False),
            callback_group=self._callback_group,
        )

    def _match_publishers(self) -> None:
        before, changing = self._fit, bool(self._retired)
        self._looks += 1
        if self._looks >= _MOST_LOOKS or self._subscriptions in self._brought.values():
            self._destroy_retired()
        offers = qos.offers_of(self._node, self.topic)
        self._fit = qos.fit(offers, self.topic, self.type, self._reliability)
        for problem in self._fit.problems:
            if problem not in before.problems:
                self._node.get_logger().warning(f"camera {self.name}: {problem}")
        # Compared with what is in use: nobody to ask, for a moment, is no reason to forget it.
        in_use = self._profile.reliability == ReliabilityPolicy.RELIABLE
        if offers and self._fit.reliable != in_use:
            self._retired.append(self._subscription)
            self._subscription, self._looks = self._subscribe(self._fit.reliable), 0
        elif not changing:
            self._brought.clear()

    def _on_message(self, subscription: int, serialized: bytes) -> None:
        bad = None
        try:
            stamp_ns = cdr.read_stamp(serialized)
        except CosmosReasonError as error:
            stamp_ns, bad = -1, error
        key = stamp_ns if stamp_ns > 0 else hash(serialized)
        if self._brought.setdefault(key, subscription) != subscription:
            return
        if self._tap is not None:
            self._tap(self.topic, serialized)
        if bad is not None:
            self.buffer.offer(-1)
            self._bad(bad)
            return
        offer = self.buffer.offer(stamp_ns)
        if offer is not Offer.SAMPLE:
            if offer is Offer.INVALID and self._on_bad_image is not None:
                self._on_bad_image(self.name, NO_STAMP)
            return
        try:
            frame_id, image = self._convert(serialized)
        except CosmosReasonError as error:
            self.buffer.lose()
            self._bad(error)
            return
        self._encoding, self._width, self._height = image.encoding, image.width, image.height
        frame = Frame(self.name, stamp_ns, self.buffer.grid.tick(stamp_ns), image.rgb, frame_id)
        self.buffer.put(frame)
        if self._on_frame is not None:
            self._on_frame(frame)

    def _convert(self, serialized: bytes) -> tuple[str, Converted]:
        if self.type == IMAGE:
            raw = cdr.read_image(serialized)
            return raw.frame_id, convert_image(raw, self._size_rule)
        compressed = cdr.read_compressed_image(serialized)
        return compressed.frame_id, convert_compressed(compressed, self._size_rule)

    def _bad(self, error: CosmosReasonError) -> None:
        self._bad_images += 1
        self._last_error = error.message
        if self._on_bad_image is not None:
            self._on_bad_image(self.name, error.message)
        self._node.get_logger().warning(
            f"camera {self.name}: bad image: {error.message}", throttle_duration_sec=5.0
        )
