# SPDX-License-Identifier: Apache-2.0
"""Queries in the pipeline, against an engine that answers when the test says so."""

import dataclasses

import pytest

from cosmos_reason_node.engine.base import Done, Failed, Token
from cosmos_reason_node.engine.spec import EngineState
from cosmos_reason_node.errors import ErrorCode
from cosmos_reason_node.pipeline import MAX_QUERIES_RUNNING
from cosmos_reason_node.types import Decision, Latency, Query, QueryKind, Source
from tests.unit.pipeline_bench import YES, Bench


def test_a_query_is_answered_about_the_newest_window_and_published():
    bench = Bench(task="")
    bench.frames(4)
    ticket_id = bench.ask()
    bench.pipeline.engine_event(ticket_id, Token(0, "", True))
    bench.pipeline.engine_event(ticket_id, Token(0, "the cup", True))
    bench.pipeline.engine_event(ticket_id, Token(0, "yes", False))
    bench.finish(ticket_id)
    (reply,) = bench.replies
    assert reply.decision_id == ticket_id
    assert reply.source is Source.SERVICE
    assert reply.answer == YES
    assert reply.windows[0].camera == "front"
    assert reply.query.think_tokens == 512
    assert bench.published == [reply]
    assert bench.texts == [("the cup", True, 1), ("yes", False, 2)]


def test_several_cameras_are_several_windows_of_one_prompt():
    bench = Bench(task="")
    bench.frames(4)
    bench.frames(4, "wrist", past=True)
    request = bench.engine.requests[bench.ask(cameras=("wrist", "front"))]
    assert [window.camera for window in request.windows] == ["wrist", "front"]


def test_queries_run_side_by_side_and_beside_a_monitor():
    bench = Bench()
    bench.frames(4)
    (monitor,) = bench.engine.requests
    asked = [bench.ask() for _ in range(MAX_QUERIES_RUNNING + 2)]
    assert list(bench.engine.requests) == [monitor, *asked[:MAX_QUERIES_RUNNING]]
    assert bench.pipeline.waiting == 2
    bench.finish(asked[1])
    assert asked[MAX_QUERIES_RUNNING] in bench.engine.requests
    assert [reply.decision_id for reply in bench.replies] == [asked[1]]


def test_queries_go_before_the_next_monitor():
    bench = Bench(monitors=("completion",))
    bench.frames(2)
    (first,) = bench.engine.requests
    bench.state(EngineState.RESTARTING)
    asked = bench.ask()
    bench.frames(2)
    bench.pipeline.engine_event(first, Failed(-1, ErrorCode.ENGINE_DIED, "gone"))
    bench.engine.requests.clear()
    bench.state(EngineState.READY)
    assert bench.engine.order[1] == asked
    assert len(bench.engine.requests) == 2


def test_a_full_queue_refuses():
    bench = Bench(task="", max_queries=1)
    bench.frames(4)
    for _ in range(MAX_QUERIES_RUNNING + 1):
        bench.ask()
    assert not bench.replies
    bench.ask()
    assert bench.codes() == [ErrorCode.BUSY]
    assert not bench.published


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({"query": Query(QueryKind.QUESTION)}, ErrorCode.INVALID_REQUEST),
        ({"query": Query(QueryKind.COMPLETION)}, ErrorCode.NO_TASK),
        ({"query": Query(QueryKind.NEXT_ACTION)}, ErrorCode.NO_TASK),
        ({"query": Query(QueryKind.AFFORDANCE)}, ErrorCode.NO_TASK),
        ({"text": "why " * 1000}, ErrorCode.QUESTION_TOO_LONG),
        ({"text": "a <|im_end|> b"}, ErrorCode.INVALID_REQUEST),
        ({"query": Query(QueryKind.QUESTION, question="x", options=("one",))}, ErrorCode.INVALID_REQUEST),
        ({"query": Query(QueryKind.QUESTION, question="x", think_tokens=-2)}, ErrorCode.INVALID_REQUEST),
        ({"query": Query(QueryKind.QUESTION, question="x", think_tokens=10**6)}, ErrorCode.INVALID_REQUEST),
        ({"cameras": ("rear",)}, ErrorCode.UNKNOWN_CAMERA),
        ({"cameras": ("front", "front")}, ErrorCode.INVALID_REQUEST),
        ({"cameras": ("wrist",)}, ErrorCode.NO_FRAMES),
        ({"deadline_s": -1.0}, ErrorCode.INVALID_REQUEST),
        ({"deadline_s": float("nan")}, ErrorCode.INVALID_REQUEST),
        ({"deadline_s": 1e9}, ErrorCode.INVALID_REQUEST),
    ],
)
def test_queries_that_cannot_be_served_are_refused_by_name(settings, code):
    bench = Bench(task="")
    bench.frames(4)
    bench.ask(**settings)
    assert bench.codes() == [code]
    assert bench.replies[0].error_msg
    assert not bench.engine.requests


def test_empty_fields_take_the_current_task_and_action():
    bench = Bench(monitors=(), affordance_action="pull the handle")
    bench.frames(4)
    affordance = bench.engine.requests[bench.ask(query=Query(QueryKind.AFFORDANCE))]
    own = bench.engine.requests[bench.ask(query=Query(QueryKind.AFFORDANCE, task="close the lid"))]
    assert affordance.queries[0].action == "pull the handle"
    assert affordance.queries[0].task == "open the drawer"
    assert own.queries[0].action == ""
    assert own.queries[0].task == "close the lid"


def test_stale_frames_are_not_answered_from():
    bench = Bench(task="")
    bench.frames(4)
    bench.advance(3.0)
    bench.ask()
    assert bench.codes() == [ErrorCode.STALE_FRAMES]


def test_a_camera_clock_that_runs_ahead_does_not_hide_silence():
    bench = Bench(task="")
    bench.frames(4, ahead_s=3600.0)
    bench.advance(3.0)
    bench.ask()
    assert bench.codes() == [ErrorCode.STALE_FRAMES]


def test_the_deadline_counts_from_acceptance_and_frees_the_engine():
    bench = Bench(task="")
    bench.frames(4)
    ticket_id = bench.ask(deadline_s=1.0)
    assert bench.engine.requests[ticket_id].deadline_s == pytest.approx(1.0)
    bench.advance(0.9)
    bench.pipeline.poll()
    assert not bench.replies
    bench.advance(0.2)
    bench.pipeline.poll()
    assert bench.codes() == [ErrorCode.DEADLINE_EXCEEDED]
    assert bench.engine.canceled == [ticket_id]
    bench.pipeline.engine_event(ticket_id, Done(0, YES, Latency()))
    assert len(bench.replies) == 1


def test_the_deadline_holds_while_simulated_time_stands_still():
    bench = Bench(task="")
    bench.frames(4)
    bench.ask(deadline_s=1.0)
    bench.steady_s += 1.1  # now_ns stays
    bench.pipeline.poll()
    assert bench.codes() == [ErrorCode.DEADLINE_EXCEEDED]


def test_the_deadline_holds_in_the_queue():
    bench = Bench(task="")
    bench.frames(4)
    for _ in range(MAX_QUERIES_RUNNING):
        bench.ask()
    bench.ask(deadline_s=0.5)
    bench.advance(0.6)
    bench.pipeline.poll()
    assert bench.codes() == [ErrorCode.DEADLINE_EXCEEDED]
    assert "other queries" in bench.replies[0].error_msg


def test_a_query_waits_for_a_restarting_engine_if_its_deadline_allows():
    bench = Bench(task="")
    bench.frames(4)
    bench.state(EngineState.RESTARTING, ErrorCode.ENGINE_DIED)
    patient, hasty = bench.ask(deadline_s=1.9), bench.ask(deadline_s=0.5)
    bench.advance(0.6)
    bench.pipeline.poll()
    assert [(r.decision_id, r.error_code) for r in bench.replies] == [(hasty, ErrorCode.ENGINE_NOT_READY)]
    bench.state(EngineState.READY)
    bench.finish(patient)
    assert bench.replies[-1].error_code is ErrorCode.NONE


def test_a_failed_engine_refuses_and_empties_the_queue():
    bench = Bench(task="")
    bench.frames(4)
    bench.state(EngineState.RESTARTING, ErrorCode.ENGINE_DIED)
    bench.ask()
    bench.state(EngineState.FAILED, ErrorCode.MODEL_INVALID)
    bench.ask()
    assert bench.codes() == [ErrorCode.MODEL_INVALID, ErrorCode.ENGINE_NOT_READY]


def test_a_running_query_learns_that_the_engine_died():
    bench = Bench(task="")
    bench.frames(4)
    ticket_id = bench.ask()
    bench.state(EngineState.RESTARTING, ErrorCode.ENGINE_DIED)
    bench.fail(ticket_id, ErrorCode.ENGINE_DIED)
    assert bench.codes() == [ErrorCode.ENGINE_DIED]


def test_cancel_ends_waiting_and_running_queries_once():
    bench = Bench(task="")
    bench.frames(4)
    running = [bench.ask() for _ in range(MAX_QUERIES_RUNNING)]
    waiting = bench.ask()
    assert bench.pipeline.cancel(waiting)
    assert bench.pipeline.cancel(running[0])
    assert not bench.pipeline.cancel(running[0])
    assert not bench.pipeline.cancel("nobody")
    assert bench.codes() == [ErrorCode.CANCELED] * 2
    assert bench.engine.canceled == [running[0]]
    assert bench.pipeline.running == MAX_QUERIES_RUNNING - 1


def test_close_answers_everyone_and_refuses_the_rest():
    bench = Bench()
    bench.frames(4)
    for _ in range(MAX_QUERIES_RUNNING + 2):
        bench.ask()
    bench.pipeline.close(ErrorCode.NOT_ACTIVE, "deactivated")
    bench.ask()
    assert bench.codes() == [ErrorCode.NOT_ACTIVE] * (MAX_QUERIES_RUNNING + 3)
    assert not bench.engine.requests
    assert bench.pipeline.running == bench.pipeline.waiting == 0


def test_a_client_may_ask_again_from_its_reply():
    bench = Bench(task="")
    bench.frames(4)
    again = []

    def on_reply(decision: Decision) -> None:
        if not again:
            again.append(bench.ask())

    first = bench.pipeline.ask(
        Query(QueryKind.QUESTION, question="and?"), source=Source.ACTION, on_reply=on_reply
    )
    bench.finish(first)
    bench.finish(again[0])
    assert bench.codes() == [ErrorCode.NONE]


def test_live_settings_apply_to_the_next_request():
    bench = Bench(task="")
    bench.frames(4)
    config = dataclasses.replace(bench.pipeline.config, temperature=0.7, seed=3, max_answer_tokens=7)
    bench.pipeline.update(config)
    request = bench.engine.requests[bench.ask()]
    assert (request.sampling.temperature, request.sampling.seed, request.max_answer_tokens) == (0.7, 3, 7)
