# SPDX-License-Identifier: Apache-2.0
"""Recorded bags as data sets: rosbag2, MCAP and sqlite3, the node's own bags and foreign ones.

A decision of the node names the capture stamp of every frame it saw. Its window is rebuilt of exactly those
images, by the node's own conversion, and stored without loss beside the samples; so a data set made of a bag
gives the model bit for bit what the node gave it. Of other bags, windows end where a labels file says::

    {"topic": "/image_raw", "at_s": 12.5, "kind": "task_completion", "task": "open the box", "answer": "no"}

Two passes over the bag: the first reads stamps, decisions and statuses, the second converts the images that
are wanted. An interrupted run goes on where it stopped. Several bags go into one folder: each has a file of
samples and a folder of images, and replaces them when it is converted again.
"""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import itertools
import os
import re
import struct
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mcap.exceptions import McapError
from mcap.records import Channel, Message, Schema
from mcap.stream_reader import CRCValidationError, StreamReader
from rosbags.rosbag2 import Reader, ReaderError
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from cosmos_reason_node.errors import CosmosReasonError
from cosmos_reason_node.prompt import letter
from cosmos_reason_node.ros import cdr
from cosmos_reason_node.ros.corrections import FILE as CORRECTIONS
from cosmos_reason_node.types import Query, QueryKind, Verdict

from .media import WindowSpec, choose
from .problems import DataError, FieldErrors, Problem, Report
from .readers.fields import Fields, json_rows
from .readers.jsonl import drop_samples, sample_from_json, write_samples
from .recorded import COMPRESSED, IMAGE, SET_BACK, Clock, Recorded, image_size, store_image
from .schema import SCHEMA_VERSION, Frames, Grid, Provenance, Sample, Style, query_fields

DECISION, STATUS = "cosmos_reason_msgs/msg/Decision", "cosmos_reason_msgs/msg/Status"
# The node's default (Config.max_hold_s): windows of foreign bags restart after longer holes.
_HOLD_S = 1.0
_NS = 1_000_000_000
_BAD_BAG = (ReaderError, OSError, ValueError, KeyError, IndexError, struct.error, UnicodeDecodeError)
_TORN = (McapError, CRCValidationError, EOFError, *_BAD_BAG)


@dataclass
class Index:
    """What the first pass finds.

    Attributes:
        stamps_ns: capture stamps of each image topic, in the order of arrival.
        ambiguous: stamps of each image topic that came again after its clock was set back.
        sizes: (height, width) of each image topic's first image.
        decisions: deserialised messages.
        topics: by camera name, as the node's status says.
    """

    stamps_ns: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    ambiguous: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    decisions: list[Any] = field(default_factory=list)
    topics: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Window:
    """A window to store; ``size`` is (height, width) of its frames."""

    topic: str
    camera: str
    stamps_ns: tuple[int, ...]
    grid: Grid
    size: tuple[int, int]

    def frames(self, images: str) -> Frames:
        paths = tuple(self.path(images, stamp) for stamp in self.stamps_ns)
        return Frames(paths, self.stamps_ns, grid=self.grid, camera=self.camera)

    def path(self, images: str, stamp: int) -> str:
        """The name tells what is in the file: a later run looks whether it is there already."""
        topic = re.sub(r"[^\w/]", "_", self.topic.strip("/"), flags=re.ASCII).replace("/", ".")
        return f"{images}/{topic}/{stamp}_{self.size[1]}x{self.size[0]}.png"


def convert(
    bag: Path,
    out: Path,
    report: Report,
    *,
    spec: WindowSpec,
    labels: Path | None = None,
    corrections: Path | None = None,
    split: str = "train",
) -> list[Sample]:
    """Make a data set of a bag.

    Args:
        bag: rosbag2 directory, or one .mcap or .db3 file.
        out: folder of the data set; made when missing.
        report: gets what is wrong. ``rows`` counts decisions and labels.
        spec: windows at labels; those of decisions are what they were.
        labels: JSON list or JSON Lines with ``topic``, ``at_s`` (seconds after the topic's first image: the
            window's end, a tick behind the last image at most) and the fields of a sample.
        corrections: what operators said about decisions (see cosmos_reason_node.ros.corrections): corrected
            decisions get the right answer and lose their reasoning. None: the file beside the bag, if any.
        split: of all samples.

    Returns:
        The samples, as written to ``out``; none is written when there are none.

    Raises:
        DataError: the bag cannot be read at all, or ``out`` holds another bag of this name.
        OSError: ``out`` cannot be written.
    """
    name = _free_name(bag, out)
    index = read_index(bag, report)
    right = read_corrections(corrections or bag.absolute().parent / CORRECTIONS, report)
    wanted: list[tuple[int, str, Sample, tuple[_Window, ...]]] = []
    for row, decision in enumerate(index.decisions, 1):
        report.rows += 1
        try:
            found = _of_decision(decision, row, bag, index, split, right)
        except FieldErrors as error:
            report.bad_row(f"{bag} decisions", row, error)
        else:
            wanted += [(row, f"{bag} decisions", *found)] if found else []
    if not index.decisions and labels is None:
        topics = ", ".join(sorted(index.stamps_ns)) or "none"
        what = (
            "holds no decision of the node: say with --labels FILE where windows end and what is true there; "
            f"its image topics: {topics}"
        )
        report.add(bag, 0, "", what)
    for row, value in json_rows(labels, str(labels), report) if labels else ():
        try:
            wanted.append((row, str(labels), *_of_label(value, row, bag, index, spec, split)))
        except FieldErrors as error:
            report.bad_row(labels, row, error)
    images = f"frames/{name}"
    failed = _store_images(bag, out, images, [window for *_, windows in wanted for window in windows])
    samples = []
    for row, file, sample, windows in wanted:
        media = tuple(window.frames(images) for window in windows)
        lost = [failed[path] for frames in media for path in dict.fromkeys(frames.paths) if path in failed]
        if lost:
            report.bad_row(file, row, f"{len(lost)} of its frames cannot be used: {lost[0]}")
        else:
            samples.append(dataclasses.replace(sample, media=media))
    if samples:
        write_samples(out, samples, f"samples-{name}.jsonl")
        stamps = set().union(*index.stamps_ns.values())
        drop_samples(out, lambda sample: _is_of(sample, bag.name, stamps))
    return samples


def _free_name(bag: Path, out: Path) -> str:
    """Name of a bag's file of samples and folder of images: its own and its place's, to tell namesakes apart.

    Raises:
        DataError: ``out`` holds a namesake, whose samples may have the same ids and episodes.
    """
    place = bag.resolve()
    own = place.name.replace("\\", "_")  # which media paths do not have
    name = f"{own}.{hashlib.sha256(os.fsencode(place)).hexdigest()[:8]}"
    for path in out.glob(f"samples-{glob.escape(own)}.{'[0-9a-f]' * 8}.jsonl"):
        if path.name != f"samples-{name}.jsonl":
            what = (
                f"is of another bag called {place.name}, or of this one when it was at another place: then "
                "delete the file; else rename one of the two bags, or give another folder"
            )
            raise DataError([Problem(str(path), 0, "", what)])
    return name


def _is_of(sample: Sample, bag: str, stamps: set[int]) -> bool:
    """Whether a sample is of this bag: earlier versions put those of any bag into samples.jsonl."""
    origin = (sample.provenance.source, sample.provenance.file)
    return origin == ("bag", bag) and all(
        isinstance(media, Frames) and stamps.issuperset(media.stamps_ns) for media in sample.media
    )


def read_index(bag: Path, report: Report) -> Index:
    """First pass over a bag.

    Raises:
        DataError: it cannot be read at all.
    """
    index = Index()
    types = _Types()
    clocks: dict[str, Clock] = defaultdict(Clock)
    for message in messages(bag, (IMAGE, COMPRESSED, DECISION, STATUS), report):
        try:
            if message.type in (IMAGE, COMPRESSED):
                stamp = cdr.read_stamp(message.serialized)
                index.stamps_ns[message.topic].append(stamp)
                if clocks[message.topic].repeats(stamp):
                    index.ambiguous[message.topic].add(stamp)
                if message.topic not in index.sizes:
                    index.sizes[message.topic] = image_size(message)
            elif message.type == DECISION:
                index.decisions.append(types.deserialize(message))
            else:
                cameras = types.deserialize(message).cameras
                index.topics |= {camera.name: camera.topic for camera in cameras}
        except CosmosReasonError as error:
            report.add(bag, 0, message.topic, error.message)
        except Exception as error:  # definitions and bytes are foreign; rosbags raises what it meets
            report.add(bag, 0, message.topic, f"a {message.type} cannot be read ({error})")
    return index


def read_corrections(path: Path, report: Report) -> dict[str, str]:
    """Right answers by decision id; the last correction of a decision holds. Bad lines are reported."""
    right: dict[str, str] = {}
    if not path.exists():
        return right
    for row, value in json_rows(path, str(path), report):
        fields = Fields(value)
        decision_id, answer = fields.text("decision_id"), fields.text("answer")
        if fields.errors:
            report.bad_row(path, row, FieldErrors(fields.errors))
        else:
            right[decision_id] = answer
    return right


def messages(bag: Path, types: Iterable[str], report: Report) -> Iterator[Recorded]:
    """Messages of some types, by the definitions in the bag.

    A bag whose writer was killed is read up to the tear, which is reported.

    Raises:
        DataError: there is no bag, or nothing of it can be read.
    """
    waiting = _sources(bag)
    unreadable: list[Problem] = []
    read = 0
    while waiting:
        source = waiting.pop(0)
        try:
            reader = Reader(source)
            reader.open()
        except _BAD_BAG as error:
            if source.is_dir():
                waiting = _files(source)
                report.add(source, 0, "", f"is not whole ({error}): its files were read one by one")
                continue
            try:
                yield from _torn(source, error, set(types), report)
                read += 1
            except DataError as nothing:
                unreadable += nothing.problems
            continue
        read += 1
        try:
            chosen = [connection for connection in reader.connections if connection.msgtype in types]
            for connection, _, raw in reader.messages(chosen) if chosen else ():
                yield Recorded(connection.topic, connection.msgtype, connection.msgdef.data, bytes(raw))
        except _TORN as error:
            report.add(source, 0, "", f"is damaged: messages after the damage are missing ({error})")
        finally:
            reader.close()
    if not read:
        raise DataError(unreadable)
    report.problems += unreadable


def _sources(bag: Path) -> list[Path]:
    """What to open: the directory where rosbag2's metadata.yaml is there, else its files."""
    if not bag.exists():
        raise DataError([Problem(str(bag), 0, "", "there is no such bag")])
    if not bag.is_dir():
        return [bag]
    try:
        Reader(bag)
        return [bag]
    except _BAD_BAG:
        return _files(bag)


def _files(bag: Path) -> list[Path]:
    """The files of a bag's directory as they were written: the tenth comes after the second.

    Raises:
        DataError: there are none.
    """

    def numbers(path: Path) -> list[tuple[int, str]]:
        parts = re.split(r"([0-9]+)", path.name)
        return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]

    files = sorted([*bag.glob("*.mcap"), *bag.glob("*.db3")], key=numbers)
    if not files:
        what = "holds no bag: expected metadata.yaml with .mcap or .db3 files"
        raise DataError([Problem(str(bag), 0, "", what)])
    return files


def _torn(source: Path, error: Exception, types: set[str], report: Report) -> Iterator[Recorded]:
    count = 0
    schemas: dict[int, Schema] = {}
    channels: dict[int, Channel] = {}
    with open(source, "rb") as stream:
        try:
            for record in (
                StreamReader(stream, validate_crcs=True).records if source.suffix == ".mcap" else ()
            ):
                if isinstance(record, Schema):
                    schemas[record.id] = record
                elif isinstance(record, Channel):
                    channels[record.id] = record
                elif isinstance(record, Message):
                    count += 1
                    channel = channels[record.channel_id]
                    schema = schemas[channel.schema_id]
                    if schema.name in types:
                        text = schema.data.decode("utf-8", "replace")
                        yield Recorded(channel.topic, schema.name, text, record.data)
        except _TORN:
            pass
    if not count:
        what = f"is no bag that can be read ({error}): was the recording cut off, or the copy?"
        raise DataError([Problem(str(source), 0, "", what)])
    what = (
        f"is not complete ({error}); {count} messages were read. If its writer was killed, "
        "`python -m cosmos_reason_node.ros.bag_repair` completes it"
    )
    report.add(source, 0, "", what)


class _Types:
    """Deserialises by the definitions in the bag."""

    def __init__(self) -> None:
        self._store = get_typestore(Stores.EMPTY)
        self._known: set[str] = set()

    def deserialize(self, message: Recorded) -> Any:
        if message.type not in self._known:
            if not message.definition:
                raise ValueError(
                    "the bag holds no definition of this type; record it with ROS 2 Iron or newer"
                )
            self._store.register(get_types_from_msg(message.definition, message.type))
            self._known.add(message.type)
        return self._store.deserialize_cdr(message.serialized, message.type)


def _of_decision(
    message: Any, row: int, bag: Path, index: Index, split: str, right: dict[str, str]
) -> tuple[Sample, tuple[_Window, ...]] | None:
    """Sample (without media) and windows of a decision; None where nobody gave an answer."""
    verdict = Verdict(message.verdict)
    correction = right.get(message.decision_id)
    silent = message.error_code or verdict is Verdict.UNKNOWN
    if (silent and correction is None) or not message.windows:
        return None
    windows = tuple(_decision_window(info, index) for info in message.windows)
    answer = {Verdict.YES: "yes", Verdict.NO: "no"}.get(verdict, message.answer)
    own_words = message.kind == QueryKind.QUESTION
    query = Query(
        QueryKind(message.kind),
        task=message.task,
        action=message.action,
        question=message.question if own_words else "",
        options=tuple(message.options),
        yes_no=own_words and (correction in ("yes", "no") if silent else verdict is not Verdict.CHOICE),
    )
    said = letter(message.option_index) if message.options and not silent else answer
    extra = {"confidence": round(float(message.confidence), 6), "prompt_id": message.model.prompt_id}
    if correction is not None:
        extra["corrected_from"] = "" if silent else said
    kept = "" if correction not in (None, said) or silent else message.reasoning
    model = message.model
    sample = Sample(
        sample_id=message.decision_id or f"{bag.name}:{row}",
        media=(),
        answer=said if correction is None else correction,
        reasoning=kept,
        style=Style.REASONING if kept.strip() else Style.UNDERSTANDING,
        split=split,
        provenance=Provenance("bag", bag.name, row, bag.name, f"{model.model_id}@{model.digest[:12]}"),
        extra=extra,
        **query_fields(query),
    )
    return sample, windows


def _decision_window(info: Any, index: Index) -> _Window:
    stamps = tuple(stamp.sec * _NS + stamp.nanosec for stamp in info.frame_stamps)
    topic = _topic(info.camera, stamps, index)
    missing = len(set(stamps) - set(index.stamps_ns[topic]))
    if missing:
        what = f"{missing} of its {len(set(stamps))} frames are not in the bag: record from earlier on"
        raise FieldErrors([(f"camera {info.camera}", what)])
    _check_unique(f"camera {info.camera}", stamps, topic, index)
    grid = Grid(_period_ns(info, stamps), info.first_tick)
    return _Window(topic, info.camera, stamps, grid, (info.height, info.width))


def _check_unique(field: str, stamps: Iterable[int], topic: str, index: Index) -> None:
    if several := len(index.ambiguous.get(topic, set()).intersection(stamps)):
        what = f"{several} of its frames have stamps that came twice on {topic}: the clock {SET_BACK}"
        raise FieldErrors([(field, what)])


def _topic(camera: str, stamps: tuple[int, ...], index: Index) -> str:
    if camera in index.topics:
        return index.topics[camera]
    holding = [topic for topic, all_stamps in index.stamps_ns.items() if set(stamps) <= set(all_stamps)]
    named = [topic for topic in holding if camera in topic.split("/")]
    found = named if len(named) == 1 else holding
    if len(found) != 1:
        what = "the bag has no status of the node that names its topic, and its frames do not tell: " + (
            f"{', '.join(found)} all hold them" if found else "no image topic holds all of them"
        )
        raise FieldErrors([(f"camera {camera}", what)])
    return found[0]


def _period_ns(info: Any, stamps: tuple[int, ...]) -> int:
    """Length of a tick. The message's fps is a float32; of the lengths near it, this one fits the ticks."""

    def held(period: int) -> int:
        return sum(stamp // period != info.first_tick + i for i, stamp in enumerate(stamps))

    about = round(_NS / info.fps)
    nearby = sorted(range(max(1, about - 64), about + 65), key=lambda period: abs(period - about))
    exact = next((period for period in nearby if held(period) == info.num_held), None)
    if exact is None:
        what = f"first_tick {info.first_tick} and {info.fps} fps do not fit its stamps: is the bag edited?"
        raise FieldErrors([(f"camera {info.camera}", what)])
    return exact


def _of_label(
    value: Any, row: int, bag: Path, index: Index, spec: WindowSpec, split: str
) -> tuple[Sample, tuple[_Window, ...]]:
    fields = Fields(value)
    topic, at_s = fields.text("topic"), fields.number("at_s")
    stamps = [stamp for stamp in index.stamps_ns.get(topic, []) if stamp > 0]
    if not fields.errors and not stamps:
        known = ", ".join(sorted(index.stamps_ns)) or "none"
        fields.error("topic", f"{topic!r} has no image with a stamp in the bag; image topics: {known}")
    if fields.errors:
        raise FieldErrors(fields.errors)
    last_s = (max(stamps) - stamps[0]) / _NS
    if at_s > last_s + spec.period_ns / _NS:
        raise FieldErrors([("at_s", f"{at_s:g} s is after the last image ({last_s:g} s)")])
    until = [stamp for stamp in stamps if stamp - stamps[0] <= at_s * _NS + 0.5]
    if not until:
        raise FieldErrors([("at_s", f"{at_s:g} s is before the first image")])
    record = {
        "version": SCHEMA_VERSION,
        "sample_id": f"{bag.name}:{topic}:{at_s:g}:{row}",
        "provenance": {"source": "bag", "file": bag.name, "row": row, "episode": bag.name},
        "split": split,
        **{name: item for name, item in value.items() if name not in ("topic", "at_s")},
    }
    sample = sample_from_json(record)
    if any(later < earlier - _NS for earlier, later in itertools.pairwise(stamps)):
        raise FieldErrors([("at_s", f"the clock of {topic} {SET_BACK}")])
    choice = choose(until, spec, hold_s=_HOLD_S)
    grid = Grid(choice.period_ns, choice.first_tick)
    size = spec.size_for(*index.sizes[topic])
    return sample, (_Window(topic, topic.strip("/").split("/")[0], choice.stamps_ns, grid, size),)


def _store_images(bag: Path, out: Path, images: str, windows: list[_Window]) -> dict[str, str]:
    """Second pass: one PNG for each image of the windows; returns why, for those that there is none of."""
    failed = {w.path(images, stamp): "the image is gone" for w in windows for stamp in w.stamps_ns}
    wanted: dict[tuple[str, int], dict[str, tuple[int, int]]] = defaultdict(dict)
    for window in windows:
        for stamp in window.stamps_ns:
            wanted[window.topic, stamp][window.path(images, stamp)] = window.size
    tears_were_reported = Report()
    for message in messages(bag, (IMAGE, COMPRESSED), tears_were_reported) if wanted else ():
        try:
            stamp = cdr.read_stamp(message.serialized)
        except CosmosReasonError:
            continue
        for path, size in wanted.pop((message.topic, stamp), {}).items():  # of equal images the first
            try:
                store_image(message, out / path, size)
                del failed[path]
            except CosmosReasonError as error:
                failed[path] = error.message
    return failed
