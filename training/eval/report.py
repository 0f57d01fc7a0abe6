# SPDX-License-Identifier: Apache-2.0
"""The result of an evaluation as plain values: what JSON, Markdown and the page are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from .item import Item
from .published import LAYOUTS, Layout
from .scoring import Outcome, cell

VERSION = 1


def build(
    outcomes: Sequence[Outcome],
    unasked: int,
    facts: Mapping[str, Any],
    *,
    held_out_tasks: Iterable[str] = (),
    official: bool = False,
) -> dict[str, Any]:
    """All tables.

    Args:
        outcomes: of the items that were asked.
        unasked: number of items that were not.
        facts: about model, benchmark, protocol; taken over.
        held_out_tasks: names of tasks that were never trained on: their items are reported apart and are in
            no other table.
        official: published rows are about the same benchmark.

    Raises:
        ValueError: nothing was asked.
    """
    if not outcomes:
        raise ValueError("no item was asked in full yet: run the evaluation first, or let it finish")
    new = folded(held_out_tasks)
    apart = [o for o in outcomes if is_new(o.item, new)]
    known = [o for o in outcomes if not is_new(o.item, new)] or apart
    result = {
        "version": VERSION,
        **facts,
        "held_out_tasks": sorted(new),
        "unasked": unasked,
        "overall": cell(known),
        "by_kind": _split(known, lambda item: item.group),
        "by_kind_and_form": _split(known, lambda item: f"{item.group}, {_FORMS[item.form]}"),
        "by_category": _split(known, lambda item: item.category),
        "by_source": _split(known, lambda item: item.source),
        "new_tasks": _split(apart, lambda item: item.group) if new else {},
        "paper": {layout.name: _paper(layout, known, facts, official) for layout in LAYOUTS},
    }
    result["paper"] = {name: table for name, table in result["paper"].items() if table}
    return result


def folded(names: Iterable[str]) -> set[str]:
    """Names of tasks as ``is_new`` wants them: neither case nor outer blanks count."""
    return {name.strip().casefold() for name in names}


def is_new(item: Item, held_out_tasks: Iterable[str]) -> bool:
    """Whether an item is about one of these tasks (as ``folded`` gives them)."""
    return any(name.strip().casefold() in held_out_tasks for name in item.tasks)


_FORMS = {"choice": "multiple choice", "yes_no": "yes or no", "free": "free form"}


def _split(outcomes: Sequence[Outcome], name_of: Callable[[Item], str]) -> dict[str, Any]:
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(name_of(outcome.item), []).append(outcome)
    return {name: cell(groups[name]) for name in sorted(groups) if name}


def _paper(
    layout: Layout, outcomes: Sequence[Outcome], facts: Mapping[str, Any], official: bool
) -> dict[str, Any]:
    """One of the paper's tables, %: our rows, then the published ones; {} where no item belongs to it."""
    columns = {name: [o for o in outcomes if layout.column_of(o.item) == name] for name in layout.columns}
    cells = {name: cell(own) for name, own in columns.items() if own}
    if not cells:
        return {}
    name = str(facts["model"]["model_id"])
    ours: dict[str, Callable[[dict[str, Any]], float | None]] = {
        name: lambda c: c["mean"],
        f"{name}, no video": lambda c: c["blind"]["mean"] if "blind" in c else None,
        "best without video": lambda c: c["best_without_video"]["mean"],
        "random guess": lambda c: c["random"],
    }
    rows: list[dict[str, Any]] = []
    for title, value_of in ours.items():
        values = [value_of(cells[c]) if c in cells else None for c in layout.columns]
        rows.append({"name": title, "published": False, "values": _with_average(values)})
    rows[0]["ci95"] = [
        [round(100 * v, 1) for v in cells[c]["ci95"]] if c in cells else None for c in layout.columns
    ]
    rows += [
        {"name": title, "published": True, "values": list(values)} for title, values in layout.rows.items()
    ]
    return {
        "title": layout.title,
        "columns": [*layout.columns, "Avg"],
        "n": [cells[c]["n"] if c in cells else 0 for c in layout.columns],
        "comparable": official,
        "rows": rows,
    }


def _with_average(values: Sequence[float | None]) -> list[float | None]:
    """In %, with the mean of the columns; none where a column is empty."""
    shown = [None if value is None else round(100 * value, 1) for value in values]
    known = [100 * value for value in values if value is not None]
    return [*shown, round(float(np.mean(known)), 1) if len(known) == len(values) else None]
