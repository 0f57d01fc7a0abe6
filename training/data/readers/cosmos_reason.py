# SPDX-License-Identifier: Apache-2.0
"""The released Cosmos-Reason1 data sets: SFT rows, RL rows and benchmark rows.

Layout: ``{subset}/*.json`` (or .jsonl) with a list of rows; clips as mp4 in a folder, or in a tar or tar.gz,
beside it.

- MCQ row (RL, benchmarks): ``video``, ``qa_pairs`` = one object or a list of ``question``, ``index2ans``, and
  ``answer`` or ``correct_answer``.
- SFT row: ``video``, ``conversations`` = system, user, assistant with ``role`` and ``content``.

Each question becomes a sample. Nothing is dropped silently: two rows about one video are two samples, rows
whose clip is missing are kept (loading or checking them says so), all other bad rows are reported.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..problems import FieldErrors, Report
from ..schema import CATEGORIES, Media, Provenance, QuestionKind, Sample, Style
from . import llava
from .clips import Clips
from .conversation import option_letter, parse_answer, parse_question, yes_no
from .fields import Fields, file_head, json_rows

_USED = {"video", "image", "qa_pairs", "conversations", "id", "category", "subcategory"}


@dataclass(frozen=True)
class _Subset:
    """What the name of a subset implies (paper, sections 4 and 5)."""

    kind: QuestionKind
    embodiment: str = ""


_SUBSETS = {
    "bridge": _Subset(QuestionKind.NEXT_ACTION, "robot_arm"),
    "agibot": _Subset(QuestionKind.NEXT_ACTION, "humanoid"),
    "holoassist": _Subset(QuestionKind.NEXT_ACTION, "human"),
    "av": _Subset(QuestionKind.NEXT_ACTION, "vehicle"),
    "robofail": _Subset(QuestionKind.EMBODIED, "robot_arm"),
    "robovqa": _Subset(QuestionKind.EMBODIED),
    "arrow_of_time": _Subset(QuestionKind.ARROW_OF_TIME),
    "aot": _Subset(QuestionKind.ARROW_OF_TIME),
    "spatial_puzzle": _Subset(QuestionKind.SPATIAL_PUZZLE),
    "puzzle": _Subset(QuestionKind.SPATIAL_PUZZLE),
    "object_permanence": _Subset(QuestionKind.OBJECT_PERMANENCE),
    "common_sense": _Subset(QuestionKind.COMMON_SENSE),
}
# RoboVQA and RoboFail mix the three tasks; their wording tells them apart.
_BY_WORDING = (
    (QuestionKind.AFFORDANCE, re.compile(r"\b(possible|able to|can (the|you|i|it|we)|afford)", re.I)),
    (QuestionKind.TASK_COMPLETION, re.compile(r"\b(complete|completed|finished|done|succe|satisf)", re.I)),
    (QuestionKind.NEXT_ACTION, re.compile(r"\b(next|subsequent|immediately after|should .* do now)", re.I)),
)


def data_files(root: Path) -> list[Path]:
    """JSON files of ``root`` and its subsets that hold rows of these layouts."""
    paths = [*root.glob("*.json*"), *root.glob("*/*.json*")]
    return sorted(path for path in paths if path.suffix in (".json", ".jsonl") and _has_rows(path))


def read(root: Path, report: Report) -> Iterator[Sample]:
    """Samples of a released data set, or of one of its subsets.

    Args:
        root: folder of the data set or of a subset.
        report: gets what is wrong.
    """
    clips: dict[Path, Clips] = {}
    for path in data_files(root):
        folder = path.parent
        here = clips.setdefault(folder, Clips(root, folder, report))
        for row, value in json_rows(path, str(path), report):
            found: list[Sample | FieldErrors] = []
            try:
                found = list(_row_samples(value, row, path, root, here))
            except FieldErrors as error:
                found = [error]
            wrong = [error for error in found if isinstance(error, FieldErrors)]
            if wrong:
                report.bad_row(path, row, FieldErrors(pair for error in wrong for pair in error.errors))
            yield from (sample for sample in found if isinstance(sample, Sample))


def _has_rows(path: Path) -> bool:
    """Whether to read a file; one that cannot be read or is cut off is, so that it gets reported."""
    head = file_head(path)
    return path.name.endswith("_qa_pairs.json") or (
        any(b'"%b"' % key in head for key in (b"qa_pairs", b"conversations")) and not llava.TURN.search(head)
    )


def _row_samples(
    value: Any, row: int, path: Path, root: Path, clips: Clips
) -> Iterator[Sample | FieldErrors]:
    value = _filled(value)
    fields = Fields(value)
    if fields.errors:
        raise FieldErrors(fields.errors)
    media = _media(fields, clips)
    if "conversations" in value:
        yield _sft_sample(value, row, path, root, media)
        return
    pairs = value.get("qa_pairs")
    several = isinstance(pairs, list)
    if several and not pairs:
        raise FieldErrors([("qa_pairs", "is an empty list: the row asks nothing; remove it")])
    for i, pair in enumerate(pairs if several else [pairs]):
        name = f"qa_pairs[{i}]" if several else "qa_pairs"
        try:
            yield _mcq_sample(value, pair, name, row, i if several else -1, path, root, media)
        except FieldErrors as error:
            yield error


def _filled(value: Any) -> Any:
    """An object without its nulls: tables give all rows the fields of any, by both spellings too."""
    return {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else value


def _media(fields: Fields, clips: Clips) -> tuple[Media, ...]:
    name = "image" if "image" in fields and "video" not in fields else "video"
    path = fields.text(name)
    if fields.errors:
        raise FieldErrors(fields.errors)
    return (clips.media(path, name),)


def _mcq_sample(
    value: dict[str, Any],
    pair: Any,
    name: str,
    row: int,
    number: int,
    path: Path,
    root: Path,
    media: tuple[Media, ...],
) -> Sample:
    pair = _filled(pair)
    fields = Fields(pair, f"{name}.")
    question = fields.text("question")
    key = "correct_answer" if "correct_answer" in fields and "answer" not in fields else "answer"
    answer = fields.text(key).strip()
    if fields.errors:
        raise FieldErrors(fields.errors)
    labels, options = _options(pair.get("index2ans"), f"{name}.index2ans")
    subset = _subset(path, root)
    try:
        letter = chr(ord("A") + labels.index(answer)) if answer in labels else option_letter(answer, options)
        return Sample(
            sample_id=_sample_id(value, row, number, path, root),
            media=media,
            kind=_kind(subset, question),
            question=question.strip(),
            options=options,
            answer=letter,
            **_common(value, row, path, root, subset),
        )
    except FieldErrors as error:
        raise FieldErrors((f"{name}.{field}", message) for field, message in error.errors) from error


def _options(value: Any, name: str) -> tuple[list[str], tuple[str, ...]]:
    """(labels, texts) in the labels' order; labels without a text are what tables add to make rows equal."""
    if not isinstance(value, dict):
        raise FieldErrors([(name, "must be an object of options by letter")])
    given = {str(label).strip(): text for label, text in value.items() if text is not None}
    bad = [label for label, text in given.items() if not isinstance(text, str)]
    if bad:
        raise FieldErrors([(f"{name}.{label}", "must be a string") for label in bad])
    labels = sorted(given, key=lambda label: (len(label), label))
    return labels, tuple(given[label].strip() for label in labels)


def _sft_sample(value: dict[str, Any], row: int, path: Path, root: Path, media: tuple[Media, ...]) -> Sample:
    said: dict[str, str] = {}
    top = Fields(value)
    for turn in top.objects("conversations"):
        role, content = turn.text("role"), turn.text("content")
        if role in said:
            turn.error("role", f"a second turn of {role!r}; expected system, user, assistant")
        said[role] = content
    for role in ("user", "assistant"):
        if role not in said and not top.errors:
            top.error("conversations", f"has no turn of role {role!r}")
    if top.errors:
        raise FieldErrors(top.errors)
    question, options = parse_question(said["user"])
    reasoning, answer = parse_answer(said["assistant"])
    subset = _subset(path, root)
    binary = "" if options else yes_no(answer)
    return Sample(
        sample_id=_sample_id(value, row, -1, path, root),
        media=media,
        kind=_kind(subset, question) if subset else QuestionKind.OTHER,
        question=question,
        options=options,
        yes_no=bool(binary),
        answer=option_letter(answer, options) if options else binary or answer,
        reasoning=reasoning,
        style=Style.REASONING if reasoning else Style.UNDERSTANDING,
        **_common(value, row, path, root, subset),
    )


def _common(
    value: dict[str, Any], row: int, path: Path, root: Path, subset: _Subset | None
) -> dict[str, Any]:
    names = [_word(value.get(key, "")) for key in ("subcategory", "category")]
    extra = {k: v for k, v in value.items() if k not in _USED and isinstance(v, str | int | float | bool)}
    extra |= {key: value[key] for key in ("category", "subcategory") if isinstance(value.get(key), str)}
    return {
        "provenance": Provenance(_source(path, root), path.relative_to(root).as_posix(), row),
        "split": _split(path, "conversations" in value),
        "category": next((name for name in names if name in CATEGORIES), ""),
        "embodiment": subset.embodiment if subset else "",
        "extra": extra,
    }


def _word(text: Any) -> str:
    return re.sub(r"[\s-]+", "_", text.strip().lower()) if isinstance(text, str) else ""


def _source(path: Path, root: Path) -> str:
    """Name of the subset: its folder, or what stands before _benchmark_, _rl_ or _sft_ in the file's name."""
    match = re.match(r"(.+?)_(benchmark|rl|sft|understanding|reasoning)", path.stem)
    return match[1] if match else (path.parent if path.parent != root else path).stem


def _subset(path: Path, root: Path) -> _Subset | None:
    source = _source(path, root).lower()
    return next((value for name, value in _SUBSETS.items() if re.match(rf"{name}(v?\d|_|\b)", source)), None)


def _split(path: Path, sft: bool) -> str:
    if sft:
        return "sft"
    names = f"{path.parent.parent.name}_{path.stem}".lower()
    return (
        "benchmark" if "benchmark" in names else "rl" if re.search(r"(\b|_|-)rl(\b|_|-)", names) else "train"
    )


def _kind(subset: _Subset | None, question: str) -> QuestionKind:
    kind = subset.kind if subset else QuestionKind.OTHER
    if kind is not QuestionKind.EMBODIED:
        return kind
    return next((k for k, words in _BY_WORDING if words.search(question)), kind)


def _sample_id(value: dict[str, Any], row: int, number: int, path: Path, root: Path) -> str:
    given = value.get("id")
    name = str(given) if isinstance(given, str | int) and str(given).strip() else str(row)
    file = path.relative_to(root).with_suffix("").as_posix()
    return f"{file}:{name}" + (f".{number}" if number >= 0 else "")
