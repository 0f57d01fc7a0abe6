# SPDX-License-Identifier: Apache-2.0
"""Two cameras at 30 images a second while the model runs: no frame lost, both answered, bags written."""

from __future__ import annotations

import time

import cv2
import numpy as np
import pytest
from cosmos_reason_msgs.msg import Decision, ErrorCode, QueryKind, Status
from cosmos_reason_msgs.srv import Capture, SetTask
from rosbags.rosbag2 import Reader
from sensor_msgs.msg import CompressedImage

from tests.ros.client import CameraSource, Client
from tests.ros.node_process import running_node, until

pytestmark = pytest.mark.ros
FPS = 4.0
NAMES = ("front", "wrist")


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    directory = tmp_path_factory.mktemp("cameras")
    client = Client()
    settings = {
        "cameras": ("front=front/image_raw", "wrist=wrist/image_raw"),
        "fps": FPS,
        "window_frames": 8,
        "task": "open the drawer",
        "monitor_think_tokens": 4,
        "record_dir": str(directory / "bags"),
        "debug_image": True,
        "qos_depth": 32,  # a second of images: the machine may stand still for a while
    }
    try:
        with running_node(directory / "node.log", **settings):
            yield client
    finally:
        client.close()


@pytest.fixture(scope="module")
def cameras(client) -> list[CameraSource]:
    size = {"rate": 30.0, "height": 480, "width": 640, "depth": 32}
    cameras = [
        client.camera("front/image_raw", **size),
        client.camera("wrist/image_raw", reliable=False, **size),
    ]
    client.ready()
    return cameras


def answers(client: Client, camera: str) -> list[Decision]:
    return [d for d in client.decisions if not d.error_code and d.windows[0].camera == camera]


def pause(client: Client, cameras: list[CameraSource]) -> Status:
    """Stop the images; the status once all that were sent have been counted."""
    for camera in cameras:
        camera.paused = True

    def settled() -> bool:
        last = [[camera.received for camera in status.cameras] for status in client.statuses[-3:]]
        return len(client.statuses) >= seen + 3 and last[0] == last[1] == last[2]

    seen = len(client.statuses)
    until(settled, "all images counted")
    return client.status


def test_no_sampled_frame_is_lost_while_the_model_runs(client, cameras):
    until(lambda: all(len(answers(client, name)) > 3 for name in NAMES), "answers of both")
    before = pause(client, cameras)
    for camera in cameras:
        camera.stamps_ns.clear()
        camera.paused = False
    until(lambda: all(len(camera.stamps_ns) >= 240 for camera in cameras), "8 s of images")
    after = pause(client, cameras)
    for camera in cameras:
        camera.paused = False
    assert after.decisions > before.decisions, "the model ran"
    for camera, old, new in zip(cameras, before.cameras, after.cameras, strict=True):
        ticks = {stamp_ns // round(1e9 / FPS) for stamp_ns in camera.stamps_ns}
        assert new.sampled - old.sampled == len(ticks)
        assert (new.bad_images, new.out_of_order, new.duplicates) == (0, 0, 0)


def test_both_cameras_are_answered_alike(client, cameras):
    start = len(client.decisions)

    def count() -> list[int]:
        new = [d.windows[0].camera for d in client.decisions[start:] if not d.error_code]
        return [new.count(name) for name in NAMES]

    counts = until(lambda: max(count()) >= 12 and count(), "answers")
    assert max(counts) - min(counts) <= 3 + 3, "cameras take turns, three answers a turn"


def test_a_question_about_two_cameras_shows_both(client, cameras):
    def ask() -> Decision:
        return client.ask("Is it there?", yes_no=True, cameras=["wrist", "front"])

    until(lambda: ask().error_code == ErrorCode.NONE, "frames of both")
    decision = ask()
    assert [window.camera for window in decision.windows] == ["wrist", "front"]


def test_capture_writes_a_bag_of_images_decisions_and_task(client, cameras):
    client.call(SetTask, "set_task", task="open the drawer slowly")
    until(lambda: [d for d in client.decisions if d.task.endswith("slowly")], "a decision")
    until(lambda: all(len(camera.stamps_ns) >= 100 for camera in cameras), "images of the past")
    asked_ns = time.time_ns()
    reply = client.call(Capture, "capture", before=2.0, after=1.0, label="test")
    assert reply.error_code == ErrorCode.NONE, reply.error_msg
    assert "test" in reply.path
    second = client.call(Capture, "capture", before=1.0, after=1.0, label="again")
    assert second.error_code == ErrorCode.RECORDING_BUSY
    until(lambda: client.status.capturing == "" and client.status.recording_bytes > 0, "bag complete")
    with Reader(reply.path) as bag:
        counts = {name: topic.msgcount for name, topic in bag.topics.items()}
        types = {topic.msgtype for topic in bag.topics.values()}
    for camera, name in zip(cameras, NAMES, strict=True):
        # The edges are left out: an image takes a moment to arrive.
        sent = [t for t in camera.stamps_ns if asked_ns - 1.8e9 < t < asked_ns + 0.8e9]
        assert len(sent) > 10
        assert counts[f"/{name}/image_raw"] >= len(sent)
    assert counts["/decisions"] >= 1
    assert counts["/status"] >= 1
    assert "cosmos_reason_msgs/msg/Decision" in types


@pytest.mark.parametrize(
    "fields", [{"label": "../up"}, {"label": "a b"}, {"before": float("nan")}, {"before": 1e9}]
)
def test_captures_that_make_no_sense_are_refused(client, fields):
    until(lambda: client.status.capturing == "", "idle")
    reply = client.call(Capture, "capture", **{"before": 1.0, "after": 0.0, "label": "x", **fields})
    assert reply.error_code == ErrorCode.INVALID_REQUEST
    assert reply.error_msg


def test_the_debug_image_is_a_picture(client, cameras):
    images: list[CompressedImage] = []
    client.node.create_subscription(CompressedImage, "debug_image/compressed", images.append, 1)
    until(lambda: images, "debug image")
    picture = cv2.imdecode(np.frombuffer(images[0].data, np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape[1] == 640
    assert picture.std() > 1.0
    assert client.status.engine_state == Status.ENGINE_READY
    assert {d.kind for d in client.decisions} >= {QueryKind.COMPLETION, QueryKind.NEXT_ACTION}
