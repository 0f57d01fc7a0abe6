# SPDX-License-Identifier: Apache-2.0
from cosmos_reason_node.ros.bag_writer import BagTopic
from cosmos_reason_node.ros.definitions import Definition
from cosmos_reason_node.ros.past import Entry, Past

CAMERA = BagTopic("/image_raw", Definition("sensor_msgs/msg/Image", "", ""))
SIDE = BagTopic("/side/image_raw", Definition("sensor_msgs/msg/Image", "", ""))
DECISIONS = BagTopic("/decisions", Definition("cosmos_reason_msgs/msg/Decision", "", ""))
STATUS = BagTopic("/status", Definition("cosmos_reason_msgs/msg/Status", "", ""))
JPEGS = BagTopic("/image_raw/compressed", Definition("sensor_msgs/msg/CompressedImage", "", ""))
IMAGE_BYTES = 100_000


def image(received_s: float) -> Entry:
    return Entry(received_s, int(received_s * 1e9), CAMERA, bytes(IMAGE_BYTES))


def small(received_s: float, topic: BagTopic = DECISIONS) -> Entry:
    return Entry(received_s, int(received_s * 1e9), topic, b"decision")


def test_the_oldest_images_go_first_when_memory_is_short():
    past = Past(keep_s=100, limit_bytes=10 * IMAGE_BYTES)
    for i in range(50):
        past.add(image(i))
        past.add(small(i + 0.5))
    kept = past.between(0)
    assert [e.received_s for e in kept if e.topic is CAMERA] == list(range(40, 50))
    assert len([e for e in kept if e.topic is DECISIONS]) == 50
    assert past.size <= 10 * IMAGE_BYTES + 50 * len(b"decision")


def test_small_images_have_the_memory_of_images():
    past = Past(keep_s=1000, limit_bytes=40 << 20)
    past.thin(10**9)
    past.add(small(0))
    jpeg = bytes(12_000)
    for i in range(3000):
        head = b"\0\1\0\0" + (i // 10).to_bytes(4, "little") + bytes(4)
        past.add(Entry(1 + i / 10, 0, JPEGS, head + jpeg))
    kept = past.between(0)
    assert kept[0].topic is DECISIONS, "images go before decisions"
    assert past.size > 19 << 20
    times = [e.received_s for e in kept if e.topic is JPEGS]
    assert times[0] == 1.0, "the images that the model samples outlast the others"
    assert past.reach_s(301.0) == 300.0


def test_entries_older_than_the_time_kept_are_forgotten():
    past = Past(keep_s=10, limit_bytes=1 << 30)
    for i in range(30):
        past.add(image(i))
    assert min(e.received_s for e in past.between(0)) == 19
    assert past.size == 11 * IMAGE_BYTES


def test_entries_come_in_order_of_reception_and_from_the_moment_asked():
    past = Past(keep_s=100, limit_bytes=1 << 30)
    for i in range(10):
        past.add(small(i))
        past.add(image(i + 0.5))
    times = [e.received_s for e in past.between(5)]
    assert times == sorted(times)
    assert times[0] == 5
    assert len(times) == 10


def test_what_holds_now_comes_first_however_old():
    past = Past(keep_s=5, limit_bytes=1 << 30)
    past.latch(STATUS.name)
    past.add(small(0, STATUS))
    past.add(small(1, STATUS))
    past.add(image(50))
    assert [(e.topic.name, e.received_s) for e in past.between(45)] == [("/status", 1), ("/image_raw", 50)]
    past.add(small(51, STATUS))  # now one of the messages themselves
    assert [e.received_s for e in past.between(45)] == [50, 51]


def test_no_memory_no_past():
    past = Past(keep_s=10, limit_bytes=0)
    past.add(image(1))
    assert past.between(0) == []
    assert past.size == 0


def test_bytes_are_shared_not_copied():
    past = Past(keep_s=10, limit_bytes=1 << 30)
    entry = image(1)
    past.add(entry)
    assert past.between(0)[0].serialized is entry.serialized


def stamped(received_s: float, stamp_s: int, topic: BagTopic = CAMERA) -> Entry:
    head = b"\0\1\0\0" + stamp_s.to_bytes(4, "little") + bytes(4)
    return Entry(received_s, 0, topic, head + bytes(IMAGE_BYTES))


def test_an_image_is_found_by_its_stamp_whatever_the_clocks_say():
    past = Past(keep_s=100, limit_bytes=1 << 30)
    past.add(Entry(0, 0, CAMERA, b"no image" + bytes(IMAGE_BYTES)))
    for i, stamp_s in enumerate((50, 51, 50, 51)):  # a recording that is played twice
        past.add(stamped(1 + i, stamp_s))
    past.add(small(9))
    assert past.received_s(CAMERA.name, 51 * 10**9, until_s=10) == 4
    assert past.received_s(CAMERA.name, 51 * 10**9, until_s=3.5) == 2
    assert past.received_s(CAMERA.name, 52 * 10**9, until_s=10) is None
    assert past.received_s(DECISIONS.name, 51 * 10**9, until_s=10) is None
    assert [e.received_s for e in past.between(2, 3)] == [2, 3]


def test_sampled_images_outlast_the_others_when_memory_is_short():
    past = Past(keep_s=100, limit_bytes=20 * IMAGE_BYTES + 20 * 12)
    past.thin(10**9)
    for i in range(160):  # ten a second, and of another camera one
        past.add(stamped(i / 10, i // 10))
        if i % 10 == 5:
            past.add(stamped(i / 10, i // 10, SIDE))
    kept = past.between(0)
    times = [e.received_s for e in kept if e.topic is CAMERA]
    assert times[-9:] == [i / 10 for i in range(151, 160)]  # half of the memory holds all of them
    assert times[:-9] == [float(i) for i in range(int(times[0]), 16)]  # the first of each second
    side = [e.received_s for e in kept if e.topic is SIDE]
    assert side == [i + 0.5 for i in range(int(side[0]), 16)]
    assert [e.received_s for e in kept] == sorted(e.received_s for e in kept)
    assert past.size <= 20 * (IMAGE_BYTES + 12)
    assert past.reach_s(16.0) == 16.0 - min(times[0], side[0])
    assert past.reach_s(16.0) > 5
    second = int(times[1])
    assert past.received_s(CAMERA.name, second * 10**9, until_s=16) == second


def test_thinned_images_are_forgotten_in_time_and_bad_ones_at_once():
    past = Past(keep_s=3, limit_bytes=4 * (IMAGE_BYTES + 12))
    past.thin(10**9)
    for i in range(100):
        past.add(stamped(i / 10, i // 10) if i % 2 else Entry(i / 10, 0, CAMERA, b"x" + bytes(IMAGE_BYTES)))
    assert 6.9 <= past.between(0)[0].received_s <= 8.2
    past = Past(keep_s=10, limit_bytes=0)
    past.thin(10**9)
    past.add(stamped(1, 1))
    assert past.size == 0


def test_memory_reaches_farther_from_the_moment_it_is_told_to():
    past = Past(keep_s=2, limit_bytes=1 << 30)
    assert past.reach_s(0) == 0
    for i in range(10):
        past.add(image(i))
    assert past.reach_s(9) == 2
    past.keep(5)
    for i in range(10, 20):
        past.add(image(i))
    assert past.reach_s(19) == 5
