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
_WIDTH, _HEIGHT, _MARGIN = 420, 170, 46
_LONG = 60  # points from which on a running mean is drawn over them
_MANY = 4  # lines beyond which the running means stand alone
_LAST = 10  # iterations that histograms and the table of data sets sum up
_COLOURS = ("#2563eb", "#d97706", "#059669", "#9333ea", "#dc2626", "#0891b2", "#64748b", "#be185d")
_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:0 auto;max-width:960px;padding:24px;color:#0f172a}
h1{font-size:24px;margin:0}h2{font-size:17px;margin:28px 0 8px}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(420px,100%),1fr));gap:20px}
figure{margin:0}figcaption{font-weight:600}svg{width:100%;height:auto;display:block}
text{font-size:11px;fill:#475569}.key{font-size:13px;color:#475569}
.key span{display:inline-block;margin-right:10px}
ul.tiles{display:flex;flex-wrap:wrap;gap:12px;list-style:none;padding:0}
ul.tiles li{background:#f1f5f9;border-radius:8px;padding:8px 14px}
ul.tiles b{display:block;font-size:20px}
.warnings{background:#fef3c7;border-left:4px solid #d97706;padding:1px 14px;margin-bottom:20px}
table{border-collapse:collapse}td{overflow-wrap:anywhere}td,th{padding:3px 12px 3px 0;text-align:left}
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
    ("Share of time waited since the start, by role", (("rollouts", "idle/*", ""),)),
)
_TIGHT = "Trainer's to sampled probability"  # near 1: from zero on, nothing of it would be seen
# Title, name of the counts in an entry.
_HISTOGRAMS = (
    ("Staleness of tokens, versions", "staleness"),
    ("Answers given", "said"),
    ("Right answers", "right"),
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
        _summary(rollouts[-_LAST:]) if last else None,
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


def _summary(entries: Sequence[Mapping[str, Any]]) -> Markup:
    """Of the last iterations: histograms, accuracy by data set; and the books."""
    shown = [_histogram(title, [entry[name] for entry in entries]) for title, name in _HISTOGRAMS]
    found: dict[str, list[float]] = {}
    for entry in entries:
        for name, value in entry["accuracy_by_source"].items():
            found.setdefault(name, []).append(value)
    rows = [(name, f"{100 * sum(values) / len(values):.1f} %") for name, values in sorted(found.items())]
    rows += [("books", json.dumps(entries[-1]["counts"]).strip("{}").replace('"', ""))]
    cells = [element("tr", element("th", title), element("td", value)) for title, value in rows]
    return element(
        "section",
        element("h2", f"Last {len(entries)} iterations"),
        element("div", shown, class_="grid"),
        element("h2", "Accuracy by data set"),
        element("table", cells),
    )


def _histogram(title: str, counts: Sequence[Mapping[str, int]]) -> Markup:
    """Shares of what was counted, one bar each."""
    names = sorted({name for one in counts for name in one})
    sums = [sum(one.get(name, 0) for one in counts) for name in names]
    total, step = max(1, sum(sums)), 22
    bars = []
    for row, (name, count) in enumerate(zip(names, sums, strict=True)):
        share, down = count / total, row * step
        bars += [
            element("text", name, x=70, y=down + 15, text_anchor="end"),
            element("rect", x=78, y=down + 4, width=f"{270 * share:.1f}", height=14, fill=_COLOURS[0]),
            element("text", f"{100 * share:.1f} %", x=f"{84 + 270 * share:.1f}", y=down + 15),
        ]
    box = f"0 0 {_WIDTH} {max(1, len(names)) * step}"
    return element(
        "figure",
        element("figcaption", title),
        element("svg", bars, viewBox=box, role="img", aria_label=title),
    )


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
    low, high = min(y for _, y in points), max(y for _, y in points)
    low = low if title == _TIGHT else min(0.0, low)
    high = high if high > low else low + 1.0

    def place(x: int, y: float) -> str:
        across = _MARGIN + (x - left) / max(1, right - left) * (_WIDTH - _MARGIN - 8)
        return f"{across:.1f},{_HEIGHT - 18 - (y - low) / (high - low) * (_HEIGHT - 30):.1f}"

    def draw(i: int, line: Sequence[tuple[int, float]], opacity: float) -> Markup:
        where = [place(x, y) for x, y in line]
        if len(where) == 1:
            x, y = where[0].split(",")
            return element("circle", cx=x, cy=y, r=2.5, fill=_COLOURS[i % len(_COLOURS)])
        return element(
            "polyline",
            points=" ".join(where),
            fill="none",
            stroke=_COLOURS[i % len(_COLOURS)],
            stroke_width="1.5",
            stroke_opacity=opacity,
            stroke_dasharray=_dashes(i),
        )

    drawn = []
    for i, line in enumerate(series.values()):
        smooth = _running_mean(line)
        if not smooth or len(series) <= _MANY:
            drawn.append(draw(i, line, 0.25 if smooth else 1.0))
        if smooth:
            drawn.append(draw(i, smooth, 1.0))
    axes = [
        element("line", x1=_MARGIN, x2=_WIDTH - 8, y1=_HEIGHT - 18, y2=_HEIGHT - 18, stroke="#cbd5e1"),
        element("text", f"{high:.4g}", x=2, y=16),
        element("text", f"{low:.4g}", x=2, y=_HEIGHT - 18),
        element("text", str(left), x=_MARGIN, y=_HEIGHT - 4),
        element("text", str(right), x=_WIDTH - 8, y=_HEIGHT - 4, text_anchor="end"),
    ]
    legend = [
        element(
            "span",
            element("b", "┅ " if _dashes(i) else "■ ", style=f"color:{_COLOURS[i % len(_COLOURS)]}"),
            label,
        )
        for i, label in enumerate(series)
    ]
    return element(
        "figure",
        element("figcaption", title),
        element("svg", axes, drawn, viewBox=f"0 0 {_WIDTH} {_HEIGHT}", role="img", aria_label=title),
        element("div", legend, class_="key"),
    )


def _dashes(i: int) -> str | None:
    """Lines beyond the colours have these colours again, dashed."""
    return None if i < len(_COLOURS) else "5 3" if i < 2 * len(_COLOURS) else "1.5 3"


def _running_mean(line: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Of a long line: an iteration's few questions say little. Empty for a short one."""
    if len(line) < _LONG:
        return []
    half = len(line) // 40
    values = [value for _, value in line]
    parts = [values[max(0, i - half) : i + half + 1] for i in range(len(line))]
    return [(step, sum(part) / len(part)) for (step, _), part in zip(line, parts, strict=True)]
