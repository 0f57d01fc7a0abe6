# SPDX-License-Identifier: Apache-2.0
"""``replay``: a video file or a camera device as a ROS camera, at its real rate.

    file ── advance ──> wait until due ── decode ──> publish (image_raw, or image_raw/compressed)
    device ── read ──> publish

Frames are due on an absolute schedule (start + the file's own time of the frame), so delays do not add up,
and ``header.stamp`` is the moment the frame was due, on the node's clock: lateness of this process shows up
as age, as it would with a camera driver. Frames that are late by more than ``MAX_LATE_S`` are left out and
counted. With ``publish_clock`` stamps and ``/clock`` follow the recording's time instead (at ``rate`` times
the wall clock), for nodes with ``use_sim_time``. The process ends with exit code 0 after the last frame has
been delivered.
"""

from __future__ import annotations

import array
import math
import sys
import time
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import rclpy
from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.duration import Duration
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.time import Time
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, Image

from ..video import CameraDevice, VideoError, VideoFile, shrink

# A frame later than this is left out, seconds.
MAX_LATE_S = 0.25
# Longest wait for subscribers to confirm the last images (reliable publishers), seconds.
ACK_TIMEOUT_S = 2.0
_SETTLE_S = 0.3
# Period of /clock between frames, seconds.
CLOCK_PERIOD_S = 0.01

EXIT_OK, EXIT_FAILED, EXIT_BAD_INPUT = 0, 1, 2

# name: (default, description, low, high)
_PARAMETERS: dict[str, tuple[Any, str, float | None, float | None]] = {
    "source": ("", "Video file, or a camera device such as /dev/video0.", None, None),
    "topic": ("image_raw", "Topic of the images; format jpeg appends /compressed.", None, None),
    "format": ("raw", "raw: sensor_msgs/Image; jpeg: sensor_msgs/CompressedImage.", None, None),
    "frame_id": ("camera", "tf frame in the header.", None, None),
    "rate": (1.0, "Speed of a file; 1 = its own.", 0.01, 100.0),
    "loop": (False, "Start again at the end of the file, with stamps that go on.", None, None),
    "wait_s": (60.0, "Longest wait for subscribers before the first frame, seconds.", 0.0, 3600.0),
    "wait_subscribers": (1, "How many subscribers to wait for.", 1, 100),
    "publish_clock": (False, "Publish /clock from the recording's time.", None, None),
    "max_duration_s": (0.0, "Stop after this long, seconds; 0 = at the end of the file.", 0.0, 86400.0),
    "linger_s": (0.5, "Stay this long after the last frame, seconds.", 0.0, 60.0),
    "max_side": (0, "Scale larger images down to this longer side, pixels; 0 = as recorded.", 0, 16384),
    "jpeg_quality": (90, "Quality of format jpeg.", 1, 100),
    "reliability": ("reliable", "reliable or best_effort.", None, None),
    "qos_depth": (8, "Images kept by the middleware.", 1, 100),
}


class Replay(Node):
    """Publishes the frames of one source; parameters are read once, at the start.

    Raises:
        ValueError: the parameters make no sense together.
        VideoError: the source cannot be opened.
    """

    def __init__(self, **node_options: Any) -> None:
        super().__init__("replay", **node_options)
        for name, (default, doc, low, high) in _PARAMETERS.items():
            self.declare_parameter(name, default, _descriptor(default, doc, low, high))
        self._check_parameters()
        self._compressed = self._value("format") == "jpeg"
        topic = self._value("topic") + ("/compressed" if self._compressed else "")
        self._publisher = self.create_publisher(
            CompressedImage if self._compressed else Image,
            topic,
            QoSProfile(
                history=HistoryPolicy.KEEP_LAST,
                depth=self._value("qos_depth"),
                reliability=ReliabilityPolicy[self._value("reliability").upper()],
            ),
        )
        self._frame_id: str = self._value("frame_id")
        self._max_side: int = self._value("max_side")
        self._jpeg = [cv2.IMWRITE_JPEG_QUALITY, self._value("jpeg_quality")]
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self)
        self._clock_publisher = (
            self.create_publisher(Clock, "/clock", 10) if self._value("publish_clock") else None
        )
        self._source = _open(self._value("source"))
        self._start_s = math.inf  # on the monotonic clock, when the first frame is due
        self._start_ns = self.get_clock().now().nanoseconds  # what /clock says until then
        self.published = 0
        self.skipped = 0

    def run(self) -> None:
        """Publish until the source or ``max_duration_s`` ends, then see that the last frames arrive.

        Raises:
            VideoError: the source fails on the way.
        """
        self._wait_for_subscribers()
        self.get_logger().info(f"replaying {self._describe()} on {self._publisher.topic_name}")
        self._start_s = time.monotonic()
        if isinstance(self._source, VideoFile):
            self._replay_file(self._source)
        else:
            self._relay_device(self._source)
        elapsed_s = time.monotonic() - self._start_s
        self._publisher.wait_for_all_acked(Duration(seconds=ACK_TIMEOUT_S))
        self._spin_until(time.monotonic() + self._value("linger_s"))
        self.get_logger().info(
            f"done: {self.published} frames in {elapsed_s:.1f} s, {self.skipped} left out for being late"
        )

    def close(self) -> None:
        """Release source and node."""
        self._source.close()
        self._executor.shutdown(timeout_sec=1.0)
        self.destroy_node()

    def _replay_file(self, video: VideoFile) -> None:
        speed = self._value("rate")
        for time_s in self._schedule(video):
            due_s = self._start_s + time_s / speed
            self._spin_until(due_s)
            if time.monotonic() - due_s > MAX_LATE_S:
                self.skipped += 1
                self.get_logger().warning(
                    f"this machine cannot keep up: {self.skipped} frames left out so far",
                    throttle_duration_sec=5.0,
                )
                continue
            message = self._message(video.image())
            if self._clock_publisher:
                stamp_ns = self._start_ns + round(time_s * 1e9)
                self._publish_clock(self._clock_publisher, stamp_ns)
            else:
                late_s = time.monotonic() - due_s
                stamp_ns = self.get_clock().now().nanoseconds - round(late_s * 1e9)
            self._publish(message, stamp_ns)

    def _schedule(self, video: VideoFile) -> Iterator[float]:
        """Advance the video; yields each frame's time in the recording, seconds; loops go on counting."""
        limit_s = self._value("max_duration_s") * self._value("rate")
        round_start_s = 0.0
        while True:
            index, total_s = 0, round_start_s
            while (time_s := video.advance()) is not None:
                total_s = round_start_s + time_s
                if limit_s and total_s >= limit_s:
                    return
                yield total_s
                index += 1
            # By time: a file without a count of frames has the one that its rate would give.
            played_s, length_s = total_s - round_start_s, video.info.duration_s
            if index < video.info.frames - 1 and played_s < 0.9 * length_s - 1 / video.info.fps:
                self.get_logger().warning(
                    f"{video.path} ended after {played_s:.1f} of {length_s:.1f} s; it may be cut off"
                )
            if not self._value("loop") or index == 0:
                return
            round_start_s = total_s + 1 / video.info.fps
            video.rewind()

    def _relay_device(self, camera: CameraDevice) -> None:
        limit_s = self._value("max_duration_s")
        while not limit_s or time.monotonic() - self._start_s < limit_s:
            image = camera.image()
            stamp_ns = self.get_clock().now().nanoseconds
            self._publish(self._message(image), stamp_ns)
            self._executor.spin_once(timeout_sec=0)

    def _message(self, image: np.ndarray) -> Image | CompressedImage:
        """Message of one BGR image, (H, W, 3) uint8, without its stamp."""
        image = np.ascontiguousarray(shrink(image, self._max_side))
        # An array('B') is taken over as it is; numpy arrays would be copied byte by byte in Python.
        if self._compressed:
            ok, jpeg = cv2.imencode(".jpg", image, self._jpeg)
            if not ok:
                raise VideoError(f"an image of {image.shape[1]}x{image.shape[0]} cannot be encoded as JPEG")
            return CompressedImage(format="bgr8; jpeg compressed bgr8", data=array.array("B", jpeg.tobytes()))
        height, width = image.shape[:2]
        data = array.array("B", image.tobytes())
        return Image(height=height, width=width, encoding="bgr8", step=3 * width, data=data)

    def _publish(self, message: Image | CompressedImage, stamp_ns: int) -> None:
        message.header.stamp = Time(nanoseconds=stamp_ns).to_msg()
        message.header.frame_id = self._frame_id
        self._publisher.publish(message)
        self.published += 1

    @staticmethod
    def _publish_clock(publisher: Publisher, now_ns: int) -> None:
        publisher.publish(Clock(clock=Time(nanoseconds=now_ns).to_msg()))

    def _wait_for_subscribers(self) -> None:
        limit_s = self._value("wait_s")
        end_s = time.monotonic() + limit_s
        while (count := self._publisher.get_subscription_count()) < self._value("wait_subscribers"):
            if time.monotonic() >= end_s:
                if limit_s:
                    self.get_logger().warning(
                        f"{count} subscribers after {limit_s:g} s; starting all the same"
                    )
                return
            self._spin_until(min(end_s, time.monotonic() + 0.05))
        if limit_s and count:  # a publisher knows of its subscribers before each of them knows of it
            self._spin_until(time.monotonic() + _SETTLE_S)

    def _spin_until(self, due_s: float) -> None:
        """Serve parameters, signals and ``/clock`` until ``due_s`` on the monotonic clock."""
        if time.monotonic() >= due_s:  # who is always late must hear of the end, too
            self._executor.spin_once(timeout_sec=0)
        while (left_s := due_s - time.monotonic()) > 0:
            if self._clock_publisher is None:
                self._executor.spin_once(timeout_sec=left_s)
                continue
            # Not beyond the frame that is due: its stamp must not step back.
            played_s = max(0.0, min(time.monotonic(), due_s) - self._start_s) * self._value("rate")
            self._publish_clock(self._clock_publisher, self._start_ns + round(played_s * 1e9))
            self._executor.spin_once(timeout_sec=min(left_s, CLOCK_PERIOD_S))

    def _describe(self) -> str:
        if isinstance(self._source, CameraDevice):
            return f"the camera {self._source.path}"
        info = self._source.info
        return f"{self._source.path} ({info.width}x{info.height}, {info.fps:g} fps, {info.duration_s:.1f} s)"

    def _value(self, name: str) -> Any:
        return self.get_parameter(name).value

    def _check_parameters(self) -> None:
        if not self._value("source"):
            raise ValueError("set the parameter `source` to a video file or a camera device")
        if self._value("format") not in ("raw", "jpeg"):
            raise ValueError(f"format is {self._value('format')!r}; use raw or jpeg")
        if _is_device(self._value("source")) and (self._value("rate") != 1.0 or self._value("publish_clock")):
            raise ValueError("a camera device is live: rate and publish_clock are for files")
        if self._value("reliability") not in ("reliable", "best_effort"):
            raise ValueError(
                f"reliability must be reliable or best_effort, not {self._value('reliability')!r}"
            )
        if not self._value("topic"):
            raise ValueError("topic is empty")


def _is_device(source: str) -> bool:
    return source.startswith("/dev/")


def _open(source: str) -> VideoFile | CameraDevice:
    return CameraDevice(source) if _is_device(source) else VideoFile(source)


def _descriptor(default: Any, doc: str, low: float | None, high: float | None) -> ParameterDescriptor:
    descriptor = ParameterDescriptor(description=doc, read_only=True)
    if low is not None and high is not None:
        if isinstance(default, int):
            descriptor.integer_range = [IntegerRange(from_value=int(low), to_value=int(high))]
        else:
            descriptor.floating_point_range = [FloatingPointRange(from_value=low, to_value=high)]
    return descriptor


def main(args: list[str] | None = None) -> int:
    """Entry point of the ``replay`` executable; returns the exit code."""
    rclpy.init(args=args)
    replay = None
    try:
        replay = Replay()
        replay.run()
    except (KeyboardInterrupt, ExternalShutdownException):
        return EXIT_OK
    except rclpy_implementation.RCLError:
        if rclpy.ok():
            raise
        return EXIT_OK  # told to end while it published
    except (ValueError, InvalidParameterValueException, InvalidParameterTypeException) as error:
        print(f"replay: {error}", file=sys.stderr, flush=True)
        return EXIT_BAD_INPUT
    except VideoError as error:
        print(f"replay: {error}", file=sys.stderr, flush=True)
        return EXIT_FAILED if replay else EXIT_BAD_INPUT
    finally:
        if replay is not None:
            replay.close()
        rclpy.try_shutdown()
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
