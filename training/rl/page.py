# SPDX-License-Identifier: Apache-2.0
"""The page of a run: one file, no script, no network."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cosmos_reason_node.demo.markup import Markup, element
from training.eval.item import write_text
from training.sft.report import read_log

from .monitors import flat, warnings

PAGE = "rl.html"
_WIDTH, _HEIGHT, _MARGIN = 420, 170, 34
_LONG = 60  # points from which on a running mean is drawn over them
_COLOURS = ("#2563eb", "#d97706", "#059669", "#9333ea", "#dc2626", "#0891b2", "#64748b", "#be185d")
_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:0 auto;max-width:960px;padding:24px;color:#0f172a}
h1{font-size:24px;margin:0}h2{font-size:17px;margin:28px 0 8px}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(420px,1fr));gap:20px}
figure{margin:0}figcaption{font-weight:600}svg{width:100%;height:auto;display:block}
text{font-size:11px;fill:#475569}.key{font-size:13px;color:#475569}.key b{font-weight:600}
ul.tiles{display:flex;flex-wrap:wrap;gap:12px;list-style:none;padding:0}
ul.tiles li{background:#f1f5f9;border-radius:8px;padding:8px 14px}
ul.tiles b{display:block;font-size:20px}
.warnings{background:#fef3c7;border-left:4px solid #d97706;padding:1px 14px;margin-bottom:20px}
table{border-collapse:collapse}td,th{padding:3px 12px 3px 0;text-align:left}
"""
# Title, (source of entries, name, label) of each line.
_CHARTS: tuple[tuple[str, tuple[tuple[str, str, str], ...]], ...] = (
    ("Reward", (("rollouts", "reward", "reward"), ("rollouts", "format", "format"))),
    ("Accuracy by data set", (("rollouts", "accuracy_by_source/*", ""), ("rollouts", "accuracy", "all"))),
    ("Rejecting every option, where that is right", (("rollouts", "none_accuracy", "accuracy"),)),
    ("KL to the starting weights, nats a token", (("trainer", "kl", "KL"),)),
    ("Entropy, nats a token", (("trainer", "entropy", "entropy"),)),
    ("Length, tokens", (("rollouts", "length", "mean"), ("rollouts", "longest", "longest"))),
    ("Share of tokens clipped", (("trainer", "clip_fraction", "clipped"),)),
    (
        "Groups with equal rewards; answers cut",
        (("rollouts", "zero_variance", "equal"), ("rollouts", "cut", "cut")),
    ),
    ("Trainer's to sampled probability", (("trainer", "importance", "mean ratio"),)),
    ("Gradient norm", (("trainer", "grad_norm", "norm"),)),
    ("Answers a second", (("rollouts", "answers_per_s", "answers/s"),)),
    ("Share of time waited, by role", (("rollouts", "idle/*", ""),)),
)


def write_page(directory: Path) -> Path:
    """Write rl.html from the logs of a run."""
    rollouts, trainer = read_log(directory / "monitor"), read_log(directory)
    path = directory / PAGE
    write_text(path, page(directory.name, rollouts, trainer))
    return path


def page(name: str, rollouts: Sequence[Mapping[str, Any]], trainer: Sequence[Mapping[str, Any]]) -> str:
    """The page as HTML."""
    charts = [_chart(title, lines, {"rollouts": rollouts, "trainer": trainer}) for title, lines in _CHARTS]
    last = rollouts[-1] if rollouts else {}
    found = warnings(rollouts, trainer)
    body = [
        element("p", "cosmos_reason · reinforcement learning", class_="key"),
        element("h1", name),
        _tiles(last) if last else element("p", "No iteration is finished yet."),
        element("div", element("ul", [element("li", text) for text in found]), class_="warnings")
        if found
        else None,
        element("div", [chart for chart in charts if chart], class_="grid"),
        _tables(last) if last else None,
    ]
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", f"RL run {name}"),
        element("style", Markup(_STYLE)),
    )
    return "<!doctype html>\n" + element("html", head, element("body", body), lang="en") + "\n"


def _tiles(last: Mapping[str, Any]) -> Markup:
    counts = last["counts"]
    tiles = [
        (last["step"] + 1, "iterations"),
        (f"{last['reward']:.3f}", "reward"),
        (f"{100 * last['accuracy']:.1f} %", "accuracy"),
        (f"{100 * last['format']:.1f} %", "in the asked format"),
        (f"{last['answers_per_s']:.1f}", "answers a second"),
        (counts["taken_back"], "pieces of work taken back from lost workers"),
        (counts["failed"], "questions failed"),
    ]
    return element("ul", [element("li", element("b", value), what) for value, what in tiles], class_="tiles")


def _tables(last: Mapping[str, Any]) -> Markup:
    rows = [
        ("staleness of tokens, in versions", last["staleness"]),
        ("answers given", last["said"]),
        ("right answers", last["right"]),
        ("books", last["counts"]),
    ]
    cells = [
        element("tr", element("th", title), element("td", json.dumps(values).strip("{}").replace('"', "")))
        for title, values in rows
    ]
    return element("section", element("h2", "Last iteration"), element("table", cells))


def _chart(
    title: str,
    lines: Sequence[tuple[str, str, str]],
    logs: Mapping[str, Sequence[Mapping[str, Any]]],
) -> Markup | None:
    series: dict[str, list[tuple[int, float]]] = {}
    for log, name, label in lines:
        for entry in logs[log]:
            for key, value in flat(entry).items():
                if key == name or (name.endswith("*") and key.startswith(name[:-1])):
                    series.setdefault(label or key.split("/", 1)[1], []).append((entry["step"], value))
    if not series:
        return None
    points = [point for line in series.values() for point in line]
    left, right = min(x for x, _ in points), max(x for x, _ in points)
    low, high = min(0.0, min(y for _, y in points)), max(y for _, y in points)
    high = high if high > low else low + 1.0

    def place(x: int, y: float) -> str:
        across = _MARGIN + (x - left) / max(1, right - left) * (_WIDTH - _MARGIN - 8)
        return f"{across:.1f},{_HEIGHT - 18 - (y - low) / (high - low) * (_HEIGHT - 30):.1f}"

    def draw(line: Sequence[tuple[int, float]], colour: str, opacity: float) -> Markup:
        where = " ".join(place(x, y) for x, y in line)
        return element(
            "polyline", points=where, fill="none", stroke=colour, stroke_width="1.5", stroke_opacity=opacity
        )

    drawn = []
    for i, line in enumerate(series.values()):
        colour, smooth = _COLOURS[i % len(_COLOURS)], _running_mean(line)
        drawn += (
            [draw(line, colour, 0.25), draw(smooth, colour, 1.0)] if smooth else [draw(line, colour, 1.0)]
        )
    axes = [
        element("line", x1=_MARGIN, x2=_WIDTH - 8, y1=_HEIGHT - 18, y2=_HEIGHT - 18, stroke="#cbd5e1"),
        element("text", f"{high:.3g}", x=2, y=16),
        element("text", f"{low:.3g}", x=2, y=_HEIGHT - 18),
        element("text", str(left), x=_MARGIN, y=_HEIGHT - 4),
        element("text", str(right), x=_WIDTH - 8, y=_HEIGHT - 4, text_anchor="end"),
    ]
    legend = [
        element("span", element("b", "■ ", style=f"color:{_COLOURS[i % len(_COLOURS)]}"), f"{label}  ")
        for i, label in enumerate(series)
    ]
    return element(
        "figure",
        element("figcaption", title),
        element("svg", axes, drawn, viewBox=f"0 0 {_WIDTH} {_HEIGHT}", role="img", aria_label=title),
        element("div", legend, class_="key"),
    )


def _running_mean(line: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Of a long line: an iteration's few questions say little. Empty for a short one."""
    if len(line) < _LONG:
        return []
    half = len(line) // 40
    values = [value for _, value in line]
    parts = [values[max(0, i - half) : i + half + 1] for i in range(len(line))]
    return [(step, sum(part) / len(part)) for (step, _), part in zip(line, parts, strict=True)]
