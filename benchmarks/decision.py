# SPDX-License-Identifier: Apache-2.0
"""How old a decision is when it is published, and where the time went.

    python -m benchmarks.decision --json benchmarks/results/decision.json

A publisher process sends 640x480 images at 30 Hz a camera to the real node (its own process, its engine in
another), whose monitors ask the three queries all the time; this process only listens. Ages are those the
decisions carry: publish minus capture of the newest frame the model saw. Parts are the decision's latency
fields; they add up to the age less what hand-over and publishing take (``other``).

- ``sampled_frames_lost``: ticks of the windows' time grid without a frame. A publisher that could not keep
  its schedule (``publisher_latest_s`` of 0.2 and more at 4 ticks a second) counts here too: run it with
  nothing else on the machine.
- ``superseded``: windows not asked about because a newer one was there before the engine was free.
- ``cpu_cores``: mean CPU use of the node's and the engine's process, in cores.

Without the bundled checkpoint a tiny one of random weights is taken; the result says which it was.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from cosmos_reason_node import deployment
from cosmos_reason_node.errors import ErrorCode
from cosmos_reason_node.ros.messages import decision_json

from .ingest_processes import Load
from .machine import command_line, describe_machine

PARTS = ("window", "queue", "vision", "prefill", "decode")
WINDOW_FILL_S = 9.0  # 32 frames at 4 a second, and a little
READY_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 20.0
TASK = {"task": "open the drawer", "action_options": ["reach", "grasp", "pull", "push", "stop"]}


class Ear:
    """Listens to decisions and status from a thread of its own."""

    def __init__(self) -> None:
        import rclpy
        from cosmos_reason_msgs.msg import Decision, Status
        from rclpy.executors import SingleThreadedExecutor
        from rclpy.qos import DurabilityPolicy, QoSProfile

        self._context = rclpy.Context()
        rclpy.init(context=self._context)
        self._node = rclpy.create_node("decision_benchmark", context=self._context)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self._stop = threading.Event()
        self.decisions: list[dict[str, Any]] = []
        self.status: Status | None = None
        self.status_count = 0
        self._node.create_subscription(Decision, "decisions", self._on_decision, 100)
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self._node.create_subscription(Status, "status", self._on_status, latched)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def close(self) -> None:
        """Leave the graph."""
        self._stop.set()
        self._thread.join()
        self._executor.shutdown()
        self._node.destroy_node()
        self._context.try_shutdown()

    def next_status(self, timeout_s: float = 10.0) -> Any:
        """A status that is published after this call."""
        count = self.status_count
        until(lambda: self.status_count > count, "a status", timeout_s)
        return self.status

    def _on_decision(self, message: Any) -> None:
        self.decisions.append(decision_json(message))

    def _on_status(self, message: Any) -> None:
        self.status = message
        self.status_count += 1

    def _run(self) -> None:
        while not self._stop.is_set():
            self._executor.spin_once(timeout_sec=0.1)


def until(condition: Callable[[], Any], what: str, timeout_s: float) -> None:
    """Wait for a condition; TimeoutError after ``timeout_s``."""
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {timeout_s:g} s")
        time.sleep(0.02)


@contextmanager
def started(command: Sequence[str], env: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process for the time of a block; ended with SIGINT. Its output is shown when the block fails."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=env, stdout=output, stderr=subprocess.STDOUT)
    try:
        yield process
    except BaseException:
        print(log.read_text(errors="replace"), file=sys.stderr)
        raise
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def measure(model: Path, load: Load, think_tokens: int, directory: Path) -> dict[str, Any]:
    """One scenario: ``load.seconds`` of decisions once the windows are full."""
    settings = {
        **TASK,
        "model": str(model),
        "cameras": [f"camera_{i}={topic}" for i, topic in enumerate(load.topics)],
        "monitor_think_tokens": think_tokens,
        "record_dir": str(directory / "bags"),
    }
    node = deployment.reason(settings)
    stream = dataclasses.replace(load, seconds=load.seconds + WINDOW_FILL_S + 5.0)
    publisher = [sys.executable, "-m", "benchmarks.ingest_processes", "publish"]
    publisher.append(json.dumps(dataclasses.asdict(stream)))
    ear = Ear()
    try:
        with started(node.command(), node.environ(), directory / "node.log") as process:
            until(lambda: ear.status and ear.status.cameras, "the node", READY_TIMEOUT_S)
            environment = node.environ() | deployment.transport_environment()
            output = directory / "publisher.log"
            with started(publisher, environment, output) as source:
                until(lambda: ear.decisions, "a first decision", 60.0)
                time.sleep(WINDOW_FILL_S)
                result = _measure_now(ear, psutil.Process(process.pid), load)
                source.wait(60.0)
            sent = json.loads(output.read_text().splitlines()[-1])
            return {**result, "publisher_latest_s": sent["latest_s"]}
    finally:
        ear.close()


def _measure_now(ear: Ear, node: psutil.Process, load: Load) -> dict[str, Any]:
    processes = {"node": node, "engine": node.children()[0]}
    before, first = ear.next_status(), len(ear.decisions)
    cpu, start = {name: _cpu_s(process) for name, process in processes.items()}, time.monotonic()
    time.sleep(load.seconds)
    elapsed = time.monotonic() - start
    cores = {name: round((_cpu_s(p) - cpu[name]) / elapsed, 3) for name, p in processes.items()}
    decisions = ear.decisions[first:]
    after = ear.next_status()
    good = [d for d in decisions if d["error"] == ErrorCode.NONE.name]
    if not good:
        raise RuntimeError(f"no decision but {sorted({d['error'] for d in decisions})} in {elapsed:.0f} s")
    cameras = list(zip(before.cameras, after.cameras, strict=True))

    def grown(field: str) -> int:
        return sum(getattr(new, field) - getattr(old, field) for old, new in cameras)

    return {
        "cameras": load.cameras,
        "image": f"{load.width}x{load.height} {load.kind} at {load.rate:g} Hz",
        "seconds": round(elapsed, 1),
        "decisions": len(good),
        "errors": len(decisions) - len(good),
        "decisions_per_s": round(len(good) / elapsed, 3),
        "frames_per_window": sorted({window["num_frames"] for d in good for window in d["windows"]}),
        "age_s": _percentiles([d["age_s"] for d in good]),
        "parts_s": {
            **{part: _percentiles([d["latency"][f"{part}_s"] for d in good]) for part in PARTS},
            "other": _percentiles([d["age_s"] - sum(d["latency"][f"{p}_s"] for p in PARTS) for d in good]),
        },
        "superseded": after.superseded - before.superseded,
        "images_received": grown("received"),
        "sampled_frames": grown("sampled"),
        "sampled_frames_lost": grown("held") + grown("bad_images"),
        "windows_restarted": grown("clock_jumps"),
        "cpu_cores": cores,
        "model": good[-1]["model"],
    }


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    return {f"p{p}": round(float(np.percentile(values, p)), 4) for p in (50, 99)}


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def find_model(directory: Path) -> Path:
    """The bundled checkpoint, or a tiny one of random weights made in ``directory``."""
    try:
        return deployment.bundled_model()
    except FileNotFoundError:
        model = directory / "tiny-random"
        subprocess.run(
            [sys.executable, "-m", "tests.tiny_model", model], check=True, stdout=subprocess.DEVNULL
        )
        return model


def main() -> None:
    """Measure one camera and four, print and write the result."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.decision", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--json", type=Path, help="where to write the result")
    parser.add_argument("--model", type=Path, help="checkpoint directory (default: the bundled one)")
    parser.add_argument("--seconds", type=float, default=30.0, help="length of each measurement")
    parser.add_argument("--cameras", type=int, nargs="+", default=[1, 4], help="numbers of cameras")
    parser.add_argument("--think-tokens", type=int, default=0, help="reasoning tokens of the monitors")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="decision_benchmark_") as name:
        directory = Path(name)
        model = (options.model or find_model(directory)).absolute()
        result: dict[str, Any] = {
            "command": command_line(),
            "machine": describe_machine(("torch", "rclpy")),
            "model": model.name,
            "monitor_think_tokens": options.think_tokens,
            "scenarios": [],
        }
        for cameras in options.cameras:
            load = Load(640, 480, "raw", cameras, 30.0, options.seconds)
            scenario = measure(model, load, options.think_tokens, directory)
            print(json.dumps(scenario, indent=1))
            result["scenarios"].append(scenario)
    result["sampled_frames_lost"] = sum(scenario["sampled_frames_lost"] for scenario in result["scenarios"])
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
