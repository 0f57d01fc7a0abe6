# SPDX-License-Identifier: Apache-2.0
"""A report as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_HEADS = (
    "n",
    "accuracy",
    "same model, no video",
    "above it by",
    "best without video",
    "random",
    "same option in every order",
    "over all orders",
    "ECE",
    "unparsed",
)
PUBLISHED_NOTE = (
    "Rows marked *published* are the paper's numbers (arXiv 2503.15558), not measured here; the others were "
    "measured by this run."
)
OTHER_BENCHMARK_NOTE = (
    "The published rows are about the paper's benchmark, ours about another one: they cannot be compared."
)


def markdown(report: Mapping[str, Any]) -> str:
    """The whole report."""
    model, settings, about = report["model"], report["settings"], report["protocol"]["about"]
    parts = [
        f"# {model['model_id']} on {report['benchmark']['name']}, protocol {report['protocol']['name']}",
        f"{about[:1].upper()}{about[1:]}. {settings['seeds']} run(s), digest "
        f"`{model['digest'][:12]}`, prompts `{model['prompt_id']}`, {model['engine']} on {model['device']}. "
        "Accuracies in %, with 95 % intervals (bootstrap over recordings and runs).",
    ]
    notes = [*report["benchmark"]["notes"]]
    if report["unasked"]:
        notes.insert(0, f"{report['unasked']} items have not been asked yet: this is not the final result.")
    parts += [f"- {note}" for note in notes]
    parts += ["## By kind", kinds(report)]
    if report["new_tasks"]:
        names = ", ".join(report["held_out_tasks"])
        parts += [f"## Tasks never trained on ({names})", table("kind", report["new_tasks"])]
    for paper in report["paper"].values():
        note = PUBLISHED_NOTE + ("" if paper["comparable"] else " " + OTHER_BENCHMARK_NOTE)
        parts += [f"## {paper['title']}, in the paper's layout", paper_table(paper), note]
    for key, title in (("by_kind_and_form", "kind"), ("by_category", "category"), ("by_source", "source")):
        if len(report[key]) > 1:
            parts += [f"## {key.replace('_', ' ').capitalize()}", table(title, report[key])]
    return "\n\n".join(parts).replace("\n\n- ", "\n- ") + "\n"


def kinds(report: Mapping[str, Any]) -> str:
    """The main table."""
    return table("kind", {**report["by_kind"], "all": report["overall"]})


def table(title: str, cells: Mapping[str, Mapping[str, Any]]) -> str:
    """One row a group."""
    rows = [[_escaped(name.replace("_", " ")), *values(cell)] for name, cell in cells.items()]
    return _table([title, *_HEADS], rows)


def values(cell: Mapping[str, Any]) -> list[str]:
    """A group's numbers in the order of the heads."""
    orders = cell.get("permutations")
    gain = cell.get("above_blind")
    why = ", ".join(f"{cell[name]} {name}" for name in ("errors", "cut") if cell[name])
    return [
        str(cell["n"]),
        with_interval(cell),
        with_interval(cell["blind"]) if "blind" in cell else "–",
        f"{100 * gain['mean']:+.1f} ({100 * gain['ci95'][0]:+.1f} to {100 * gain['ci95'][1]:+.1f})"
        if gain
        else "–",
        percent(cell["best_without_video"]["mean"]),
        percent(cell["random"]),
        percent(orders["consistent"]["mean"]) if orders else "–",
        percent(orders["mean"]) if orders else "–",
        f"{cell['ece']:.3f}" if "ece" in cell else "–",
        str(cell["unparsed"] + cell["errors"]) + (f" ({why})" if why else ""),
    ]


def heads() -> tuple[str, ...]:
    """Names of ``values``."""
    return _HEADS


def paper_table(paper: Mapping[str, Any]) -> str:
    """A table in the paper's layout."""
    rows = [["questions asked", *map(str, paper["n"]), str(sum(paper["n"]))]]
    for row in paper["rows"]:
        name = _escaped(row["name"])
        cells = paper_values(row)
        rows.append([f"*published:* {name}" if row["published"] else f"**{name}**", *cells])
    return _table(["model", *paper["columns"]], rows)


def paper_values(row: Mapping[str, Any]) -> list[str]:
    """Values of a row; "–" where there is none."""
    bounds = [*row.get("ci95", []), *([None] * len(row["values"]))]
    return [
        "–" if value is None else f"{value:.1f}" + (f" ({ci[0]:.1f} to {ci[1]:.1f})" if ci else "")
        for value, ci in zip(row["values"], bounds, strict=False)
    ]


def with_interval(cell: Mapping[str, Any]) -> str:
    """Mean and bounds, %: ``83.1 (79.0 to 87.2)``."""
    low, high = cell["ci95"]
    return f"{percent(cell['mean'])} ({percent(low)} to {percent(high)})"


def percent(share: float) -> str:
    """In %, one decimal."""
    return f"{100 * share:.1f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
