# SPDX-License-Identifier: Apache-2.0
"""What a run leaves behind: samples with their videos, losses, and the report as JSON and as a table."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..readers.jsonl import write_samples
from ..schema import Sample
from .clip import Clip
from .endpoint import Meter
from .message import Answer
from .outcome import Books, Loss
from .pipeline import BlindScore, video_path
from .store import SENT, Store, write_json


def write_data(
    output: Path, samples: Sequence[Sample], clips: Iterable[Clip], losses: Iterable[Loss]
) -> None:
    """Write samples.jsonl, the videos it names, and rejected.jsonl; each file whole or not at all.

    Raises:
        OSError: a file cannot be written or copied.
    """
    used = {path for sample in samples for media in sample.media for path in media.paths}
    for clip in clips:
        if video_path(clip) in used:
            _place(clip.path, output / video_path(clip))
    write_samples(output, samples)
    ordered = sorted(losses, key=lambda loss: (loss.item, loss.stage))
    lines = (json.dumps(dataclasses.asdict(loss), ensure_ascii=False) for loss in ordered)
    write_json(output / "rejected.jsonl", "".join(f"{line}\n" for line in lines))


def make_report(
    samples: Sequence[Sample],
    books: Books,
    meter: Meter,
    store: Store,
    blind: BlindScore,
    exceeded: Mapping[str, float],
) -> dict[str, Any]:
    """The report, ready for JSON."""
    states = store.attempts_by_state()
    return {
        "complete": books.complete,
        "balanced": books.balanced,
        "samples": {
            "total": len(samples),
            "by_style": _counted(sample.style.value for sample in samples),
            "by_form": _counted(sample.form for sample in samples),
            "by_group": _counted(sample.category or sample.capability or "unlabelled" for sample in samples),
            "letters": _counted(sample.answer for sample in samples if sample.options),
        },
        "stages": {
            stage: {
                "entered": count.entered,
                "kept": count.kept,
                "rejected": dict(sorted(count.rejected.items())),
                "unfinished": dict(sorted(count.unfinished.items())),
            }
            for stage, count in books.counts.items()
        },
        "unfinished_because": sorted({loss.detail for loss in books.losses if not loss.final}),
        "blind": dataclasses.asdict(blind),
        "steps": {
            step: {"now": _sum(meter.fresh.get(step)), "from_store": _sum(meter.kept.get(step))}
            for step in sorted({*meter.fresh, *meter.kept})
        },
        "all_runs": {**dataclasses.asdict(store.spent), "by_state": states},
        "in_doubt": states.get(SENT, 0),
        "budget_exceeded_by": dict(exceeded),
    }


def write_report(output: Path, report: dict[str, Any]) -> None:
    """Write report.json."""
    write_json(output / "report.json", json.dumps(report, indent=2, ensure_ascii=False) + "\n")


def table(report: dict[str, Any]) -> str:
    """The report for people."""
    rows = [("stage", "entered", "kept", "rejected", "unfinished", "reasons")]
    for stage, count in report["stages"].items():
        lost = {**count["rejected"], **{f"({name})": n for name, n in count["unfinished"].items()}}
        reasons = ", ".join(f"{n} {name}" for name, n in sorted(lost.items(), key=lambda item: -item[1]))
        rejected, unfinished = sum(count["rejected"].values()), sum(count["unfinished"].values())
        rows.append(
            (stage, str(count["entered"]), str(count["kept"]), str(rejected), str(unfinished), reasons)
        )
    steps = [("step", "asked now", "from store", "tokens in", "tokens out", "cost now", "cost in all")]
    for step, both in report["steps"].items():
        now, kept = both["now"], both["from_store"]
        tokens = [str(now[name] + kept[name]) for name in ("input_tokens", "output_tokens")]
        costs = [f"{now['cost']:.4f}", f"{now['cost'] + kept['cost']:.4f}"]
        steps.append((step, str(now["answers"]), str(kept["answers"]), *tokens, *costs))
    spent, blind = report["all_runs"], report["blind"]
    lines = [
        *_aligned(rows),
        "",
        *_aligned(steps),
        "",
        f"samples {report['samples']['total']}; without the video {blind['right']} of {blind['asked']} "
        f"questions were answered right at the first trial, {blind['chance']:.1f} expected by chance",
        f"all runs: {spent['requests']} requests, {spent['tokens']} tokens, cost {spent['cost']:.4f}; "
        f"{report['in_doubt']} requests in doubt (sent, but the process died before an answer came)",
    ]
    for name, amount in report["budget_exceeded_by"].items():
        lines.append(f"budget.{name} exceeded by {amount}: answers used more than was estimated for them")
    if not report["complete"]:
        lines += ["UNFINISHED, run again to go on: " + reason for reason in report["unfinished_because"][:5]]
    return "\n".join(lines)


def _place(video: Path, target: Path) -> None:
    """The video under its name in the data set: a hard link where the file system allows, else a copy."""
    if target.exists() and target.stat().st_size == video.stat().st_size:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        try:
            os.link(video, partial)
        except OSError:  # another file system, or one without links
            shutil.copyfile(video, partial)
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def _counted(names: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items()))


def _sum(answers: dict[str, Answer] | None) -> dict[str, Any]:
    found = list((answers or {}).values())
    return {
        "answers": len(found),
        "models": sorted({answer.model for answer in found}),
        "input_tokens": sum(answer.input_tokens for answer in found),
        "output_tokens": sum(answer.output_tokens for answer in found),
        "seconds": round(sum(answer.seconds for answer in found), 3),
        "cost": round(sum(answer.cost for answer in found), 9),
    }


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns of equal width: numbers to the right, names and reasons to the left."""
    columns = []
    for column in zip(*rows, strict=True):
        width = max(map(len, column))
        numbers = all(cell[:1].isdigit() and " " not in cell for cell in column[1:])
        columns.append([cell.rjust(width) if numbers else cell.ljust(width) for cell in column])
    return ["  ".join(cells).rstrip() for cells in zip(*columns, strict=True)]
