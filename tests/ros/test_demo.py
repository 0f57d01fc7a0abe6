# SPDX-License-Identifier: Apache-2.0
"""The real demo, end to end: processes, decisions, report; and how it fails."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from cosmos_reason_node.demo.session import MONITORED_KINDS, load
from tests.ros.node_process import ROOT, tiny_model

pytestmark = pytest.mark.ros

TIMEOUT_S = 600.0


def start(out: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "cosmos_reason_node.demo", "--out", str(out), *arguments]
    domain = ["--domain", os.environ["ROS_DOMAIN_ID"]]
    return subprocess.Popen(
        command + domain, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def finish(demo: subprocess.Popen[str]) -> str:
    """Its whole output; it must end by itself."""
    try:
        return demo.communicate(timeout=TIMEOUT_S)[0]
    except subprocess.TimeoutExpired:
        demo.send_signal(signal.SIGINT)
        raise AssertionError(f"the demo did not end:\n{demo.communicate(timeout=30.0)[0]}") from None


def left_behind(out: Path) -> list[str]:
    """Command lines of processes that still write the logs of ``out``."""
    logs = {str(path) for path in out.glob("*.log")}
    found = []
    for process in psutil.process_iter():
        try:
            if logs & {os.readlink(f"/proc/{process.pid}/fd/1")}:
                found.append(" ".join(process.cmdline()))
        except OSError:
            continue
    return found


def test_the_demo_answers_reports_and_ends(tmp_path):
    demo = start(tmp_path / "demo", "--seconds", "8")
    output = finish(demo)
    assert demo.returncode == 0, output
    session, records, pictures = load(tmp_path / "demo")
    assert [record.error for record in records if record.failed] == []
    monitored = {record.kind for record in records if record.source == "monitor"}
    assert monitored == set(MONITORED_KINDS)
    assert {(record.source, record.kind) for record in records} >= {
        ("service", "next_action"),
        ("action", "completion"),
    }
    for record in records:
        assert record.frame_stamps_ns
        assert set(record.frame_stamps_ns) <= set(pictures)
        assert 0.0 < record.age_s < 60.0
        assert 0.0 <= record.confidence <= 1.0
        assert record.model["digest"]
    assert len({record.decision_id for record in records}) == len(records)
    assert session.task == json.loads((ROOT / "tests/assets/drawer_open.json").read_text())["task"]
    # A machine that is busy with other tests leaves frames out; those that were published have arrived.
    published = int(re.search(r"done: (\d+) frames", (tmp_path / "demo" / "replay.log").read_text())[1])
    assert session.cameras[0]["received"] == published > 100
    page = (tmp_path / "demo" / "report.html").read_text()
    assert page.count("<details ") == len(records)
    assert len(page) < 3_000_000
    for piece in ("ready after", "reason action", "decisions.jsonl", "report.html"):
        assert piece in output
    assert left_behind(tmp_path / "demo") == []


def test_a_bad_checkpoint_ends_the_demo_with_the_reason(tmp_path):
    (tmp_path / "model").mkdir()
    demo = start(tmp_path / "demo", "--model", str(tmp_path / "model"))
    output = finish(demo)
    assert demo.returncode == 1
    assert "demo failed" in output
    assert str(tmp_path / "model") in output
    assert "Traceback" not in output
    assert left_behind(tmp_path / "demo") == []


def test_ctrl_c_leaves_nothing_running(tmp_path):
    demo = start(tmp_path / "demo", "--model", str(tiny_model()))
    log = tmp_path / "demo" / "replay.log"
    end = time.monotonic() + TIMEOUT_S
    while not (log.exists() and "replaying" in log.read_text()):
        assert demo.poll() is None, demo.communicate()[0]
        assert time.monotonic() < end, "replay did not start"
        time.sleep(0.1)
    demo.send_signal(signal.SIGINT)
    output = finish(demo)
    assert demo.returncode == 130, output
    assert "Traceback" not in output
    assert left_behind(tmp_path / "demo") == []
