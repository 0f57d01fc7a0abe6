# SPDX-License-Identifier: Apache-2.0
"""One reader a layout; each yields ``schema.Sample`` and reports what it had to leave out."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..problems import DataError, FieldErrors, Problem, Report
from ..schema import QuestionKind, Sample, Video
from . import cosmos_reason, jsonl, lerobot, llava

Reader = Callable[[Path, Report], Iterator[Sample]]
READERS: dict[str, Reader] = {
    "samples": jsonl.read_samples,
    "lerobot": lerobot.read,
    "llava": llava.read,
    "cosmos_reason": cosmos_reason.read,
}


@dataclass(frozen=True)
class DataSet:
    """Samples and where their media are.

    Attributes:
        root: folder that media paths start in.
        layout: name of the reader (READERS).
        samples: all that are valid, in the files' order, with unique ids.
        report: rows read, rows left out, and why.
        places: by id, file and row that a sample was read from.
    """

    root: Path
    layout: str
    samples: tuple[Sample, ...]
    report: Report
    places: Mapping[str, tuple[str, int]] = field(default_factory=dict)

    def whole(self, sample: Sample) -> bool:
        """Whether a sample asks about all of its clip, so that a long one is looked at with longer ticks.

        The same in training as in evaluation. Released clips and captions are about all of it; moments of
        robots' episodes, and this project's own samples unless they say otherwise (``extra.whole``), are
        about the newest frames, as the node asks.
        """
        if self.layout == "lerobot":
            return sample.kind is QuestionKind.CAPTION
        return self.layout != "samples" or bool(sample.extra.get("whole"))

    def place(self, sample: Sample) -> tuple[str, int]:
        """File and row that a sample was read from; the folder and 0 where that is not known."""
        return self.places.get(sample.sample_id, (str(self.root), 0))

    def label(self, sample: Sample) -> str:
        """A sample as messages name it: ``drawer-17 (samples.jsonl, row 4)``."""
        file, row = self.place(sample)
        if not row:
            return sample.sample_id
        return f"{sample.sample_id} ({os.path.relpath(file, self.root)}, row {row})"


def find_layout(root: Path) -> str:
    """Which reader a folder needs.

    Raises:
        DataError: there is no such folder, or it holds nothing known.
    """
    if not root.is_dir():
        raise DataError([Problem(str(root), 0, "", "is no folder: give the folder that holds the data set")])
    if any(root.glob(jsonl.PATTERN)):
        return "samples"
    if (root / lerobot.INFO).is_file():
        return "lerobot"
    if llava.data_files(root):
        return "llava"
    if cosmos_reason.data_files(root):
        return "cosmos_reason"
    if any(root.glob("*.mcap")) or any(root.glob("*.db3")):
        what = f"is a bag: `python -m training.data bag {root} OUT` makes a data set of it"
        raise DataError([Problem(str(root), 0, "", what)])
    what = (
        "holds no data set: expected samples.jsonl, meta/info.json (LeRobot), or JSON files with "
        "conversations or qa_pairs, here or one folder down"
    )
    raise DataError([Problem(str(root), 0, "", what)])


def open_data_sets(named: Sequence[tuple[str, str]], *, strict: bool = True) -> list[DataSet]:
    """Several; a folder that is named more than once, for each kind of question, is read once.

    Args:
        named: folder and layout ("" = find out) of each.
        strict: see ``open_data_set``.

    Raises:
        DataError: as there.
    """
    read: dict[tuple[str, str], DataSet] = {}
    for path, layout in dict.fromkeys(named):
        read[path, layout] = open_data_set(Path(path).expanduser(), layout, strict=strict)
    return [read[one] for one in named]


def open_data_set(root: Path, layout: str = "", *, strict: bool = True) -> DataSet:
    """Read a data set of any known layout; its media are not opened.

    Args:
        root: its folder.
        layout: name of the reader; "" = find out.
        strict: any problem is an error. Otherwise bad rows are left out and counted in the report.

    Raises:
        DataError: with all problems, when strict; or there is nothing to read at all.
    """
    report = Report()
    layout = layout or find_layout(root)
    places: dict[str, tuple[str, int]] = {}
    samples = tuple(_unique(READERS[layout](root, report), root, report, places))
    if strict:
        report.raise_if_any()
    if not samples:
        report.add(root, 0, "", "holds no usable sample")
        raise DataError(report.problems)
    return DataSet(root, layout, samples, report, places)


def joined(first: DataSet, others: Sequence[DataSet]) -> DataSet:
    """Several data sets as one, to look for what they share.

    Ids and splits of ``others`` get their folder's name in front, with a number where it is not the first of
    that name; media paths start in the common folder.
    """
    root = Path(os.path.commonpath([data.root.resolve() for data in (first, *others)]))
    report = Report(first.report.rows, first.report.bad_rows, list(first.report.problems))
    samples = [_moved(sample, first.root, root) for sample in first.samples]
    places = dict(first.places)
    names: set[str] = set()
    for data in others:
        name = re.sub(r"[^a-z0-9_-]", "_", data.root.resolve().name.lower())[:40]
        name = name if name[:1].isalnum() else f"other{name}"  # splits begin with a letter or a digit
        numbered = (name, *(f"{name}-{number}" for number in range(2, len(others) + 1)))
        name = next(one for one in numbered if one not in names)
        names.add(name)
        report.rows += data.report.rows
        report.bad_rows += data.report.bad_rows
        report.problems += data.report.problems
        places |= {f"{name}/{sample_id}": place for sample_id, place in data.places.items()}
        samples += [
            dataclasses.replace(
                _moved(sample, data.root, root),
                sample_id=f"{name}/{sample.sample_id}",
                split=f"{name}.{sample.split}"[:64],
            )
            for sample in data.samples
        ]
    return DataSet(root, first.layout, tuple(samples), report, places)


def _moved(sample: Sample, start: Path, root: Path) -> Sample:
    """The sample with media paths that start in ``root``, a folder above ``start``."""
    prefix = start.resolve().relative_to(root)

    def path(name: str) -> str:
        return (prefix / name).as_posix()

    media = tuple(
        dataclasses.replace(one, path=path(one.path))
        if isinstance(one, Video)
        else dataclasses.replace(one, paths=tuple(map(path, one.paths)))
        for one in sample.media
    )
    return dataclasses.replace(sample, media=media)


def _unique(
    samples: Iterator[Sample], root: Path, report: Report, places: dict[str, tuple[str, int]]
) -> Iterator[Sample]:
    """Samples without those that repeat an id; the first one stays. ``places`` gets where each stands."""
    for sample in samples:
        if sample.sample_id in places:
            file, row = places[sample.sample_id]
            first = f"{os.path.relpath(file, root)}, row {row}"
            what = f"id {sample.sample_id!r} was used by {first}: give each row an id of its own"
            report.bad_row(*report.place, FieldErrors([("sample_id", what)]))
        else:
            places[sample.sample_id] = report.place
            yield sample
