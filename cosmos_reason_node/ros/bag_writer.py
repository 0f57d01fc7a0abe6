# SPDX-License-Identifier: Apache-2.0
"""One rosbag2 directory with one MCAP file.

Chunks are small and go straight to the file, so that a bag whose writer was killed keeps all but its last
moments; ``python -m cosmos_reason_node.ros.bag_repair`` completes such a bag.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from mcap.writer import CompressionType, Writer

from .bag_metadata import TopicCount, write_metadata
from .definitions import Definition

# Bytes a torn bag can lose. Images are larger, so that each makes a chunk of its own.
_CHUNK_BYTES = 65536
# The disk is waited for this often, not once at the end for whatever the kernel has put off until then (30 s
# of raw images): the writing thread would not be back before its queue is full, or the process has ended.
_SYNC_BYTES = 16 << 20
# What a message takes in the file beside its bytes: record headers and index entries.
_RECORD_OVERHEAD = 128
HASH_KEY, QOS_KEY = "topic_type_hash", "offered_qos_profiles"


@dataclass(frozen=True)
class BagTopic:
    """A topic to record.

    Attributes:
        name: resolved name.
        definition: of its message type.
        qos: offered profiles, YAML (bag_metadata.qos_yaml).
    """

    name: str
    definition: Definition
    qos: str = "[]"


class BagWriter:
    """Writes one bag. Not thread-safe.

    Args:
        directory: the bag; must not exist yet.
        spend: asked before a message of so many bytes is taken; raises to refuse it.

    Raises:
        OSError: the directory or the file cannot be made.
    """

    def __init__(self, directory: Path, spend: Callable[[int], None] = lambda size: None) -> None:
        directory.mkdir(parents=True)
        self.directory = directory
        self._spend = spend
        self._stream = _Stream(directory / f"{directory.name}_0.mcap")
        # Image data does not compress at a speed that a robot can pay for.
        stream = cast("IO[bytes]", self._stream)
        self._mcap = Writer(stream, chunk_size=_CHUNK_BYTES, compression=CompressionType.NONE)
        try:
            self._mcap.start(profile="ros2", library="cosmos_reason")
        except OSError:  # no room, whatever the disk says: each new try would leave a directory
            self.discard()
            raise
        self._topics: dict[str, BagTopic] = {}
        self._channels: dict[str, int] = {}
        self._schemas: dict[str, int] = {}
        self._counts: dict[str, int] = {}
        self._start_ns: int | None = None
        self._end_ns = 0
        self._closed = False

    @property
    def bytes_written(self) -> int:
        """Size of the MCAP file so far."""
        return self._stream.tell()

    def add_topic(self, topic: BagTopic) -> None:
        """Declare a topic, so that the bag lists it even when it gets no message."""
        definition = topic.definition
        if definition.type not in self._schemas:
            self._schemas[definition.type] = self._mcap.register_schema(
                definition.type, "ros2msg", definition.text.encode()
            )
        self._channels[topic.name] = self._mcap.register_channel(
            topic.name,
            "cdr",
            self._schemas[definition.type],
            {QOS_KEY: topic.qos, HASH_KEY: definition.type_hash},
        )
        self._topics[topic.name] = topic
        self._counts[topic.name] = 0

    def write(self, topic: BagTopic, serialized: bytes, log_ns: int, publish_ns: int | None = None) -> None:
        """Add a message.

        Args:
            topic: declared here when it was not.
            serialized: the message as the middleware carries it.
            log_ns: when it was received, on the node's clock.
            publish_ns: when it was published; None = ``log_ns``.
        """
        self._spend(len(serialized) + _RECORD_OVERHEAD)
        if topic.name not in self._channels:
            self.add_topic(topic)
        self._mcap.add_message(
            self._channels[topic.name], log_ns, serialized, log_ns if publish_ns is None else publish_ns
        )
        self._counts[topic.name] += 1
        self._start_ns = log_ns if self._start_ns is None else min(self._start_ns, log_ns)
        self._end_ns = max(self._end_ns, log_ns)

    def close(self) -> None:
        """Complete the bag: index, metadata.yaml; also right after ``spend`` has refused a message."""
        if self._closed:
            return
        self._closed = True
        try:
            self._mcap.finish()
            self._stream.sync()
        finally:
            self._stream.close()
        write_metadata(self.directory, self._stream.name, self._start_ns or 0, self._end_ns, self._counted())

    def abandon(self) -> None:
        """Close the file as it is, for a disk that takes nothing more; bag_repair can complete it later."""
        self._closed = True
        self._stream.close()

    def discard(self) -> None:
        """Remove a bag that could not be begun."""
        self.abandon()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _counted(self) -> Sequence[TopicCount]:
        return [
            TopicCount(name, topic.definition.type, topic.definition.type_hash, topic.qos, self._counts[name])
            for name, topic in self._topics.items()
        ]


class _Stream:
    """An unbuffered file: what was written is the kernel's, whatever happens to this process.

    ``mcap`` would put a buffer in front of a RawIOBase and would not notice a short write. The lock tells
    bag_repair that somebody still writes; the kernel takes it back with the process.
    """

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self._file = open(path, "xb", buffering=0)  # noqa: SIM115 - closed by close()
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._size = 0
        self._unsynced = 0

    def write(self, data: bytes) -> int:
        view = memoryview(data)
        try:
            while view:
                view = view[self._file.write(view) :]
        except OSError:
            self._file.truncate(self._size)  # half a record would hide those after it from a repair
            raise
        self._size += len(data)
        self._unsynced += len(data)
        if self._unsynced >= _SYNC_BYTES:
            self._unsynced = 0
            os.fdatasync(self._file.fileno())
        return len(data)

    def tell(self) -> int:
        return self._size

    def flush(self) -> None:
        pass

    def sync(self) -> None:
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()
