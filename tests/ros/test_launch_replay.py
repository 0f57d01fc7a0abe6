# SPDX-License-Identifier: Apache-2.0
"""replay.launch.py: a file becomes a camera topic and the process ends with the file."""

from __future__ import annotations

import inspect
import itertools
import re

import launch_pytest
import pytest
from launch import LaunchContext, LaunchDescription
from launch.actions import IncludeLaunchDescription, RegisterEventHandler
from launch.event_handlers import OnProcessExit, OnProcessIO
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch_pytest.actions import ReadyToTest
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CompressedImage

from cosmos_reason_node import deployment
from cosmos_reason_node.ros.launching import number
from tests.ros.client import Client
from tests.ros.node_process import ROOT, until

pytestmark = pytest.mark.ros
REPLAY = PythonLaunchDescriptionSource(str(ROOT / "launch" / "replay.launch.py"))
EPISODE = ROOT / "tests" / "assets" / "drawer_open.mp4"
FPS = 20
exits: list[int] = []
output: list[str] = []
images: list[CompressedImage] = []


@launch_pytest.fixture(scope="module")
def description():
    arguments = {
        "source": str(EPISODE),
        "topic": "wrist",
        "format": "jpeg",
        "rate": "2.0",
        "max_duration_s": "2",
        "frame_id": "wrist_optical",
    }
    exits.clear()
    output.clear()
    images.clear()

    def said(event):
        output.append(event.text.decode())

    return LaunchDescription(
        [
            RegisterEventHandler(
                OnProcessExit(on_exit=lambda event, context: exits.append(event.returncode))
            ),
            RegisterEventHandler(OnProcessIO(on_stdout=said, on_stderr=said)),
            IncludeLaunchDescription(REPLAY, launch_arguments=arguments.items()),
            ReadyToTest(),
        ]
    )


@pytest.fixture
def client():
    client = Client()
    yield client
    client.close()


@pytest.mark.launch(fixture=description)
def test_the_file_is_published_at_its_rate_and_the_process_ends(client):
    client.node.create_subscription(CompressedImage, "wrist/compressed", images.append, QoSProfile(depth=100))
    until(lambda: exits, "the end of the replay", timeout_s=120.0)
    assert exits == [0]
    late = int(
        re.search(r"(\d+) left out for being late", "".join(output))[1]
    )  # of a machine that stands still
    assert len(images) + late == pytest.approx(2 * 2.0 * FPS, abs=1)  # 2 s at twice the speed
    assert {image.header.frame_id for image in images} == {"wrist_optical"}
    assert all(bytes(image.data[:2]) == b"\xff\xd8" for image in images)
    stamps = [image.header.stamp.sec + image.header.stamp.nanosec * 1e-9 for image in images]
    steps = [(later - earlier) * 2.0 * FPS for earlier, later in itertools.pairwise(stamps)]
    assert all(step == pytest.approx(max(1, round(step)), abs=0.1) for step in steps)


@pytest.mark.launch(fixture=description)
def test_every_setting_is_a_documented_argument(launch_context):
    arguments = REPLAY.get_launch_description(launch_context).get_launch_arguments()
    parameters = set(inspect.signature(deployment.replay).parameters) - {"remappings", "name"}
    assert {argument.name for argument in arguments} == parameters | {"node_name"}
    assert all(argument.description not in ("", "no description given") for argument in arguments)


@pytest.mark.parametrize("name", ["rate", "wait_s", "max_duration_s", "max_side"])
def test_what_is_no_number_is_refused_by_its_name(name):
    context = LaunchContext()
    context.launch_configurations[name] = "fast"
    with pytest.raises(ValueError, match=f"{name} must be a number, not 'fast'"):
        number(context, name)
