# SPDX-License-Identifier: Apache-2.0
"""What cameras can do wrong: unusable images, strange stamps, QoS that does not fit."""

from __future__ import annotations

from array import array

import pytest
from builtin_interfaces.msg import Time
from cosmos_reason_msgs.msg import CameraStatus, ErrorCode
from sensor_msgs.msg import CompressedImage, Image

from tests.ros.client import CameraSource, Client
from tests.ros.node_process import running_node, until

pytestmark = pytest.mark.ros
CAMERAS = (
    "front=front/image_raw",
    "jpeg=jpeg/image_raw/compressed",
    "deaf=deaf/image_raw",
)


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    log = tmp_path_factory.mktemp("input") / "node.log"
    settings = {"qos_reliability": "reliable", "fps": 8.0, "max_stale_s": 0.6, "status_period_s": 0.2}
    with running_node(log, cameras=CAMERAS, **settings) as node:
        yield node


@pytest.fixture(scope="module")
def client(node):
    client = Client()
    try:
        client.ready()
        yield client
    finally:
        client.close()


@pytest.fixture(scope="module")
def front(client) -> CameraSource:
    return client.camera("front/image_raw")


@pytest.fixture(scope="module")
def jpeg(client) -> CameraSource:
    return client.camera("jpeg/image_raw/compressed", jpeg=True)


def camera(client: Client, name: str) -> CameraStatus:
    return next(camera for camera in client.status.cameras if camera.name == name)


def healthy(client: Client, name: str) -> None:
    """Good frames arrive (again) and are answered from."""
    sampled = camera(client, name).sampled
    until(lambda: camera(client, name).sampled >= sampled + 6, f"frames of {name}")
    until(lambda: client.ask("there?", yes_no=True, cameras=[name]).error_code == ErrorCode.NONE, "an answer")


def wrong_step(image: Image) -> None:
    image.step = 7


def wrong_size(image: Image) -> None:
    image.height = 4000


def no_data(image: Image) -> None:
    image.data = array("B")


def unknown_encoding(image: Image) -> None:
    image.encoding = "32FC7"


def truncated(image: CompressedImage) -> None:
    image.data = image.data[: len(image.data) // 3]


def not_a_picture(image: CompressedImage) -> None:
    image.data = array("B", b"\x00\x01" * 100)


@pytest.mark.parametrize("spoil", [wrong_step, wrong_size, no_data, unknown_encoding])
def test_unusable_images_are_counted_named_and_survived(client, node, front, spoil):
    check_spoiled(client, "front", front, spoil)
    assert node.returncode is None


@pytest.mark.parametrize("spoil", [truncated, not_a_picture, no_data])
def test_unusable_jpegs_are_counted_named_and_survived(client, node, jpeg, spoil):
    check_spoiled(client, "jpeg", jpeg, spoil)
    assert node.returncode is None


def check_spoiled(client: Client, name: str, source: CameraSource, spoil) -> None:
    healthy(client, name)
    bad = camera(client, name).bad_images
    source.spoil = spoil
    try:
        until(lambda: camera(client, name).bad_images >= bad + 3, "bad images counted")
        assert camera(client, name).last_error
        until(
            lambda: client.ask("?", cameras=[name]).error_code == ErrorCode.BAD_IMAGE, "the reply names them"
        )
        until(lambda: client.diagnostics[f"cosmos_reason: camera {name}"].level == b"\x02", "diagnostics")
    finally:
        source.spoil = None
    healthy(client, name)


def no_stamp(image: Image) -> None:
    image.header.stamp = Time()


def before_1970(image: Image) -> None:
    image.header.stamp.sec = -5


@pytest.mark.parametrize("spoil", [no_stamp, before_1970])
def test_images_without_a_usable_stamp_are_counted(client, front, spoil):
    healthy(client, "front")
    invalid = camera(client, "front").invalid_stamps
    front.spoil = spoil
    try:
        until(lambda: camera(client, "front").invalid_stamps >= invalid + 3, "invalid stamps counted")
        until(
            lambda: client.ask("?", cameras=["front"]).error_code == ErrorCode.BAD_IMAGE, "the reply says so"
        )
        assert "header.stamp" in client.ask("?", cameras=["front"]).error_msg
        said = ("header.stamp is zero", "images without a usable stamp")  # beside what else is wrong
        entry = until(
            lambda: (
                all(text in client.diagnostics["cosmos_reason: camera front"].message for text in said)
                and client.diagnostics["cosmos_reason: camera front"]
            ),
            "diagnostics",
        )
        assert entry.level == b"\x02"
    finally:
        front.spoil = None
    healthy(client, "front")


def test_late_repeated_and_jumping_stamps_are_counted_apart(client, front):
    healthy(client, "front")
    before = camera(client, "front")
    offset_s, frozen = 0, None

    def shift(image: Image) -> None:
        image.header.stamp.sec += offset_s

    def freeze(image: Image) -> None:
        nonlocal frozen
        frozen = frozen or image.header.stamp
        image.header.stamp = frozen

    front.spoil = shift
    offset_s = -3600  # the camera's clock is set back an hour: a jump, and its frames are stale
    until(lambda: camera(client, "front").clock_jumps > before.clock_jumps, "jump")
    until(lambda: client.ask("?", cameras=["front"]).error_code == ErrorCode.STALE_FRAMES, "stale")
    offset_s = 0  # and forward again: the hole is too long to bridge
    until(lambda: camera(client, "front").clock_jumps > before.clock_jumps + 1, "jump back")
    front.spoil = freeze
    until(lambda: camera(client, "front").duplicates > before.duplicates + 3, "duplicates")
    front.spoil = None
    healthy(client, "front")


def test_a_publisher_that_cannot_be_heard_is_named(client, node):
    client.camera("deaf/image_raw", reliable=False)
    problem = until(
        # The name of a publisher's node is known a moment after the publisher.
        lambda: "/test_client" in camera(client, "deaf").qos and camera(client, "deaf").qos,
        "QoS mismatch",
    )
    assert "BEST_EFFORT" in problem
    assert "qos_reliability" in problem
    entry = until(
        lambda: (
            "BEST_EFFORT" in client.diagnostics["cosmos_reason: camera deaf"].message
            and client.diagnostics["cosmos_reason: camera deaf"]
        ),
        "diagnostics",
    )
    assert entry.level == b"\x02"
    assert "BEST_EFFORT" in node.output()
    assert camera(client, "deaf").received == 0

    client.camera("deaf/image_raw", reliable=True)
    until(lambda: camera(client, "deaf").received > 10, "the fitting publisher is heard")
