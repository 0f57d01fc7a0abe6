# SPDX-License-Identifier: Apache-2.0
"""LLaVA-style data: JSON rows with ``conversations`` of ``from`` (human, gpt) and ``value``.

Texts name their media by <video> and <image>. A row of several exchanges becomes a sample each; the turns
before it are its ``history``. Media lie where the row says, below the data set or one of its folders, or in
an archive.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..problems import FieldErrors, Report
from ..schema import Media, Provenance, QuestionKind, Sample, Style, Turn
from .clips import Clips
from .conversation import PLACEHOLDER, option_letter, parse_answer, parse_question, yes_no
from .fields import Fields, file_head, json_rows

_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_MEDIA_KEYS = ("video", "videos", "image", "images")
TURN = re.compile(rb'"from"\s*:\s*"(human|gpt|user|assistant|system)"')


def data_files(root: Path) -> list[Path]:
    """JSON files of ``root`` and the folders in it that hold such rows."""
    paths = [*root.glob("*.json*"), *root.glob("*/*.json*")]
    return sorted(path for path in paths if path.suffix in (".json", ".jsonl") and _has_rows(path))


def read(root: Path, report: Report) -> Iterator[Sample]:
    """Samples of all files.

    Args:
        root: folder of the data set.
        report: gets what is wrong.
    """
    clips = Clips(root, root, report)
    taken: set[str] = set()
    for path in data_files(root):
        for row, value in json_rows(path, str(path), report):
            try:
                name = _name(value, row, path, root, taken)
                samples = list(_row_samples(value, name, row, path, root, clips))
            except FieldErrors as error:
                report.bad_row(path, row, error)
                continue
            taken.add(name)
            yield from samples


def _has_rows(path: Path) -> bool:
    return TURN.search(file_head(path)) is not None


def _name(value: Any, row: int, path: Path, root: Path, taken: set[str]) -> str:
    """A row's own id, else file and row: in this layout ids name the video, or begin anew in each file."""
    given = value.get("id") if isinstance(value, dict) else None
    name = str(given) if isinstance(given, str | int) and str(given).strip() else f"{path.stem}:{row}"
    return f"{path.relative_to(root).with_suffix('').as_posix()}:{row}" if name in taken else name


def _row_samples(value: Any, name: str, row: int, path: Path, root: Path, clips: Clips) -> Iterator[Sample]:
    turns = _turns(Fields(value))
    media = _media(value, clips)
    _check_placeholders(turns, media)
    starts = [i for i, turn in enumerate(turns) if turn.role == "user"]
    for number, start in enumerate(starts):
        question, options = parse_question(turns[start].text)
        reasoning, answer = parse_answer(turns[start + 1].text)
        binary = "" if options else yes_no(answer)
        extra = {
            k: v for k, v in value.items() if isinstance(v, str | int | float | bool) and k not in _MEDIA_KEYS
        }
        yield Sample(
            sample_id=f"{name}#{number}" if len(starts) > 1 else name,
            media=media,
            kind=QuestionKind.OTHER,
            question=question,
            options=options,
            yes_no=bool(binary),
            answer=option_letter(answer, options) if options else binary or answer,
            reasoning=reasoning,
            style=Style.REASONING if reasoning else Style.UNDERSTANDING,
            history=tuple(turn for turn in turns[:start] if turn.role != "system"),
            provenance=Provenance(
                str(value.get("data_source") or path.stem), path.relative_to(root).as_posix(), row
            ),
            extra={k: v for k, v in extra.items() if k not in ("id", "data_source")},
        )


def _turns(fields: Fields) -> list[Turn]:
    """The conversation; user and assistant take turns, the last word is the assistant's.

    Raises:
        FieldErrors: they do not.
    """
    turns: list[Turn] = []
    for i, entry in enumerate(fields.objects("conversations")):
        role, text = entry.text("from"), entry.text("value")
        if not fields.errors and role not in _ROLES:
            entry.error("from", f"{role!r} is none of {', '.join(_ROLES)}")
        elif not fields.errors and not text.strip():
            entry.error("value", "is empty")
        expected = ("user", "assistant")[sum(turn.role != "system" for turn in turns) % 2]
        if not fields.errors and _ROLES[role] not in ("system" if i == 0 else expected, expected):
            entry.error("from", f"{role!r} speaks out of turn: human and gpt must alternate, human first")
        if not fields.errors:
            turns.append(Turn(_ROLES[role], text))
    if not fields.errors and (not turns or turns[-1].role != "assistant"):
        fields.error("conversations", "must end with an answer (from: gpt)")
    if fields.errors:
        raise FieldErrors(fields.errors)
    return turns


def _media(value: dict[str, Any], clips: Clips) -> tuple[Media, ...]:
    media: list[Media] = []
    for key in _MEDIA_KEYS:
        given = value.get(key)
        names = [given] if isinstance(given, str) else given or []
        if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
            raise FieldErrors([(key, "must be a path or a list of paths")])
        for name in names:
            media.append(clips.media(name, key))
    return tuple(media)


def _check_placeholders(turns: list[Turn], media: tuple[Media, ...]) -> None:
    """Texts without any placeholder are fine: media come first in our prompts."""
    marks = sum(len(PLACEHOLDER.findall(turn.text)) for turn in turns)
    if marks and marks != len(media):
        what = f"{marks} <video> or <image> in the text, but {len(media)} media in the row: name one for each"
        raise FieldErrors([("conversations", what)])
