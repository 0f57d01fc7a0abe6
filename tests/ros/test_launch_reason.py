# SPDX-License-Identifier: Apache-2.0
"""reason.launch.py and replay.launch.py together: a recorded episode is answered, as the arguments say."""

from __future__ import annotations

import dataclasses
import re

import launch_pytest
import psutil
import pytest
from launch import LaunchContext, LaunchDescription
from launch.actions import GroupAction, IncludeLaunchDescription, RegisterEventHandler
from launch.event_handlers import OnProcessExit
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch_pytest.actions import ReadyToTest
from launch_ros.actions import PushROSNamespace
from lifecycle_msgs.srv import GetState
from rcl_interfaces.srv import GetParameters

from cosmos_reason_node import deployment
from cosmos_reason_node.config import Config
from cosmos_reason_node.ros.launching import node_namespace
from tests.ros.client import Client
from tests.ros.node_process import ROOT, tiny_model, until

pytestmark = pytest.mark.ros
REASON = PythonLaunchDescriptionSource(str(ROOT / "launch" / "reason.launch.py"))
REPLAY = PythonLaunchDescriptionSource(str(ROOT / "launch" / "replay.launch.py"))
EPISODE = ROOT / "tests" / "assets" / "drawer_open.mp4"
NAMESPACE = "/fleet/robot1"
NODE = f"{NAMESPACE}/cosmos_reason"
PARAMETERS = f"""\
/**:
  ros__parameters:
    task: from the file
    monitors: [completion]
    monitor_think_tokens: 0
{NODE}:
  ros__parameters:
    valid_for_s: 7.0
    min_confidence: 0.25
"""
exits: dict[str, int] = {}


def record_exit(event, context):
    exits[re.sub(r"-\d+$", "", event.process_name)] = event.returncode


@launch_pytest.fixture(scope="module")
def description(tmp_path_factory):
    parameters = tmp_path_factory.mktemp("launch") / "parameters.yaml"
    parameters.write_text(PARAMETERS)
    reason = {
        "namespace": "robot1",
        "model": str(tiny_model()),
        "cameras": "[front=front/image_raw]",
        "task": "open: the [drawer]",
        "min_confidence": "0",
        "threads": "1",
        "params_file": str(parameters),
        "log_level": "warn",
    }
    replay = {"source": str(EPISODE), "topic": "front/image_raw", "loop": "true"}
    exits.clear()
    return LaunchDescription(
        [
            RegisterEventHandler(OnProcessExit(on_exit=record_exit)),
            GroupAction(
                [
                    PushROSNamespace("fleet"),
                    IncludeLaunchDescription(REASON, launch_arguments=reason.items()),
                ]
            ),
            GroupAction(
                [
                    PushROSNamespace("fleet/robot1"),
                    IncludeLaunchDescription(REPLAY, launch_arguments=replay.items()),
                ]
            ),
            ReadyToTest(),
        ]
    )


@pytest.fixture(scope="module")
def client(description):
    client = Client(NAMESPACE)
    yield client
    client.close()


@pytest.mark.launch(fixture=description)
def test_the_node_becomes_active_under_its_name(client):
    client.ready()
    state = client.call(GetState, f"{NODE}/get_state").current_state
    assert state.label == "active"


@pytest.mark.launch(fixture=description)
def test_arguments_win_over_the_parameter_file_and_the_file_over_defaults(client):
    names = ["task", "min_confidence", "valid_for_s", "monitors", "deadline_s"]
    values = client.call(GetParameters, f"{NODE}/get_parameters", names=names).values
    assert values[0].string_value == "open: the [drawer]"
    assert values[1].double_value == 0.0
    assert values[2].double_value == 7.0
    assert list(values[3].string_array_value) == ["completion"]
    assert values[4].double_value == Config.deadline_s


@pytest.mark.launch(fixture=description)
def test_the_replayed_episode_is_answered(client):
    # A set: a client of the tests before is known for a while after it has gone.
    names = {"cosmos_reason", "replay", "test_client"}
    until(lambda: set(client.node.get_node_names()) == names, "the nodes")
    until(lambda: client.decisions, "a decision")
    decision = client.decisions[-1]
    assert decision.error_code == 0, decision.error_msg
    assert decision.task == "open: the [drawer]"
    assert [window.camera for window in decision.windows] == ["front"]
    until(lambda: client.status.cameras[0].received, "a status that counts images")
    (camera,) = client.status.cameras
    assert (camera.topic, camera.width, camera.height) == (f"{NAMESPACE}/front/image_raw", 320, 240)


@pytest.mark.launch(fixture=description)
def test_the_processes_have_the_transport_settings(launch_context):
    started = {
        process.info["name"]: process.environ()
        for process in psutil.process_iter(["name"])
        if process.info["name"] in deployment.EXECUTABLES and _is_ours(process)
    }
    assert set(started) == set(deployment.EXECUTABLES)
    for environment in started.values():
        for name, value in deployment.transport_environment({}).items():
            assert environment[name] == value


@pytest.mark.launch(fixture=description, shutdown=True)
def test_everything_ends_in_order():
    assert exits == {"reason_node": 0, "replay": 0}


@pytest.mark.launch(fixture=description)
def test_every_setting_is_a_documented_argument(launch_context):
    arguments = {
        argument.name: argument
        for argument in REASON.get_launch_description(launch_context).get_launch_arguments()
    }
    own = {"namespace", "params_file", "log_level", "use_sim_time", "respawn"}
    settings = {field.name: field for field in dataclasses.fields(Config)}
    assert set(arguments) == own | set(settings)
    for name, argument in arguments.items():
        assert argument.description not in ("", "no description given"), name
        if name in settings:
            assert settings[name].metadata["doc"] in argument.description


@pytest.mark.parametrize(
    ("pushed", "given", "expected"),
    [
        (None, "", "/"),
        (None, "robot1", "/robot1"),
        (None, "/robot1/", "/robot1"),
        ("/robot1", "", "/robot1"),
        ("/robot1", "eyes", "/robot1/eyes"),
        ("/robot1", "/eyes", "/eyes"),
        ("/robot1", "/", "/"),
    ],
)
def test_a_namespace_goes_under_the_pushed_one_unless_it_is_absolute(pushed, given, expected):
    context = LaunchContext()
    context.launch_configurations["namespace"] = given
    if pushed:
        PushROSNamespace(pushed).execute(context)
    assert node_namespace(context) == expected


def _is_ours(process: psutil.Process) -> bool:
    return psutil.Process() in process.parents()
