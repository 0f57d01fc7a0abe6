# SPDX-License-Identifier: Apache-2.0
import pytest

from cosmos_reason_node.demo import timeline
from cosmos_reason_node.demo.agreement import agreement, label_at
from cosmos_reason_node.demo.timeline import Axis
from tests.unit.test_report import OPTIONS, ZERO, Page, choice, record, session

AXIS = Axis(ZERO, 4.0)


def bars(markup, css):
    """(x, y, width, height) of the rectangles of a class, left to right."""
    found, current = [], {}
    for tag, name, value in [*Page(markup).attributes, ("rect", "class", "end")]:
        if tag == "rect" and name == "class":
            if css in current.get("class", "").split():
                found.append(tuple(float(current[key]) for key in ("x", "y", "width", "height")))
            current = {}
        if tag == "rect":
            current[name] = value
    return sorted(found)


def test_yes_stands_above_the_middle_and_no_below_as_high_as_its_confidence():
    records = [record(0, confidence=0.75), record(1, verdict="YES", confidence=1.0)]
    lane = timeline.answer_lane(AXIS, "completion", records, ())
    middle = timeline.LANE / 2
    ((_, no_y, _, no_height),) = bars(lane, "no")
    ((_, yes_y, _, yes_height),) = bars(lane, "yes")
    assert no_y == middle
    assert yes_y + yes_height == pytest.approx(middle, abs=0.01)
    assert no_height == pytest.approx(yes_height / 2, abs=0.1)


def test_an_answer_lasts_to_the_next_one_but_not_over_a_hole():
    records = [record(i, verdict="NO") for i in (0, 1, 2, 7)]  # every 0.5 s, then a hole of 2.5 s
    found = bars(timeline.answer_lane(AXIS, "completion", records, ()), "no")
    second = AXIS.x(1.0) - AXIS.x(0.0)
    widths = [width for _, _, width, _ in found]
    assert widths[:2] == pytest.approx([second / 2] * 2, abs=1.0)
    assert widths[2] == pytest.approx(1.5 * second, abs=1.0)
    assert found[3][0] + widths[3] <= timeline.WIDTH


def test_options_keep_their_colour_and_names_fit():
    records = [choice(0, 1), choice(1, 1), choice(2, 1), choice(3, 2)]
    lane = timeline.answer_lane(AXIS, "next_action", records, OPTIONS)
    assert len(bars(lane, "opt1")) == 3
    assert len(bars(lane, "opt2")) == 1
    assert Page(lane).texts.count("pull") == 1
    assert timeline.colours_of(records, OPTIONS) == {"pull": "opt1", "move away": "opt2"}


def test_stamps_outside_are_drawn_at_the_edge():
    assert AXIS.x(-3.0) == timeline.LEFT
    assert AXIS.x(99.0) == timeline.WIDTH - timeline.RIGHT
    assert Axis(ZERO, 13.5).ticks() == [0, 2, 4, 6, 8, 10, 12]
    assert len(Axis(ZERO, 10_000.0).ticks()) <= 18


def test_latency_columns_add_up():
    drawing = timeline.latency_columns(AXIS, [record(0)])  # five parts of 0.06 s, scale up to 0.5 s
    parts = [bars(drawing, f"part-{part}")[0] for part in ("window", "queue", "vision", "prefill", "decode")]
    assert sum(height for *_, height in parts) == pytest.approx(timeline.COLUMNS * 0.6, abs=0.1)
    assert parts[0][1] + parts[0][3] == pytest.approx(timeline.COLUMNS, abs=0.02)


def test_agreement_counts_monitors_answers_where_the_truth_is_known():
    watched = session(
        truth={
            "completion": ((0.0, 0.6, "no"), (1.0, 4.0, "yes")),
            "next_action": ((0.0, 4.0, "pull"),),
        }
    )
    records = [
        record(0),  # no: right
        record(1, verdict="UNKNOWN"),  # known to be no: wrong
        record(2, verdict="YES"),  # right
        record(3),  # wrong
        record(3, error="BUSY"),  # no answer
        record(2, source="service"),  # not a monitor's
        choice(1, 1),  # right
        choice(2, 0),  # wrong
    ]
    assert agreement(watched, records) == {"completion": (2, 4), "next_action": (1, 2)}
    assert label_at(watched, "completion", 0.8) is None
    assert label_at(watched, "affordance", 0.1) is None
