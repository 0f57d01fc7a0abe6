# SPDX-License-Identifier: Apache-2.0
"""Decisions about whole windows, their corrections, and the bags of these."""

from __future__ import annotations

from pathlib import Path

from cosmos_reason_msgs.msg import Decision, ErrorCode
from cosmos_reason_msgs.srv import Correct
from rosbags.rosbag2 import Reader

from cosmos_reason_node.models.spec import PatchSpec
from tests.ros.client import Client
from tests.ros.node_process import until
from training.data.bag import convert
from training.data.media import WindowSpec
from training.data.problems import Report

WINDOW = {"fps": 4.0, "window_frames": 32}


def correct(client: Client, decision: Decision) -> Correct.Response:
    response = client.call(
        Correct, "correct", decision_id=decision.decision_id, verdict=Decision.VERDICT_NO, note="wrong"
    )
    assert response.error_code == ErrorCode.NONE, response.error_msg
    return response


def whole_window(client: Client) -> Decision:
    """An answer about as many frames as a window has."""
    until(lambda: client.status.cameras[0].sampled >= 34, "a whole window")
    decision = client.ask("?", yes_no=True)
    assert decision.error_code == ErrorCode.NONE, decision.error_msg
    assert decision.windows[0].num_frames == decision.windows[0].num_asked == 32
    return decision


def images(bag: str) -> int:
    with Reader(bag) as reader:
        return sum(topic.msgcount for name, topic in reader.topics.items() if name.endswith("image_raw"))


def corrected(bag: str, out: Path) -> list[tuple[str, str]]:
    """Decisions of a bag and their labels, whose windows can be made anew from its images."""
    until(lambda: (Path(bag) / "metadata.yaml").exists(), "the bag")
    report = Report()
    spec = WindowSpec(250_000_000, 32, PatchSpec(), frame_size=(56, 84))
    samples = convert(Path(bag), out, report, spec=spec)
    assert report.problems == []
    return [(sample.sample_id, sample.answer) for sample in samples]
