# SPDX-License-Identifier: Apache-2.0
"""Sections of the report, top to bottom: header, player and timeline, hand-asked queries, latency, health."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from . import timeline
from .agreement import agreement
from .album import Album, view, window_strip
from .markup import Markup, element
from .session import LATENCY_PARTS, MONITORED_KINDS, Record, Session
from .timeline import Axis

PART_TEXTS = {
    "window": "capture to request",
    "queue": "waiting for the engine",
    "vision": "vision tower",
    "prefill": "prompt",
    "decode": "reasoning and answer",
}

CAMERA_COLUMNS = (
    "name",
    "topic",
    "qos",
    "received",
    "sampled",
    "skipped",
    "held",
    "gaps",
    "duplicates",
    "out_of_order",
    "clock_jumps",
    "bad_images",
)


def header(session: Session, records: Sequence[Record]) -> Markup:
    """Task, model, machine and the session in five numbers."""
    model: Mapping[str, str] = next((r.model for r in reversed(records) if r.model.get("model_id")), {})
    facts = [
        ("model", model.get("model_id", "none"), model.get("digest", "")[:12]),
        ("engine", f"{model.get('engine', '')} {model.get('dtype', '')}", model.get("device", "")),
        ("prompt", model.get("prompt_id", ""), ""),
        ("camera", session.source, session.source_note),
        ("machine", session.machine, session.started.replace("T", " ")[:16]),
    ]
    return element(
        "header",
        element("p", "cosmos_reason", class_="brand"),
        element("h1", session.task or "No task was set"),
        element(
            "dl",
            [
                element(
                    "div",
                    element("dt", name),
                    element("dd", value.strip() or "not known", element("small", note) if note else None),
                )
                for name, value, note in facts
            ],
        ),
        _tiles(records),
    )


def _tiles(records: Sequence[Record]) -> Markup:
    good = [record for record in records if not record.failed]
    ages = sorted(record.age_s for record in good if record.source == "monitor")
    span_s = (
        max((r.published_ns for r in records), default=0) - min((r.published_ns for r in records), default=0)
    ) / 1e9
    tiles = [
        (str(len(good)), "decisions"),
        (f"{len(good) / span_s:.1f}/s" if span_s > 0 else "–", "while it ran"),
        (f"{statistics.median(ages):.2f} s" if ages else "–", "median age"),
        (
            f"{ages[min(len(ages) - 1, int(0.99 * len(ages)))]:.2f} s" if ages else "–",
            "99th percentile of the age",
        ),
        (str(len(records) - len(good)), "errors"),
    ]
    return element(
        "ul",
        [element("li", element("b", value), element("span", name)) for value, name in tiles],
        class_="tiles",
    )


def player(session: Session, records: Sequence[Record], album: Album, axis: Axis) -> Markup:
    """The frame and the answers at one moment, and the timeline to choose it on."""
    monitored = [record for record in records if record.source == "monitor"]
    lanes = {kind: [r for r in monitored if r.kind == kind] for kind in MONITORED_KINDS}
    lanes = {kind: found for kind, found in lanes.items() if found}
    options = all_options(session, records)
    y, drawn = float(timeline.STRIP), [timeline.film_strip(axis, album.pictures)]
    for kind, found in lanes.items():
        truth = session.truth.get(kind, ())
        lane = timeline.answer_lane(axis, kind, found, options, truth)
        drawn.append(element("g", lane, transform=f"translate(0 {y:g})"))
        y += timeline.LANE + timeline.LANE_GAP
    drawing = element(
        "svg",
        timeline.time_axis(axis, y - 8),
        drawn,
        element("g", element("line", y1=0, y2=y - 4), id="cursor"),
        id="timeline",
        viewBox=f"0 0 {timeline.WIDTH} {y + timeline.AXIS - 8:g}",
        role="img",
        aria_label="Answers over capture time",
    )
    newest = album.pictures[-1] if album.pictures else None
    screen = element(
        "div",
        view(newest, id_="screen") if newest else element("p", "no frames were kept"),
        element(
            "div",
            element("button", "Play", id="play", type="button"),
            element("span", f"{axis.length_s:.1f} s", id="moment"),
            class_="controls",
        ),
        class_="screen",
    )
    titles = dict(timeline.LANE_TITLES)
    if session.action:
        titles["affordance"] = f"Possible now: {session.action}?"
    cards = [_card(kind, titles[kind], found[-1], options) for kind, found in lanes.items()]
    return element(
        "section",
        element("div", screen, element("div", cards, class_="cards"), class_="player"),
        element("div", drawing, class_="wide"),
        _legend(session, monitored, options),
    )


def _card(kind: str, title: str, record: Record, options: Sequence[str]) -> Markup:
    css = timeline.option_class(record, options)
    return element(
        "article",
        element("h3", title),
        element("p", record.headline, class_=f"verdict ink-{css}"),
        confidence_meter(record, css),
        element("p", record.reasoning or record.error_msg or "no reasoning", class_="reasoning"),
        element("p", f"{record.age_s:.2f} s after capture", class_="age"),
        data_kind=kind,
    )


def _legend(session: Session, records: Sequence[Record], options: Sequence[str]) -> Markup:
    entries = [("yes", "yes"), ("no", "no")]
    if any(record.verdict == "UNKNOWN" and not record.failed for record in records):
        entries.append(("unknown", "unknown: neither side wins"))
    if any(record.failed for record in records):
        entries.append(("error", "error"))
    colours = timeline.colours_of(records, options, session.truth.get("next_action", ()))
    entries += [(css, text) for text, css in colours.items()]
    items = [element("li", element("i", class_=f"dot {css}"), text) for css, text in entries]
    note = "Height is confidence: from the middle line (even odds) for yes/no, else from the bottom."
    if session.truth:
        note += " The thin line below a lane is what really happened, from the recording's labels."
        counts = [
            f"{timeline.LANE_TITLES[kind].rstrip('?').lower()} {right} of {judged}"
            for kind, (right, judged) in agreement(session, records).items()
        ]
        note += f" Answers that agree with it: {', '.join(counts)}." if counts else ""
    return element("div", element("ul", items, class_="legend"), element("p", note, class_="note"))


def asked_by_hand(records: Sequence[Record], album: Album, axis: Axis) -> Markup | None:
    """Answers of the query service and the reason action, with their reasoning."""
    asked = [record for record in records if record.source != "monitor"]
    if not asked:
        return None
    how = {"service": "query service", "action": "reason action"}
    cards = [
        element(
            "article",
            element("p", f"{how.get(r.source, r.source)} at {axis.seconds(r.stamp_ns):.1f} s", class_="how"),
            element("p", r.question, class_="question"),
            element("ol", [element("li", text) for text in r.options], type="A") if r.options else None,
            element("p", r.reasoning, class_="thinking") if r.reasoning else None,
            element("p", r.headline, class_="verdict " + ("ink-error" if r.failed else "ink-asked")),
            element("p", r.error_msg) if r.failed else confidence_meter(r, "asked"),
            window_strip(album.window(r)),
        )
        for r in asked
    ]
    return element("section", element("h2", "Asked by hand"), element("div", cards, class_="asked"))


def latency(records: Sequence[Record], axis: Axis) -> Markup | None:
    """Latency parts of all answers over capture time."""
    good = [record for record in records if record.source == "monitor" and not record.failed]
    if not good:
        return None
    height = timeline.COLUMNS + timeline.AXIS + 8
    drawing = element(
        "svg",
        timeline.time_axis(axis, timeline.COLUMNS),
        timeline.latency_columns(axis, good),
        viewBox=f"0 -8 {timeline.WIDTH} {height}",
        role="img",
        aria_label="Parts of the latency of each decision",
    )
    medians = {part: statistics.median(r.latency_s[part] for r in good) for part in LATENCY_PARTS}
    items = [
        element(
            "li",
            element("i", class_=f"dot part-{part}"),
            f"{part}: {text}, ",
            element("b", f"{medians[part]:.3f} s"),
        )
        for part, text in PART_TEXTS.items()
    ]
    return element(
        "section",
        element("h2", "Where the time goes"),
        element("div", drawing, class_="wide"),
        element("ul", items, class_="legend"),
        element(
            "p",
            "One column a monitor's decision, from capture to answer; medians in the legend.",
            class_="note",
        ),
    )


def health(session: Session, records: Sequence[Record]) -> Markup | None:
    """What the node counted: images, gaps, restarts."""
    held = sum(record.num_held > 0 for record in records)
    short = sum(0 < record.num_frames < record.num_asked for record in records)
    names = [name for name in CAMERA_COLUMNS if any(name in camera for camera in session.cameras)]
    table = element(
        "table",
        element("tr", [element("th", name.replace("_", " ")) for name in names]),
        [
            element("tr", [element("td", camera.get(name, "")) for name in names])
            for camera in session.cameras
        ],
    )
    counts = [
        *((name.replace("_", " "), count) for name, count in session.counters.items()),
        ("decisions from a window that was still filling", short),
        ("decisions from a window with repeated frames", held),
    ]
    return element(
        "section",
        element("h2", "Cameras and engine"),
        element("div", table, class_="wide") if session.cameras else None,
        element(
            "ul", [element("li", element("b", str(n)), " ", name) for name, n in counts], class_="counts"
        ),
    )


def script_data(session: Session, records: Sequence[Record], album: Album, axis: Axis) -> dict[str, Any]:
    """What report.js plays back."""
    options = all_options(session, records)
    lanes: dict[str, list[list[Any]]] = {}
    for record in records:
        if record.source == "monitor" and record.kind in MONITORED_KINDS and record.stamp_ns:
            lanes.setdefault(record.kind, []).append(
                [
                    round(axis.seconds(record.stamp_ns), 3),
                    record.headline,
                    timeline.option_class(record, options),
                    round(100 * record.confidence),
                    record.reasoning or record.error_msg,
                    round(record.age_s, 2),
                ]
            )
    return {
        "length": axis.length_s,
        "left": timeline.LEFT,
        "width": timeline.WIDTH - timeline.LEFT - timeline.RIGHT,
        "pictures": [[round(axis.seconds(p.stamp_ns), 3), p.identifier] for p in album.pictures],
        "lanes": lanes,
    }


def confidence_meter(record: Record, css: str) -> Markup:
    """A bar with its percentage."""
    percent = round(100 * min(1.0, max(0.0, record.confidence)))
    bar = element("i", element("i", class_=css, style=f"width:{percent}%"), class_="meter")
    return element("span", bar, element("b", f"{percent} %"), class_="confidence")


def all_options(session: Session, records: Sequence[Record]) -> list[str]:
    """Choices of the next-action query in a fixed order, which gives them their colours."""
    texts = dict.fromkeys(session.options)
    for record in records:
        if record.kind == "next_action":
            texts.update(dict.fromkeys(record.options))
            if record.verdict == "CHOICE":
                texts[record.headline] = None
    return list(texts)
