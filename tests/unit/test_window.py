# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cosmos_reason_node.types import Frame
from cosmos_reason_node.window import Offer, TimeGrid, WindowBuffer

PERIOD = 250_000_000  # 4 fps
SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND


def make_buffer(num_frames: int = 8, **limits: float) -> WindowBuffer:
    return WindowBuffer("front", TimeGrid(PERIOD), num_frames, **limits)


def feed(buffer: WindowBuffer, stamp_ns: int) -> Offer:
    """What a camera does with a good image."""
    offer = buffer.offer(stamp_ns)
    if offer is Offer.SAMPLE:
        image = np.full((2, 2, 3), stamp_ns % 251, np.uint8)
        buffer.put(Frame("front", stamp_ns, buffer.grid.tick(stamp_ns), image))
    return offer


def test_one_frame_a_tick_is_sampled_at_30_hz():
    buffer = make_buffer()
    offers = [feed(buffer, START + i * SECOND // 30) for i in range(60)]
    assert offers.count(Offer.SAMPLE) == 8  # 2 s at 4 fps
    assert offers.count(Offer.SKIP) == 52
    assert buffer.counters.received == 60


def test_window_ends_on_a_complete_pair_and_starts_on_an_even_tick():
    buffer = make_buffer()
    for tick in range(101, 110):  # newest tick 109 is odd: its pair (108, 109) is complete
        feed(buffer, tick * PERIOD + 1)
    window = buffer.window()
    assert (window.first_tick, len(window.frames)) == (102, 8)
    feed(buffer, 110 * PERIOD + 1)  # half a pair: the window stays
    assert buffer.window().first_tick == 102
    feed(buffer, 111 * PERIOD + 1)
    assert buffer.window().first_tick == 104
    assert buffer.window().asked == 8


def test_an_anchored_window_grows_and_starts_anew_with_its_newer_half():
    buffer = make_buffer(anchored=True)
    spans = []
    for tick in range(100, 130):
        feed(buffer, tick * PERIOD + 1)
        if (window := buffer.window()) and tick % 2:
            assert window.first_tick + len(window.frames) == tick + 1
            spans.append((window.first_tick, len(window.frames)))
    assert spans[:4] == [(100, 2), (100, 4), (100, 6), (100, 8)]
    assert spans[4:8] == [(104, 6), (104, 8), (108, 6), (108, 8)]


def test_no_window_before_the_fewest_frames():
    buffer = make_buffer()
    for tick in range(100, 103):
        feed(buffer, tick * PERIOD)
    assert buffer.window(min_frames=4) is None
    feed(buffer, 103 * PERIOD)
    assert len(buffer.window(min_frames=4).frames) == 4


def test_a_missed_tick_repeats_the_frame_before_it_and_is_counted():
    buffer = make_buffer()
    for tick in (100, 101, 104, 105):
        feed(buffer, tick * PERIOD)
    window = buffer.window()
    assert [frame.tick for frame in window.frames] == [100, 101, 101, 101, 104, 105]
    assert (window.held, buffer.counters.held, buffer.counters.gaps) == (2, 2, 1)


def test_a_long_hole_restarts_the_window():
    buffer = make_buffer(max_hold_s=1.0)
    for tick in (100, 101, 106):  # four ticks missing are bridged, five below are not
        feed(buffer, tick * PERIOD)
    assert buffer.counters.clock_jumps == 0
    for tick in (112, 113):
        feed(buffer, tick * PERIOD)
    assert buffer.counters.clock_jumps == 1
    assert [frame.tick for frame in buffer.window().frames] == [112, 113]


def test_duplicates_and_late_frames_are_dropped_and_counted():
    buffer = make_buffer()
    feed(buffer, START + SECOND)
    assert feed(buffer, START + SECOND) is Offer.DUPLICATE
    assert feed(buffer, START + SECOND // 2) is Offer.OUT_OF_ORDER
    assert (buffer.counters.duplicates, buffer.counters.out_of_order) == (1, 1)


@pytest.mark.parametrize("stamp_ns", [0, -1, -SECOND])
def test_a_stamp_that_is_no_time_is_invalid(stamp_ns: int):
    buffer = make_buffer()
    assert feed(buffer, stamp_ns) is Offer.INVALID
    assert buffer.counters.invalid_stamps == 1


def test_a_backward_jump_restarts_the_window_and_goes_on():
    buffer = make_buffer(max_backward_s=1.0)
    for i in range(8):
        feed(buffer, START + 100 * SECOND + i * PERIOD)
    for i in range(4):  # a bag that loops
        assert feed(buffer, START + i * PERIOD) is Offer.SAMPLE
    assert buffer.counters.clock_jumps == 1
    window = buffer.window()
    assert window.end_ns < START + 2 * SECOND
    assert window.held == 0


def test_a_single_wild_future_stamp_is_recovered_from():
    buffer = make_buffer()
    feed(buffer, START)
    feed(buffer, START + 3600 * SECOND)
    for i in range(1, 9):
        feed(buffer, START + i * PERIOD)
    window = buffer.window()
    assert all(frame.stamp_ns < START + 10 * SECOND for frame in window.frames)
    assert buffer.counters.clock_jumps == 2


def test_the_next_frame_stands_in_for_one_that_could_not_be_decoded():
    buffer = make_buffer()
    first = buffer.grid.tick(START) * PERIOD
    assert buffer.offer(first) is Offer.SAMPLE
    buffer.lose()
    assert feed(buffer, first + SECOND // 30) is Offer.SAMPLE
    assert buffer.counters.lost == 1


@settings(deadline=None)
@given(
    steps=st.lists(st.integers(-3 * SECOND, 5 * SECOND), min_size=1, max_size=120),
    num_frames=st.sampled_from([2, 4, 8]),
)
def test_whatever_the_stamps_a_window_is_regular(steps: list[int], num_frames: int):
    buffer = make_buffer(num_frames)
    stamp_ns = START
    for step in steps:
        stamp_ns += step
        feed(buffer, stamp_ns)
        window = buffer.window()
        if window is None:
            continue
        stamps = [frame.stamp_ns for frame in window.frames]
        assert stamps == sorted(stamps)
        assert window.first_tick % 2 == 0
        assert len(window.frames) % 2 == 0
        assert len(window.frames) <= num_frames
        for i, frame in enumerate(window.frames):
            assert window.first_tick + i - 4 <= frame.tick <= window.first_tick + i  # held for at most 1 s
        assert window.held == sum(f.tick != window.first_tick + i for i, f in enumerate(window.frames))
    counters = buffer.counters
    outcomes = (counters.sampled, counters.skipped, counters.duplicates, counters.out_of_order)
    assert counters.received == len(steps) == sum(outcomes) + counters.invalid_stamps


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="even"):
        make_buffer(num_frames=7)
    with pytest.raises(ValueError, match="fps"):
        TimeGrid.from_fps(1000.0)
    with pytest.raises(ValueError, match="back"):
        make_buffer().put(Frame("back", START, 1, np.zeros((2, 2, 3), np.uint8)))
