# SPDX-License-Identifier: Apache-2.0
"""The pre-flight check: everything that would spoil a training or an evaluation, found before it starts.

Errors end with exit code 1: bad rows, media that are missing, empty, cut off or cannot be decoded,
contradicting answers, and whatever splits share: media by content, or episodes. Warnings do not: copies
within a split, clips that look alike across splits, and question kinds that can be answered without looking.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .blind import RULES, BlindScore, blind_scores
from .fingerprint import alike_groups
from .media_scan import Facts, Unit, scan, units_of
from .problems import Problem
from .readers import DataSet
from .schema import Sample, Video

ERRORS = (
    "bad row",
    "bad id",
    "wrong answer",
    "missing",
    "empty",
    "truncated",
    "unreadable",
    "contradiction",
    "leak: same media",
    "leak: same episode",
)
WARNINGS = ("duplicate sample", "duplicate media", "leak? alike", "blind")
# A kind whose best blind guess is this much above chance is reported.
_BLIND_MARGIN = 0.15
_BLIND_MIN_COUNT = 20
_SHOWN = 10


@dataclass(frozen=True)
class Finding:
    """One thing to look at.

    Attributes:
        kind: one of ERRORS or WARNINGS.
        where: file and row, media file, or sample id.
        message: what is wrong and what to do.
    """

    kind: str
    where: str
    message: str

    @property
    def is_error(self) -> bool:
        """Whether the data set should not be used like this."""
        return self.kind in ERRORS


@dataclass(frozen=True)
class CheckResult:
    """What a check found.

    Attributes:
        root, layout: of the data set.
        rows, bad_rows, samples, media: counts; ``media`` of distinct files.
        media_bytes: their size.
        splits: number of samples of each.
        findings: errors first, in ERRORS' order.
        scores: class balance and blind guesses of every question kind.
        seconds: how long it took.
    """

    root: str
    layout: str
    rows: int
    bad_rows: int
    samples: int
    media: int
    media_bytes: int
    splits: dict[str, int]
    findings: tuple[Finding, ...]
    scores: tuple[BlindScore, ...]
    seconds: float

    @property
    def ok(self) -> bool:
        """No errors; warnings may be left."""
        return not any(finding.is_error for finding in self.findings)


def check(
    data: DataSet, processes: int = 0, progress: Callable[[int, int], None] | None = None
) -> CheckResult:
    """Check a data set that was read with ``strict=False``.

    Args:
        data: the data set.
        processes: see media_scan.scan.
        progress: called with (files done, files in all).
    """
    started = time.monotonic()
    users = units_of(data.samples)
    total = len(users)
    found = scan(data.root, list(users), processes, lambda done: progress and progress(done, total))
    facts = {unit: found[unit] for unit in users}  # processes finish in any order
    scores = blind_scores(data.samples)
    findings = [
        *map(_of_problem, data.report.problems),
        *_broken(data, facts, users),
        *_duplicates(data),
        *_shared_episodes(data.samples),
        *_shared_media(facts, users),
        *_alike(facts, users),
        *_blind(scores),
    ]
    order = {kind: i for i, kind in enumerate((*ERRORS, *WARNINGS))}
    return CheckResult(
        root=str(data.root),
        layout=data.layout,
        rows=data.report.rows,
        bad_rows=data.report.bad_rows,
        samples=len(data.samples),
        media=total,
        media_bytes=sum(fact.size for fact in facts.values()),
        splits=dict(sorted(Counter(sample.split for sample in data.samples).items())),
        findings=tuple(sorted(findings, key=lambda finding: order[finding.kind])),
        scores=tuple(scores),
        seconds=round(time.monotonic() - started, 2),
    )


def unusable(root: Path, problems: Sequence[Problem]) -> CheckResult:
    """The result for a folder that holds no usable sample at all."""
    findings = tuple(map(_of_problem, problems))
    return CheckResult(str(root), "", 0, 0, 0, 0, 0, {}, findings, (), 0.0)


def _of_problem(problem: Problem) -> Finding:
    """A row that was left out; what is wrong with ids and answers is listed by itself."""
    row = f", row {problem.row}" if problem.row else ""
    name = f"{problem.field}: " if problem.field else ""
    kinds = {"sample_id": "bad id", "answer": "wrong answer", "correct_answer": "wrong answer"}
    kind = kinds.get(problem.field.rpartition(".")[2], "bad row")
    return Finding(kind, f"{problem.file}{row}", name + problem.message)


def _broken(data: DataSet, facts: dict[Unit, Facts], users: dict[Unit, list[Sample]]) -> Iterator[Finding]:
    for unit, fact in facts.items():
        if fact.reason:
            yield Finding(fact.reason, unit.name, f"{fact.message} (used by {_labels(data, users[unit])})")


def _duplicates(data: DataSet) -> Iterator[Finding]:
    """Samples that ask the same of the same media."""
    asked: dict[object, list[Sample]] = defaultdict(list)
    for sample in data.samples:
        options = tuple(sorted(option.casefold() for option in sample.options))
        turns = tuple((turn.role, turn.text) for turn in sample.history)
        words = (sample.question.casefold(), sample.task.casefold(), sample.action.casefold())
        asked[sample.media, sample.kind, words, options, turns].append(sample)
    for group in asked.values():
        if len(group) < 2:
            continue
        answers = {(s.options[s.answer_index] if s.options else s.answer).casefold() for s in group}
        closed = group[0].form != "free"
        if closed and len(answers) > 1:
            said = _words(sorted(answers))
            what = f"{_labels(data, group)} ask the same and answer {said}: correct or remove them"
            yield Finding("contradiction", group[0].sample_id, what)
        elif len(answers) < len(group):
            what = f"{_labels(data, group)} are the same: keep one"
            yield Finding("duplicate sample", group[0].sample_id, what)


def _shared_episodes(samples: Sequence[Sample]) -> Iterator[Finding]:
    splits: dict[tuple[str, str], dict[str, Sample]] = defaultdict(dict)
    for sample in samples:
        if sample.provenance.episode:
            key = (sample.provenance.source, sample.provenance.episode)
            splits[key].setdefault(sample.split, sample)
    for (source, episode), found in splits.items():
        if len(found) > 1:
            what = f"episode {episode} of {source} is in {_words(sorted(found))}: keep it in one split"
            yield Finding("leak: same episode", f"{source}:{episode}", what)


def _shared_media(facts: dict[Unit, Facts], users: dict[Unit, list[Sample]]) -> Iterator[Finding]:
    """Media of equal content, by the hash of their bytes."""
    by_digest: dict[str, list[Unit]] = defaultdict(list)
    for unit, fact in facts.items():
        if fact.digest and fact.reason != "empty":
            by_digest[fact.digest].append(unit)
    for units in by_digest.values():
        splits = sorted({sample.split for unit in units for sample in users[unit]})
        if len(splits) > 1 and (len(units) > 1 or _parts_overlap(units[0], users[units[0]])):
            what = f"{_names(units)} {_is_are(units)} in {_words(splits)}: remove it from all but one"
            yield Finding("leak: same media", units[0].name, what)
        elif len(units) > 1:
            yield Finding("duplicate media", units[0].name, f"{_names(units)} have the same content")


def _parts_overlap(unit: Unit, users: Sequence[Sample]) -> bool:
    """Whether splits look at the same time of a file, which may hold several episodes."""
    parts = [
        (sample.split, media.start_s, math.inf if media.end_s is None else media.end_s)
        for sample in users
        for media in sample.media
        if unit.path in media.paths and isinstance(media, Video) and media.member == unit.member
    ]
    if len(parts) < len(users):
        return True  # it is no video to some
    # In the order of their starts; what has ended latest so far, of each split.
    ends: dict[str, float] = {}
    for split, start_s, end_s in sorted(parts, key=lambda part: part[1]):
        if any(start_s < until_s for other, until_s in ends.items() if other != split):
            return True
        ends[split] = max(end_s, ends.get(split, 0.0))
    return False


def _alike(facts: dict[Unit, Facts], users: dict[Unit, list[Sample]]) -> Iterator[Finding]:
    """Clips whose frames look the same though their bytes differ: encoded anew, scaled, reversed."""
    for units in alike_groups({unit: fact.fingerprint for unit, fact in facts.items() if fact.fingerprint}):
        splits = {sample.split for unit in units for sample in users[unit]}
        digests = {facts[unit].digest for unit in units}
        if len(splits) > 1 and len(digests) > 1:
            what = (
                f"{_names(units)} show alike frames in {_words(sorted(splits))}: the same clip encoded anew?"
            )
            yield Finding("leak? alike", units[0].name, what)


def _blind(scores: Iterable[BlindScore]) -> Iterator[Finding]:
    for score in scores:
        if (
            score.form == "free"
            or score.count < _BLIND_MIN_COUNT
            or score.best < score.chance + _BLIND_MARGIN
        ):
            continue
        rule = max(score.accuracy, key=lambda name: score.accuracy[name])
        what = (
            f"{score.best:.0%} are right by {rule} alone (chance {score.chance:.0%}): balance the answers, "
            "or report results as the distance to this"
        )
        yield Finding("blind", f"{score.group} ({score.form}, {score.split})", what)


def write_json(result: CheckResult, path: Path) -> None:
    """Write a result; the file appears whole or not at all."""
    record = {"ok": result.ok, **dataclasses.asdict(result)}
    record["findings"] = [
        {"error": finding.is_error, **dataclasses.asdict(finding)} for finding in result.findings
    ]
    record["scores"] = [{**dataclasses.asdict(score), "best": score.best} for score in result.scores]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", "utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def report_text(result: CheckResult, shown: int = _SHOWN) -> str:
    """The result as a person reads it; at most ``shown`` findings of a kind."""
    lines = [
        f"{result.root}: {result.layout or 'no data set'}, {result.samples} samples from {result.rows} rows "
        f"({result.bad_rows} bad), {result.media} media files, {result.media_bytes / 1e6:.1f} MB",
        "splits: " + ", ".join(f"{name} {count}" for name, count in result.splits.items()),
        "",
    ]
    for kind in (*ERRORS, *WARNINGS):
        found = [finding for finding in result.findings if finding.kind == kind]
        if found:
            lines.append(f"{'ERROR' if kind in ERRORS else 'warning'}: {kind}: {len(found)}")
            lines += [f"  {finding.where}: {finding.message}" for finding in found[:shown]]
            lines += [f"  ... and {len(found) - shown} more (--json FILE lists all)"] * (len(found) > shown)
    if result.findings:
        lines.append("")
    if result.scores:
        lines += _score_table(result.scores)
    errors = sum(finding.is_error for finding in result.findings)
    lines += ["", f"{errors} errors, {len(result.findings) - errors} warnings, {result.seconds:.1f} s"]
    return "\n".join(lines)


def _score_table(scores: Sequence[BlindScore]) -> list[str]:
    """Class balance and blind guesses, in percent."""
    heads = (
        "question kind",
        "form",
        "split",
        "n",
        "chance",
        *(r.replace("_", " ") for r in RULES[1:]),
        "answers",
    )
    rows = []
    for score in scores:
        guesses = [
            f"{100 * score.accuracy[rule]:.1f}" if rule in score.accuracy else "" for rule in RULES[1:]
        ]
        top = [f"{_short(answer)} {count}" for answer, count in list(score.answers.items())[:4]]
        more = ", ..." if len(score.answers) > 4 else ""
        chance = f"{100 * score.chance:.1f}" if score.form != "free" else ""
        rows.append(
            (score.group, score.form, score.split, str(score.count), chance, *guesses, ", ".join(top) + more)
        )
    widths = [max(len(row[i]) for row in (heads, *rows)) for i in range(len(heads))]
    table = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in (heads, *rows)
    ]
    return [line.rstrip() for line in ["right without looking, in %:", *table]]


def show_progress(done: int, total: int) -> None:
    """A line on stderr: rewritten on a terminal, now and then elsewhere."""
    if sys.stderr.isatty():
        print(f"\rmedia {done}/{total}", end="\n" if done == total else "", file=sys.stderr, flush=True)
    elif done == total or done % 1000 < 8:
        print(f"media {done}/{total}", file=sys.stderr, flush=True)


def _short(answer: str) -> str:
    return answer if len(answer) <= 24 else answer[:21] + "..."


def _labels(data: DataSet, samples: Sequence[Sample]) -> str:
    return _words([data.label(sample) for sample in samples])


def _names(units: Sequence[Unit]) -> str:
    return _words([unit.name for unit in units])


def _is_are(things: Sequence[object]) -> str:
    return "is" if len(things) == 1 else "have the same content and are"


def _words(names: Sequence[str]) -> str:
    """A few names in one phrase."""
    first = [f"{name}" for name in names[:3]]
    if len(names) > 3:
        return f"{', '.join(first)} and {len(names) - 3} more"
    return " and ".join(first)
