# SPDX-License-Identifier: Apache-2.0
"""Bags, read back with another implementation (rosbags), by the definitions inside the bag."""

import errno
import functools
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.serialization import serialize_message
from rosbags.rosbag2 import Reader
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from sensor_msgs.msg import Image
from std_msgs.msg import String

from cosmos_reason_node.errors import CosmosReasonError, ErrorCode
from cosmos_reason_node.ros import bag_repair
from cosmos_reason_node.ros.bag_writer import BagTopic, BagWriter
from cosmos_reason_node.ros.cdr import read_stamp
from cosmos_reason_node.ros.definitions import definition_of
from cosmos_reason_node.ros.disk_budget import DiskBudget
from cosmos_reason_node.ros.recorder import Recorder

pytestmark = pytest.mark.ros

IMAGE, STRING = "sensor_msgs/msg/Image", "std_msgs/msg/String"
CAMERA, NOTES = "/front/image_raw", "/notes"
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)


@functools.cache  # serializing leaves the alignment's gaps as they were in memory
def image_bytes(number: int, side: int = 96) -> bytes:
    image = Image(height=side, width=side, encoding="rgb8", step=3 * side)
    image.header.stamp.sec = number
    image.data = np.full(3 * side * side, number % 256, np.uint8).tobytes()
    return bytes(serialize_message(image))


def note(text: str) -> bytes:
    return bytes(serialize_message(String(data=text)))


def read(bag: Path) -> list[tuple[str, int, bytes]]:
    with Reader(bag) as reader:
        return [(connection.topic, stamp, bytes(raw)) for connection, stamp, raw in reader.messages()]


class Clock:
    """The node's clock, set by the test."""

    now_ns = 1_000_000_000

    def __call__(self) -> int:
        self.now_ns += 1_000_000
        return self.now_ns


@pytest.fixture
def warnings() -> list[str]:
    return []


@pytest.fixture
def recorder(tmp_path: Path, warnings: list[str]) -> Iterator[Recorder]:
    recorder = make_recorder(tmp_path, warnings)
    yield recorder
    recorder.close()


def make_recorder(directory: Path, warnings: list[str], budget_bytes: int = 1 << 30) -> Recorder:
    recorder = Recorder(
        directory,
        keep_s=60,
        buffer_bytes=16 << 20,
        budget_bytes=budget_bytes,
        now_ns=Clock(),
        warn=warnings.append,
    )
    recorder.add_topic(CAMERA, IMAGE, [QoSProfile(depth=8, reliability=ReliabilityPolicy.BEST_EFFORT)])
    recorder.add_topic(NOTES, STRING)
    return recorder


def finish(recorder: Recorder) -> None:
    """Wait until no capture is written any more."""
    wait(lambda: not recorder.report().capturing, "still writing")


def wait(condition: Callable[[], bool], what: str) -> None:
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError(what)


def test_a_capture_holds_past_and_future_bit_for_bit(recorder: Recorder):
    sent = []
    for i in range(20):
        sent.append((CAMERA, image_bytes(i)))
        recorder.record(*sent[-1])
    bag = recorder.capture(before_s=30, after_s=1.0, label="drawer-1")
    assert recorder.report().capturing == str(bag)
    sent.append((NOTES, note("after")))
    recorder.record(*sent[-1])
    time.sleep(1.05)
    recorder.record(NOTES, note("too late"))
    finish(recorder)
    messages = read(bag)
    assert [(topic, raw) for topic, _, raw in messages] == sent
    assert [stamp for _, stamp, _ in messages] == [1_000_000_000 + 1_000_000 * (i + 1) for i in range(21)]
    assert "drawer-1" in bag.name
    assert recorder.report().bytes_written == sum(path.stat().st_size for path in bag.glob("*.mcap"))


def test_a_capture_reaches_back_only_as_far_as_asked(recorder: Recorder):
    recorder.record(NOTES, note("long ago"))
    time.sleep(1.0)
    recorder.record(NOTES, note("just now"))
    bag = recorder.capture(before_s=0.8, after_s=0, label="")
    finish(recorder)
    assert [raw for _, _, raw in read(bag)] == [note("just now")]


def test_definitions_come_from_the_bag_and_hashes_and_qos_are_right(recorder: Recorder):
    recorder.record(CAMERA, image_bytes(7))
    bag = recorder.capture(1, 0, "")
    finish(recorder)
    empty = get_typestore(Stores.EMPTY)
    with Reader(bag) as reader:
        for connection in reader.connections:
            empty.register(get_types_from_msg(connection.msgdef.data, connection.msgtype))
        ((connection, _, raw),) = reader.messages()
        message = empty.deserialize_cdr(raw, connection.msgtype)
        assert connection.digest == empty.hash_rihs01(IMAGE)  # worked out from the definition in the bag
        assert [qos.reliability.name for qos in connection.ext.offered_qos_profiles] == ["BEST_EFFORT"]
    assert message.header.stamp.sec == 7
    assert message.data.tobytes() == bytes([7]) * 96 * 96 * 3
    topics = yaml.safe_load((bag / "metadata.yaml").read_text())["rosbag2_bagfile_information"]
    (camera,) = (t for t in topics["topics_with_message_count"] if t["topic_metadata"]["name"] == CAMERA)
    assert camera["topic_metadata"]["type_description_hash"] == definition_of(IMAGE).type_hash
    assert camera["message_count"] == 1


def test_what_is_latched_is_in_every_bag(recorder: Recorder):
    recorder.add_topic("/status", STRING, [LATCHED])
    recorder.record("/status", note("task: open the drawer"))
    time.sleep(1.0)
    recorder.record(CAMERA, image_bytes(1))
    bag = recorder.capture(before_s=0.8, after_s=0, label="")
    finish(recorder)
    assert [(topic, raw) for topic, _, raw in read(bag)] == [
        ("/status", note("task: open the drawer")),
        (CAMERA, image_bytes(1)),
    ]


@pytest.mark.parametrize("label", ["../x", "a/b", "..", "a b", "x" * 65, "a\0b", "a\n"])
def test_labels_cannot_leave_the_directory(recorder: Recorder, label: str):
    with pytest.raises(CosmosReasonError) as raised:
        recorder.capture(1, 0, label)
    assert raised.value.code is ErrorCode.INVALID_REQUEST


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf"), 1e9])
def test_absurd_durations_are_refused(recorder: Recorder, seconds: float):
    for before_s, after_s in ((seconds, 0), (0, seconds)):
        with pytest.raises(CosmosReasonError) as raised:
            recorder.capture(before_s, after_s, "")
        assert raised.value.code is ErrorCode.INVALID_REQUEST


def test_one_capture_at_a_time(recorder: Recorder):
    recorder.capture(1, 60, "")
    with pytest.raises(CosmosReasonError) as raised:
        recorder.capture(1, 1, "")
    assert raised.value.code is ErrorCode.RECORDING_BUSY
    recorder.close()
    assert recorder.report().capturing == ""
    recorder.capture(1, 0, "")


def test_a_directory_that_cannot_be_made_is_an_error(tmp_path: Path, warnings: list[str]):
    (tmp_path / "file").write_text("")
    recorder = make_recorder(tmp_path / "file" / "bags", warnings)
    with pytest.raises(CosmosReasonError, match="record_dir") as raised:
        recorder.capture(1, 0, "")
    assert raised.value.code is ErrorCode.RECORDING_FAILED


def test_an_unknown_type_is_refused_when_it_is_declared(recorder: Recorder):
    for name in ("no_such_package/msg/Thing", "sensor_msgs/msg/NoSuchThing", "../etc/passwd"):
        with pytest.raises(CosmosReasonError) as raised:
            recorder.add_topic("/x", name)
        assert raised.value.code is ErrorCode.RECORDING_FAILED


def test_continuous_recording_splits_and_loses_nothing(tmp_path: Path, warnings: list[str]):
    recorder = make_recorder(tmp_path, warnings)
    recorder.start_continuous(split_s=0.2)
    capture = None
    for i in range(30):
        recorder.record(CAMERA, image_bytes(i))
        if i == 15:
            capture = recorder.capture(0.05, 0.05, "beside")
        time.sleep(0.02)
    recorder.close(60.0)
    bags = sorted(tmp_path.glob("continuous*"))
    assert len(bags) >= 3
    assert [raw for bag in bags for _, _, raw in sorted(read(bag), key=lambda m: m[1])] == [
        image_bytes(i) for i in range(30)
    ]
    assert len(read(capture)) >= 2
    assert recorder.report().dropped == 0
    assert warnings == []


def test_recording_stops_at_the_disk_budget_with_a_whole_bag(tmp_path: Path, warnings: list[str]):
    recorder = make_recorder(tmp_path, warnings, budget_bytes=1 << 20)
    recorder.start_continuous(split_s=100)
    for i in range(60):  # 1.6 MB
        recorder.record(CAMERA, image_bytes(i))
    wait(lambda: not recorder.report().recording, "it does not stop")
    (bag,) = tmp_path.iterdir()
    assert 30 < len(read(bag)) < 40
    assert sum(path.stat().st_size for path in bag.iterdir()) < 1.05 * 2**20
    assert "record_budget_mb" in recorder.report().error
    assert warnings == [recorder.report().error]
    with pytest.raises(CosmosReasonError) as raised:
        recorder.capture(60, 0, "")  # refused at once, not begun and given up
    assert raised.value.code is ErrorCode.DISK_BUDGET_EXCEEDED
    assert list(tmp_path.iterdir()) == [bag]
    (tmp_path / "more").write_bytes(bytes(100_000))
    with pytest.raises(CosmosReasonError) as raised:
        recorder.capture(0, 0, "")
    assert raised.value.code is ErrorCode.DISK_BUDGET_EXCEEDED


def test_a_continuous_recording_goes_on_once_there_is_room(
    tmp_path: Path, warnings: list[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("cosmos_reason_node.ros.recorder.RETRY_S", 0.2)
    recorder = make_recorder(tmp_path, warnings, budget_bytes=1 << 20)
    recorder.tend()
    assert not recorder.report().recording, "nobody has asked for it"
    recorder.start_continuous(split_s=100)
    for i in range(60):
        recorder.record(CAMERA, image_bytes(i))
    wait(lambda: not recorder.report().recording, "it does not stop")
    (full,) = tmp_path.iterdir()
    started = time.monotonic()
    for _ in range(50):
        recorder.tend()
        time.sleep(0.01)
    assert not recorder.report().recording
    assert list(tmp_path.iterdir()) == [full], "no bags without messages meanwhile"
    assert "record_budget_mb" in recorder.report().error
    assert 2 <= len(warnings) <= 2 + (time.monotonic() - started) / 0.2
    shutil.rmtree(full)
    wait(lambda: recorder.tend() or recorder.report().recording, "it does not go on")
    assert recorder.report().error == ""
    recorder.record(CAMERA, image_bytes(99))
    recorder.close()
    (bag,) = tmp_path.iterdir()
    assert [raw for _, _, raw in read(bag)] == [image_bytes(99)]
    recorder.tend()
    assert not recorder.report().recording, "it was closed"


def test_a_capture_that_ends_is_seen_beside_the_continuous_recording(recorder: Recorder):
    recorder.start_continuous(split_s=100)
    recorder.record(NOTES, note("before"))
    bag = recorder.capture(1, 0.1, "")
    continuous = recorder.report().recording
    assert "continuous" in continuous
    assert recorder.report().capturing == str(bag)
    finish(recorder)
    assert [raw for _, _, raw in read(bag)] == [note("before")]
    assert recorder.report().recording == continuous


def test_messages_left_out_are_counted_and_no_end_of_the_recording(
    recorder: Recorder, warnings: list[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("cosmos_reason_node.ros.recorder._QUEUE_BYTES", 100)
    recorder.start_continuous(split_s=100)
    recorder.record(CAMERA, image_bytes(1))
    assert recorder.report().dropped == 1
    assert recorder.report().recording
    assert recorder.report().error == ""
    (warning,) = warnings
    assert "too slow" in warning


def test_what_was_corrected_is_captured_by_the_stamps_of_its_images(recorder: Recorder):
    def see(numbers: range) -> None:
        for i in numbers:
            recorder.record(CAMERA, image_bytes(i))

    see(range(5))
    time.sleep(1.2)  # the margin
    see(range(10, 20))
    published_s = time.monotonic()
    recorder.record(NOTES, note("decision"))
    recorder.capture(0, 60, "beside")
    bag = recorder.capture_corrected({CAMERA: 12 * 10**9}, published_s)
    assert recorder.capture_corrected({CAMERA: 13 * 10**9}, published_s) == bag, "it is there already"
    wait(lambda: (bag / "metadata.yaml").exists(), "the bag")
    assert [raw for _, _, raw in read(bag)] == [*(image_bytes(i) for i in range(10, 20)), note("decision")]
    with pytest.raises(CosmosReasonError, match="record_memory_s") as raised:
        recorder.capture_corrected({CAMERA: 12 * 10**9, NOTES: 1}, published_s)
    assert raised.value.code is ErrorCode.INVALID_REQUEST


def test_the_continuous_recording_spares_corrections_their_bags_only_where_it_runs(recorder: Recorder):
    recorder.record(CAMERA, image_bytes(1))
    before_s = time.monotonic()
    recorder.start_continuous(split_s=100)
    recorder.record(CAMERA, image_bytes(2))
    assert recorder.capture_corrected({CAMERA: 2 * 10**9}, time.monotonic()) is None
    assert recorder.capture_corrected({CAMERA: 77 * 10**9}, time.monotonic()) is None, "memory lost it"
    with pytest.raises(CosmosReasonError, match="older"):
        recorder.capture_corrected({CAMERA: 77 * 10**9}, before_s)
    bag = recorder.capture_corrected({CAMERA: 10**9}, time.monotonic())
    wait(lambda: (bag / "metadata.yaml").exists(), "the bag")
    assert image_bytes(1) in [raw for _, _, raw in read(bag)]


def test_free_disk_is_kept(tmp_path: Path):
    with pytest.raises(CosmosReasonError, match="stay free") as raised:
        DiskBudget(tmp_path, 1 << 60, min_free_bytes=1 << 60).spend(1)
    assert raised.value.code is ErrorCode.DISK_BUDGET_EXCEEDED


def test_a_full_disk_is_reported_and_the_bag_can_be_completed(tmp_path: Path, warnings: list[str]):
    # A limit on the size of a file makes write() fail half-way through a record, like a full disk.
    script = f"""
        import resource, signal, sys, time
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from pathlib import Path
        from test_recorder import *
        warnings = []
        recorder = make_recorder(Path({str(tmp_path)!r}), warnings)
        recorder.start_continuous(100)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
        for i in range(40):
            recorder.record(CAMERA, image_bytes(i))
        wait(lambda: not recorder.report().recording, "it does not stop")
        print(warnings)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "File too large" in done.stdout
    assert "bag_repair" in done.stdout
    (bag,) = tmp_path.iterdir()
    assert bag_repair.repair(bag) == 9  # 300 kB hold ten; three make a chunk
    assert [read_stamp(raw) // 10**9 for _, _, raw in read(bag)] == list(range(9))


def test_a_killed_writer_leaves_all_but_the_last_moments(tmp_path: Path):
    script = f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_recorder import *
        writer = BagWriter(Path({str(tmp_path / "bag")!r}))
        notes, camera = BagTopic(NOTES, definition_of(STRING)), BagTopic(CAMERA, definition_of(IMAGE))
        for i in range(3000):
            writer.write(notes, note(f"note {{i}}"), 1 + i)
            if i % 100 == 0:
                writer.write(camera, image_bytes(i), 1 + i)
        print("written", flush=True)
        time.sleep(60)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "written\n"
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait(10)
    (file,) = (tmp_path / "bag").glob("*.mcap")
    with open(file, "ab") as stream:  # and a record that was cut in the middle
        stream.write(b"\x06\xff\xff\x00\x00\x00\x00\x00\x00half a chunk")
    count = bag_repair.repair(tmp_path / "bag")
    messages = read(tmp_path / "bag")
    assert len(messages) == count
    notes = [raw for topic, _, raw in messages if topic == NOTES]
    assert notes == [note(f"note {i}") for i in range(len(notes))]
    assert len(notes) >= 2800
    assert len(messages) - len(notes) >= 28
    assert bag_repair.main([str(tmp_path / "bag")]) == 0  # a whole bag stays as it is
    assert read(tmp_path / "bag") == messages


def test_the_disk_is_waited_for_on_the_way_and_not_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Else a disk that is fast enough holds up the thread at the end until its queue is full."""
    waited: list[int] = []

    def wait(descriptor: int) -> None:
        size = os.fstat(descriptor).st_size
        if size > 100_000:  # metadata.yaml is smaller
            waited.append(size)

    monkeypatch.setattr(os, "fdatasync", wait)
    monkeypatch.setattr(os, "fsync", wait)
    writer = BagWriter(tmp_path / "bag")
    camera = BagTopic(CAMERA, definition_of(IMAGE))
    for i in range(60):
        writer.write(camera, bytes(1_000_000), 1 + i)
    writer.close()
    assert waited[-1] > 60_000_000
    assert max(np.diff([0, *waited])) < 20_000_000, "what one wait is about"
    assert len(waited) < 8


def test_repair_refuses_what_is_no_bag(tmp_path: Path):
    assert bag_repair.main([str(tmp_path)]) == 1
    (tmp_path / "x.mcap").write_bytes(b"rubbish")
    with pytest.raises(ValueError, match="no MCAP file"):
        bag_repair.repair(tmp_path)
    assert (tmp_path / "x.mcap").read_bytes() == b"rubbish"
    assert os.listdir(tmp_path) == ["x.mcap"]


def test_repair_leaves_a_bag_alone_that_is_being_written(recorder: Recorder, capsys: pytest.CaptureFixture):
    recorder.start_continuous(split_s=100)
    for i in range(20):
        recorder.record(CAMERA, image_bytes(i))
    bag = Path(recorder.report().recording)
    wait(lambda: recorder.report().bytes_written > 400_000, "nothing is written")
    assert bag_repair.main([str(bag)]) == 1
    assert "still being written" in capsys.readouterr().err
    for i in range(20, 40):
        recorder.record(CAMERA, image_bytes(i))
    recorder.close()
    assert [raw for _, _, raw in read(bag)] == [image_bytes(i) for i in range(40)]
    assert bag_repair.repair(bag) == 40


def test_a_bag_that_cannot_be_begun_leaves_nothing(
    recorder: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(self: object, data: bytes) -> int:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr("cosmos_reason_node.ros.bag_writer._Stream.write", full)
    with pytest.raises(CosmosReasonError, match="quota"):
        recorder.capture(0, 0, "")
    assert list(tmp_path.iterdir()) == []


def test_bags_moved_away_make_room_at_once(tmp_path: Path):
    (tmp_path / "old").write_bytes(bytes(1000))
    budget = DiskBudget(tmp_path, 1500, min_free_bytes=0)
    with pytest.raises(CosmosReasonError, match="move some away"):
        budget.spend(600)
    (tmp_path / "old").unlink()
    budget.spend(600)


def test_a_past_without_room_for_an_image_does_not_reach_back(tmp_path: Path, warnings: list[str]):
    recorder = make_recorder(tmp_path, warnings)
    recorder.record(NOTES, note("no camera yet"))
    time.sleep(0.05)
    assert recorder.report().buffered_s >= 0.05
    recorder.record(CAMERA, image_bytes(1, side=3000))  # 27 MB, more than memory has
    recorder.record(NOTES, note("an image was too large"))
    assert recorder.report().buffered_s == 0.0
    recorder.close()
