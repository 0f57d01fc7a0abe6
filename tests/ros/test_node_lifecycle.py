# SPDX-License-Identifier: Apache-2.0
"""States, settings, and how the process begins and ends."""

from __future__ import annotations

import shutil
import signal

import psutil
import pytest
from action_msgs.msg import GoalStatus
from cosmos_reason_msgs.msg import ErrorCode, Status
from cosmos_reason_msgs.srv import Capture, SetTask
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import DescribeParameters, GetParameters, ListParameters, SetParameters

from cosmos_reason_node.config import Config
from tests.ros.client import Client
from tests.ros.node_process import NodeProcess, running_node, tiny_model, until

pytestmark = pytest.mark.ros


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    log = tmp_path_factory.mktemp("lifecycle") / "node.log"
    with running_node(log, autostart=False, max_stale_s=5.0, task="open the drawer") as node:
        yield node


@pytest.fixture(scope="module")
def client(node):
    client = Client()
    client.camera("image_raw")
    yield client
    client.close()


def state(client: Client) -> int:
    return client.call(GetState, "cosmos_reason/get_state").current_state.id


def change(client: Client, transition: int) -> bool:
    response = client.call(
        ChangeState, "cosmos_reason/change_state", 90.0, transition=Transition(id=transition)
    )
    return response.success


def set_parameter(client: Client, name: str, **value) -> tuple[bool, str]:
    parameter = Parameter(name=name, value=ParameterValue(**value))
    (result,) = client.call(SetParameters, "cosmos_reason/set_parameters", parameters=[parameter]).results
    return result.successful, result.reason


def set_text(client: Client, name: str, text: str) -> tuple[bool, str]:
    return set_parameter(client, name, type=ParameterType.PARAMETER_STRING, string_value=text)


def set_texts(client: Client, name: str, texts: list[str]) -> tuple[bool, str]:
    return set_parameter(client, name, type=ParameterType.PARAMETER_STRING_ARRAY, string_array_value=texts)


def set_number(client: Client, name: str, number: float) -> tuple[bool, str]:
    return set_parameter(client, name, type=ParameterType.PARAMETER_DOUBLE, double_value=number)


# The tests of this module walk one node through its states, in this order.


def test_every_setting_is_a_described_parameter(client):
    listed = client.call(ListParameters, "cosmos_reason/list_parameters").result.names
    names = sorted(Config.__dataclass_fields__)
    assert set(names) <= set(listed)
    described = client.call(DescribeParameters, "cosmos_reason/describe_parameters", names=names).descriptors
    values = client.call(GetParameters, "cosmos_reason/get_parameters", names=names).values
    for descriptor, value in zip(described, values, strict=True):
        field = Config.__dataclass_fields__[descriptor.name]
        assert descriptor.description == field.metadata["doc"]
        assert value.type == descriptor.type != ParameterType.PARAMETER_NOT_SET
        ranges = [*descriptor.floating_point_range, *descriptor.integer_range]
        assert [(r.from_value, r.to_value) for r in ranges] == (
            [] if field.metadata["low"] is None else [(field.metadata["low"], field.metadata["high"])]
        )


def test_unconfigured_everything_answers_not_active(client):
    assert state(client) == State.PRIMARY_STATE_UNCONFIGURED
    assert client.ask().error_code == ErrorCode.NOT_ACTIVE
    assert client.call(SetTask, "set_task", task="x").error_code == ErrorCode.NOT_ACTIVE
    assert client.call(Capture, "capture").error_code == ErrorCode.NOT_ACTIVE
    status, decision = client.goal().result()
    assert (status, decision.error_code) == (GoalStatus.STATUS_ABORTED, ErrorCode.NOT_ACTIVE)
    until(lambda: client.statuses, "status is published in every state")
    assert client.status.engine_state == Status.ENGINE_STOPPED


def test_transitions_that_the_state_does_not_have_are_refused(client, node):
    for transition in (Transition.TRANSITION_ACTIVATE, Transition.TRANSITION_CLEANUP, 77):
        assert not change(client, transition)
        assert f"transition {transition} refused: the node is unconfigured" in node.output()
    assert "possible now: configure (1), shutdown (5)" in node.output()
    assert state(client) == State.PRIMARY_STATE_UNCONFIGURED
    assert node.returncode is None


def test_configure_refuses_what_cannot_work_and_says_why(client, node):
    good = str(tiny_model())
    assert set_text(client, "model", "/nowhere/at/all")[0]
    assert not change(client, Transition.TRANSITION_CONFIGURE)
    assert state(client) == State.PRIMARY_STATE_UNCONFIGURED
    assert "MODEL_NOT_FOUND" in node.output()
    until(lambda: "/nowhere" in client.diagnostics["cosmos_reason: lifecycle"].message, "diagnostics")

    # The bundled checkpoint's frames and window are not those of the model that a server has.
    assert set_text(client, "model", "")[0]
    assert set_text(client, "engine", "remote")[0]
    assert not change(client, Transition.TRANSITION_CONFIGURE)
    assert "model is empty: engine remote needs a folder" in node.output()
    assert set_text(client, "engine", "torch")[0]

    assert set_text(client, "model", good)[0]
    assert set_text(client, "dtype", "int3")[0]
    assert not change(client, Transition.TRANSITION_CONFIGURE)
    assert "dtype must be of" in node.output()
    assert set_text(client, "dtype", "auto")[0]

    assert set_texts(client, "cameras", ["front=not a topic!"])[0]
    assert not change(client, Transition.TRANSITION_CONFIGURE)
    assert "not a topic!" in node.output()
    assert set_texts(client, "cameras", ["camera=image_raw"])[0]

    assert set_text(client, "record_dir", "/proc/bags")[0]
    assert not change(client, Transition.TRANSITION_CONFIGURE)
    assert "RECORDING_FAILED" in node.output()
    assert set_text(client, "record_dir", "")[0]

    assert set_number(client, "status_period_s", 0.1)[0]
    assert change(client, Transition.TRANSITION_CONFIGURE)
    assert state(client) == State.PRIMARY_STATE_INACTIVE
    assert not node.children(), "the engine starts at activation"


def test_the_period_of_the_status_is_read_at_configure(client):
    seen = len(client.statuses)
    until(lambda: len(client.statuses) >= seen + 20, "20 reports at 0.1 s", 8.0)


def test_activate_serves(client, node):
    assert change(client, Transition.TRANSITION_ACTIVATE)
    assert state(client) == State.PRIMARY_STATE_ACTIVE
    client.ready()
    assert len(node.children()) == 1
    until(lambda: client.ask("there?", yes_no=True).error_code == ErrorCode.NONE, "an answer")


def test_live_settings_change_and_the_others_say_when_they_can(client):
    assert set_number(client, "valid_for_s", 1.5) == (True, "")
    decision = client.ask("there?", yes_no=True)
    assert decision.valid_until.sec * 10**9 + decision.valid_until.nanosec == (
        decision.header.stamp.sec * 10**9 + decision.header.stamp.nanosec + 1_500_000_000
    )
    for result in (
        set_number(client, "fps", 2.0),
        set_number(client, "valid_for_s", -1.0),
        set_number(client, "valid_for_s", float("nan")),
        set_text(client, "deadline_s", "soon"),
    ):
        assert not result[0]
        assert result[1]
    assert "configure" in set_number(client, "fps", 2.0)[1]
    # `ros2 param load` of a file with all settings: those that stay as they are do not stand in the way.
    assert set_number(client, "max_hold_s", 1.0) == (True, "")
    assert set_text(client, "qos_reliability", "auto") == (True, "")
    assert not set_text(client, "qos_reliability", "reliable")[0]


def test_deactivate_answers_those_who_wait_and_keeps_the_model(client, node):
    client.call(SetTask, "set_task", task="close the drawer")
    (engine,) = node.children()
    goal = client.goal(think_tokens=4000)
    until(lambda: goal.feedback, "thinking")
    assert change(client, Transition.TRANSITION_DEACTIVATE)
    status, decision = goal.result()
    assert (status, decision.error_code) == (GoalStatus.STATUS_ABORTED, ErrorCode.NOT_ACTIVE)
    assert client.ask().error_code == ErrorCode.NOT_ACTIVE
    assert node.children() == [engine]

    assert change(client, Transition.TRANSITION_ACTIVATE)
    assert node.children() == [engine], "no second load"
    until(lambda: client.status.task == "close the drawer" and client.status.cameras, "the task is kept")
    until(lambda: client.ask("there?", yes_no=True).error_code == ErrorCode.NONE, "an answer")


def test_cleanup_stops_the_engine_and_frees_the_settings(client, node):
    assert change(client, Transition.TRANSITION_DEACTIVATE)
    assert change(client, Transition.TRANSITION_CLEANUP)
    assert state(client) == State.PRIMARY_STATE_UNCONFIGURED
    assert not node.children()
    assert set_number(client, "fps", 4.0) == (True, "")


def test_sigterm_while_active_ends_cleanly(client, node):
    assert change(client, Transition.TRANSITION_CONFIGURE)
    assert change(client, Transition.TRANSITION_ACTIVATE)
    until(lambda: client.ask("there?", yes_no=True).error_code == ErrorCode.NONE, "an answer")
    goal = client.goal(think_tokens=4000)
    until(lambda: goal.feedback, "thinking")
    assert node.stop(signal.SIGTERM) == 0
    assert goal.result()[1].error_code == ErrorCode.NOT_ACTIVE


# Processes of their own.


def test_autostart_that_fails_ends_with_the_reason(tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(tiny_model(), broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    node = NodeProcess(tmp_path / "node.log", model=str(broken))
    assert node.wait(60.0) == 1
    assert "MODEL_INVALID" in node.output()
    assert "model.safetensors" in node.output()


def test_absurd_settings_are_all_named_at_once(tmp_path):
    parameters = tmp_path / "parameters.yaml"
    parameters.write_text(
        "/**: {ros__parameters: {fps: 4, window_frames: 7, qos_depth: 1000, cameras: [a b]}}\n"
    )
    node = NodeProcess(tmp_path / "node.log", parameter_files=[parameters])
    assert node.wait(60.0) == 1
    for problem in (
        "fps must be",
        "window_frames must be even",
        "qos_depth must be",
        "'a b' is not name=topic",
    ):
        assert problem in node.output()


def test_a_killed_node_leaves_no_engine_behind(tmp_path):
    node = NodeProcess(tmp_path / "node.log")
    children = until(node.children, "the engine process")
    assert node.stop(signal.SIGKILL) == -signal.SIGKILL
    assert not any(psutil.pid_exists(child.pid) for child in children)


def test_sigint_while_the_model_loads_ends_cleanly(tmp_path):
    node = NodeProcess(tmp_path / "node.log")
    until(lambda: node.children(), "the engine process")
    children = node.children()
    assert node.stop(signal.SIGINT) == 0
    assert not any(psutil.pid_exists(child.pid) for child in children)
