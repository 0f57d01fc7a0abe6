# SPDX-License-Identifier: Apache-2.0
"""The continuous recording: a capture beside it, and what is said when the disk is full."""

from __future__ import annotations

from pathlib import Path

import pytest
from cosmos_reason_msgs.msg import Decision, ErrorCode
from cosmos_reason_msgs.srv import Capture, Correct

from tests.ros.client import Client
from tests.ros.node_process import running_node, until

pytestmark = pytest.mark.ros
RECORDER = "cosmos_reason: recorder"


def test_a_full_disk_is_seen_and_a_capture_s_end_too(tmp_path):
    client = Client()
    settings = {"record_dir": str(tmp_path / "bags"), "record_continuous": True, "record_budget_mb": 8}
    try:
        with running_node(
            tmp_path / "node.log", cameras=("front=front/image_raw",), status_period_s=0.2, **settings
        ):
            client.ready()
            until(lambda: client.status.recording, "the continuous recording")
            until(lambda: client.diagnostics[RECORDER].level == b"\x00", "nothing is wrong")
            reply = client.call(Capture, "capture", before=0.0, after=0.5, label="beside")
            until(lambda: any(status.capturing == reply.path for status in client.statuses), "the capture")
            until(lambda: not client.status.capturing, "its end")
            assert (Path(reply.path) / "metadata.yaml").exists()
            assert "continuous" in client.status.recording

            client.camera("front/image_raw", rate=30.0, height=480, width=640)
            until(lambda: not client.status.recording, "a full disk")
            until(lambda: client.diagnostics[RECORDER].level == b"\x02", "diagnostics")
            assert "record_budget_mb" in client.diagnostics[RECORDER].message
            decision = until(
                lambda: next((d for d in [client.ask("?", yes_no=True)] if not d.error_code), None), "answer"
            )
            response = client.call(
                Correct, "correct", decision_id=decision.decision_id, verdict=Decision.VERDICT_NO
            )
            assert response.error_code == ErrorCode.NONE, response.error_msg
            assert "images not captured" in response.message, "they are in no bag"
    finally:
        client.close()
