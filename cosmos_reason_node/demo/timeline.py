# SPDX-License-Identifier: Apache-2.0
"""The report's drawings, as SVG over capture time: film strip, one lane a query, latency columns.

Widths and heights are in SVG units, which are CSS pixels at the report's full width.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .markup import Markup, element, join
from .session import LATENCY_PARTS, Record

WIDTH, LEFT, RIGHT = 1080, 128, 16
LANE, LANE_GAP, TRUTH = 58, 16, 7
AXIS = 30
STRIP = 74
COLUMNS = 120
# Number of colours that options cycle through (classes opt0.. in report.css).
OPTION_COLOURS = 8
# Shortest stretch of one answer that carries its name inside, SVG units a character.
_CHARACTER = 7.5

LANE_TITLES = {"completion": "Task complete?", "affordance": "Possible now?", "next_action": "Next action"}
_TICK_STEPS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600)


@dataclass(frozen=True)
class Axis:
    """Capture time to x. ``zero_ns`` is the session's first image, ``length_s`` the seconds shown."""

    zero_ns: int
    length_s: float

    def seconds(self, stamp_ns: int) -> float:
        """Session time of a stamp, seconds."""
        return (stamp_ns - self.zero_ns) / 1e9

    def x(self, seconds: float) -> float:
        """Position of a session time, clamped to the plot."""
        share = min(1.0, max(0.0, seconds / self.length_s))
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def ticks(self) -> list[float]:
        """Times to label, seconds, about ten."""
        step = next((s for s in _TICK_STEPS if self.length_s / s <= 12), self.length_s / 10)
        return [round(i * step, 3) for i in range(math.floor(self.length_s / step + 1e-6) + 1)]


@dataclass(frozen=True)
class Picture:
    """A frame in the document's ``<defs>``: element id and size in pixels."""

    identifier: str
    stamp_ns: int
    width: int
    height: int


def film_strip(axis: Axis, pictures: Sequence[Picture]) -> Markup:
    """Evenly spaced frames, each starting at its moment, clipped to the plot; STRIP high."""
    if not pictures:
        return Markup("")
    height = STRIP - 10
    width = height * pictures[0].width / pictures[0].height
    shown = []
    count = max(1, int((WIDTH - LEFT - RIGHT) // (width + 3)))
    pitch = (WIDTH - LEFT - RIGHT) / count
    for i in range(count):
        moment = axis.zero_ns + round(axis.length_s * (i + 0.5) / count * 1e9)
        nearest = min(pictures, key=lambda picture: abs(picture.stamp_ns - moment))
        x = LEFT + i * pitch
        view = element(
            "svg",
            element("use", href=f"#{nearest.identifier}"),
            x=x,
            y=2,
            width=pitch - 3,
            height=height,
            viewBox=f"0 0 {nearest.width} {nearest.height}",
            preserveAspectRatio="xMidYMid slice",
        )
        shown.append(view)
    return element("g", _lane_title("Camera", STRIP / 2 - 4), shown)


def answer_lane(
    axis: Axis,
    kind: str,
    records: Sequence[Record],
    options: Sequence[str],
    truth: Sequence[tuple[float, float, str]] = (),
) -> Markup:
    """One query's answers over time, LANE high: yes/no around a middle line, choices from the bottom up.

    Args:
        axis: time axis.
        kind: of the query.
        records: its decisions, by capture time.
        options: all options seen in the session; their order gives the colours.
        truth: (from, until, label) in seconds, drawn as a thin line below.
    """
    choice = kind == "next_action"
    spans = _spans(axis, records)
    bars = [_bar(axis, record, start, end, options, choice) for record, start, end in spans]
    frame = element("rect", class_="lane", x=LEFT, y=0, width=WIDTH - LEFT - RIGHT, height=LANE, rx=3)
    legend: list[Markup] = []
    if not choice:
        middle = LANE / 2
        legend = [
            element("line", class_="middle", x1=LEFT, x2=WIDTH - RIGHT, y1=middle, y2=middle),
            element("text", "yes", class_="side", x=LEFT - 8, y=13),
            element("text", "no", class_="side", x=LEFT - 8, y=LANE - 5),
        ]
    names = _run_names(axis, spans) if choice else []
    return element(
        "g",
        _lane_title(LANE_TITLES[kind], LANE / 2 - 2 if choice else LANE / 2 + 4),
        frame,
        bars,
        legend,
        names,
        [_truth_bar(axis, span, options) for span in truth],
    )


def time_axis(axis: Axis, height: float) -> Markup:
    """Labelled seconds below ``height`` units of lanes, with hair lines through them."""
    marks = []
    for seconds in axis.ticks():
        x = axis.x(seconds)
        marks.append(element("line", class_="grid", x1=x, x2=x, y1=0, y2=height + 4))
        marks.append(element("text", f"{seconds:g} s", class_="tick", x=x, y=height + 18))
    return element("g", marks)


def latency_columns(axis: Axis, records: Sequence[Record]) -> Markup:
    """Latency parts of each decision as a stacked column at its capture time, COLUMNS high, with a scale."""
    totals = [sum(record.latency_s.values()) for record in records]
    top = _nice_top(max(totals, default=0.0))
    scale = COLUMNS / top
    width = min(9.0, max(1.0, 0.8 * (WIDTH - LEFT - RIGHT) / max(1, len(records))))
    columns = []
    placed: dict[int, int] = {}
    for record in records:
        # Queries about one window share a stamp: side by side.
        shift = placed.get(record.stamp_ns, 0)
        placed[record.stamp_ns] = shift + 1
        x = axis.x(axis.seconds(record.stamp_ns)) + shift * (width + 0.6)
        columns.append(_column(record, min(x, WIDTH - RIGHT - width), width, scale))
    levels = [
        join(
            element("line", class_="grid", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y),
            element("text", f"{value:g} s", class_="side", x=LEFT - 8, y=y + 4),
        )
        for value in (0.0, top / 2, top)
        for y in (COLUMNS - value * scale,)
    ]
    return element("g", levels, columns)


def option_class(record: Record, options: Sequence[str]) -> str:
    """Colour class of a decision's answer."""
    if record.failed:
        return "error"
    if record.verdict == "CHOICE":
        text = record.headline
        return f"opt{options.index(text) % OPTION_COLOURS}" if text in options else "opt0"
    return record.verdict.lower()


def describe(record: Record) -> str:
    """One line for a tooltip."""
    return f"{record.headline}, confidence {record.confidence:.2f}, age {record.age_s:.2f} s"


def _bar(
    axis: Axis, record: Record, start: float, end: float, options: Sequence[str], choice: bool
) -> Markup:
    x, width = axis.x(start), max(1.0, axis.x(end) - axis.x(start) - 0.6)
    confidence = min(1.0, max(0.0, record.confidence))
    if record.failed:
        y, height = LANE / 2 - 6, 12.0
    elif choice:
        height = confidence * (LANE - 4)
        y = LANE - height
    elif record.verdict == "UNKNOWN":
        y, height = LANE / 2 - 5, 10.0
    else:
        height = max(2.0, (confidence - 0.5) * 2 * (LANE / 2 - 2))
        y = LANE / 2 - height if record.verdict == "YES" else LANE / 2
    title = element("title", f"{start:.1f} s: {describe(record)}")
    css = f"bar {option_class(record, options)}"
    return element("rect", title, class_=css, x=x, y=y, width=width, height=height)


def _spans(axis: Axis, records: Sequence[Record]) -> list[tuple[Record, float, float]]:
    """Each decision with the session times from which and until which it is the newest."""
    times = [axis.seconds(record.stamp_ns) for record in records]
    usual = sorted(b - a for a, b in itertools.pairwise(times))
    # An answer does not stand for longer than a few usual pauses: a hole in the answers shows as a hole.
    longest = 3 * usual[len(usual) // 2] if usual else axis.length_s / 40
    ends = [*times[1:], math.inf]
    return [
        (record, start, min(end, start + longest, axis.length_s))
        for record, start, end in zip(records, times, ends, strict=True)
    ]


def _run_names(axis: Axis, spans: Sequence[tuple[Record, float, float]]) -> list[Markup]:
    """Names of the chosen options over the stretches in which they stay."""
    names, first = [], 0
    for i in range(1, len(spans) + 1):
        if i < len(spans) and spans[i][0].headline == spans[first][0].headline:
            continue
        left, right = axis.x(spans[first][1]), axis.x(spans[i - 1][2])
        text = spans[first][0].headline
        room = int((right - left - 8) / _CHARACTER)
        if room >= min(len(text), 8):
            short = text if len(text) <= room else text[: room - 1] + "…"
            names.append(element("text", short, class_="name", x=left + 5, y=16))
        first = i
    return names


def _truth_bar(axis: Axis, span: tuple[float, float, str], options: Sequence[str]) -> Markup:
    start, end, label = span
    known = label.lower() in ("yes", "no")
    css = (
        label.lower()
        if known
        else f"opt{options.index(label) % OPTION_COLOURS}"
        if label in options
        else "none"
    )
    return element(
        "rect",
        element("title", f"truth from {start:.1f} to {end:.1f} s: {label}"),
        class_=f"truth {css}",
        x=axis.x(start),
        y=LANE + 3,
        width=max(0.0, axis.x(end) - axis.x(start)),
        height=TRUTH - 2,
    )


def _column(record: Record, x: float, width: float, scale: float) -> Markup:
    parts, y = [], float(COLUMNS)
    for part in LATENCY_PARTS:
        height = max(0.0, record.latency_s[part]) * scale
        y -= height
        if height >= 0.2:
            parts.append(element("rect", class_=f"part-{part}", x=x, y=y, width=width, height=height))
    total = sum(record.latency_s.values())
    listing = ", ".join(f"{part} {record.latency_s[part]:.3f}" for part in LATENCY_PARTS)
    return element("g", element("title", f"{record.kind}: {total:.2f} s ({listing})"), parts)


def _lane_title(text: str, y: float) -> Markup:
    return element("text", text, class_="title", x=0, y=y)


def _nice_top(value: float) -> float:
    """The next 1, 2 or 5 times a power of ten."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next((m * power for m in (1, 2, 5) if m * power >= value), 10 * power)


def colours_of(
    records: Sequence[Record], options: Sequence[str], truth: Sequence[tuple[float, float, str]] = ()
) -> Mapping[str, str]:
    """Option -> colour class, for the options that were chosen or true, in order."""
    shown = {record.headline for record in records if record.verdict == "CHOICE" and not record.failed}
    shown |= {label for _, _, label in truth}
    return {text: f"opt{i % OPTION_COLOURS}" for i, text in enumerate(options) if text in shown}
