# SPDX-License-Identifier: Apache-2.0
"""When a camera counts as silent: clocks that jump, slow grids, images that cannot be used."""

import pytest

from cosmos_reason_node.errors import ErrorCode
from cosmos_reason_node.window import Offer
from tests.unit.pipeline_bench import PERIOD_NS, Bench


def test_simulated_time_that_starts_with_a_jump_does_not_use_up_the_cameras_time_to_start():
    bench = Bench(cameras=("front=a",), monitors=("completion",))
    bench.now_ns += 50_000 * 10**9  # the first message on /clock
    bench.pipeline.poll()
    assert not bench.published
    bench.steady_s += 2.1
    bench.pipeline.poll()
    assert [d.error_code for d in bench.published] == [ErrorCode.NO_FRAMES]


def stream(bench: Bench, seconds: float, ahead_s: float = 0.0) -> None:
    """Images every 100 ms on a grid of one frame in ten seconds."""
    buffer = bench.pipeline.buffer("front")
    for _ in range(round(seconds * 10)):
        bench.advance(0.1)
        stamp_ns = bench.now_ns + round(ahead_s * 1e9)
        if buffer.grid.tick(stamp_ns) != buffer.grid.tick(stamp_ns - 100_000_000):
            bench.frame(stamp_ns)
        else:
            buffer.offer(stamp_ns)


@pytest.mark.parametrize("ahead_s", [0.0, 3600.0])
def test_a_camera_that_streams_is_not_stale_between_the_frames_of_a_slow_grid(ahead_s):
    bench = Bench(task="", cameras=("front=a",), fps=0.1)
    stream(bench, 39.0, ahead_s)
    bench.ask()
    assert not bench.codes(), "the newest frame is 9 s old, the newest image is not"
    bench.advance(2.1)
    bench.ask()
    assert bench.codes() == [ErrorCode.STALE_FRAMES]


def test_images_that_cannot_be_used_do_not_count_as_a_stream():
    bench = Bench(task="")
    bench.frames(4)
    buffer = bench.pipeline.buffer("front")
    for _ in range(30):
        bench.advance(0.1)
        assert buffer.offer(bench.now_ns) in (Offer.SAMPLE, Offer.SKIP)
        buffer.lose()
        bench.pipeline.bad_image("front", "truncated")
    bench.ask()
    assert bench.codes() == [ErrorCode.BAD_IMAGE]


def test_a_camera_too_slow_for_any_window_is_an_error_of_the_monitors():
    bench = Bench(cameras=("front=a",), monitors=("completion",))
    for _ in range(8):
        bench.advance(1.6)
        bench.frame(bench.now_ns)
        bench.pipeline.poll()
    assert [d.error_code for d in bench.published] == [ErrorCode.NO_FRAMES], "once"
    assert "max_hold_s" in bench.published[0].error_msg
    error = bench.pipeline.camera_error("front")
    assert error is not None
    assert error.code is ErrorCode.NO_FRAMES
    bench.frames(8)
    bench.pipeline.poll()
    assert bench.pipeline.camera_error("front") is None
    assert bench.engine.requests, "it has a window now"


def test_two_cameras_on_one_topic_are_told_from_one_that_has_just_begun():
    bench = Bench(cameras=("front=a",), monitors=("completion",))
    for i in range(20):
        bench.frames(1, size=28 * (1 + i % 2))
        bench.pipeline.poll()
    assert [d.error_code for d in bench.published] == [ErrorCode.NO_FRAMES]
    assert "does more than one camera publish a?" in bench.published[0].error_msg
    beginner = Bench(cameras=("front=a",), fps=0.5, min_frames=2, task="open the drawer")
    for _ in range(30):
        beginner.advance(0.1)
        beginner.pipeline.buffer("front").offer(beginner.now_ns)
        beginner.pipeline.poll()
    assert [d.error_msg for d in beginner.published if "in a row" in d.error_msg] == []


def test_after_a_clock_jump_no_frame_is_encoded_ahead_that_is_not_new():
    bench = Bench(cameras=("front=a",), window_frames=8, min_frames=4, encode_ahead=True)
    bench.frames(8)
    newest = bench.engine.observed[-1]
    last_tick = newest.first_tick + len(newest.frames) - 1
    bench.pipeline.clock_jumped()
    bench.engine.observed.clear()
    bench.now_ns -= 4 * PERIOD_NS
    while not bench.engine.observed:
        bench.frames(1)
    window = bench.engine.observed[0]
    assert [frame.tick for frame in window.frames] == list(
        range(window.first_tick, window.first_tick + window.asked)
    )
    assert last_tick - window.first_tick >= 0
