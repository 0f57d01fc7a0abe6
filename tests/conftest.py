# SPDX-License-Identifier: Apache-2.0
"""For all tests: threads, a ROS domain of this run's own, and which ROS tests can run.

- Without rclpy or the built messages the tests in tests/ros are NOT RUN; header and last lines say so.
- Tests of the launch files are written for launch_pytest. Where launch is installed without it, the stand-in
  in tests/standin takes its place; where launch is missing too, they are NOT RUN and it is said likewise.

The environment is set before anything imports torch or rclpy.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import sys
from pathlib import Path

import pytest

# A shell starts background jobs with Ctrl-C ignored; the processes under test would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

HERE = Path(__file__).resolve().parent

# Several engine processes share the cores: more threads than that only get in each other's way.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MUJOCO_GL", "egl")  # read when mujoco is imported for the first time
# Nothing is fetched while tests run.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")


def _claim_domain() -> socket.socket | None:
    """Take a ROS domain that no other test run uses, held by a bound port: it is free again after a crash.

    Domains 1 to 101 have their ports below Linux's ephemeral range.
    """
    if "ROS_DOMAIN_ID" in os.environ:
        return None
    for offset in range(101):
        domain = 1 + (os.getpid() + offset) % 101
        claim = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            claim.bind(("127.0.0.1", 22000 + domain))
        except OSError:
            claim.close()
            continue
        os.environ["ROS_DOMAIN_ID"] = str(domain)
        return claim
    raise RuntimeError("all ROS domains from 1 to 101 are claimed by other test runs; wait for them to end")


def _has(module: str) -> bool:
    spec = importlib.util.find_spec(module)
    return spec is not None and spec.origin is not None  # a bare folder of that name is no module


_domain_claim = _claim_domain()
_missing = [name for name in ("rclpy", "cosmos_reason_msgs") if not _has(name)]
_has_launch = not _missing and _has("launch_ros")
_uses_standin = _has_launch and not _has("launch_pytest")
if _uses_standin:
    sys.path.insert(0, str(HERE / "standin"))

collect_ignore_glob = ["ros/test_*.py"] if _missing else [] if _has_launch else ["ros/test_launch_*.py"]


def pytest_configure(config: pytest.Config) -> None:
    """Register the stand-in's plugin."""
    if _uses_standin:
        config.pluginmanager.import_plugin("launch_pytest.plugin")


def pytest_unconfigure(config: pytest.Config) -> None:
    """Give the domain back."""
    if _domain_claim is not None:
        _domain_claim.close()


def _ros_tests() -> str:
    if _missing:
        return f"ROS tests NOT RUN: no {', '.join(_missing)}; run `make test`, or . scripts/env.sh first"
    if not _has_launch:
        return "launch tests NOT RUN: ROS 2's launch is not installed (see scripts/launch_packages.py)"
    return ""


def pytest_report_header() -> str:
    """What the ROS tests run with."""
    which = "the stand-in in tests/standin" if _uses_standin else "installed"
    return _ros_tests() or f"ROS domain {os.environ['ROS_DOMAIN_ID']}, launch_pytest: {which}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Repeat at the end what was left out."""
    if _ros_tests():
        terminalreporter.write_line(f"WARNING: {_ros_tests()}", yellow=True, bold=True)
