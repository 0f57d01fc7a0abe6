# SPDX-License-Identifier: Apache-2.0
"""Records <-> messages, and a message as JSON. All fields, no decisions."""

from __future__ import annotations

from typing import Any

from builtin_interfaces.msg import Duration, Time
from cosmos_reason_msgs.action import Reason
from cosmos_reason_msgs.msg import CameraStatus, Status, WindowInfo
from cosmos_reason_msgs.msg import Decision as DecisionMsg
from cosmos_reason_msgs.msg import Latency as LatencyMsg
from cosmos_reason_msgs.msg import ModelInfo as ModelInfoMsg
from cosmos_reason_msgs.srv import Query as QuerySrv

from ..engine.spec import EngineState, EngineStatistics, EngineStatus
from ..errors import CosmosReasonError, ErrorCode
from ..prompt import question_text
from ..types import Decision, Latency, ModelInfo, Query, QueryKind, Source, Verdict, Window
from .camera import CameraReport

_NS = 1_000_000_000
_ENGINE_STATES = {
    EngineState.STOPPED: Status.ENGINE_STOPPED,
    EngineState.LOADING: Status.ENGINE_LOADING,
    EngineState.READY: Status.ENGINE_READY,
    EngineState.RESTARTING: Status.ENGINE_RESTARTING,
    EngineState.FAILED: Status.ENGINE_FAILED,
}


def time_msg(ns: int) -> Time:
    """Nanoseconds since the epoch as a message."""
    return Time(sec=ns // _NS, nanosec=ns % _NS)


def duration_msg(seconds: float) -> Duration:
    """Seconds as a message; negative ones too."""
    ns = round(seconds * _NS)
    return Duration(sec=ns // _NS, nanosec=ns % _NS)


def seconds(duration: Duration) -> float:
    """The reverse of ``duration_msg``."""
    return duration.sec + duration.nanosec / _NS


def nanoseconds(stamp: Time) -> int:
    """The reverse of ``time_msg``."""
    return stamp.sec * _NS + stamp.nanosec


def window_msg(window: Window) -> WindowInfo:
    """Window without its pixels."""
    height, width = window.frames[-1].image.shape[:2]
    return WindowInfo(
        camera=window.camera,
        frame_id=window.frames[-1].frame_id,
        start=time_msg(window.start_ns),
        end=time_msg(window.end_ns),
        frame_stamps=[time_msg(frame.stamp_ns) for frame in window.frames],
        fps=window.fps,
        first_tick=window.first_tick,
        num_frames=len(window.frames),
        num_asked=window.asked,
        num_held=window.held,
        width=width,
        height=height,
    )


def model_msg(info: ModelInfo | None) -> ModelInfoMsg:
    """Which model; all empty for None."""
    info = info or ModelInfo()
    return ModelInfoMsg(
        model_id=info.model_id,
        digest=info.digest,
        prompt_id=info.prompt_id,
        engine=info.engine,
        device=info.device,
        dtype=info.dtype,
    )


def latency_msg(latency: Latency) -> LatencyMsg:
    """Latency parts, seconds."""
    return LatencyMsg(
        window=latency.window_s,
        queue=latency.queue_s,
        vision=latency.vision_s,
        prefill=latency.prefill_s,
        decode=latency.decode_s,
        first_token=latency.first_token_s,
    )


def decision_msg(decision: Decision) -> DecisionMsg:
    """A decision as published."""
    query, answer = decision.query, decision.answer
    msg = DecisionMsg(
        decision_id=decision.decision_id,
        source=int(decision.source),
        kind=int(query.kind),
        task=query.task,
        action=query.action,
        question=question_text(query),
        options=list(query.options),
        verdict=int(answer.verdict if answer else Verdict.UNKNOWN),
        option_index=answer.option_index if answer else -1,
        windows=[window_msg(window) for window in decision.windows],
        model=model_msg(decision.model),
        latency=latency_msg(decision.latency),
        published=time_msg(decision.published_ns),
        age=duration_msg(decision.age_s),
        valid_until=time_msg(decision.valid_until_ns),
        error_code=int(decision.error_code),
        error_msg=decision.error_msg,
    )
    msg.header.stamp = time_msg(decision.stamp_ns)
    if decision.windows:
        newest = max(decision.windows, key=lambda window: window.end_ns)
        msg.header.frame_id = newest.frames[-1].frame_id
    if answer:
        msg.answer = answer.answer
        msg.confidence = float(answer.confidence)
        msg.reasoning = answer.reasoning
        msg.prompt_tokens = answer.prompt_tokens
        msg.output_tokens = answer.output_tokens
    return msg


def query_from(request: QuerySrv.Request | Reason.Goal) -> Query:
    """Query of a service request or an action goal; they have the same fields.

    Raises:
        CosmosReasonError: INVALID_REQUEST for a kind that does not exist.
    """
    if request.kind not in list(QueryKind):
        kinds = ", ".join(f"{kind.value} ({kind.name})" for kind in QueryKind)
        raise CosmosReasonError(ErrorCode.INVALID_REQUEST, f"kind must be one of {kinds}, not {request.kind}")
    return Query(
        kind=QueryKind(request.kind),
        task=request.task,
        action=request.action,
        question=request.question,
        options=tuple(request.options),
        yes_no=request.yes_no,
        think_tokens=request.think_tokens,
    )


def camera_msg(report: CameraReport) -> CameraStatus:
    """State of one camera."""
    names = CameraStatus.get_fields_and_field_types()
    return CameraStatus(**{name: getattr(report, name) for name in names})


def engine_fields(status: EngineStatus) -> dict[str, Any]:
    """The fields of a Status message that tell of the engine."""
    return {
        "engine_state": _ENGINE_STATES[status.state],
        "engine_error": status.error_msg,
        "engine_restarts": status.restarts,
        "model": model_msg(status.info),
    }


def work_fields(work: EngineStatistics) -> dict[str, Any]:
    """The fields of a Status message that tell what the engine did and saved."""
    names = ("vision_hits", "vision_misses", "vision_bytes", "prefix_tokens_read", "prefix_tokens_reused")
    counts = {
        name: getattr(work, name) for name in (*names, "question_tokens", "decode_tokens", "decode_steps")
    }
    return {**counts, "queue_mean": work.queue_s / max(1, work.requests), "queue_max": work.queue_max_s}


def decision_json(msg: DecisionMsg) -> dict[str, Any]:
    """A decision message as plain JSON values: one line of decisions.jsonl, all fields.

    Enumerations become names ("COMPLETION", "YES"), stamps integer nanoseconds (``*_ns``), durations seconds
    (``*_s``); ``error`` is the name of ``error_code``.
    """
    return {
        "decision_id": msg.decision_id,
        "source": Source(msg.source).name,
        "kind": QueryKind(msg.kind).name,
        "stamp_ns": nanoseconds(msg.header.stamp),
        "frame_id": msg.header.frame_id,
        "task": msg.task,
        "action": msg.action,
        "question": msg.question,
        "options": list(msg.options),
        "verdict": Verdict(msg.verdict).name,
        "answer": msg.answer,
        "option_index": msg.option_index,
        "confidence": msg.confidence,
        "reasoning": msg.reasoning,
        "windows": [_window_json(window) for window in msg.windows],
        "model": _fields(msg.model),
        "latency": {f"{name}_s": value for name, value in _fields(msg.latency).items()},
        "prompt_tokens": msg.prompt_tokens,
        "output_tokens": msg.output_tokens,
        "published_ns": nanoseconds(msg.published),
        "age_s": seconds(msg.age),
        "valid_until_ns": nanoseconds(msg.valid_until),
        "error": ErrorCode(msg.error_code).name,
        "error_code": msg.error_code,
        "error_msg": msg.error_msg,
    }


def _window_json(window: WindowInfo) -> dict[str, Any]:
    fields = _fields(window)
    stamps = {
        "start_ns": nanoseconds(fields.pop("start")),
        "end_ns": nanoseconds(fields.pop("end")),
        "frame_stamps_ns": [nanoseconds(stamp) for stamp in fields.pop("frame_stamps")],
    }
    return {**fields, **stamps}


def _fields(msg: Any) -> dict[str, Any]:
    return {name: getattr(msg, name) for name in msg.get_fields_and_field_types()}
