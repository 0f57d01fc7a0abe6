# SPDX-License-Identifier: Apache-2.0
"""Accuracies with their intervals and baselines, one row a group, as SVG."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cosmos_reason_node.demo.markup import Markup, element

_LEFT, _WIDTH, _RIGHT = 190, 700, 190
_ROW, _TOP, _BOTTOM = 34, 34, 30


def chart(cells: Mapping[str, Mapping[str, Any]]) -> Markup:
    """The drawing; see scoring.cell for what it shows."""
    height = _TOP + _ROW * len(cells) + _BOTTOM
    bottom = height - _BOTTOM
    grid = [
        (
            element("line", x1=_x(v / 100), x2=_x(v / 100), y1=_TOP - 6, y2=bottom, class_="grid"),
            element("text", f"{v} %", x=_x(v / 100), y=height - 10, class_="tick"),
        )
        for v in range(0, 101, 25)
    ]
    rows = [_row(name, cell, _TOP + _ROW * (i + 0.5)) for i, (name, cell) in enumerate(cells.items())]
    box = f"0 0 {_LEFT + _WIDTH + _RIGHT} {height}"
    drawing = element(
        "svg", _legend(), grid, rows, viewBox=box, role="img", aria_label="accuracy by kind, with baselines"
    )
    return element("div", drawing, class_="wide chart")


def _row(name: str, cell: Mapping[str, Any], y: float) -> Markup:
    low, high = cell["ci95"]
    best, guess = cell["best_without_video"]["mean"], cell["random"]
    above, below = y - 3, y + 6
    parts = [
        element("line", x1=_x(0), x2=_x(1), y1=y, y2=y, class_="lane"),
        element("line", x1=_x(guess), x2=_x(guess), y1=y - 8, y2=y + 8, class_="guess"),
        element("path", d=f"M{_x(best):.1f} {y - 9} l4 9 l-4 9 l-4 -9 z", class_="best"),
    ]
    if "blind" in cell:
        blind = cell["blind"]
        first, last = blind["ci95"]
        parts += [
            element("line", x1=_x(first), x2=_x(last), y1=below, y2=below, class_="blind"),
            element("circle", cx=_x(blind["mean"]), cy=below, r=4.5, class_="blind"),
        ]
    parts += [
        element("line", x1=_x(low), x2=_x(high), y1=above, y2=above, class_="seen"),
        element("circle", cx=_x(cell["mean"]), cy=above, r=6, class_="seen"),
        element("text", name.replace("_", " "), x=_LEFT - 16, y=y + 4, class_="side"),
        element(
            "text",
            f"{100 * cell['mean']:.1f} ({100 * low:.1f} to {100 * high:.1f}), n {cell['n']}",
            x=_LEFT + _WIDTH + 16,
            y=y + 4,
            class_="number",
        ),
    ]
    return element("g", parts)


def _legend() -> Markup:
    x = [_LEFT, _LEFT + 120, _LEFT + 300, _LEFT + 470]
    return element(
        "g",
        element("circle", cx=x[0], cy=12, r=6, class_="seen"),
        element("text", "the model", x=x[0] + 12, y=16),
        element("circle", cx=x[1], cy=12, r=4.5, class_="blind"),
        element("text", "same model, no video", x=x[1] + 12, y=16),
        element("path", d=f"M{x[2]} 3 l4 9 l-4 9 l-4 -9 z", class_="best"),
        element("text", "best without video", x=x[2] + 12, y=16),
        element("line", x1=x[3], x2=x[3], y1=4, y2=20, class_="guess"),
        element("text", "random guess", x=x[3] + 10, y=16),
    )


def _x(share: float) -> float:
    return _LEFT + _WIDTH * share
