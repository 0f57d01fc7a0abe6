# SPDX-License-Identifier: Apache-2.0
"""One activation on a real node, with an engine that never answers."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import rclpy
from rclpy.context import Context
from rclpy.node import Node

from cosmos_reason_node.config import Config
from cosmos_reason_node.ros.outlets import Outlets
from cosmos_reason_node.ros.session import Session, Setup
from tests.ros.node_process import tiny_model, until
from tests.unit.pipeline_bench import ScriptedEngine

pytestmark = pytest.mark.ros


@pytest.fixture
def node() -> Iterator[Node]:
    context = Context()
    rclpy.init(context=context)
    node = Node("session", context=context)
    yield node
    node.destroy_node()
    context.try_shutdown()


def test_the_continuous_recording_is_looked_after(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("cosmos_reason_node.ros.recorder.RETRY_S", 0.1)
    bags = tmp_path / "bags"
    settings = {"record_dir": str(bags), "record_continuous": True, "record_budget_mb": 1}
    setup = Setup.check(Config(model=str(tiny_model()), **settings))
    session = Session(node, setup, ScriptedEngine(), Outlets(node))
    try:
        (camera,) = session.cameras.values()
        session.recorder.record(camera.topic, bytes(2 << 20))
        until(lambda: not session.recorder.report().recording, "a full disk")
        shutil.rmtree(bags)
        time.sleep(0.15)
        session.refresh()
        assert session.recorder.report().recording, "it goes on"
        assert session.recorder.report().error == ""
    finally:
        session.close()
