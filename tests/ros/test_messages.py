# SPDX-License-Identifier: Apache-2.0
"""Records to messages and back, and a decision as one line of JSON."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from cosmos_reason_msgs.action import Reason
from cosmos_reason_msgs.msg import Decision as DecisionMsg
from cosmos_reason_msgs.msg import ErrorCode as ErrorCodeMsg
from cosmos_reason_msgs.msg import QueryKind as QueryKindMsg
from cosmos_reason_msgs.msg import Status as StatusMsg
from cosmos_reason_msgs.srv import Query as QuerySrv

from cosmos_reason_node.config import Config
from cosmos_reason_node.engine.spec import EngineStatistics
from cosmos_reason_node.errors import CosmosReasonError, ErrorCode
from cosmos_reason_node.monitors import Task
from cosmos_reason_node.queries import complete_query
from cosmos_reason_node.ros import messages
from cosmos_reason_node.types import (
    Answer,
    Decision,
    Frame,
    Latency,
    ModelInfo,
    Query,
    QueryKind,
    Source,
    Verdict,
    Window,
)

pytestmark = pytest.mark.ros
STAMP_NS = 1_700_000_000_123_456_789
PERIOD_NS = 250_000_000


def decision() -> Decision:
    frames = tuple(
        Frame("front", STAMP_NS + i * PERIOD_NS, 100 + i, np.zeros((56, 84, 3), np.uint8), "optical")
        for i in range(4)
    )
    return Decision(
        decision_id="a-1",
        source=Source.ACTION,
        query=Query(QueryKind.NEXT_ACTION, task="open the drawer", options=("reach", "pull")),
        windows=(Window("front", frames, 100, PERIOD_NS, 1, 8),),
        answer=Answer(Verdict.CHOICE, "pull", 1, 0.75, "it is grasped", 200, 12),
        model=ModelInfo("nano", "ab" * 32, "p1", "torch", "cpu", "float32"),
        latency=Latency(0.25, 0.5, 1.0, 2.0, 4.0, 3.5),
        published_ns=STAMP_NS + 3 * PERIOD_NS + 8_000_000_000,
        valid_until_ns=STAMP_NS + 3 * PERIOD_NS + 5_000_000_000,
    )


def constants(msg_type: type) -> dict[str, int]:
    return {
        name: getattr(msg_type, name) for name in dir(msg_type) if name.isupper() and name != "SLOT_TYPES"
    }


def test_enumerations_are_those_of_the_messages():
    assert constants(ErrorCodeMsg) == {code.name: code.value for code in ErrorCode}
    assert constants(QueryKindMsg) == {kind.name: kind.value for kind in QueryKind}
    decisions = constants(DecisionMsg)
    assert {k: v for k, v in decisions.items() if k.startswith("SOURCE_")} == {
        f"SOURCE_{source.name}": source.value for source in Source
    }
    assert {k: v for k, v in decisions.items() if k.startswith("VERDICT_")} == {
        f"VERDICT_{verdict.name}": verdict.value for verdict in Verdict
    }


def test_a_decision_message_holds_the_whole_record():
    msg = messages.decision_msg(decision())
    assert messages.nanoseconds(msg.header.stamp) == STAMP_NS + 3 * PERIOD_NS
    assert msg.header.frame_id == "optical"
    assert msg.age.sec == 8
    assert (msg.verdict, msg.answer, msg.option_index, msg.confidence) == (3, "pull", 1, 0.75)
    assert msg.question == "The task is: open the drawer. What is the next action?"
    (window,) = msg.windows
    assert (window.num_frames, window.num_asked, window.num_held) == (4, 8, 1)
    assert (window.width, window.height, window.fps) == (84, 56, 4.0)
    assert [messages.nanoseconds(stamp) for stamp in window.frame_stamps] == [
        STAMP_NS + i * PERIOD_NS for i in range(4)
    ]


def test_an_error_has_no_answer_but_its_moment():
    failed = decision().with_error(ErrorCode.ENGINE_DIED, "killed")
    msg = messages.decision_msg(failed)
    assert (msg.error_code, msg.error_msg, msg.verdict, msg.answer) == (401, "killed", 0, "")
    assert messages.nanoseconds(msg.header.stamp) == STAMP_NS + 3 * PERIOD_NS


def test_the_json_line_has_every_field_of_the_message():
    msg = messages.decision_msg(decision())
    line = json.loads(json.dumps(messages.decision_json(msg)))
    renamed = {"header": {"stamp_ns", "frame_id"}, "published": {"published_ns"}, "age": {"age_s"}}
    renamed["valid_until"] = {"valid_until_ns"}
    expected = {new for name in msg.get_fields_and_field_types() for new in renamed.get(name, {name})}
    assert set(line) == expected | {"error"}
    assert (line["kind"], line["source"], line["verdict"], line["error"]) == (
        "NEXT_ACTION",
        "ACTION",
        "CHOICE",
        "NONE",
    )
    assert line["stamp_ns"] == STAMP_NS + 3 * PERIOD_NS, "every digit is kept"
    assert line["latency"] == {
        "window_s": 0.25,
        "queue_s": 0.5,
        "vision_s": 1.0,
        "prefill_s": 2.0,
        "decode_s": 4.0,
        "first_token_s": 3.5,
    }
    window_fields = set(msg.windows[0].get_fields_and_field_types())
    assert set(line["windows"][0]) == (window_fields - {"start", "end", "frame_stamps"}) | {
        "start_ns",
        "end_ns",
        "frame_stamps_ns",
    }


@pytest.mark.parametrize("seconds", [0.0, 1.25, -1.25, -0.000001, 3600.0])
def test_durations_survive_also_negative_ones(seconds):
    assert messages.seconds(messages.duration_msg(seconds)) == pytest.approx(seconds, abs=1e-9)


def test_a_request_becomes_a_query():
    query = Query(QueryKind.QUESTION, "t", "a", "q?", ("x", "y"), True, 7)
    fields = dataclasses.asdict(query) | {"kind": 0, "options": ["x", "y"]}
    assert messages.query_from(QuerySrv.Request(**fields)) == query
    with pytest.raises(CosmosReasonError, match="not 9") as info:
        messages.query_from(QuerySrv.Request(kind=9))
    assert info.value.code is ErrorCode.INVALID_REQUEST


@pytest.mark.parametrize("request_type", [QuerySrv.Request, Reason.Goal])
def test_a_request_that_does_not_say_how_long_to_think_leaves_it_to_the_node(request_type):
    query = messages.query_from(request_type(question="q?"))
    assert query.think_tokens == -1
    assert complete_query(query, Task(), Config(query_think_tokens=33)).think_tokens == 33


def test_the_engine_s_work_in_status():
    work = EngineStatistics(
        vision_hits=15, vision_misses=1, vision_bytes=2**20, prefix_tokens_reused=7, requests=4, queue_s=2.0
    )
    msg = StatusMsg(**messages.work_fields(work))
    assert (msg.vision_hits, msg.vision_misses, msg.vision_bytes) == (15, 1, 2**20)
    assert (msg.prefix_tokens_reused, msg.queue_mean) == (7, 0.5)
    assert StatusMsg(**messages.work_fields(EngineStatistics())).queue_mean == 0.0
