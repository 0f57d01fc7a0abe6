# SPDX-License-Identifier: Apache-2.0
"""The replay process: images at the video's own times, the recording's clock, ends and errors."""

from __future__ import annotations

import dataclasses
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import cv2
import numpy as np
import pytest
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, Image

from cosmos_reason_node import deployment
from tests.unit.video_files import steady, write_video

pytestmark = pytest.mark.ros

END_TIMEOUT_S = 120.0


class Watcher:
    """Hears images and the clock while a replay process runs."""

    def __init__(self, topic: str = "image_raw") -> None:
        self._context = rclpy.Context()
        rclpy.init(context=self._context)
        self._node = rclpy.create_node("watcher", context=self._context)
        self.images: list[Any] = []
        self.clock: list[int] = []
        kind = CompressedImage if topic.endswith("/compressed") else Image
        self._node.create_subscription(kind, topic, self.images.append, 50)
        self._node.create_subscription(Clock, "/clock", lambda m: self.clock.append(ns(m.clock)), 1000)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)

    def watch(self, process: subprocess.Popen[str], images: int = 0) -> str:
        """Until the process ends or ``images`` have come; its output, if it has ended."""
        end = time.monotonic() + END_TIMEOUT_S
        while process.poll() is None and (not images or len(self.images) < images):
            assert time.monotonic() < end, "replay did not end"
            self._executor.spin_once(timeout_sec=0.05)
        quiet_from = len(self.images) + len(self.clock), time.monotonic()
        while (
            not images and time.monotonic() - quiet_from[1] < 0.2
        ):  # what lies in the queue when it has ended
            self._executor.spin_once(timeout_sec=0.05)
            if (count := len(self.images) + len(self.clock)) != quiet_from[0]:
                quiet_from = count, time.monotonic()
        return process.communicate()[0] if process.poll() is not None else ""

    @property
    def seconds(self) -> list[float]:
        """Stamps since the first image's."""
        stamps = [ns(image.header.stamp) for image in self.images]
        return [(stamp - stamps[0]) / 1e9 for stamp in stamps]

    def close(self) -> None:
        self._context.try_shutdown()
        self._node.destroy_node()


def ns(stamp: Any) -> int:
    return stamp.sec * 10**9 + stamp.nanosec


def left_out(output: str) -> int:
    """Frames that a machine busy with other tests was too late for."""
    found = re.search(r"(\d+) left out", output)
    assert found, output
    return int(found[1])


def nearest(times: list[float], time_s: float) -> int:
    return min(range(len(times)), key=lambda i: abs(times[i] - time_s))


@pytest.fixture
def watcher() -> Iterator[Watcher]:
    watcher = Watcher()
    yield watcher
    watcher.close()


@contextmanager
def replaying(source: Any, **parameters: Any) -> Iterator[subprocess.Popen[str]]:
    """``replay`` as deployment.py defines it, with parameters that deployment.py does not name as well."""
    process = deployment.replay("/dev/null", wait_s=20.0)
    merged = {**process.parameters, "source": str(source), "linger_s": 0.1, **parameters}
    process = dataclasses.replace(process, parameters=merged)
    started = subprocess.Popen(
        process.command(),
        env=process.environ(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        yield started
    finally:
        started.kill()
        started.wait(10.0)


def test_every_frame_arrives_with_the_times_of_a_variable_rate_video(tmp_path, watcher):
    uneven = [0.0, 0.2, 0.233, 0.4, 0.65, 0.683, 1.0]
    before = time.time_ns()
    with replaying(write_video(tmp_path / "a.mp4", uneven), frame_id="wrist") as process:
        output = watcher.watch(process)
    assert process.returncode == 0, output
    assert len(watcher.images) + left_out(output) == len(uneven)
    shown = [nearest(uneven, seconds) for seconds in watcher.seconds]
    assert watcher.seconds == pytest.approx([uneven[i] for i in shown], abs=5e-3)
    first = watcher.images[0]
    assert (first.encoding, first.width, first.height, first.step) == ("bgr8", 64, 48, 192)
    assert first.header.frame_id == "wrist"
    assert before < ns(first.header.stamp) < time.time_ns()
    brightness = [np.frombuffer(image.data, np.uint8).mean() for image in watcher.images]
    assert brightness == pytest.approx([8 * i for i in shown], abs=3)


def test_images_can_be_scaled_and_compressed(tmp_path):
    watcher = Watcher("image_raw/compressed")
    try:
        video = write_video(tmp_path / "a.mp4", steady(4, 20.0), (128, 96))
        with replaying(video, format="jpeg", max_side=64) as process:
            output = watcher.watch(process)
    finally:
        watcher.close()
    assert process.returncode == 0, output
    assert len(watcher.images) + left_out(output) == 4
    pixels = cv2.imdecode(np.frombuffer(watcher.images[-1].data, np.uint8), cv2.IMREAD_COLOR)
    assert pixels.shape == (48, 64, 3)
    assert pixels.mean() < 30


def test_a_loop_goes_on_in_time_and_the_clock_runs_at_the_rate(tmp_path, watcher):
    video = write_video(tmp_path / "a.mp4", steady(5, 10.0))
    with replaying(video, loop=True, publish_clock=True, rate=4.0, max_duration_s=2.0) as process:
        output = watcher.watch(process)
    assert process.returncode == 0, output
    # 8 s of the recording in 2 s; the length of a last frame is a guess.
    assert len(watcher.images) + left_out(output) == pytest.approx(80, abs=8)
    assert np.diff(watcher.seconds).min() > 0.05
    assert watcher.seconds[-1] > 1.0  # past the video's end
    assert watcher.clock == sorted(watcher.clock)
    assert watcher.clock[-1] - watcher.clock[0] > 1.3e9


def test_it_starts_without_a_subscriber_in_the_end_and_says_so(tmp_path):
    video = write_video(tmp_path / "a.mp4", steady(3, 20.0))
    with replaying(video, wait_s=0.2, topic="nobody/listens") as process:
        output, _ = process.communicate(timeout=END_TIMEOUT_S)
    assert process.returncode == 0
    assert "starting all the same" in output
    assert int(re.search(r"done: (\d+) frames", output)[1]) + left_out(output) == 3


def test_an_interrupt_ends_it_cleanly(tmp_path, watcher):
    with replaying(write_video(tmp_path / "a.mp4", steady(300, 10.0))) as process:
        watcher.watch(process, images=2)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=END_TIMEOUT_S)
    assert process.returncode == 0, output
    assert "Traceback" not in output


def test_it_ends_when_told_although_it_cannot_keep_up(tmp_path):
    video = write_video(tmp_path / "a.mp4", steady(120, 60.0))
    with replaying(video, wait_s=0.0, loop=True, rate=100.0) as process:
        too_long = threading.Timer(END_TIMEOUT_S, process.kill)
        too_long.start()
        assert any("cannot keep up" in line for line in process.stdout)
        too_long.cancel()
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=END_TIMEOUT_S)
    assert process.returncode == 0, output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"source": "/none.mp4"}, "there is no video /none.mp4"),
        ({"source": "/dev/video_none"}, "there is no camera"),
        ({"source": ""}, "set the parameter `source`"),
        ({"source": "/dev/video0", "rate": 2.0}, "a camera device is live"),
        ({"jpeg_quality": 300}, "jpeg_quality"),
        ({"format": "png"}, "raw or jpeg"),
        ({"reliability": "maybe"}, "reliable or best_effort"),
    ],
)
def test_bad_input_ends_with_two_and_one_clear_line(parameters, message):
    with replaying(**{"source": "/none.mp4", **parameters}) as process:
        output, _ = process.communicate(timeout=END_TIMEOUT_S)
    assert process.returncode == 2
    assert message in output
    assert "Traceback" not in output
