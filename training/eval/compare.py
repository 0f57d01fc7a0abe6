# SPDX-License-Identifier: Apache-2.0
"""Two evaluations of the same items, paired: did training help, and where did it harm?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .report import folded, is_new
from .run import read_evaluation
from .scoring import Outcome, rights
from .statistics import difference


def compare(before: Path, after: Path, protocol: str) -> list[dict[str, Any]]:
    """Differences by kind, of all items, of the mean over kinds, and of tasks that were never trained on.

    Args:
        before: directory of an evaluation.
        after: of another model's.
        protocol: which both were asked with.

    Returns:
        Rows ``{kind, n, before, after, difference, ci95, p}``, shares of 1.

    Raises:
        FileNotFoundError, ValueError: an evaluation is missing, damaged or not finished, or the two asked
            different items.
    """
    first, second = (read_evaluation(directory, protocol) for directory in (before, after))
    for directory, found in ((before, first), (after, second)):
        if found.unasked:
            raise ValueError(
                f"{directory}: {found.unasked} items have not been asked: let the evaluation finish first"
            )
    ours, theirs = ({o.item.item_id: o for o in found.outcomes} for found in (first, second))
    other = {name for name in ours.keys() | theirs.keys() if _digest(ours, name) != _digest(theirs, name)}
    if other:
        raise ValueError(
            f"{len(other)} items are not the same in {before} and {after} ({min(other)}): compare "
            "evaluations of one benchmark with the same data and settings"
        )
    pairs = [(ours[name], theirs[name]) for name in ours]
    new = folded(second.facts["held_out_tasks"])
    known = [pair for pair in pairs if not is_new(pair[0].item, new)]
    apart = [pair for pair in pairs if is_new(pair[0].item, new)]
    rows = _by_kind(known)
    if len(rows) > 1:
        rows += [_row("all", known), _row("mean of the kinds", known, by_kind=True)]
    return rows + [row | {"kind": f"{row['kind']}, new tasks"} for row in _by_kind(apart)]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown."""
    lines = ["| question | n | before | after | difference |", "|---|---|---|---|---|"]
    for row in rows:
        low, high = (f"{100 * bound:+.1f}" for bound in row["ci95"])
        gain = f"{100 * row['difference']:+.1f} ({low} to {high})"
        values = [row["kind"].replace("_", " "), str(row["n"])]
        values += [f"{100 * row[name]:.1f}" for name in ("before", "after")]
        lines.append(f"| {' | '.join([*values, gain])} |")
    return "\n".join(lines)


_Pair = tuple[Outcome, Outcome]


def _digest(outcomes: dict[str, Outcome], name: str) -> str:
    return outcomes[name].item.digest if name in outcomes else ""


def _by_kind(pairs: Sequence[_Pair]) -> list[dict[str, Any]]:
    kinds = sorted({pair[0].item.group for pair in pairs})
    return [_row(kind, [pair for pair in pairs if pair[0].item.group == kind]) for kind in kinds]


def _row(kind: str, pairs: Sequence[_Pair], *, by_kind: bool = False) -> dict[str, Any]:
    clusters = np.array([pair[0].item.cluster for pair in pairs])
    first, second = (rights([pair[side].seeing for pair in pairs]).astype(float) for side in (0, 1))
    runs = min(first.shape[1], second.shape[1])
    first, second = first[:, :runs], second[:, :runs]
    kinds = np.array([pair[0].item.group for pair in pairs]) if by_kind else np.zeros(len(pairs))
    gain = difference(second, first, clusters, kinds)
    before, after = (
        np.mean([side[kinds == one].mean() for one in np.unique(kinds)]) for side in (first, second)
    )
    return {
        "kind": kind,
        "n": len(pairs),
        "before": round(float(before), 4),
        "after": round(float(after), 4),
        "difference": round(gain.mean, 4),
        "ci95": gain.ci95,
        "p": round(gain.p, 4),
    }
