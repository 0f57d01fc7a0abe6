# SPDX-License-Identifier: Apache-2.0
"""Benchmarks from files: the paper's three families, and any data set of a known layout.

The released subsets of embodied reasoning are on Hugging Face as nvidia/Cosmos-Reason1-Benchmark; the clips
of agibot, bridgev2 and holoassist come from their own data sets, by the scripts released with the model.
Physical common sense and intuitive physics are read in the same layout from wherever the user has them.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cosmos_reason_node.models.spec import ModelSpec
from cosmos_reason_node.types import Window
from training.data.media import IMAGE_SUFFIXES, WindowSpec, load_window
from training.data.problems import DataError, FieldErrors, Problem, Report
from training.data.readers import DataSet, open_data_set
from training.data.readers.fields import json_rows
from training.data.readers.jsonl import sample_from_json
from training.data.schema import Media, QuestionKind, Sample, Video

from .item import Benchmark, Item, Stimulus
from .published import PHYSICS_KINDS, subset_of

_HUB = "nvidia/Cosmos-Reason1-Benchmark on Hugging Face"
_END_BYTES = 1 << 16
_TRAINING = ("sft", "rl")  # splits of the released data sets, which have the benchmarks' folders
_LAYOUT = "NAME/NAME_benchmark_qa_pairs.json with its clips beside it"


@dataclass(frozen=True)
class Family:
    """One of the paper's benchmarks.

    Attributes:
        parts: names of its parts.
        part_of: part that a sample belongs to, "" = none.
        origin: where the files come from, and how they lie.
    """

    parts: tuple[str, ...]
    part_of: Callable[[Sample], str]
    origin: str


def _common_sense(sample: Sample) -> str:
    return "common_sense" if sample.kind is QuestionKind.COMMON_SENSE else ""


FAMILIES = {
    "common_sense": Family(
        ("common_sense",),
        _common_sense,
        "common_sense/common_sense_benchmark_qa_pairs.json with its clips beside it, each row with its "
        "category (604 questions on 426 videos in the paper; not among the files of "
        f"{_HUB} when this was written)",
    ),
    "embodied": Family(
        ("bridge", "robovqa", "agibot", "holoassist", "av", "robofail"),
        lambda sample: subset_of(sample.provenance.source),
        f"{_LAYOUT}, NAME = bridgev2, robovqa, agibot, holoassist, av, robofail, from {_HUB}",
    ),
    "intuitive_physics": Family(
        tuple(PHYSICS_KINDS),
        lambda sample: sample.kind.value if sample.kind.value in PHYSICS_KINDS else "",
        f"{_LAYOUT}, NAME = arrow_of_time, spatial_puzzle, object_permanence (100 questions each in the "
        "paper)",
    ),
}


def family(name: str, root: Path, model: ModelSpec, limit: int = 0) -> Benchmark:
    """One of the paper's benchmarks, as far as its files are there.

    Args:
        name: of FAMILIES.
        root: folder that holds them.
        model: that is to see them.
        limit: most stimuli, evenly chosen; 0 = all.

    Raises:
        DataError: none of its files is there; says which are wanted.
    """
    wanted = FAMILIES[name]
    try:
        data = open_data_set(root, strict=False)
    except DataError as error:
        what = f"the {name} benchmark is not there: wanted {wanted.origin}"
        raise DataError([*error.problems, Problem(str(root), 0, "", what)]) from error
    notes = _left_out(data)
    asked = [sample for sample in data.samples if sample.split not in _TRAINING]
    if len(asked) < len(data.samples):
        notes.append(f"{len(data.samples) - len(asked)} rows for training lie beside it and were not asked.")
    found = {part: [s for s in asked if wanted.part_of(s) == part] for part in wanted.parts}
    absent = [part for part, samples in found.items() if not samples]
    if absent:
        notes.append(f"No rows of {', '.join(absent)} in {root}; wanted: {wanted.origin}.")
    for part, samples in found.items():
        lacking = [sample for sample in samples if not _has_media(data.root, sample)]
        if samples and len(lacking) == len(samples):
            notes.append(
                f"{part}: {len(samples)} questions but none of their clips, so it was not asked; wanted "
                f"{lacking[0].media[0].paths[0]} and others below {root}."
            )
            samples.clear()
        elif lacking:
            notes.append(
                f"{part}: {len(lacking)} of {len(samples)} questions lack their clips and count as wrong."
            )
    samples = [sample for part in found.values() for sample in part]
    if not samples:
        found_out = [f"holds nothing of {name} that can be asked", *notes]
        raise DataError([Problem(str(root), 0, "", text) for text in found_out])
    made = _benchmark(name, dataclasses.replace(data, samples=tuple(samples)), model, notes, limit)
    return dataclasses.replace(made, official=True, origin=f"{name} of {root.resolve()}")


def data_set(path: Path, model: ModelSpec, split: str = "", limit: int = 0) -> Benchmark:
    """Any data set of a known layout, or one samples.jsonl.

    Args:
        path: its folder, or the file.
        model: that is to see it.
        split: take only this one; "" = all.
        limit: most stimuli, evenly chosen; 0 = all.

    Raises:
        DataError: there is nothing to ask.
    """
    data = _one_file(path) if path.is_file() else open_data_set(path, strict=False)
    notes = _left_out(data)
    if split:
        splits = sorted({sample.split for sample in data.samples})
        if split not in splits:
            what = f"has no sample of split {split!r}; it has: {', '.join(splits)}. Change --split"
            raise DataError([Problem(str(path), 0, "split", what)])
        data = dataclasses.replace(data, samples=tuple(s for s in data.samples if s.split == split))
        notes.append(f"Split {split} only.")
    elif any(sample.split == "train" for sample in data.samples):
        notes.append("Holds samples of the training split: name the one to take with --split.")
    samples = tuple(s for s in data.samples if s.kind is not QuestionKind.CAPTION and not s.history)
    if len(samples) < len(data.samples):
        notes.append(
            f"{len(data.samples) - len(samples)} captions and later turns of conversations were not asked: "
            "neither has one right answer to compare with."
        )
    if not samples:
        what = f"holds no question to ask{f' in split {split}' if split else ''}, see: {notes[-1]}"
        raise DataError([Problem(str(path), 0, "", what)])
    made = _benchmark(str(path), dataclasses.replace(data, samples=samples), model, notes, limit)
    return dataclasses.replace(made, origin=f"{path.resolve()}{split and f', split {split}'}")


def thinned(stimuli: Sequence[Stimulus], limit: int) -> tuple[Stimulus, ...]:
    """At most ``limit`` of them, evenly chosen; 0 = all."""
    if not 0 < limit < len(stimuli):
        return tuple(stimuli)
    return tuple(stimuli[i * len(stimuli) // limit] for i in range(limit))


def _benchmark(name: str, data: DataSet, model: ModelSpec, notes: list[str], limit: int) -> Benchmark:
    groups: dict[str, list[Sample]] = {}
    content = _Content(data.root)
    for sample in data.samples:
        key = _media_key(sample.media, content) + ("#whole" if data.whole(sample) else "")
        groups.setdefault(key, []).append(sample)
    stimuli = [
        Stimulus(
            key,
            tuple(_item(sample, key) for sample in samples),
            partial(_load, data.root, samples[0].media, WindowSpec.of(model, whole=data.whole(samples[0]))),
        )
        for key, samples in groups.items()
    ]
    if limit and limit < len(stimuli):
        notes.append(f"{limit} of {len(stimuli)} clips only.")
    return Benchmark(name, thinned(stimuli, limit), tuple(notes))


def _load(root: Path, media: tuple[Media, ...], spec: WindowSpec) -> tuple[Window, ...]:
    return tuple(load_window(root, entry, spec) for entry in media)


def _item(sample: Sample, key: str) -> Item:
    origin = sample.provenance
    return Item(
        item_id=sample.sample_id,
        stimulus=key,
        query=sample.to_query(),
        answer=sample.answer,
        group=sample.group,
        source=origin.source,
        cluster=f"{origin.source}/{origin.episode}"
        if origin.episode
        else _recording(sample.media) or sample.sample_id,
        category=sample.category,
        tasks=tuple(name for name in (sample.task, sample.action) if name),
    )


def _media_key(media: tuple[Media, ...], content: _Content) -> str:
    """Name of a window: of what is looked at, and of what these files hold."""
    if not media:
        return "(no media)"
    marks = [content.mark(path) for entry in media for path in dict.fromkeys(entry.paths)]
    return f"{_recording(media)}#{hashlib.sha256(repr((media, marks)).encode()).hexdigest()[:8]}"


def _recording(media: tuple[Media, ...]) -> str:
    """Name of the file that a window is a part of; "" without media."""
    if not media:
        return ""
    first = media[0]
    return f"{first.path}:{first.member}" if isinstance(first, Video) else first.paths[0]


class _Content:
    """What tells a file from another one that has taken its place, without reading all of it.

    Its size, and of what holds a whole clip its begin and end too; equal for copies, wherever they lie.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._marks: dict[str, str] = {}

    def mark(self, path: str) -> str:
        """Of a file of the data set; "" where there is none."""
        if path not in self._marks:
            self._marks[path] = self._read(self._root / path)
        return self._marks[path]

    @staticmethod
    def _read(path: Path) -> str:
        try:
            size = path.stat().st_size
            if path.suffix.lower() in IMAGE_SUFFIXES:  # there may be a hundred thousand of them
                return str(size)
            with open(path, "rb") as stream:
                ends = stream.read(_END_BYTES)
                stream.seek(max(0, size - _END_BYTES))
                ends += stream.read(_END_BYTES)
        except OSError:
            return ""
        return f"{size} {hashlib.sha256(ends).hexdigest()}"


def _has_media(root: Path, sample: Sample) -> bool:
    return all((root / path).is_file() for entry in sample.media for path in entry.paths)


def _left_out(data: DataSet) -> list[str]:
    report = data.report
    if not report.problems:
        return []
    shown = "; ".join(map(str, report.problems[:5])) + ("; ..." if len(report.problems) > 5 else "")
    return [f"{report.bad_rows} of {report.rows} rows are damaged and were left out: {shown}"]


def _one_file(path: Path) -> DataSet:
    if path.suffix != ".jsonl":
        what = "give the folder of the data set, or a samples.jsonl"
        raise DataError([Problem(str(path), 0, "", what)])
    report = Report()
    samples: dict[str, Sample] = {}
    places: dict[str, tuple[str, int]] = {}
    for row, value in json_rows(path, str(path), report):
        try:
            sample = sample_from_json(value)
        except FieldErrors as error:
            report.bad_row(path, row, error)
            continue
        if sample.sample_id in samples:
            report.bad_row(path, row, f"id {sample.sample_id!r} occurs twice: give each row an id of its own")
        else:
            samples[sample.sample_id] = sample
            places[sample.sample_id] = report.place
    if not samples:
        raise DataError(report.problems or [Problem(str(path), 0, "", "holds no sample")])
    return DataSet(path.parent, "samples", tuple(samples.values()), report, places)
