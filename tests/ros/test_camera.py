# SPDX-License-Identifier: Apache-2.0
"""Cameras with real publishers, over the middleware."""

import itertools
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import rclpy
import simplejpeg
from rclpy.context import Context
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.serialization import serialize_message
from sensor_msgs.msg import CompressedImage, Image

from cosmos_reason_node.ros import cdr, qos
from cosmos_reason_node.ros.camera import Camera
from cosmos_reason_node.ros.executor import make_executor
from cosmos_reason_node.window import TimeGrid, WindowBuffer

pytestmark = pytest.mark.ros

SECOND = 1_000_000_000
PERIOD = SECOND // 4
START = 1_700_000_000 * SECOND
TOPIC = "image_raw"
BEST_EFFORT = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)
RELIABLE = QoSProfile(depth=5, reliability=ReliabilityPolicy.RELIABLE)


class Bench:
    """A node with cameras and a node with publishers, run by the executor of the real node."""

    def __init__(self, context: Context, drivers_context: Context) -> None:
        self.executor = make_executor(context)
        self.node = Node("reason", context=context)
        self.driver = Node("driver", context=drivers_context, namespace="/robot")
        self.executor.add_node(self.node)
        self.buffer = WindowBuffer("front", TimeGrid(PERIOD), 8)
        self.tapped: list[tuple[str, bytes]] = []
        self.bad: list[tuple[str, str]] = []

    def camera(self, topic: str = "/robot/image_raw", **options: object) -> Camera:
        return Camera(
            self.node,
            "front",
            topic,
            self.buffer,
            lambda height, width: (28, 56),
            on_bad_image=lambda name, reason: self.bad.append((name, reason)),
            tap=lambda topic, serialized: self.tapped.append((topic, serialized)),
            **options,
        )

    def until(self, met: Callable[[], bool], what: str, timeout_s: float = 30.0) -> None:
        end = time.monotonic() + timeout_s
        while not met():
            assert time.monotonic() < end, f"waited {timeout_s} s for {what}"
            self.executor.spin_once(timeout_sec=0.05)

    def publisher(self, message_type: type, topic: str, profile: QoSProfile):
        publisher = self.driver.create_publisher(message_type, topic, profile)
        self.until(lambda: publisher.get_subscription_count() >= 1, "a subscription")
        return publisher


@pytest.fixture(scope="module")
def contexts() -> Iterator[tuple[Context, Context]]:
    """Two participants, as if the driver were another process."""
    contexts = Context(), Context()
    for context in contexts:
        rclpy.init(context=context)
    yield contexts
    for context in contexts:
        context.try_shutdown()


@pytest.fixture
def bench(contexts: tuple[Context, Context]) -> Iterator[Bench]:
    bench = Bench(*contexts)
    yield bench
    bench.executor.shutdown()
    bench.node.destroy_node()
    bench.driver.destroy_node()


def image(stamp_ns: int, color: tuple[int, int, int] = (10, 20, 30)) -> Image:
    message = Image(height=60, width=120, encoding="bgr8", step=360)
    message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp_ns, SECOND)
    message.header.frame_id = "front_optical_frame"
    message.data = np.full((60, 120, 3), color[::-1], np.uint8).tobytes()
    return message


def test_serialized_images_are_read_as_rclpy_writes_them():
    message = image(START + 5)
    serialized = bytes(serialize_message(message))
    read = cdr.read_image(serialized)
    assert cdr.read_stamp(serialized) == START + 5
    assert (read.frame_id, read.encoding) == ("front_optical_frame", "bgr8")
    assert (read.height, read.width, read.step, read.big_endian) == (60, 120, 360, False)
    assert bytes(read.data) == message.data.tobytes()
    packed = CompressedImage(format="jpeg", data=b"\xff\xd8abc")
    assert bytes(cdr.read_compressed_image(bytes(serialize_message(packed))).data) == b"\xff\xd8abc"


def test_images_become_frames_and_all_bytes_reach_the_tap(bench: Bench):
    camera = bench.camera(reliability=qos.RELIABLE)
    publisher = bench.publisher(Image, TOPIC, RELIABLE)
    for i in range(16):  # 2 s at 8 Hz
        publisher.publish(image(START + i * SECOND // 8, (i, 20, 30)))
        bench.until(lambda i=i: bench.buffer.counters.received == i + 1, "an image")
    time.sleep(0.11)  # the shortest time over which a rate is taken
    camera.refresh()
    report = camera.report()
    window = bench.buffer.window()
    assert [tuple(frame.image[0, 0]) for frame in window.frames] == [(i, 20, 30) for i in range(0, 16, 2)]
    assert {frame.image.shape for frame in window.frames} == {(28, 56, 3)}
    assert window.frames[0].frame_id == "front_optical_frame"
    assert (report.received, report.sampled, report.skipped, report.bad_images) == (16, 8, 8, 0)
    assert (report.encoding, report.width, report.height) == ("bgr8", 120, 60)
    assert report.rate > 0
    assert report.type == "sensor_msgs/msg/Image"
    assert [topic for topic, _ in bench.tapped] == ["/robot/image_raw"] * 16
    assert cdr.read_stamp(bench.tapped[3][1]) == START + 3 * SECOND // 8


def test_jpeg_images_become_frames(bench: Bench):
    camera = bench.camera("/robot/image_raw/compressed")
    publisher = bench.publisher(CompressedImage, "image_raw/compressed", BEST_EFFORT)
    pixels = np.full((480, 640, 3), (200, 40, 90), np.uint8)
    message = CompressedImage(format="jpeg", data=simplejpeg.encode_jpeg(pixels))
    message.header.stamp.sec = 5
    # Again and again: a best-effort image is lost while the subscriber has not matched yet.
    bench.until(lambda: publisher.publish(message) or bench.buffer.counters.received > 0, "an image")
    report = camera.report()
    assert (report.encoding, report.width, report.height) == ("jpeg", 640, 480)
    assert report.bad_images == 0


def test_a_bad_image_is_counted_explained_and_survived(bench: Bench):
    camera = bench.camera(reliability=qos.RELIABLE)
    publisher = bench.publisher(Image, TOPIC, RELIABLE)
    bad = image(START)
    bad.step = 7
    publisher.publish(bad)
    bench.until(lambda: bench.buffer.counters.received == 1, "the bad image")
    assert "step" in camera.report().last_error
    assert bench.bad == [("front", camera.report().last_error)]
    publisher.publish(image(START + SECOND // 30))  # same tick: stands in
    bench.until(lambda: bench.buffer.counters.received == 2, "the good image")
    report = camera.report()
    assert (report.bad_images, bench.buffer.counters.lost) == (1, 1)
    assert report.encoding == "bgr8"


def test_images_without_a_stamp_are_named(bench: Bench):
    camera = bench.camera(reliability=qos.RELIABLE)
    publisher = bench.publisher(Image, TOPIC, RELIABLE)
    publisher.publish(image(0))
    bench.until(lambda: bench.buffer.counters.received == 1, "the image")
    ((name, reason),) = bench.bad
    assert name == "front"
    assert "header.stamp" in reason
    assert (camera.report().invalid_stamps, camera.report().bad_images) == (1, 0)


def test_auto_reliability_follows_the_publishers(bench: Bench):
    camera = bench.camera()
    assert camera.profile.reliability == ReliabilityPolicy.BEST_EFFORT  # nobody there: hears everybody
    bench.publisher(Image, TOPIC, RELIABLE)
    bench.until(lambda: camera.profile.reliability == ReliabilityPolicy.RELIABLE, "RELIABLE")
    second = bench.driver.create_publisher(Image, TOPIC, BEST_EFFORT)
    bench.until(lambda: camera.profile.reliability == ReliabilityPolicy.BEST_EFFORT, "BEST_EFFORT")
    bench.until(lambda: second.get_subscription_count() == 1, "the new subscription")
    bench.until(lambda: second.publish(image(START)) or bench.buffer.counters.received > 0, "its image")
    assert camera.report().problems == ()


def test_a_message_that_two_subscriptions_bring_counts_once(bench: Bench):
    camera = bench.camera()
    first = bench.publisher(Image, TOPIC, RELIABLE)
    bench.until(lambda: camera.profile.reliability == ReliabilityPolicy.RELIABLE, "RELIABLE")
    stamps = itertools.count(START)
    bench.until(lambda: first.publish(image(next(stamps))) or bench.tapped != [], "an image")
    second = bench.driver.create_publisher(Image, TOPIC, BEST_EFFORT)

    def changed() -> bool:
        first.publish(image(next(stamps)))
        time.sleep(0.02)
        return camera.profile.reliability == ReliabilityPolicy.BEST_EFFORT

    bench.until(changed, "BEST_EFFORT")
    bench.until(lambda: second.get_subscription_count() == 1, "the new subscription")
    last, boundary = cdr.read_stamp(bench.tapped[-1][1]), next(stamps)

    def brought() -> list[int]:
        return [cdr.read_stamp(serialized) for _, serialized in bench.tapped]

    def publish() -> None:
        second.publish(image(last))  # as the middleware does now and then when the subscription changes
        second.publish(image(next(stamps)))

    bench.until(lambda: publish() or max(brought()) > boundary + 1, "images of the new subscription")
    assert len(set(brought())) == len(brought())
    assert camera.report().duplicates == 0


def test_a_driver_that_comes_back_with_another_reliability_is_heard(bench: Bench):
    camera = bench.camera()
    driver = bench.publisher(Image, TOPIC, RELIABLE)
    bench.until(lambda: camera.profile.reliability == ReliabilityPolicy.RELIABLE, "RELIABLE")
    bench.driver.destroy_publisher(driver)
    bench.until(lambda: not qos.offers_of(bench.node, camera.topic), "the driver's end")
    end = time.monotonic() + 1.0  # the camera looks twice a second
    while time.monotonic() < end:
        bench.executor.spin_once(timeout_sec=0.05)
    driver = bench.publisher(Image, TOPIC, BEST_EFFORT)
    bench.until(lambda: driver.publish(image(START)) or bench.buffer.counters.received > 0, "its image")
    bench.until(lambda: camera.report().qos.startswith("BEST_EFFORT"), "the look that finds it out")


def test_a_publisher_that_cannot_be_heard_is_named(bench: Bench):
    camera = bench.camera(reliability=qos.RELIABLE)
    bench.driver.create_publisher(Image, TOPIC, BEST_EFFORT)
    bench.until(lambda: camera.report().problems != (), "the problem")
    (problem,) = camera.report().problems
    for word in ("/robot/driver", "BEST_EFFORT", "RELIABLE", "/robot/image_raw", "qos_reliability"):
        assert word in problem
    assert problem in camera.report().qos


def test_another_message_type_on_the_topic_is_named(bench: Bench):
    camera = bench.camera()
    bench.driver.create_publisher(CompressedImage, TOPIC, RELIABLE)
    bench.until(lambda: camera.report().problems != (), "the problem")
    assert "CompressedImage on /robot/image_raw" in camera.report().problems[0]


def test_topics_are_remapped_by_the_node(contexts: tuple[Context, Context]):
    node = Node(
        "n", context=contexts[0], namespace="/ns", cli_args=["--ros-args", "-r", "image:=/real/image"]
    )
    buffer = WindowBuffer("front", TimeGrid(PERIOD), 8)
    camera = Camera(node, "front", "image", buffer, lambda h, w: (28, 28))
    assert camera.report().topic == "/real/image"
    camera.close()
    node.destroy_node()


@pytest.mark.parametrize(
    ("topic", "remapped"), [("image", "/driver/image/compressed"), ("image/compressed", "/driver/jpegs")]
)
def test_a_topic_remapped_to_or_from_compressed_carries_compressed_images(
    contexts: tuple[Context, Context], topic: str, remapped: str
):
    remap = ["--ros-args", "-r", f"{topic}:={remapped}"]
    node = Node("n", context=contexts[0], cli_args=remap)
    camera = Camera(node, "front", topic, WindowBuffer("front", TimeGrid(PERIOD), 8), lambda h, w: (28, 28))
    report = camera.report()
    camera.close()
    node.destroy_node()
    assert (report.topic, report.type) == (remapped, "sensor_msgs/msg/CompressedImage")


def test_fit_names_every_problem():
    image_type = "sensor_msgs/msg/Image"
    offers = [
        qos.Offer("/a", image_type, reliable=True),
        qos.Offer("/b", image_type, reliable=False),
        qos.Offer("/c", "std_msgs/msg/String", reliable=True),
    ]
    assert qos.fit(offers[:1], "/t", image_type, "auto") == qos.Fit(True)
    assert qos.fit(offers[:2], "/t", image_type, "auto") == qos.Fit(False)
    assert qos.fit([], "/t", image_type, "auto") == qos.Fit(False)
    forced = qos.fit(offers, "/t", image_type, "reliable")
    assert forced.reliable
    assert len(forced.problems) == 2
    assert qos.fit(offers[:2], "/t", image_type, "best_effort") == qos.Fit(False)
