# SPDX-License-Identifier: Apache-2.0
"""``make demo``: a real ROS 2 node watches a camera stream and answers; ends by itself, leaves a report.

    replay (process) ── image_raw ──> reason_node (process) ── decisions ──> this program
                     └─────────────────────────────────────────── images ──> (listener, collector)

Leaves decisions.jsonl, report.html and the processes' logs in build/demo.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import os
import platform
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import deployment
from ..errors import CosmosReasonError
from ..types import QueryKind
from ..video import VideoError
from . import report
from .agreement import agreement
from .clip import Clip, choose
from .collector import Collector, picture_size
from .console import Console
from .processes import Processes, ProcessFailed, Running
from .session import DECISIONS_FILE, FRAMES_DIR, SESSION_FILE, Record, Session, save

if TYPE_CHECKING:
    from ..ros.listener import Listener

TOPIC = "image_raw"
# Larger images are scaled down to this longer side before they become a topic, pixels.
IMAGE_SIDE = 640

# Longest times, seconds: loading the model; past the clip's length until replay ends; for the last answers
# of the monitors; for each of the questions at the end.
START_TIMEOUT_S = 300.0
OVERTIME_S = 60.0
DRAIN_S = 20.0
QUESTION_DEADLINE_S = 60.0
# The monitors have finished when their newest decision is so close to the end, or none comes, seconds.
CAUGHT_UP_S, SILENT_S = 1.0, 8.0


class DemoFailed(Exception):
    """The demo cannot go on; the message says why and what to do."""


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code: 0, 1 (failed), 2 (bad arguments) or 130 (Ctrl-C)."""
    options = _parse(argv)
    # A shell starts background jobs with Ctrl-C ignored, and Python then leaves it so.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    console = Console(sys.stdout)
    try:
        clip = choose(
            options.video, options.camera, options.task, options.action, options.options, options.seconds
        )
        model = Path(options.model).expanduser() if options.model else deployment.bundled_model()
        directory = _fresh_directory(options.out)
    except (ValueError, VideoError, OSError) as error:
        console.line(f"demo: {error}", "red")
        return 2
    os.environ.update(_isolated_ros(options.domain))
    _introduce(console, clip, model)
    try:
        return run(clip, model, directory, console)
    except KeyboardInterrupt:
        console.line("\nstopped by Ctrl-C", "yellow")
        return 130
    except (ProcessFailed, DemoFailed, CosmosReasonError) as error:
        console.line(f"\ndemo failed: {error}", "red")
        console.line(f"logs are in {directory}; `make demo` tries again")
        return 1


def run(clip: Clip, model: Path, directory: Path, console: Console) -> int:
    """Start, watch, ask, report. Bounded: START_TIMEOUT_S + the clip's length + a few minutes at most."""
    try:
        from ..ros.listener import Listener, NodeUnavailable
    except ImportError as error:
        raise DemoFailed(f"ROS 2 or the messages cannot be imported ({error}); run `make demo`") from error
    started = datetime.datetime.now().isoformat(timespec="seconds")
    collector = Collector(directory)
    try:
        with (
            Processes(directory, os.environ) as processes,
            Listener(
                lambda decision: _show(collector, console, decision),
                image_topic=TOPIC,
                on_image=collector.add_image,
                size_rule=picture_size,
            ) as listener,
        ):
            node = processes.start(deployment.reason(_settings(model)))
            _wait_until_ready(node, listener, console)
            listener.set_task(clip.task, clip.action, clip.options)
            _watch(node, processes.start(_replay(clip)), listener, collector, clip, console)
            _ask(node, listener, collector, clip, console)
            listener.spin(1.2)  # one more status: its counters go into the report
            status = listener.status or {}
    except NodeUnavailable as error:
        raise DemoFailed(f"{error}; see {directory / 'reason_node.log'}") from error
    finally:
        collector.close()
    session = _session(clip, started, collector, status)
    save(directory, session, collector.pictures())
    page = report.write(directory)
    return _conclude(session, collector.records, directory, page, console)


def _settings(model: Path) -> dict[str, Any]:
    """What the node is started with."""
    settings: dict[str, Any] = {
        "model": str(model),
        "cameras": [f"camera={TOPIC}"],
        "max_stale_s": 600.0,
    }
    if model == deployment.bundled_model():  # as in config/nano-cpu.yaml
        settings["monitors_at_once"] = ["affordance", "next_action"]
    return settings


def _wait_until_ready(node: Running, listener: Listener, console: Console) -> None:
    start_s = time.monotonic()
    while (waited_s := time.monotonic() - start_s) < START_TIMEOUT_S:
        node.check()
        state = listener.engine_state
        if state == "ready":
            console.line(f"  ready after {waited_s:.1f} s", "green")
            console.line()
            return
        if state == "failed":
            status = listener.status or {}
            raise DemoFailed(f"the engine cannot start: {status['engine_error']}\n{node.tail()}")
        doing = f"engine {state}" if state else "starting the node"
        console.progress(f"{doing}, {waited_s:.0f} s (of at most {START_TIMEOUT_S:.0f} s)")
        listener.spin(0.2)
    raise DemoFailed(f"the node was not ready within {START_TIMEOUT_S:.0f} s; its log ends:\n{node.tail()}")


def _watch(
    node: Running, replay: Running, listener: Listener, collector: Collector, clip: Clip, console: Console
) -> None:
    """Until replay has ended and the monitors have answered for the last window."""
    console.table_head()
    start_s = time.monotonic()
    while not replay.ended:
        node.check()
        if time.monotonic() - start_s > clip.duration_s + OVERTIME_S:
            raise DemoFailed(f"replay did not end in time; its log ends:\n{replay.tail()}")
        listener.spin(0.1)
        if not collector.images:
            console.progress("starting the camera")
            continue
        played_s = (collector.newest_stamp_ns - collector.first_stamp_ns) / 1e9
        console.progress(
            f"{console.meter(played_s / clip.duration_s, 24)} {played_s:.1f} of {clip.duration_s:.1f} s, "
            f"{collector.images} images, {len(collector.records)} decisions"
        )
    replay.check(may_end=True)
    if collector.images == 0:
        raise DemoFailed(f"no image arrived from replay; its log ends:\n{replay.tail()}")
    _drain(node, listener, collector)


def _drain(node: Running, listener: Listener, collector: Collector) -> None:
    """Let the monitors answer for the last window."""
    end_s = time.monotonic() + DRAIN_S
    silent_since_s, count = time.monotonic(), len(collector.records)
    while time.monotonic() < end_s:
        node.check()
        listener.spin(0.1)
        if len(collector.records) != count:
            silent_since_s, count = time.monotonic(), len(collector.records)
        newest_ns = max((record.stamp_ns for record in collector.records), default=0)
        caught_up = collector.newest_stamp_ns - newest_ns < CAUGHT_UP_S * 1e9
        if time.monotonic() - silent_since_s > (CAUGHT_UP_S if caught_up else SILENT_S):
            return


def _ask(node: Running, listener: Listener, collector: Collector, clip: Clip, console: Console) -> None:
    """Ask oneself, in two ways: an answer at once from the service, the thinking streamed by the action."""
    console.line()
    console.line("  query service, think_tokens 0: what is the next action?", "bold")
    decision = listener.ask(
        QUESTION_DEADLINE_S,
        kind=QueryKind.NEXT_ACTION,
        task=clip.task,
        options=clip.options,
        think_tokens=0,
    )
    _show_asked(collector, console, decision, streamed=False)
    console.line("  reason action: is the task complete?", "bold")
    decision = listener.reason(console.stream, QUESTION_DEADLINE_S, kind=QueryKind.COMPLETION, task=clip.task)
    console.stream_end()
    _show_asked(collector, console, decision, streamed=True)
    node.check()


def _show(collector: Collector, console: Console, decision: dict[str, Any]) -> None:
    record = _keep(collector, decision)
    if record is not None and record.source == "monitor":
        stamp_ns = record.stamp_ns or collector.newest_stamp_ns
        console.decision(record, (stamp_ns - collector.first_stamp_ns) / 1e9)


def _show_asked(collector: Collector, console: Console, decision: dict[str, Any], *, streamed: bool) -> None:
    _keep(collector, decision)
    record = Record.from_json(decision)
    if record.reasoning and not streamed:
        console.paragraph(record.reasoning, "dim")
    answer = f"{record.headline}, confidence {record.confidence:.2f}, {record.output_tokens} tokens"
    console.line(f"    -> {answer}" if not record.failed else f"    {record.error}: {record.error_msg}")


def _keep(collector: Collector, decision: dict[str, Any]) -> Record | None:
    """Collect a decision; None if it came before (answers to services and actions come as a topic too)."""
    if any(record.decision_id == decision["decision_id"] for record in collector.records):
        return None
    return collector.add_decision(decision)


def _conclude(session: Session, records: list[Record], directory: Path, page: Path, console: Console) -> int:
    good = [record for record in records if not record.failed]
    console.line()
    console.line(f"  {len(good)} decisions, {len(records) - len(good)} errors", "bold")
    for kind, (right, judged) in agreement(session, records).items():
        console.fact(kind.replace("_", " "), f"{right} of {judged} answers agree with what really happened")
    console.fact("decisions", str(directory / DECISIONS_FILE))
    console.fact("report", f"{page}  (open it in a browser)")
    if good:
        return 0
    reasons = sorted({f"{record.error}: {record.error_msg}" for record in records})
    console.line("  no question was answered. " + ("; ".join(reasons) or f"See {directory}/*.log."), "red")
    return 1


def _replay(clip: Clip) -> deployment.Process:
    process = deployment.replay(clip.source, topic=TOPIC, max_side=IMAGE_SIDE, max_duration_s=clip.duration_s)
    # Two subscribers: the node, and this program for its pictures.
    return dataclasses.replace(process, parameters={**process.parameters, "wait_subscribers": 2})


def _session(clip: Clip, started: str, collector: Collector, status: dict[str, Any]) -> Session:
    return Session(
        started=started,
        source=clip.source.name,
        source_note=clip.description.removeprefix(f"{clip.source.name}, "),
        duration_s=clip.duration_s,
        first_stamp_ns=collector.first_stamp_ns,
        task=clip.task,
        action=clip.action,
        options=clip.options,
        machine=_machine(),
        truth=clip.truth,
        cameras=tuple(status.get("cameras", ())),
        counters={name: status[name] for name in ("engine_restarts", "superseded") if name in status},
    )


def _introduce(console: Console, clip: Clip, model: Path) -> None:
    console.line()
    console.line("  cosmos_reason: a camera stream, reasoned about", "bold")
    console.line()
    console.fact("camera", clip.description)
    console.fact("task", clip.task)
    if clip.action:
        console.fact("possible?", clip.action)
    console.fact("model", str(model))
    domain = os.environ["ROS_DOMAIN_ID"]
    console.fact(
        "ROS 2", f"domain {domain}, seen on this machine only (export ROS_DOMAIN_ID={domain} to look in)"
    )
    if clip.note:
        console.line(f"  {clip.note}", "yellow")
    console.line()


def _isolated_ros(domain: int | None) -> dict[str, str]:
    """Environment that keeps the demo away from other ROS systems, and images fast."""
    return {
        "ROS_DOMAIN_ID": str(domain if domain is not None else random.randint(40, 100)),
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        **deployment.transport_environment(),
    }


def _fresh_directory(directory: Path) -> Path:
    """The session's directory without an earlier session's files (and nothing else touched).

    Raises:
        ValueError: there is a folder of that name which no session has made.
        OSError: it cannot be made.
    """
    directory.mkdir(parents=True, exist_ok=True)
    frames = directory / FRAMES_DIR
    if frames.exists() and not any((directory / name).exists() for name in (DECISIONS_FILE, SESSION_FILE)):
        raise ValueError(f"{frames} is not of an earlier demo: choose another --out")
    shutil.rmtree(frames, ignore_errors=True)  # first: the others say that it is ours
    for name in (DECISIONS_FILE, SESSION_FILE, report.REPORT_FILE):
        (directory / name).unlink(missing_ok=True)
    return directory


def _machine() -> str:
    """Processor, cores, system, ROS distribution."""
    processor = platform.processor() or platform.machine()
    with open("/proc/cpuinfo", encoding="utf-8") as lines:
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    try:
        release = platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        release = platform.system()
    cores = len(os.sched_getaffinity(0))
    ros = os.environ.get("ROS_DISTRO", "")
    return f"{names[0] if names else processor}, {cores} cores, {release}" + (f", ROS 2 {ros}" if ros else "")


def _parse(argv: list[str] | None) -> argparse.Namespace:
    """Arguments. Empty values count as not given, so that a Makefile can pass all its variables on."""
    parser = argparse.ArgumentParser(
        prog="python -m cosmos_reason_node.demo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--video", default="", help="a video file; default: the bundled clip")
    parser.add_argument("--camera", default="", help="a camera instead, e.g. /dev/video0")
    parser.add_argument("--task", default="", help="what the robot is doing, in words")
    parser.add_argument("--action", default="", help="the action whose possibility is asked")
    parser.add_argument("--options", default="", type=_choices, help="next actions to choose from: a;b;c")
    parser.add_argument("--seconds", default="", type=_seconds, help="stop after so long")
    parser.add_argument("--model", default="", help="checkpoint directory; default: the bundled nano")
    parser.add_argument("--out", default=Path("build/demo"), type=Path, help="directory of the results")
    parser.add_argument("--domain", default=None, type=int, help="ROS domain; default: a random one")
    return parser.parse_args(argv)


def _choices(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(";") if part.strip())


def _seconds(text: str) -> float:
    return float(text or 0)


if __name__ == "__main__":
    sys.exit(main())
