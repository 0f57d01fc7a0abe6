# SPDX-License-Identifier: Apache-2.0
"""The few numbers of a model that are committed beside it (eval.json), from reports."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .item import write_text


def rows(reports: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each report's model, one for it without video, and one for guessing.

    Each is ``{model, stage, protocol, decoding, benchmark, scores}``, stage one of base, sft, rl, blind,
    random; ``decoding`` names what decides how answers are written, tokens of reasoning among it; scores are
    ``{kind: {mean, ci95, n}}``, shares of 1. Where tasks were held out, ``new_tasks`` has the same about
    them.
    """
    found: list[dict[str, Any]] = []
    for report in reports:
        name = report["model"]["model_id"]
        for model, stage, part in (
            (name, report["stage"], ""),
            (name, "blind", "blind"),
            ("random guess", "random", "random"),
        ):
            row: dict[str, Any] = {
                "model": model,
                "stage": stage,
                "protocol": report["protocol"]["name"],
                "decoding": report["settings"]["decoding"],
                "benchmark": report["benchmark"]["name"],
                "scores": _scores(report["by_kind"], part),
            }
            if report["new_tasks"]:
                row["new_tasks"] = _scores(report["new_tasks"], part)
            if row["scores"] and row not in found:
                found.append(row)
    return found


def export(paths: Sequence[Path], out: Path) -> list[dict[str, Any]]:
    """Write the rows of report files; returns them.

    Raises:
        ValueError: a file is no report; the message names it.
    """
    reports = []
    for path in paths:
        try:
            report = json.loads(path.read_text(encoding="utf-8"))
            rows([report])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path} is no report of an evaluation ({error}): give DIR/{{protocol}}.json"
            ) from error
        if report["unasked"]:
            raise ValueError(
                f"{path}: {report['unasked']} items have not been asked: let the evaluation finish first"
            )
        reports.append(report)
    made = rows(reports)
    write_text(out, json.dumps(made, indent=1, ensure_ascii=False) + "\n")
    return made


def _scores(cells: Mapping[str, Mapping[str, Any]], part: str) -> dict[str, Any]:
    scores = {}
    for kind, cell in cells.items():
        value = cell if not part else cell.get(part)
        if value is None:
            continue
        if part == "random":
            value = {"mean": value, "ci95": [value, value]}  # known exactly
        scores[kind] = {"mean": value["mean"], "ci95": value["ci95"], "n": cell["n"]}
    return scores
