# SPDX-License-Identifier: Apache-2.0
"""Another checkpoint for a running node: swapped in when it works, refused when it does not."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest
from cosmos_reason_msgs.msg import ErrorCode
from cosmos_reason_msgs.srv import Capture, LoadModel, SetTask

from tests.ros.client import Client
from tests.ros.node_process import ROOT, running_node, until

pytestmark = pytest.mark.ros


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A checkpoint with other weights and another frame size."""
    directory = tmp_path_factory.mktemp("other") / "retrained"
    subprocess.run(
        [sys.executable, "-m", "tests.tiny_model", directory, "1"], check=True, cwd=ROOT, timeout=600
    )
    own = directory / "cosmos_reason.json"
    own.write_text(own.read_text().replace("84", "112"))
    return directory


@pytest.fixture(scope="module")
def bags(tmp_path_factory):
    return tmp_path_factory.mktemp("load_model") / "bags"


@pytest.fixture(scope="module")
def node(bags):
    with running_node(
        bags.parent / "node.log", cameras=("front=front/image_raw",), record_dir=str(bags)
    ) as node:
        yield node


@pytest.fixture(scope="module")
def client(node):
    client = Client()
    try:
        client.camera("front/image_raw")
        client.ready()
        until(lambda: client.status.cameras[0].sampled >= 6, "frames")
        yield client
    finally:
        client.close()


def in_service(client):
    decision = client.ask("Is it open?", yes_no=True)
    assert decision.error_code == ErrorCode.NONE, decision.error_msg
    return decision


def damaged(directory, tmp_path, change):
    copy = tmp_path / "damaged"
    shutil.copytree(directory, copy)
    change(copy)
    return copy


def test_what_cannot_be_loaded_changes_nothing(client, node, other, tmp_path):
    before = in_service(client).model
    torn = damaged(other, tmp_path, lambda d: (d / "model.safetensors").write_bytes(b"torn"))
    cases = [
        ("", ErrorCode.INVALID_REQUEST),
        (str(tmp_path / "nowhere"), ErrorCode.MODEL_NOT_FOUND),
        (str(torn), ErrorCode.MODEL_INVALID),
    ]
    for path, code in cases:
        response = client.call(LoadModel, "load_model", path=path)
        assert response.error_code == code, response.error_msg
        assert response.error_msg
        assert response.model.digest == before.digest
    assert in_service(client).model == before
    until(lambda: len(node.children()) <= 2, "no engine is left over")


def test_a_model_that_works_is_swapped_in(client, node, other, bags):
    old = in_service(client)
    client.call(SetTask, "set_task", task="open the drawer")
    capture = client.call(Capture, "capture", before=0.0, after=500.0, label="across")
    assert capture.error_code == ErrorCode.NONE, capture.error_msg
    response = client.call(LoadModel, "load_model", 300.0, path=str(other))
    assert response.error_code == ErrorCode.NONE, response.error_msg
    assert response.model.model_id == "retrained"
    assert response.model.digest != old.model.digest
    until(lambda: client.status.model.digest == response.model.digest, "status")
    assert client.status.task == "open the drawer"
    assert client.status.capturing == capture.path  # the capture goes on
    until(lambda: client.status.cameras and client.status.cameras[0].sampled >= 6, "frames")
    new = in_service(client)
    assert new.model.digest == response.model.digest
    assert new.windows[0].width != old.windows[0].width
    start = len(client.decisions)
    until(lambda: len(client.decisions) > start + 2, "monitors go on")
    assert client.decisions[-1].model.model_id == "retrained"
    client.call(SetTask, "set_task")
    until(lambda: len(node.children()) <= 2, "the old engine is gone")
