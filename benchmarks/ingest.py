# SPDX-License-Identifier: Apache-2.0
"""CPU a camera frame costs the node, against the usual rclpy path, side by side.

    python -m benchmarks.ingest --json benchmarks/results/ingest.json

Real publisher processes send serialized images through the middleware to a real subscriber process, and the
CPU time of that process (all threads, user and system) is divided by the images it received.

- *ours*: what the node does. Fast DDS profile and malloc thresholds (publisher and subscriber), events
  executor, serialized subscription, the stamp of every image read, the grid's frames (4 a second) converted
  and resized, every message kept in the recorder's memory.
- *plain*: what a typical rclpy node does. Default transport and heap (publisher and subscriber),
  deserialized messages, rclpy.spin, every frame converted to RGB the way cv_bridge does (numpy view and
  cv2.cvtColor, or cv2.imdecode). It neither resizes nor records.

Both sides use RELIABLE subscriptions and one OpenCV thread. The first seconds of a stream are not measured.
Runs of the two sides alternate. Run it with nothing else on the machine.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cosmos_reason_node.deployment import transport_environment
from cosmos_reason_node.engine.spec import EngineSpec

from .ingest_processes import DISCOVERY_S, IDLE_S, WARM_UP_S, Load
from .machine import command_line, describe_machine

SIZES = ((640, 480), (1920, 1080))
GOAL_RATIO = 0.25
PARTS = ("cpu", "default_publisher", "under_load", "sustained")
_PACKAGES = ("ros-jazzy-rclpy", "ros-jazzy-rmw-fastrtps-cpp", "opencv-python-headless")
LADDER = (15, 30, 60, 120, 240, 480, 960)
# What the engine process does to a core: matrix products in one thread, at the engine's niceness.
_BUSY = f"""
import os
import numpy as np
os.nice({EngineSpec.niceness})
a = np.ones((512, 512), np.float32)
while True:
    a @ a
"""


def run_side(side: str, load: Load, *, tuned_publisher: bool | None = None) -> dict[str, Any]:
    """One subscriber and one publisher process; the subscriber's result with the publisher's beside it."""
    tuned = side == "ours"
    if tuned_publisher is None:
        tuned_publisher = tuned
    subscriber = _start(side, load, tuned)
    publisher = _start("publish", load, tuned_publisher)
    limit_s = 2 * DISCOVERY_S + 4 * (WARM_UP_S + load.seconds) + IDLE_S
    try:
        sent = _result(publisher, limit_s)
        result = _result(subscriber, limit_s)
    finally:
        for process in (subscriber, publisher):
            process.kill()
            process.wait()
    return {
        **result,
        "sent": sent["sent"],
        "lost": sent["sent"] - result["received"],
        "published_rate": sent["rate"],
        "publisher_cpu_ms_per_frame": sent["cpu_ms_per_frame"],
    }


def compare(loads: dict[str, Load], repeats: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """CPU per frame of both sides for every load, and their ratios."""
    runs: dict[str, dict[str, list[dict[str, Any]]]] = {name: {"plain": [], "ours": []} for name in loads}
    for repeat in range(repeats):
        for name, load in loads.items():
            for side in ("plain", "ours") if repeat % 2 == 0 else ("ours", "plain"):
                result = run_side(side, load)
                runs[name][side].append(result)
                _say(
                    f"{name} {side}: {result['cpu_ms_per_frame']} ms, lost {result['lost']}/{result['sent']}"
                )
    cases, ratios = [], {}
    for name, load in loads.items():
        case: dict[str, Any] = {"case": name, "load": dataclasses.asdict(load)}
        for side, results in runs[name].items():
            costs = [r["cpu_ms_per_frame"] for r in results if r["cpu_ms_per_frame"] is not None]
            case[side] = {
                "cpu_ms_per_frame": round(statistics.median(costs), 4) if costs else None,
                "cpu_ms_per_frame_runs": costs,
                "rate": [r["rate"] for r in results],
                "lost": [r["lost"] for r in results],
                "sent": [r["sent"] for r in results],
                "publisher_cpu_ms_per_frame": [r["publisher_cpu_ms_per_frame"] for r in results],
            }
            if side == "ours":
                case[side]["sampled_frames_lost"] = [r["sampled_frames_lost"] for r in results]
        if case["plain"]["cpu_ms_per_frame"] and case["ours"]["cpu_ms_per_frame"]:
            ratios[name] = round(case["ours"]["cpu_ms_per_frame"] / case["plain"]["cpu_ms_per_frame"], 3)
        cases.append(case)
    summary = {
        "per_case": ratios,
        "median": round(statistics.median(ratios.values()), 3),
        "worst": max(ratios.values()),
        "goal": GOAL_RATIO,
    }
    return cases, summary


def sustained_rate(side: str, load: Load) -> dict[str, Any]:
    """The highest rate of the ladder at which one camera loses nothing."""
    best, tried = 0, []
    for rate in LADDER:
        result = run_side(side, dataclasses.replace(load, rate=rate))
        tried.append({"rate": rate, "published_rate": result["published_rate"], "lost": result["lost"]})
        _say(f"{side} {load.width}x{load.height} {load.kind} at {rate}/s: {tried[-1]}")
        if result["lost"] or result["published_rate"] < 0.97 * rate:
            break
        best = rate
    return {"frames_per_s_without_loss": best, "tried": tried}


def sustained_rates() -> dict[str, Any]:
    """``sustained_rate`` of both sides for each size and kind."""
    return {
        f"{width}x{height} {kind}": {
            side: sustained_rate(side, Load(width, height, kind, 1, 30.0, 2.0)) for side in ("plain", "ours")
        }
        for width, height in SIZES
        for kind in ("raw", "jpeg")
    }


def default_publisher(loads: dict[str, Load]) -> dict[str, Any]:
    """Ours with a publisher that has the default transport, such as a camera driver nobody has tuned."""
    return {
        name: run_side("ours", load, tuned_publisher=False)
        for name, load in loads.items()
        if load.cameras == 1 and load.kind == "raw"
    }


def under_load(seconds: float, busy_processes: int) -> dict[str, Any]:
    """Four cameras of 640x480 at 30 Hz while other processes compute."""
    load = Load(640, 480, "raw", 4, 30.0, seconds)
    with _busy(busy_processes):
        result = run_side("ours", load)
    _say(f"under load: {result}")
    return {"busy_processes": busy_processes, **result}


def main() -> None:
    """Run the parts asked for and write, or update, the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ingest", description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True, help="file for the results")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of a stream")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each case and side; medians count")
    parser.add_argument("--cases", default="", help="only cases whose name contains this")
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=PARTS,
        default=PARTS,
        help="only these; others stay as they are in the file",
    )
    options = parser.parse_args()
    report: dict[str, Any] = {"benchmark": "ingest", "sides": __doc__, "runs": {}}
    if options.json.exists() and set(options.parts) != set(PARTS):
        report |= json.loads(options.json.read_text())
    run = {"command": command_line(), "machine": describe_machine(_PACKAGES)}
    loads = {
        f"{width}x{height} {kind} x{cameras}": Load(width, height, kind, cameras, 30.0, options.seconds)
        for width, height in SIZES
        for kind in ("raw", "jpeg")
        for cameras in (1, 4)
    }
    loads = {name: load for name, load in loads.items() if options.cases in name}
    for part in options.parts:
        report["runs"][part] = run
        if part == "cpu":
            report["cases"], report["ratio_cpu_vs_plain"] = compare(loads, options.repeats)
            _say(f"ratio_cpu_vs_plain: {report['ratio_cpu_vs_plain']}")
        elif part == "default_publisher":
            report[part] = default_publisher(loads)
        elif part == "under_load":
            report[part] = [under_load(2 * options.seconds, busy) for busy in (1, 2)]
        else:
            report[part] = sustained_rates()
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(report, indent=1) + "\n")
    _say(f"written: {options.json}")


def _start(side: str, load: Load, tuned: bool) -> subprocess.Popen[str]:
    environment = {
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        "ROS_DOMAIN_ID": os.environ.get("ROS_DOMAIN_ID", "91"),
        **os.environ,
    }
    if tuned:
        environment |= transport_environment(environment)
    arguments = json.dumps(dataclasses.asdict(load))
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.ingest_processes", side, arguments],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )


def _result(process: subprocess.Popen[str], limit_s: float) -> dict[str, Any]:
    output, _ = process.communicate(timeout=limit_s)
    if process.returncode:
        raise RuntimeError(f"{process.args!r} ended with {process.returncode}")
    return json.loads(output.splitlines()[-1])


@contextlib.contextmanager
def _busy(count: int) -> Iterator[None]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    processes = [subprocess.Popen([sys.executable, "-c", _BUSY], env=environment) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
