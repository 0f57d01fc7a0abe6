# SPDX-License-Identifier: Apache-2.0
"""Foreign bags: both storages, any image topic, torn files; written with rosbags, no ROS needed."""

from __future__ import annotations

import dataclasses
import errno
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from mcap.writer import Writer as McapWriter
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from cosmos_reason_node.vision.patchify import PatchSpec
from training.data.__main__ import main
from training.data.bag import convert, messages, read_index
from training.data.media import WindowSpec, load_window
from training.data.problems import DataError, Report
from training.data.readers import open_data_set
from training.data.readers.jsonl import write_samples
from training.data.schema import Frames, Provenance

STORE = get_typestore(Stores.ROS2_JAZZY)
TYPES = STORE.types
SPEC = WindowSpec(250_000_000, 8, PatchSpec(), frame_size=(28, 28))
TICK = SPEC.period_ns
EPOCH = 1_700_000_000 * 10**9 // (2 * TICK) * 2 * TICK  # the begin of a pair
MCAP, SQLITE = StoragePlugin.MCAP, StoragePlugin.SQLITE3


def header(stamp: int) -> Any:
    time = TYPES["builtin_interfaces/msg/Time"](sec=stamp // 10**9, nanosec=stamp % 10**9)
    return TYPES["std_msgs/msg/Header"](stamp=time, frame_id="cam")


def picture(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 255, (28, 28, 3), np.uint8)


def raw(stamp: int, number: int) -> tuple[str, Any]:
    pixels = np.ascontiguousarray(picture(number)[:, :, ::-1]).reshape(28, -1)
    padded = np.pad(pixels, ((0, 0), (0, 12)))  # rows with a gap behind them
    kind = "sensor_msgs/msg/Image"
    return kind, TYPES[kind](header(stamp), 28, 28, "bgr8", 0, padded.shape[1], padded.reshape(-1))


def png(stamp: int, number: int) -> tuple[str, Any]:
    data = np.frombuffer(cv2.imencode(".png", picture(number)[:, :, ::-1])[1].tobytes(), np.uint8)
    kind = "sensor_msgs/msg/CompressedImage"
    return kind, TYPES[kind](header(stamp), "png", data)


def write_bag(path: Path, storage: StoragePlugin, topics: dict[str, list[tuple[str, Any]]]) -> Path:
    with Writer(path, version=9, storage_plugin=storage) as writer:
        connections = {
            topic: writer.add_connection(topic, said[0][0], typestore=STORE) for topic, said in topics.items()
        }
        for i in range(max(map(len, topics.values()))):
            for topic, said in topics.items():
                if i < len(said):
                    serialized = STORE.serialize_cdr(said[i][1], said[i][0])
                    writer.write(connections[topic], EPOCH + i * 10**7, serialized)
    return path


def label(**changes: Any) -> dict[str, Any]:
    row = {"topic": "/wrist/image", "at_s": 1.9, "kind": "affordance", "action": "pull", "answer": "yes"}
    return row | changes


def write_labels(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def camera(make: Any, count: int = 40) -> list[tuple[str, Any]]:
    """Ten images a second."""
    return [make(EPOCH + i * 10**8, i) for i in range(count)]


def samples_file(out: Path) -> Path:
    (found,) = out.glob("samples*.jsonl")
    return found


@pytest.mark.parametrize("storage", [MCAP, SQLITE])
@pytest.mark.parametrize("make", [raw, png])
def test_windows_at_labels(tmp_path: Path, storage: StoragePlugin, make: Any):
    topics = {"/wrist/image": camera(make), "/other": camera(raw, 3)}
    bag = write_bag(tmp_path / "bag ü", storage, topics)
    labels = write_labels(tmp_path / "labels.jsonl", label(), label(at_s=3.9, split="test"))
    report = Report()
    samples = convert(bag, tmp_path / "out", report, spec=SPEC, labels=labels)
    assert report.problems == []
    assert open_data_set(tmp_path / "out").samples == tuple(samples)
    first = load_window(tmp_path / "out", samples[0].media[0], SPEC)
    # Of ten a second the first of each quarter: 0, 3, 5, 8, 10, ... up to 1.9 s.
    np.testing.assert_array_equal(first.pixels(), [picture(i) for i in (0, 3, 5, 8, 10, 13, 15, 18)])
    assert first.first_tick == EPOCH // TICK
    assert (samples[0].provenance.source, samples[0].media[0].camera) == ("bag", "wrist")
    assert (samples[0].split, samples[1].split) == ("train", "test")
    assert samples[0].to_query().action == "pull"


def test_a_second_run_goes_on_with_what_is_there(tmp_path: Path):
    bag = write_bag(tmp_path / "bag", MCAP, {"/wrist/image": camera(raw)})
    labels = write_labels(tmp_path / "l.jsonl", label())
    convert(bag, tmp_path / "out", Report(), spec=SPEC, labels=labels)
    (one, *_), before = (
        sorted((tmp_path / "out").rglob("*.png")),
        samples_file(tmp_path / "out").read_text(),
    )
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.png") if path != one}
    data = one.read_bytes()
    one.unlink()
    samples_file(tmp_path / "out").unlink()
    convert(bag, tmp_path / "out", Report(), spec=SPEC, labels=labels)
    assert one.read_bytes() == data
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert samples_file(tmp_path / "out").read_text() == before


def test_another_bag_with_the_same_stamps_has_its_own_images(tmp_path: Path):
    """As two recordings of a simulator have, whose clock begins at the same time."""
    labels = write_labels(tmp_path / "l.jsonl", label())
    first = write_bag(tmp_path / "first", MCAP, {"/wrist/image": camera(raw)})
    later = [raw(EPOCH + i * 10**8, 100 + i) for i in range(40)]
    second = write_bag(tmp_path / "second", MCAP, {"/wrist/image": later})
    for bag in (first, second):
        convert(bag, tmp_path / "out", Report(), spec=SPEC, labels=labels)
    samples = open_data_set(tmp_path / "out").samples
    assert [sample.provenance.file for sample in samples] == ["first", "second"]
    for begin, sample in zip((0, 100), samples, strict=True):
        window = load_window(tmp_path / "out", sample.media[0], SPEC)
        seen = [picture(begin + i) for i in (0, 3, 5, 8, 10, 13, 15, 18)]
        np.testing.assert_array_equal(window.pixels(), seen)


def test_a_bag_that_is_converted_again_replaces_its_own_samples(tmp_path: Path):
    first = write_bag(tmp_path / "first", MCAP, {"/wrist/image": camera(raw)})
    later = [raw(EPOCH + 10**12 + i * 10**8, i) for i in range(40)]
    second = write_bag(tmp_path / "bag ü [1]", MCAP, {"/wrist/image": later})
    labels = write_labels(tmp_path / "l.jsonl", label(), label(at_s=3.0))
    samples = [
        *convert(first, tmp_path / "out", Report(), spec=SPEC, labels=labels),
        *convert(second, tmp_path / "out", Report(), spec=SPEC, labels=labels),
    ]
    # As an earlier version left them: the last bag's samples, whatever else the user has put there.
    other = dataclasses.replace(samples[0], sample_id="mine", provenance=Provenance("hand"))
    namesake = Frames(samples[2].media[0].paths, tuple(range(8)))  # a bag of this name, but of other times
    namesake = dataclasses.replace(samples[2], sample_id="namesake", media=(namesake,))
    write_samples(tmp_path / "out", [samples[2], other, namesake])
    with open(tmp_path / "out/samples.jsonl", "ab") as file:
        file.write(b"torn")
    write_labels(labels, label(at_s=3.5))
    again = convert(second, tmp_path / "out", Report(), spec=SPEC, labels=labels)
    data = open_data_set(tmp_path / "out", strict=False)
    wanted = [*samples[:2], other, namesake, *again]
    assert sorted(data.samples, key=str) == sorted(wanted, key=str)
    assert data.report.bad_rows == 1
    write_samples(tmp_path / "out", again)
    convert(second, tmp_path / "out", Report(), spec=SPEC, labels=labels)
    assert not (tmp_path / "out/samples.jsonl").exists()


def test_a_namesake_is_refused_and_a_bag_by_another_way_to_it_is_not(tmp_path: Path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    bags = [write_bag(tmp_path / name / "bag", MCAP, {"/wrist/image": camera(raw)}) for name in "ab"]
    labels = write_labels(tmp_path / "l.jsonl", label())
    (sample,) = convert(bags[0], tmp_path / "out", Report(), spec=SPEC, labels=labels)
    with pytest.raises(DataError, match=r"samples-bag\..*: is of another bag called bag"):
        convert(bags[1], tmp_path / "out", Report(), spec=SPEC, labels=labels)
    (tmp_path / "way").symlink_to(tmp_path / "a")
    convert(tmp_path / "way" / "bag", tmp_path / "out", Report(), spec=SPEC, labels=labels)
    assert open_data_set(tmp_path / "out").samples == (sample,)


def test_a_long_hole_restarts_the_window_as_in_the_node(tmp_path: Path):
    images = [raw(EPOCH + i * TICK, i) for i in (0, 1, 2, 3, 10, 11, 12, 13)]
    bag = write_bag(tmp_path / "bag", MCAP, {"/wrist/image": images})
    labels = write_labels(tmp_path / "l.jsonl", label(at_s=3.5))  # a tick behind the last image
    (sample,) = convert(bag, tmp_path / "out", Report(), spec=SPEC, labels=labels)
    window = load_window(tmp_path / "out", sample.media[0], SPEC)
    np.testing.assert_array_equal(window.pixels(), [picture(i) for i in (10, 11, 12, 13)])


def test_stamps_that_several_images_have_are_refused(tmp_path: Path):
    """A simulation that began anew while it was recorded: whose images a label is about cannot be told."""
    images = [*camera(raw), *(raw(EPOCH + i * 10**8 + 5, 100 + i) for i in range(20))]
    bag = write_bag(tmp_path / "bag", MCAP, {"/wrist/image": images})
    labels = write_labels(tmp_path / "l.jsonl", label(at_s=1.9))
    report = Report()
    assert convert(bag, tmp_path / "out", report, spec=SPEC, labels=labels) == []
    (problem,) = report.problems
    assert (problem.row, problem.field) == (1, "at_s")
    assert "was set back" in problem.message
    twice = [
        raw(EPOCH + i * TICK // 2, i) for i in range(20) for _ in range(2)
    ]  # a driver that repeats itself
    again = write_bag(tmp_path / "again", MCAP, {"/wrist/image": twice})
    assert len(convert(again, tmp_path / "other", Report(), spec=SPEC, labels=labels)) == 1


def test_bad_labels_and_images_are_named(tmp_path: Path):
    images = camera(raw)
    images[3][1].data = images[3][1].data[:-5]  # the frame of one tick is cut off
    bag = write_bag(tmp_path / "bag", MCAP, {"/wrist/image": images})
    rows = [
        label(topic="/none"),
        label(at_s=-1),
        label(answer="perhaps"),
        label(),
        label(at_s=3.9),
        {"at_s": 1.0},
        label(at_s=4.2),
        label(at_s=1250),
        label(at_s=float("nan")),
        label(at_s=-1e308),
        label(at_s=10**400),
    ]
    report = Report()
    samples = convert(
        bag, tmp_path / "out", report, spec=SPEC, labels=write_labels(tmp_path / "l.jsonl", *rows)
    )
    assert [sample.provenance.row for sample in samples] == [5]
    found = {(problem.row, problem.field) for problem in report.problems}
    wrong = {(row, "at_s") for row in (2, 7, 8, 9, 10, 11)}
    assert found == wrong | {(1, "topic"), (3, "answer"), (4, ""), (6, "topic")}
    assert "row 8, at_s: 1250 s is after the last image (3.9 s)" in "\n".join(map(str, report.problems))
    assert any("/wrist/image" in problem.message for problem in report.problems)
    assert any("1 of its frames cannot be used" in problem.message for problem in report.problems)


def test_topic_names_cannot_leave_the_data_set(tmp_path: Path):
    bag = write_bag(tmp_path / "bag", MCAP, {"/../../x": camera(raw)})
    labels = write_labels(tmp_path / "l.jsonl", label(topic="/../../x"))
    (sample,) = convert(bag, tmp_path / "a" / "b", Report(), spec=SPEC, labels=labels)
    assert len(load_window(tmp_path / "a" / "b", sample.media[0], SPEC).frames) == 8
    assert {path.name for path in tmp_path.iterdir()} == {"a", "bag", "l.jsonl"}
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"b"}


def test_a_torn_mcap_is_read_up_to_the_tear(tmp_path: Path):
    bag = write_bag(tmp_path / "bag", MCAP, {"/wrist/image": camera(raw)})
    (bag / "metadata.yaml").unlink()
    report = Report()
    recorded = list(messages(bag, ("sensor_msgs/msg/Image",), report))
    assert len(recorded) == 40  # without metadata.yaml the file alone is whole
    assert report.problems == []
    (tmp_path / "torn").mkdir()
    with open(tmp_path / "torn" / "torn_0.mcap", "wb") as stream:
        writer = McapWriter(stream, chunk_size=4096)
        writer.start(profile="ros2")
        schema = writer.register_schema(recorded[0].type, "ros2msg", recorded[0].definition.encode())
        channel = writer.register_channel("/wrist/image", "cdr", schema)
        for i, message in enumerate(recorded):
            writer.add_message(channel, EPOCH + i, message.serialized, EPOCH + i)
        stream.write(b"\x06\xff\xff\x00\x00\x00\x00\x00\x00half a chunk")  # and then it was killed
    labels = write_labels(tmp_path / "l.jsonl", label())
    samples = convert(tmp_path / "torn", tmp_path / "out", report, spec=SPEC, labels=labels)
    assert len(samples) == 1
    (problem,) = report.problems
    assert "is not complete" in problem.message
    assert "bag_repair" in problem.message


def test_the_files_of_a_killed_recording_are_read_in_their_order(tmp_path: Path):
    """Twelve files, no metadata.yaml, the last one empty: as rosbag2 leaves them when it is killed."""
    whole = camera(raw, 48)
    (tmp_path / "cut").mkdir()
    for i in range(12):
        bag = write_bag(tmp_path / f"part{i}", MCAP, {"/wrist/image": whole[4 * i : 4 * i + 4]})
        (bag / f"part{i}.mcap").rename(tmp_path / "cut" / f"cut_{i}.mcap")
    (tmp_path / "cut" / "cut_12.mcap").touch()
    report = Report()
    stamps = read_index(tmp_path / "cut", report).stamps_ns["/wrist/image"]
    assert stamps == sorted(stamps)
    assert len(stamps) == 48
    (problem,) = report.problems
    assert "cut_12.mcap" in problem.file


@pytest.mark.parametrize("storage", [MCAP, SQLITE])
def test_torn_metadata_cost_no_message(tmp_path: Path, storage: StoragePlugin):
    bag = write_bag(tmp_path / "bag", storage, {"/wrist/image": camera(raw)})
    (bag / "metadata.yaml").write_text("rosbag2_bagfile_information:\n  version: 9\n  storage_id")
    report = Report()
    assert len(list(messages(bag, ("sensor_msgs/msg/Image",), report))) == 40
    (problem,) = report.problems
    assert "read one by one" in problem.message


@pytest.mark.parametrize("content", [b"", b"rubbish" * 99])
@pytest.mark.parametrize("suffix", [".mcap", ".db3"])
def test_what_is_no_bag_is_an_error(tmp_path: Path, suffix: str, content: bytes):
    file = tmp_path / f"x{suffix}"
    file.write_bytes(content)
    with pytest.raises(DataError, match="is no bag that can be read"):
        convert(file, tmp_path / "out", Report(), spec=SPEC)
    with pytest.raises(DataError, match="no such bag"):
        convert(tmp_path / "none", tmp_path / "out", Report(), spec=SPEC)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no bag"):
        convert(tmp_path / "empty", tmp_path / "out", Report(), spec=SPEC)
    assert not (tmp_path / "out").exists()


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    bag = write_bag(tmp_path / "bag", MCAP, {"/wrist/image": camera(raw)})
    labels = write_labels(tmp_path / "l.jsonl", label(), label(at_s=3.0))
    arguments = ["bag", str(bag), str(tmp_path / "out"), "--labels", str(labels), "--split", "test"]
    assert main(arguments) == 0
    assert (
        "2 samples from 2 decisions and labels (0 unusable, 0 without an answer)" in capsys.readouterr().out
    )
    samples = open_data_set(tmp_path / "out").samples
    assert {sample.split for sample in samples} == {"test"}
    assert main(["check", str(tmp_path / "out"), "--processes", "1", "--quiet"]) == 0
    write_labels(labels, label(), label(topic="/none"))
    assert main(arguments) == 1
    assert "row 2, topic: '/none' has no image" in capsys.readouterr().err
    assert main(["bag", str(tmp_path / "none"), str(tmp_path / "out")]) == 1
    assert main(["bag", str(bag), str(tmp_path / "out"), "--model", str(tmp_path)]) == 1
    capsys.readouterr()
    assert main(["bag", str(bag), str(tmp_path / "other")]) == 1  # foreign, and nothing said about it
    assert "say with --labels FILE" in (said := capsys.readouterr().err)
    assert "image topics: /wrist/image" in said
    assert not (tmp_path / "other").exists()


def test_a_full_disk_is_named_and_leaves_no_half_image(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    bag = write_bag(tmp_path / "bag", MCAP, {"/wrist/image": camera(raw)})
    labels = write_labels(tmp_path / "labels.jsonl", label())
    arguments = ["bag", str(bag), str(tmp_path / "out"), "--labels", str(labels)]
    write = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        if len(list(path.parent.glob("*.png"))) < 3:
            return write(path, data)
        write(path, data[:9])
        raise OSError(errno.ENOSPC, "No space left on device")  # as write() raises it: without a file

    monkeypatch.setattr(Path, "write_bytes", full)
    assert main(arguments) == 1
    assert f"{tmp_path / 'out'}: No space left on device: make room there" in capsys.readouterr().err
    left = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(left) == 3
    assert all(cv2.imread(str(path)) is not None for path in left)
    monkeypatch.undo()
    assert main(arguments) == 0
