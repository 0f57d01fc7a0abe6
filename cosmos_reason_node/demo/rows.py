# SPDX-License-Identifier: Apache-2.0
"""The report's list of decisions: a row each, which opens to the window, the reasoning and the numbers."""

from __future__ import annotations

from collections.abc import Sequence

from . import timeline
from .album import Album, window_strip
from .markup import Markup, element, join
from .parts import all_options, confidence_meter
from .session import LATENCY_PARTS, MONITORED_KINDS, Record, Session
from .timeline import Axis

KIND_NAMES = {
    "completion": "Completion",
    "affordance": "Affordance",
    "next_action": "Next action",
    "question": "Question",
}


def decision_list(records: Sequence[Record], album: Album, axis: Axis, session: Session) -> Markup:
    """All decisions in the order given, with buttons that filter them."""
    options = all_options(session, records)
    slowest = max((sum(record.latency_s.values()) for record in records), default=0.0) or 1.0
    before: dict[str, str] = {}
    rows = []
    for record in records:
        changed = before.get(record.kind) != record.headline
        before[record.kind] = record.headline
        rows.append(_row(record, album, axis, options, slowest, changed))
    filters = [("all", "All"), ("changed", "Changes"), *((k, KIND_NAMES[k]) for k in MONITORED_KINDS)]
    filters += [("asked", "Asked by hand"), ("error", "Errors")]
    buttons = [
        element(
            "button", text, type="button", data_filter=name, aria_pressed="true" if name == "all" else "false"
        )
        for name, text in filters
    ]
    titles = ("Capture", "Query", "Answer", "Confidence", "Age", "Latency")
    return element(
        "section",
        element("h2", "Decisions"),
        element("div", buttons, class_="filters"),
        element("div", [element("span", title) for title in titles], class_="row titles"),
        element("div", rows, id="rows") if rows else element("p", "There were none.", class_="note"),
    )


def _row(
    record: Record, album: Album, axis: Axis, options: Sequence[str], slowest: float, changed: bool
) -> Markup:
    css = timeline.option_class(record, options)
    when = f"{axis.seconds(record.stamp_ns):.2f} s" if record.stamp_ns else "–"
    parts = [
        element("i", class_=f"part-{part}", style=f"width:{100 * record.latency_s[part] / slowest:.2f}%")
        for part in LATENCY_PARTS
    ]
    tags = ["changed"] if changed else []
    tags.append(record.kind if record.source == "monitor" else "asked")
    tags += ["error"] if record.failed else []
    return element(
        "details",
        element(
            "summary",
            element("span", when, class_="when"),
            element("span", KIND_NAMES.get(record.kind, record.kind)),
            element("span", record.headline, class_=f"badge {css}"),
            confidence_meter(record, css),
            element("span", f"{record.age_s:.2f} s" if record.stamp_ns else "–"),
            element("span", parts, class_="stack", title=_latency_text(record)),
            class_="row",
        ),
        _details(record, album),
        data_tags=" ".join(tags),
    )


def _details(record: Record, album: Album) -> Markup:
    valid_s = (record.valid_until_ns - record.published_ns) / 1e9
    lines = [
        ("Question", record.question),
        ("Choices", ", ".join(record.options)),
        ("Reasoning", record.reasoning or ("" if record.failed else "none")),
        ("Answer", record.answer),
        ("Error", f"{record.error}: {record.error_msg}" if record.failed else ""),
        ("Latency", _latency_text(record)),
        ("Tokens", f"{record.prompt_tokens} in the prompt, {record.output_tokens} generated"),
        ("Window", _window_text(record)),
        ("Valid for", f"{valid_s:.2f} s after publishing" if record.valid_until_ns else ""),
        ("Decision", record.decision_id),
    ]
    listing = [join(element("dt", name), element("dd", text)) for name, text in lines if text]
    return element("div", window_strip(album.window(record)), element("dl", listing), class_="details")


def _window_text(record: Record) -> str:
    if not record.num_frames:
        return ""
    cameras = ", ".join(record.cameras)
    text = f"{record.num_frames} of {record.num_asked} frames at {record.fps:g} fps from {cameras}"
    return text + (f", {record.num_held} repeated because the camera gave none" if record.num_held else "")


def _latency_text(record: Record) -> str:
    return ", ".join(f"{part} {record.latency_s[part]:.3f} s" for part in LATENCY_PARTS)
