# SPDX-License-Identifier: Apache-2.0
"""Bags, corrections and how far memory reaches, with windows as long as the released models'."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from cosmos_reason_msgs.msg import ErrorCode
from cosmos_reason_msgs.srv import Capture
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters

from tests.ros.client import Client
from tests.ros.node_process import running_node, until
from tests.ros.recording import WINDOW, correct, corrected, images, whole_window

pytestmark = pytest.mark.ros


@pytest.fixture(scope="module")
def bags(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("recording") / "bags"


@pytest.fixture(scope="module")
def client(bags):
    client = Client()
    try:
        with running_node(
            bags.parent / "node.log", cameras=("front=front/image_raw",), record_dir=str(bags), **WINDOW
        ):
            client.camera("front/image_raw", rate=10.0)
            client.ready()
            yield client
    finally:
        client.close()


def set_seconds(client: Client, **values: float) -> None:
    parameters = [
        Parameter(name=name, value=ParameterValue(type=ParameterType.PARAMETER_DOUBLE, double_value=value))
        for name, value in values.items()
    ]
    results = client.call(SetParameters, "cosmos_reason/set_parameters", parameters=parameters).results
    assert all(result.successful for result in results)


def test_an_operator_has_time_to_correct(client, bags):
    decision = whole_window(client)
    time.sleep(6.0)
    response = correct(client, decision)
    assert response.message == f"kept, images in {response.path}"
    assert corrected(response.path, bags.parent / "data") == [(decision.decision_id, "no")]
    assert images(response.path) < 110, "what came later is left out"


def test_a_capture_says_how_far_memory_reached(client):
    reply = client.call(Capture, "capture", before=600.0, after=0.0, label="far")
    assert reply.error_code == ErrorCode.NONE, reply.error_msg
    assert 10.0 < reply.before < 300.0
    until(lambda: (Path(reply.path) / "metadata.yaml").exists(), "the bag")
    assert images(reply.path) == pytest.approx(10.0 * reply.before, rel=0.3)
    until(lambda: not client.status.capturing, "idle")
    near = client.call(Capture, "capture", before=2.0, after=0.0, label="near")
    assert near.before == 2.0


def test_images_that_memory_has_lost_are_said_to_be_missing(client, bags):
    decision = client.ask("?", yes_no=True)
    set_seconds(client, record_memory_s=0.5, record_before_s=0.5)
    time.sleep(1.0)
    response = correct(client, decision)
    assert response.path == ""
    assert response.message.startswith("kept, images not captured: memory reaches back")
    assert decision.decision_id in (bags / "corrections.jsonl").read_text()


def test_memory_follows_its_live_settings(client):
    set_seconds(client, record_memory_s=0.5, record_before_s=0.5)
    time.sleep(1.0)
    set_seconds(client, record_before_s=30.0)
    time.sleep(3.0)
    reply = client.call(Capture, "capture", before=-1.0, after=0.0, label="live")
    assert 2.5 < reply.before < 30.0
    until(lambda: (Path(reply.path) / "metadata.yaml").exists(), "the bag")
    assert images(reply.path) >= 20
