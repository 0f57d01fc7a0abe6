# SPDX-License-Identifier: Apache-2.0
"""/diagnostics: entries of the engine, the recorder and each camera, with what is wrong and what to do."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import cast

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.clock import ROSClock
from rclpy.node import Node

from ..engine.spec import EngineState, EngineStatistics, EngineStatus
from .camera import CameraReport
from .recorder import RecorderReport
from .session import Session

AHEAD_LIMIT_S = 0.1  # stamps further ahead of the node's clock are reported
LOG_PERIOD_S = 5.0
_LEVELS = {
    EngineState.STOPPED: DiagnosticStatus.STALE,
    EngineState.LOADING: DiagnosticStatus.WARN,
    EngineState.READY: DiagnosticStatus.OK,
    EngineState.RESTARTING: DiagnosticStatus.ERROR,
    EngineState.FAILED: DiagnosticStatus.ERROR,
}
# Counters of a camera that should stand still, and what it means when they do not.
_TROUBLES = {
    "bad_images": "images cannot be used",
    "invalid_stamps": "images without a usable stamp: let the driver fill in header.stamp",
    "duplicates": "images with the stamp of the one before",
    "out_of_order": "images older than the one before",
    "clock_jumps": "jumps of the stamps, or holes longer than max_hold_s: the window started anew",
}


class CameraWatch:
    """Notices what went wrong with a camera since the last look."""

    def __init__(self) -> None:
        self._before = dict.fromkeys(_TROUBLES, 0)
        self._logged = 0.0
        self._silent_since: float | None = None
        self._said_silent = False

    def troubles(self, report: CameraReport) -> list[str]:
        """New troubles since the last call, with counts."""
        found = []
        for name, meaning in _TROUBLES.items():
            count = getattr(report, name)
            if count > self._before[name]:
                found.append(f"{count - self._before[name]} {meaning}")
            self._before[name] = count
        if found and report.last_error and report.bad_images:
            found.append(f"last error: {report.last_error}")
        return found

    def silence(self, silent: bool, patience_s: float) -> bool | None:
        """True once when it has been silent for ``patience_s``, False once when it is back, else None."""
        now = time.monotonic()
        if silent:
            self._silent_since = self._silent_since or now
            if self._said_silent or now - self._silent_since < patience_s:
                return None
            self._said_silent = True
            return True
        was, self._said_silent, self._silent_since = self._said_silent, False, None
        return False if was else None

    def may_log(self) -> bool:
        """At most once in LOG_PERIOD_S; the time is taken when it says yes."""
        now = time.monotonic()
        if now - self._logged < LOG_PERIOD_S:
            return False
        self._logged = now
        return True


class Diagnostics:
    """Publishes on /diagnostics and logs new troubles of cameras, throttled."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._publisher = node.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self._watches: dict[str, CameraWatch] = {}
        self._dropped = 0

    def publish(
        self,
        engine: EngineStatus,
        work: EngineStatistics,
        session: Session | None,
        reports: Mapping[str, CameraReport],
        error: str,
    ) -> None:
        """Publish the state.

        Args:
            engine: of the engine process.
            work: what it did and saved.
            session: None unless the node is active.
            reports: of the cameras.
            error: why the last transition failed; empty when it did not.
        """
        array = DiagnosticArray(status=[self._lifecycle(error), self._engine(engine, work, session)])
        if session is not None:
            array.status.append(self._recorder(session.recorder.report()))
        for name, report in reports.items():
            array.status.append(self._camera(name, report, session))
        array.header.stamp = self._node.get_clock().now().to_msg()
        self._publisher.publish(array)

    def _entry(self, name: str, level: bytes, message: str, values: Mapping[str, object]) -> DiagnosticStatus:
        return DiagnosticStatus(
            level=level,
            name=f"{self._node.get_name()}: {name}",
            message=message,
            hardware_id=self._node.get_fully_qualified_name(),
            values=[KeyValue(key=key, value=str(value)) for key, value in values.items()],
        )

    def _lifecycle(self, error: str) -> DiagnosticStatus:
        if error:
            return self._entry("lifecycle", DiagnosticStatus.ERROR, error, {})
        clock = cast(ROSClock, self._node.get_clock())
        if clock.ros_time_is_active and clock.now().nanoseconds == 0:
            message = "use_sim_time is set but nothing publishes /clock"
            return self._entry("lifecycle", DiagnosticStatus.WARN, message, {})
        return self._entry("lifecycle", DiagnosticStatus.OK, "ok", {})

    def _engine(
        self, status: EngineStatus, work: EngineStatistics, session: Session | None
    ) -> DiagnosticStatus:
        values: dict[str, object] = {"pid": status.pid, "restarts": status.restarts}
        if status.info is not None:
            values |= {"model": status.info.model_id, "device": status.info.device}
            values |= {"dtype": status.info.dtype, "digest": status.info.digest}
        if session is not None:
            pipeline = session.pipeline
            values |= {"queries waiting": pipeline.waiting, "requests running": pipeline.running}
            values |= {"decisions": pipeline.decisions, "superseded": pipeline.superseded}
        pairs = work.vision_hits + work.vision_misses
        prefix = work.prefix_tokens_reused + work.prefix_tokens_read
        values |= {
            "vision cache hits": f"{work.vision_hits / max(1, pairs):.1%} of {pairs} frame pairs",
            "vision cache": f"{work.vision_bytes / 2**20:.1f} MiB a camera",
            "prefix tokens reused": f"{work.prefix_tokens_reused / max(1, prefix):.1%} of {prefix}",
            "question tokens": work.question_tokens,
            "decode tokens": f"{work.decode_tokens} in {work.decode_steps} steps",
            "queue wait": f"mean {work.queue_s / max(1, work.requests):.3f} s, max {work.queue_max_s:.3f} s",
        }
        message = f"{status.state.value}: {status.error_msg}" if status.error_msg else status.state.value
        return self._entry("engine", _LEVELS[status.state], message, values)

    def _recorder(self, report: RecorderReport) -> DiagnosticStatus:
        level, message = DiagnosticStatus.OK, report.recording or report.capturing or "nothing to write"
        if report.dropped > self._dropped:
            level = DiagnosticStatus.WARN
            message = (
                f"the disk is too slow: {report.dropped - self._dropped} messages are left out of {message}"
            )
        self._dropped = report.dropped
        if report.error:
            level, message = DiagnosticStatus.ERROR, report.error
        values = {
            "recording": report.recording,
            "capturing": report.capturing,
            "written": f"{report.bytes_written / 2**20:.1f} MiB",
            "dropped": report.dropped,
            "memory": f"{report.buffered_bytes / 2**20:.1f} MiB, {report.buffered_s:.1f} s",
        }
        return self._entry("recorder", level, message, values)

    def _camera(self, name: str, report: CameraReport, session: Session | None) -> DiagnosticStatus:
        watch = self._watches.setdefault(name, CameraWatch())
        troubles = watch.troubles(report)
        if troubles and watch.may_log():
            self._node.get_logger().warning(f"camera {name}: {'; '.join(troubles)}")
        level, message = DiagnosticStatus.OK, "ok"
        ahead_s = session.pipeline.ahead_s(name) if session is not None else 0.0
        if ahead_s > AHEAD_LIMIT_S:
            troubles.append(f"stamps are {ahead_s:.1f} s ahead of the node's clock: set the clocks alike")
        if troubles:
            level, message = DiagnosticStatus.WARN, "; ".join(troubles)
        silent = session.pipeline.camera_error(name) if session is not None else None
        if silent is not None:
            level, message = DiagnosticStatus.ERROR, "; ".join([silent.message, *troubles])
        patience_s = session.pipeline.config.max_stale_s if session is not None else 0.0
        changed = watch.silence(silent is not None, patience_s)
        if changed and silent is not None:
            self._node.get_logger().warning(silent.message)
        elif changed is False:
            self._node.get_logger().info(f"camera {name}: images arrive ({report.width}x{report.height})")
        if report.problems:
            level, message = DiagnosticStatus.ERROR, "; ".join([*report.problems, *troubles])
        values = {
            field: getattr(report, field)
            for field in ("topic", "type", "encoding", "width", "height", "qos", "received", "sampled")
        }
        values["rate"] = f"{report.rate:.1f}"
        values |= {field: getattr(report, field) for field in (*_TROUBLES, "gaps", "held", "last_error")}
        return self._entry(f"camera {name}", level, message, values)
