# SPDX-License-Identifier: Apache-2.0
"""The recent past in memory: serialized messages of the last seconds, bounded in bytes."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from ..errors import CosmosReasonError
from .bag_writer import BagTopic
from .cdr import read_stamp

# These go first when memory is short. By type: a small JPEG has no more bytes than a decision.
_IMAGE_TYPES = ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage")
# For everything else; a decision takes 1 to 4 KiB.
_SMALL_LIMIT_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Entry:
    """A received message.

    Attributes:
        received_s: on the monotonic clock, seconds.
        log_ns: when it was received, on the node's clock.
        topic: where it was received.
        serialized: the message; shared with whoever else holds it, never copied.
    """

    received_s: float
    log_ns: int
    topic: BagTopic
    serialized: bytes


class Past:
    """Keeps entries for ``keep_s``; the oldest images go first when they take more than ``limit_bytes``.

    With ``thin`` all images have half of these bytes; of those that no longer find room there, the other half
    holds what the model samples. Of a latched topic the newest message is kept however old it is. Not
    thread-safe.
    """

    def __init__(self, keep_s: float, limit_bytes: int) -> None:
        self._keep_s = keep_s
        self._limit_bytes = limit_bytes
        self._images = _Queue(limit_bytes)
        self._sampled = _Queue(0)
        self._period_ns = 0
        self._ticks: dict[str, int] = {}  # of the newest image of each topic in ``_sampled``
        self._others = _Queue(min(limit_bytes, _SMALL_LIMIT_BYTES))
        self._latched: dict[str, Entry | None] = {}
        self._has_images = False  # there were some, whether or not memory has kept any

    @property
    def size(self) -> int:
        """Bytes held."""
        return self._sampled.size + self._images.size + self._others.size

    def keep(self, keep_s: float) -> None:
        """Keep entries for ``keep_s`` from now on."""
        self._keep_s = keep_s

    def reach_s(self, now_s: float) -> float:
        """How far the images in memory reach back at ``now_s``, seconds.

        Where no image has ever come, how far the rest does.
        """
        oldest = self._sampled.entries or self._images.entries
        if not self._has_images:
            oldest = self._others.entries
        return now_s - oldest[0].received_s if oldest else 0.0

    def thin(self, period_ns: int) -> None:
        """Let the first image of each tick of ``period_ns`` outlast the others when memory is short."""
        self._period_ns = period_ns
        self._sampled.limit = self._limit_bytes // 2
        self._images.limit = self._limit_bytes - self._sampled.limit

    def latch(self, topic: str) -> None:
        """Keep the newest message of ``topic`` whatever its age."""
        self._latched.setdefault(topic, None)

    def add(self, entry: Entry) -> None:
        """Add the newest message."""
        if entry.topic.name in self._latched:
            self._latched[entry.topic.name] = entry
        queue = self._images if entry.topic.definition.type in _IMAGE_TYPES else self._others
        self._has_images |= queue is self._images
        for dropped in queue.add(entry):
            if queue is self._images and self._is_sampled(dropped):
                self._sampled.add(dropped)
        since_s = entry.received_s - self._keep_s
        for queue in self._queues:
            queue.drop_before(since_s)

    def between(self, since_s: float, until_s: float = math.inf) -> list[Entry]:
        """Entries received from ``since_s`` to ``until_s`` (monotonic), oldest first.

        In front of them the newest message of each latched topic that has none among them: what held then.
        """
        entries = [
            entry
            for queue in self._queues
            for entry in queue.entries
            if since_s <= entry.received_s <= until_s
        ]
        entries.sort(key=lambda entry: entry.received_s)
        present = {entry.topic.name for entry in entries}
        return [
            entry for entry in self._latched.values() if entry and entry.topic.name not in present
        ] + entries

    def received_s(self, topic: str, stamp_ns: int, until_s: float) -> float | None:
        """When the image of ``topic`` with that stamp was received, ``until_s`` at the latest.

        Monotonic time; the last moment when several have the stamp, None when memory holds none.
        """
        for queue in reversed(self._queues):
            for entry in reversed(queue.entries):
                if entry.topic.name == topic and entry.received_s <= until_s and _stamp(entry) == stamp_ns:
                    return entry.received_s
        return None

    @property
    def _queues(self) -> tuple[_Queue, ...]:
        """Older images before newer ones."""
        return self._sampled, self._images, self._others

    def _is_sampled(self, entry: Entry) -> bool:
        """Whether it is the first image of its tick, by the rule of window.WindowBuffer."""
        stamp_ns = _stamp(entry) if self._period_ns else None
        if stamp_ns is None:
            return False
        tick = stamp_ns // self._period_ns
        is_first = self._ticks.get(entry.topic.name) != tick
        self._ticks[entry.topic.name] = tick
        return is_first


def _stamp(entry: Entry) -> int | None:
    try:
        return read_stamp(entry.serialized)
    except CosmosReasonError:  # a bad image
        return None


class _Queue:
    """Entries, oldest first, of at most ``limit`` bytes."""

    def __init__(self, limit: int) -> None:
        self.entries: deque[Entry] = deque()
        self.size = 0
        self.limit = limit

    def add(self, entry: Entry) -> list[Entry]:
        """Returns those for which there is no room any more."""
        self.entries.append(entry)
        self.size += len(entry.serialized)
        dropped = []
        while self.entries and self.size > self.limit:
            dropped.append(self._drop())
        return dropped

    def drop_before(self, since_s: float) -> None:
        while self.entries and self.entries[0].received_s < since_s:
            self._drop()

    def _drop(self) -> Entry:
        entry = self.entries.popleft()
        self.size -= len(entry.serialized)
        return entry
