# SPDX-License-Identifier: Apache-2.0
"""The processes of benchmarks/ingest.py: ``python -m benchmarks.ingest_processes publish|ours|plain JSON``.

Each prints one line of JSON on its last line. The argument is a Load as JSON.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import struct
import sys
import threading
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

# Not measured: the heap of the subscriber, and what the recorder keeps, reach their size.
WARM_UP_S = 3.0
IDLE_S = 1.5  # silence after which a subscriber takes the stream to be over
DISCOVERY_S = 20.0


@dataclass(frozen=True)
class Load:
    """What is published.

    Attributes:
        width, height: of the images, pixels.
        kind: "raw" (bgr8) or "jpeg".
        cameras: number of topics.
        rate: images a second on each.
        seconds: length of the stream that is measured; WARM_UP_S go before it.
    """

    width: int
    height: int
    kind: str
    cameras: int
    rate: float
    seconds: float

    @property
    def topics(self) -> list[str]:
        """Names of the topics."""
        suffix = "/compressed" if self.kind == "jpeg" else ""
        return [f"/camera_{i}/image_raw{suffix}" for i in range(self.cameras)]

    @property
    def images(self) -> int:
        """Images on all topics together."""
        return round(self.rate * (WARM_UP_S + self.seconds)) * self.cameras


def publish(load: Load) -> dict[str, Any]:
    """Publish on an absolute schedule; the message is serialized once, then only its stamp changes."""
    import rclpy
    from rclpy.qos import QoSProfile
    from rclpy.serialization import serialize_message

    rclpy.init()
    node = rclpy.create_node("ingest_publisher")
    message = _message(load)
    serialized = bytearray(serialize_message(message))
    publishers = [node.create_publisher(type(message), topic, QoSProfile(depth=8)) for topic in load.topics]
    give_up = time.monotonic() + DISCOVERY_S
    while any(publisher.get_subscription_count() == 0 for publisher in publishers):
        if time.monotonic() > give_up:
            raise TimeoutError("no subscriber came")
        time.sleep(0.05)
    time.sleep(1.0)  # until both sides have matched
    cpu, start = time.process_time(), time.monotonic()
    late = 0.0
    for i in range(load.images // load.cameras):
        due = start + i / load.rate
        left = due - time.monotonic()
        if left > 0:
            time.sleep(left)
        late = max(late, -left)
        struct.pack_into("<iI", serialized, 4, *divmod(time.time_ns(), 1_000_000_000))
        data = bytes(serialized)
        for publisher in publishers:
            publisher.publish(data)
    elapsed = time.monotonic() - start
    time.sleep(IDLE_S)  # reliable delivery ends with the process
    return {
        "sent": load.images,
        "rate": round(load.images / load.cameras / elapsed, 1),
        "latest_s": round(late, 3),
        "cpu_ms_per_frame": round((time.process_time() - cpu) * 1e3 / load.images, 3),
    }


def ours(load: Load) -> dict[str, Any]:
    """The node's own path: tuned process, events executor, grid frames converted, every message kept."""
    import os

    from cosmos_reason_node.deployment import transport_environment
    from cosmos_reason_node.ros.transport import tune_process

    if os.environ.pop("INGEST_DEFAULT_TRANSPORT", None) is None:
        tune_process(transport_environment())
    import rclpy
    from rclpy.task import Future

    from cosmos_reason_node.ros.camera import Camera
    from cosmos_reason_node.ros.executor import make_executor, spin
    from cosmos_reason_node.ros.recorder import Recorder
    from cosmos_reason_node.vision.resize import target_size
    from cosmos_reason_node.window import TimeGrid, WindowBuffer

    rclpy.init()
    node = rclpy.create_node("ingest_ours")
    clock = node.get_clock()
    recorder = Recorder(
        "",
        keep_s=WARM_UP_S,
        buffer_bytes=256 << 20,
        budget_bytes=0,
        now_ns=lambda: clock.now().nanoseconds,
        warn=print,
    )
    cameras = []
    for i, topic in enumerate(load.topics):
        buffer = WindowBuffer(f"camera_{i}", TimeGrid.from_fps(4.0), 32)
        camera = Camera(node, buffer.camera, topic, buffer, target_size, tap=recorder.record)
        recorder.add_topic(camera.topic, camera.type)
        cameras.append(camera)
    executor = make_executor()
    executor.add_node(node)
    stop = Future()

    def received() -> int:
        return sum(camera.buffer.counters.received for camera in cameras)

    meter = _Meter(received, load, lambda: executor.create_task(stop.set_result, None))
    spin(executor, stop)
    counters = [camera.buffer.counters for camera in cameras]
    return meter.result() | {
        "sampled": sum(c.sampled for c in counters),
        "sampled_frames_lost": sum(c.held + c.lost for c in counters),
        "windows_restarted": sum(c.clock_jumps for c in counters),
        "bad_images": sum(camera.report().bad_images for camera in cameras),
    }


def plain(load: Load) -> dict[str, Any]:
    """The usual rclpy path: deserialized messages, rclpy.spin, every frame converted as by cv_bridge."""
    import cv2
    import rclpy
    from rclpy.executors import ExternalShutdownException
    from sensor_msgs.msg import CompressedImage, Image

    cv2.setNumThreads(1)
    rclpy.init()
    node = rclpy.create_node("ingest_plain")
    count = [0]

    def on_image(message: Image) -> None:
        pixels = np.frombuffer(message.data, np.uint8).reshape(message.height, message.width, 3)
        cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
        count[0] += 1

    def on_compressed(message: CompressedImage) -> None:
        pixels = cv2.imdecode(np.frombuffer(message.data, np.uint8), cv2.IMREAD_COLOR)
        assert pixels is not None
        cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
        count[0] += 1

    for topic in load.topics:
        if load.kind == "raw":
            node.create_subscription(Image, topic, on_image, 10)
        else:
            node.create_subscription(CompressedImage, topic, on_compressed, 10)
    meter = _Meter(lambda: count[0], load, rclpy.shutdown)
    with contextlib.suppress(ExternalShutdownException):
        rclpy.spin(node)
    return meter.result()


class _Meter:
    """Looks at the count of images and at this process's CPU time ten times a second, in its own thread."""

    def __init__(self, received: Callable[[], int], load: Load, done: Callable[[], Any]) -> None:
        self._received = received
        self._load = load
        self._done = done
        self._samples: list[tuple[float, float, int]] = []
        threading.Thread(target=self._run, daemon=True).start()

    def result(self) -> dict[str, Any]:
        """CPU over the frames between the first look after the warm-up and the last that saw new ones."""
        moved = [b for a, b in zip(self._samples, self._samples[1:], strict=False) if b[2] > a[2]]
        if moved:
            moved = [sample for sample in moved if sample[0] >= moved[0][0] + WARM_UP_S]
        if len(moved) < 2:
            return {"received": self._received(), "cpu_ms_per_frame": None, "rate": 0.0}
        (since, cpu_before, before), (until, cpu_after, after) = moved[0], moved[-1]
        return {
            "received": self._received(),
            "cpu_ms_per_frame": round((cpu_after - cpu_before) * 1e3 / (after - before), 4),
            "rate": round((after - before) / (until - since) / self._load.cameras, 1),
        }

    def _run(self) -> None:
        give_up = time.monotonic() + DISCOVERY_S + (WARM_UP_S + self._load.seconds) * 3
        changed = time.monotonic()
        while time.monotonic() < give_up:
            time.sleep(0.1)
            now, count = time.monotonic(), self._received()
            if not self._samples or count > self._samples[-1][2]:
                changed = now
            self._samples.append((now, time.process_time(), count))
            if count and (count >= self._load.images or now - changed > IDLE_S):
                break
        self._done()


def _message(load: Load) -> Any:
    """One image with the texture of a camera's: smooth shapes and some noise."""
    import cv2
    from sensor_msgs.msg import CompressedImage, Image

    y, x = np.mgrid[: load.height, : load.width]
    image = np.stack([x * 255 // load.width, y * 255 // load.height, (x + y) // 4 % 256], -1).astype(np.uint8)
    noise = np.random.default_rng(0).normal(0, 4, image.shape)
    image = np.clip(image + noise, 0, 255).astype(np.uint8)
    if load.kind == "raw":
        message = Image(height=load.height, width=load.width, encoding="bgr8", step=3 * load.width)
        message.data = array("B", image.tobytes())
    else:
        message = CompressedImage(format="bgr8; jpeg compressed bgr8")
        message.data = array("B", cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes())
    message.header.frame_id = "camera"
    return message


def main() -> None:
    """Run one side and print its result."""
    side, load = sys.argv[1], Load(**json.loads(sys.argv[2]))
    result = {"publish": publish, "ours": ours, "plain": plain}[side](load)
    print(json.dumps({"load": dataclasses.asdict(load), **result}), flush=True)


if __name__ == "__main__":
    main()
