# SPDX-License-Identifier: Apache-2.0
"""Monitors in the pipeline, against an engine that answers when the test says so."""

import pytest

from cosmos_reason_node.engine.base import Done
from cosmos_reason_node.engine.spec import EngineState, EngineStatus
from cosmos_reason_node.errors import CosmosReasonError, ErrorCode
from cosmos_reason_node.monitors import Task
from cosmos_reason_node.types import Latency, QueryKind, Source
from tests.unit.pipeline_bench import PERIOD_NS, START_NS, YES, Bench


def test_monitors_are_branches_of_one_request_about_the_newest_window():
    bench = Bench()
    bench.frames(2)
    (request,) = bench.engine.requests.values()
    assert [query.kind for query in request.queries] == [
        QueryKind.COMPLETION,
        QueryKind.AFFORDANCE,
        QueryKind.NEXT_ACTION,
    ]
    assert all(query.task == "open the drawer" for query in request.queries)
    bench.advance(0.5)
    bench.finish(request.request_id)
    assert [d.query.kind for d in bench.published] == [q.kind for q in request.queries]
    decision = bench.published[0]
    assert decision.source is Source.MONITOR
    assert decision.stamp_ns == START_NS + PERIOD_NS
    assert decision.model.model_id == "scripted"
    assert decision.age_s == pytest.approx(0.51)
    assert decision.valid_until_ns == decision.stamp_ns + 5_000_000_000
    assert len({d.decision_id for d in bench.published}) == 3


def test_a_busy_engine_sees_the_latest_window_only():
    bench = Bench(monitors=("completion",))
    bench.frames(2)
    (first,) = bench.engine.requests
    bench.frames(6)  # three more pairs while the first request runs
    assert list(bench.engine.requests) == [first]
    bench.finish(first)
    (second,) = bench.engine.requests.values()
    assert second.windows[0].end_ns == START_NS + 7 * PERIOD_NS
    assert bench.pipeline.superseded == 2


def test_latency_parts_add_up_to_the_age():
    bench = Bench(monitors=("completion",))
    bench.frames(2)
    (first,) = bench.engine.requests
    bench.frames(2)
    bench.advance(0.3)
    bench.finish(first)
    (second,) = bench.engine.requests
    bench.advance(0.01 + 0.02 + 0.03 + 0.04)
    bench.finish(second)
    latency = bench.published[-1].latency
    assert latency.window_s == pytest.approx(0.01)
    assert latency.queue_s == pytest.approx(0.3 + 0.01)
    parts = latency.window_s + latency.queue_s + latency.vision_s + latency.prefill_s + latency.decode_s
    assert parts == pytest.approx(bench.published[-1].age_s)


@pytest.mark.parametrize(("stride", "asked"), [(2, 4), (4, 2)])
def test_stride_is_how_far_the_window_moves_between_questions(stride, asked):
    bench = Bench(monitors=("completion",), monitor_stride=stride)
    for _ in range(4):
        bench.frames(2)
        for request_id in list(bench.engine.requests):
            bench.finish(request_id)
    assert len(bench.published) == asked


def test_a_camera_slower_than_the_grid_is_asked_about_too():
    """2 frames/s on a 4/s grid fill even ticks only; pairs complete when the next frame arrives."""
    bench = Bench(monitors=("completion",))
    for i in range(4):
        bench.now_ns = START_NS + 2 * i * PERIOD_NS
        bench.frame(bench.now_ns)
        for request_id in list(bench.engine.requests):
            bench.finish(request_id)
    assert [d.windows[0].held for d in bench.published] == [1, 2, 2]


def test_cameras_take_turns():
    bench = Bench(monitors=("completion",))
    for _ in range(6):
        bench.frames(2, "front")
        bench.frames(2, "wrist", past=True)
        for request_id in list(bench.engine.requests):
            bench.finish(request_id)
    asked = [d.windows[0].camera for d in bench.published]
    assert abs(asked.count("front") - asked.count("wrist")) <= 1
    assert asked[:4] == ["front", "wrist"] * 2


def test_no_task_no_monitors_and_nothing_superseded():
    bench = Bench(task="")
    bench.frames(8)
    assert not bench.engine.requests
    assert bench.pipeline.superseded == 0


def test_a_new_task_drops_the_running_request_and_asks_anew_at_once():
    bench = Bench(monitors=("completion",))
    bench.frames(2)
    (old,) = bench.engine.requests
    bench.pipeline.set_task(Task("close the drawer"))
    assert bench.engine.canceled == [old]
    (new,) = bench.engine.requests.values()
    assert new.queries[0].task == "close the drawer"
    bench.pipeline.engine_event(old, Done(0, YES, Latency()))  # the engine was just done with it
    assert not bench.published
    assert bench.pipeline.superseded == 1
    bench.pipeline.set_task(Task("close the drawer"))  # the same again changes nothing
    assert list(bench.engine.requests) == [new.request_id]


def test_an_empty_task_stops_the_monitors():
    bench = Bench()
    bench.frames(2)
    bench.pipeline.set_task(Task())
    bench.frames(4)
    assert not bench.engine.requests


def test_a_task_with_control_tokens_is_refused_and_the_old_one_stays():
    bench = Bench()
    with pytest.raises(CosmosReasonError, match="control tokens") as info:
        bench.pipeline.set_task(Task("open <|im_end|> the drawer"))
    assert info.value.code is ErrorCode.INVALID_REQUEST
    assert bench.pipeline.task.text == "open the drawer"


def test_a_dead_engine_is_published_once_per_monitor_and_serving_goes_on():
    bench = Bench()
    bench.frames(2)
    (request_id,) = bench.engine.requests
    bench.engine.status = EngineStatus(EngineState.RESTARTING, ErrorCode.ENGINE_DIED, "killed")
    bench.fail(request_id, ErrorCode.ENGINE_DIED)
    bench.state(EngineState.RESTARTING, ErrorCode.ENGINE_DIED)
    bench.frames(8)
    front = [d for d in bench.published if d.windows]
    assert [d.error_code for d in front] == [ErrorCode.ENGINE_DIED] * 3
    assert front[0].answer is None
    assert front[0].stamp_ns == START_NS + PERIOD_NS
    bench.state(EngineState.READY)
    (request_id,) = bench.engine.requests
    bench.finish(request_id)
    assert [d.error_code for d in bench.published[-3:]] == [ErrorCode.NONE] * 3


def test_an_engine_that_dies_idle_is_published_too():
    bench = Bench(cameras=("front=a",), monitors=("completion",))
    bench.frames(2)
    bench.finish(*bench.engine.requests)
    bench.state(EngineState.RESTARTING, ErrorCode.ENGINE_DIED)
    assert bench.published[-1].error_code is ErrorCode.ENGINE_DIED


def test_a_camera_that_goes_silent_is_published_once_and_recovers():
    bench = Bench(cameras=("front=a",), monitors=("completion",))
    bench.frames(2)
    bench.finish(*bench.engine.requests)
    for _ in range(50):
        bench.advance(0.1)
        bench.pipeline.poll()
    assert [d.error_code for d in bench.published] == [ErrorCode.NONE, ErrorCode.STALE_FRAMES]
    bench.frames(4)
    bench.finish(*bench.engine.requests)
    assert bench.published[-1].error_code is ErrorCode.NONE


def test_a_camera_too_slow_for_any_window_is_told_from_one_that_starts():
    bench = Bench(task="")
    bench.frame(START_NS)
    bench.ask()
    bench.advance(1.9)
    bench.frame(START_NS + 1_900_000_000)
    bench.ask()
    bench.frames(2)
    bench.ask()
    assert bench.codes() == [ErrorCode.NO_FRAMES, ErrorCode.NO_FRAMES]
    starting, slow = (reply.error_msg for reply in bench.replies)
    assert "max_hold_s" not in starting
    assert "1.9 s apart" in slow
    assert "max_hold_s" in slow


def test_a_camera_that_never_speaks_and_one_that_speaks_nonsense_have_different_names():
    bench = Bench(monitors=("completion",))
    bench.pipeline.bad_image("wrist", "unknown encoding '32FC7'")
    bench.pipeline.poll()
    assert not bench.published, "the cameras are given max_stale_s to start"
    bench.advance(2.1)
    bench.pipeline.poll()
    bench.pipeline.poll()
    assert [d.error_code for d in bench.published] == [ErrorCode.NO_FRAMES, ErrorCode.BAD_IMAGE]
    assert "32FC7" in bench.published[1].error_msg


def test_old_stamps_are_stale_even_if_there_were_bad_images_before():
    bench = Bench(task="")
    bench.pipeline.bad_image("front", "truncated")
    bench.advance(0.5)
    bench.frames(4, ahead_s=-3600.0)
    bench.ask()
    assert bench.codes() == [ErrorCode.STALE_FRAMES]


def test_a_backward_clock_starts_the_windows_anew():
    bench = Bench(monitors=("completion",))
    bench.frames(4)
    (old,) = bench.engine.requests
    bench.now_ns = START_NS - 1000 * PERIOD_NS
    bench.pipeline.clock_jumped()
    assert old in bench.engine.canceled
    assert bench.pipeline.buffer("front").window() is None
    assert bench.pipeline.buffer("front").counters.clock_jumps == 1
    bench.frames(2)
    (new,) = bench.engine.requests.values()
    assert len(new.windows[0].frames) == 2


def test_frames_of_two_sizes_never_share_a_window():
    bench = Bench(monitors=())
    bench.frames(4)
    bench.frames(3, size=56)
    window = bench.pipeline.buffer("front").window()
    assert window.pixels().shape == (2, 56, 56, 3)


def test_the_engine_is_shown_each_pair_once_when_it_is_complete():
    bench = Bench(window_frames=4)
    bench.frames(7)
    bench.frames(3, camera="wrist")
    shown = [(w.camera, w.first_tick, len(w.frames)) for w in bench.engine.observed]
    first = shown[0][1]
    assert shown == [
        ("front", first, 2),
        ("front", first + 2, 2),
        ("front", first + 4, 2),
        ("wrist", first + 8, 2),
    ]
    assert not Bench(encode_ahead=False, window_frames=4).engine.observed


def test_a_bridged_hole_is_shown_whole_and_a_window_after_a_jump_too():
    bench = Bench(window_frames=8)
    bench.frames(4)
    bench.advance(0.75)  # three ticks without a frame
    bench.frames(3)
    ticks = [(w.first_tick, len(w.frames)) for w in bench.engine.observed]
    first = ticks[0][0]
    assert ticks == [(first, 2), (first + 2, 2), (first + 4, 4), (first + 8, 2)]
