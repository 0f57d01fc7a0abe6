# SPDX-License-Identifier: Apache-2.0
"""The project's own layout: ``samples.jsonl`` (and shards ``samples-*.jsonl``) beside the media files.

One sample a line, UTF-8. Fields that have their default are left out; unknown ones are errors. docs/data.md
describes the format.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..problems import FieldErrors, Report
from ..schema import (
    SCHEMA_VERSION,
    Frames,
    Grid,
    Media,
    Provenance,
    QuestionKind,
    Sample,
    Step,
    Style,
    Turn,
    Video,
)
from .fields import Fields, json_rows

FILE_NAME = "samples.jsonl"
PATTERN = "samples*.jsonl"


def write_samples(directory: Path, samples: Iterable[Sample], name: str = FILE_NAME) -> int:
    """Write a file of samples; it appears whole or not at all, and replaces the one before it.

    Args:
        directory: the data set; media paths are relative to it. Made when missing.
        samples: in the order to write.
        name: file name, matching ``samples*.jsonl``.

    Returns:
        Number of samples written.

    Raises:
        ValueError: an id occurs twice, or ``name`` would not be found again.
        OSError: the file cannot be written; nothing is left behind.
    """
    if not Path(name).match(PATTERN) or Path(name).name != name:
        raise ValueError(f"{name!r} must match {PATTERN}, or it will not be found again")
    directory.mkdir(parents=True, exist_ok=True)
    partial = directory / f".{name}.{os.getpid()}.partial"
    ids: set[str] = set()
    try:
        with open(partial, "w", encoding="utf-8", newline="\n") as stream:
            for sample in samples:
                if sample.sample_id in ids:
                    raise ValueError(f"sample_id {sample.sample_id!r} occurs twice: make ids unique")
                ids.add(sample.sample_id)
                stream.write(json_line(sample))
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, directory / name)
    finally:
        partial.unlink(missing_ok=True)
    return len(ids)


def drop_samples(directory: Path, unwanted: Callable[[Sample], bool]) -> None:
    """Take samples out of ``samples.jsonl``, where there is one; all other lines stay as they are.

    Raises:
        OSError: the file cannot be written again; it is as it was.
    """
    path = directory / FILE_NAME
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    kept = [line for line in lines if not _holds(line, unwanted)]
    if len(kept) == len(lines):
        return
    partial = directory / f".{FILE_NAME}.{os.getpid()}.partial"
    try:
        partial.write_bytes(b"".join(kept))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    if not kept:
        path.unlink()


def _holds(line: bytes, wanted: Callable[[Sample], bool]) -> bool:
    try:
        return wanted(sample_from_json(json.loads(line)))
    except (ValueError, RecursionError):
        return False


def json_line(sample: Sample) -> str:
    """A sample as one line of samples.jsonl, newline included."""
    record = {"version": SCHEMA_VERSION, **_plain(sample)}
    return json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n"


def read_samples(directory: Path, report: Report) -> Iterator[Sample]:
    """Samples of all files of a data set, as they are read; what is wrong goes into ``report``.

    An id that occurs again is a bad row: the first one stays.
    """
    seen: dict[str, str] = {}
    files = sorted(directory.glob(PATTERN))
    if not files:
        report.add(directory, 0, "", f"holds no {FILE_NAME}")
    for path in files:
        for row, value in json_rows(path, str(path), report):
            try:
                sample = sample_from_json(value)
            except FieldErrors as error:
                report.bad_row(path, row, error)
                continue
            where = f"{path.name}, row {row}"
            first = seen.setdefault(sample.sample_id, where)
            if first != where:
                message = f"{sample.sample_id!r} was used by {first}: give each sample an id of its own"
                report.bad_row(path, row, FieldErrors([("sample_id", message)]))
                continue
            yield sample


def sample_from_json(value: object) -> Sample:
    """The reverse of ``json_line`` after json.loads.

    Raises:
        FieldErrors: with all fields that are wrong.
    """
    fields = Fields(value)
    version = fields.whole("version")
    if version > SCHEMA_VERSION:
        raise FieldErrors(
            [("version", f"{version} is newer than this program ({SCHEMA_VERSION}): update it")]
        )
    media = [_media(entry) for entry in fields.objects("media")]
    provenance = _provenance(fields.object("provenance"))
    values: dict[str, Any] = {
        "kind": _choice(fields, "kind", QuestionKind, None),
        "style": _choice(fields, "style", Style, Style.UNDERSTANDING),
        "history": tuple(_turn(entry) for entry in fields.objects("history")),
        "options": fields.texts("options"),
        "yes_no": fields.flag("yes_no", False),
        "extra": fields.scalars("extra"),
        "split": fields.text("split", "train"),
    }
    for name in ("sample_id", "answer"):
        values[name] = fields.text(name)
    for name in (
        "task",
        "action",
        "question",
        "reasoning",
        "category",
        "capability",
        "embodiment",
        "licence",
    ):
        values[name] = fields.text(name, "")
    fields.finish()
    sample = fields.make(lambda: Sample(media=tuple(media), provenance=provenance, **values))  # type: ignore[arg-type]
    if sample is None:
        raise FieldErrors(fields.errors)
    return sample


def _media(fields: Fields) -> Media | None:
    kind, camera = fields.text("type"), fields.text("camera", "camera")
    if kind == "video":
        video = {
            "path": fields.text("path"),
            "member": fields.text("member", ""),
            "start_s": fields.number("start_s", 0.0),
            "end_s": fields.number("end_s", None),
        }
        fields.finish()
        return fields.make(lambda: Video(camera=camera, **video))
    if kind == "frames":
        paths, stamps, index = fields.texts("paths"), fields.wholes("stamps_ns"), fields.wholes("index")
        grid = _grid(fields.object("grid")) if "grid" in fields else None
        fields.finish()
        return fields.make(lambda: Frames(paths, stamps, index, grid, camera))
    fields.error("type", f"must be video or frames, not {kind!r}")
    return None


def _grid(fields: Fields) -> Grid | None:
    period, first = fields.whole("period_ns"), fields.whole("first_tick", 0)
    fields.finish()
    return fields.make(lambda: Grid(period, first))


def _turn(fields: Fields) -> Turn | None:
    role, text = fields.text("role"), fields.text("text")
    fields.finish()
    return fields.make(lambda: Turn(role, text))


def _provenance(fields: Fields) -> Provenance:
    steps = []
    for entry in fields.objects("steps"):
        texts = {name: entry.text(name, "") for name in ("model", "prompt", "version", "started")}
        numbers = {name: entry.number(name, 0.0) for name in ("seconds", "cost")}
        parameters = entry.scalars("parameters")
        steps.append(Step(entry.text("name"), parameters=parameters, **texts, **numbers))  # type: ignore[arg-type]
        entry.finish()
    texts = {name: fields.text(name, "") for name in ("file", "episode", "made_by")}
    provenance = Provenance(fields.text("source"), row=fields.whole("row", 0), steps=tuple(steps), **texts)
    fields.finish()
    return provenance


def _choice(fields: Fields, name: str, kinds: type[enum.Enum], default: enum.Enum | None) -> Any:
    noted = len(fields.errors)
    value = fields.text(name) if default is None else fields.text(name, default.value)
    known = [kind.value for kind in kinds]
    if value not in known:
        if len(fields.errors) == noted:  # it is there, and a text
            fields.error(name, f"{value!r} is none of {', '.join(known)}")
        return None
    return kinds(value)


def _plain(value: Any) -> Any:
    """Dataclasses as objects without fields that have their defaults; all else as JSON has it."""
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if not dataclasses.is_dataclass(value):
        return value
    record = (
        {"type": "video"}
        if isinstance(value, Video)
        else {"type": "frames"}
        if isinstance(value, Frames)
        else {}
    )
    for field in dataclasses.fields(value):
        item = getattr(value, field.name)
        default = field.default_factory() if callable(field.default_factory) else field.default
        if item != default:
            record[field.name] = _plain(item)
    return record
