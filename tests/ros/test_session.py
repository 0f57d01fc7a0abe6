# SPDX-License-Identifier: Apache-2.0
"""One activation on a real node, with an engine that never answers."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import rclpy
from rclpy.context import Context
from rclpy.node import Node

from cosmos_reason_node.config import Config
from cosmos_reason_node.engine.base import Done
from cosmos_reason_node.errors import CosmosReasonError, ErrorCode
from cosmos_reason_node.ros.outlets import Outlets
from cosmos_reason_node.ros.session import Session, Setup, check_topics
from cosmos_reason_node.types import Answer, Frame, Latency, Query, QueryKind, Source, Verdict
from cosmos_reason_node.window import Offer
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


def test_who_asks_is_answered_though_the_decision_cannot_be_published(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    setup = Setup.check(
        Config(model=str(tiny_model()), record_dir=str(tmp_path), min_frames=2, max_stale_s=60.0)
    )
    engine, outlets, replies = ScriptedEngine(), Outlets(node), []
    session = Session(node, setup, engine, outlets)
    try:
        (camera,) = session.cameras.values()
        tick = time.time_ns() // camera.buffer.grid.period_ns // 2 * 2
        for index in (tick - 2, tick - 1):
            stamp_ns = index * camera.buffer.grid.period_ns
            assert camera.buffer.offer(stamp_ns) is Offer.SAMPLE
            frame = Frame(camera.name, stamp_ns, index, np.zeros((28, 28, 3), np.uint8))
            camera.buffer.put(frame)
            session.pipeline.frame_added(frame)
        query = Query(QueryKind.QUESTION, question="What?")
        first, second = (
            session.pipeline.ask(query, source=Source.SERVICE, on_reply=replies.append) for _ in range(2)
        )
        unsayable = Answer(Verdict.CHOICE, "\ud83e", -1, 0.5, "", 1, 1)  # not UTF-8: no message holds it
        session.pipeline.engine_event(first, Done(0, unsayable, Latency()))
        assert [reply.decision_id for reply in replies] == [first]
        monkeypatch.setattr(outlets, "publish_decision", lambda msg: 1 / 0)
        session.pipeline.close(ErrorCode.NOT_ACTIVE, "the end")
        assert [reply.decision_id for reply in replies] == [first, second]
    finally:
        session.close()


def test_the_engine_takes_the_cores_that_the_node_may_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {8, 9, 10})
    settings = {"model": str(tiny_model()), "record_dir": str(tmp_path)}
    assert Setup.check(Config(**settings)).engine_spec().threads == 2
    assert Setup.check(Config(**settings, threads=5)).engine_spec().threads == 5


def test_a_full_disk_keeps_no_robot_without_its_node(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("cosmos_reason_node.ros.recorder.RETRY_S", 0.1)
    bags = tmp_path / "bags"
    bags.mkdir()
    (bags / "of yesterday").write_bytes(bytes(1 << 20))
    settings = {"record_dir": str(bags), "record_continuous": True, "record_budget_mb": 1}
    session = Session(
        node, Setup.check(Config(model=str(tiny_model()), **settings)), ScriptedEngine(), Outlets(node)
    )
    try:
        report = session.recorder.report()
        assert not report.recording
        assert "record_budget_mb" in report.error
        (bags / "of yesterday").unlink()
        time.sleep(0.15)
        session.refresh()
        assert session.recorder.report().recording, "there is room now"
    finally:
        session.close()


def test_one_topic_in_two_spellings_is_refused(node: Node):
    check_topics(node, Config(cameras=("a=image_raw", "b=other")))
    with pytest.raises(CosmosReasonError, match="'a' and 'b' have one topic, /image_raw") as raised:
        check_topics(node, Config(cameras=("a=image_raw", "b=/image_raw")))
    assert raised.value.code is ErrorCode.INVALID_REQUEST


@pytest.mark.parametrize("name", ["model", "record_dir", "engine_fallback"])
def test_the_home_of_nobody_is_refused_by_the_setting_s_name(name: str):
    settings = {"model": str(tiny_model()), name: "~nobody-here/x"}
    with pytest.raises(CosmosReasonError, match=f"{name} '~nobody-here/x'"):
        Setup.check(Config(**settings))
