# SPDX-License-Identifier: Apache-2.0
"""Bags of the moments that matter: the last seconds are in memory, capture() writes them and the next ones.

::

    record() --> Past (bounded in bytes; the oldest images go first)
        |          |
        |          | capture(): references to the entries, no copies
        v          v
    queue of each bag being written (bounded in bytes; what does not fit is dropped and counted)
        |
    its thread --> BagWriter --> disk, within the DiskBudget

``record`` runs in the executor's thread for every image; it appends to at most three deques and returns.
"""

from __future__ import annotations

import math
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rclpy.qos import DurabilityPolicy, QoSProfile

from ..errors import CosmosReasonError, ErrorCode
from .bag_metadata import qos_yaml
from .bag_thread import BagThread
from .bag_writer import BagTopic, BagWriter
from .definitions import definition_of
from .disk_budget import DiskBudget
from .past import Entry, Past

DEFAULT_DIRECTORY = "~/.ros/cosmos_reason"
_LABEL = re.compile(r"[A-Za-z0-9_-]{0,64}\Z")
_MAX_CAPTURE_S = 600.0
# A bag's thread that is further behind than this drops messages.
_QUEUE_BYTES = 64 << 20


@dataclass(frozen=True)
class RecorderReport:
    """State of the recorder.

    Attributes:
        path: bag being written; "" if none. With a capture beside the continuous recording, the capture's.
        bytes_written: bytes of bags since start.
        dropped: messages that could not be written because the disk was too slow.
        buffered_bytes: memory in use for the past.
        error: why recording failed or stopped last; "" if it never did.
    """

    path: str
    bytes_written: int
    dropped: int
    buffered_bytes: int
    error: str


class Recorder:
    """Keeps the recent past of some topics in memory and writes bags of it.

    All methods are called from one thread (the executor's). Durations are real time, whatever the node's
    clock does; stamps in the bags are the node's clock.

    Args:
        directory: where bags go (Config.record_dir; empty = ~/.ros/cosmos_reason). Made when first needed.
        keep_s: how far the past reaches.
        buffer_bytes: memory for it; the oldest images go first.
        budget_bytes: disk for everything in ``directory``.
        now_ns: the node's clock.
        warn: called, from any thread, with a sentence when something goes wrong.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        keep_s: float,
        buffer_bytes: int,
        budget_bytes: int,
        now_ns: Callable[[], int],
        warn: Callable[[str], None],
    ) -> None:
        self._directory = Path(directory or DEFAULT_DIRECTORY).expanduser().absolute()
        self._budget_bytes = budget_bytes
        self._now_ns = now_ns
        self._warn = warn
        self._past = Past(keep_s, buffer_bytes)
        self._topics: dict[str, BagTopic] = {}
        self._budget: DiskBudget | None = None
        self._capture: BagThread | None = None
        self._continuous: BagThread | None = None
        self._finished_bytes = 0
        self._finished_dropped = 0
        self._error = ""
        self._error_lock = threading.Lock()

    def add_topic(self, topic: str, message_type: str, qos: Sequence[QoSProfile] = ()) -> None:
        """Declare a topic before its first record().

        Args:
            topic: resolved name.
            message_type: "sensor_msgs/msg/Image".
            qos: profiles its publishers offer. Of a transient-local (latched) topic the newest message is
                kept however old it is, so that a bag begins with what held then.

        Raises:
            CosmosReasonError: RECORDING_FAILED when the type's definition is not installed.
        """
        self._topics[topic] = BagTopic(topic, definition_of(message_type), qos_yaml(qos))
        if any(profile.durability == DurabilityPolicy.TRANSIENT_LOCAL for profile in qos):
            self._past.latch(topic)

    def record(self, topic: str, serialized: bytes) -> None:
        """Take one message of a declared topic; keeps a reference to the bytes and never blocks."""
        entry = Entry(time.monotonic(), self._now_ns(), self._topics[topic], serialized)
        self._past.add(entry)
        for bag in (self._capture, self._continuous):
            if bag is not None:
                bag.offer(entry)

    def capture(self, before_s: float, after_s: float, label: str) -> Path:
        """Begin a bag of the last ``before_s`` and the next ``after_s`` seconds.

        Args:
            before_s: seconds of the past, 0 to 600; what memory no longer holds is missing.
            after_s: seconds to go on, 0 to 600.
            label: becomes part of the directory's name; letters, digits, - and _, at most 64.

        Returns:
            The bag's directory, at once; it is complete when report().path is empty again.

        Raises:
            CosmosReasonError: INVALID_REQUEST, RECORDING_BUSY (a capture is running), DISK_BUDGET_EXCEEDED,
                RECORDING_FAILED (the directory cannot be written).
        """
        for name, value in (("before", before_s), ("after", after_s)):
            if not (math.isfinite(value) and 0.0 <= value <= _MAX_CAPTURE_S):
                raise CosmosReasonError(
                    ErrorCode.INVALID_REQUEST,
                    f"{name} must be between 0 and {_MAX_CAPTURE_S:g} seconds, not {value}",
                )
        if not _LABEL.match(label):
            raise CosmosReasonError(
                ErrorCode.INVALID_REQUEST,
                f"label {label[:80]!r} must be letters, digits, - and _, at most 64 of them",
            )
        self._reap()
        if self._capture is not None:
            raise CosmosReasonError(
                ErrorCode.RECORDING_BUSY,
                f"{self._capture.path} is still being written; ask again when status.recording is empty",
            )
        writer = self._open(f"capture_{label}" if label else "capture")
        now_s = time.monotonic()
        self._capture = BagThread(
            writer,
            self._past.since(now_s - before_s),
            until_s=now_s + after_s,
            queue_bytes=_QUEUE_BYTES,
            failed=self._failed,
        )
        return writer.directory

    def start_continuous(self, split_s: float) -> None:
        """Record everything from now on, a bag every ``split_s`` seconds.

        Raises:
            CosmosReasonError: RECORDING_BUSY (it runs already), DISK_BUDGET_EXCEEDED, RECORDING_FAILED.
        """
        self._reap()
        if self._continuous is not None:
            raise CosmosReasonError(ErrorCode.RECORDING_BUSY, "the continuous recording is already running")
        now_s = time.monotonic()
        self._continuous = BagThread(
            self._open("continuous"),
            self._past.since(now_s),
            until_s=math.inf,
            queue_bytes=_QUEUE_BYTES,
            failed=self._failed,
            split_s=split_s,
            next_writer=lambda: self._open("continuous"),
        )

    def report(self) -> RecorderReport:
        """State now."""
        self._reap()
        bags = [bag for bag in (self._capture, self._continuous) if bag is not None]
        with self._error_lock:
            error = self._error
        return RecorderReport(
            path=str(bags[0].path) if bags else "",
            bytes_written=self._finished_bytes + sum(bag.bytes_written for bag in bags),
            dropped=self._finished_dropped + sum(bag.dropped for bag in bags),
            buffered_bytes=self._past.size,
            error=error,
        )

    def close(self, timeout_s: float = 5.0) -> None:
        """Complete the bags being written; after ``timeout_s`` they are left as they are (see bag_repair)."""
        end_s = time.monotonic() + timeout_s
        bags = [bag for bag in (self._capture, self._continuous) if bag is not None]
        for bag in bags:
            bag.stop()
        for bag in bags:
            bag.join(max(0.0, end_s - time.monotonic()))
            if bag.running:
                self._failed(f"{bag.path} could not be completed in time; run bag_repair on it")
        self._reap()

    def _open(self, name: str) -> BagWriter:
        """A new bag with all topics declared. Called from threads of bags as well (splits)."""
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            if self._budget is None:
                self._budget = DiskBudget(self._directory, self._budget_bytes)
            self._budget.measure()
            self._budget.spend(0)
            writer = BagWriter(self._unused(name), self._budget.spend)
            for topic in list(self._topics.values()):
                writer.add_topic(topic)
        except OSError as error:
            raise CosmosReasonError(
                ErrorCode.RECORDING_FAILED,
                f"no bag can be written in {self._directory} ({error}); set record_dir to a directory that "
                "the node may write",
            ) from error
        return writer

    def _unused(self, name: str) -> Path:
        """<name>_<time>, rosbag2's pattern, with a number when a second sees two bags."""
        stem = f"{name}_{time.strftime('%Y_%m_%d-%H_%M_%S')}"
        path, number = self._directory / stem, 1
        while path.exists():
            path, number = self._directory / f"{stem}_{number}", number + 1
        return path

    def _reap(self) -> None:
        """Let go of bags whose threads have ended."""
        if self._capture is not None and not self._capture.running:
            self._settle(self._capture)
            self._capture = None
        if self._continuous is not None and not self._continuous.running:
            self._settle(self._continuous)
            self._continuous = None

    def _settle(self, bag: BagThread) -> None:
        self._finished_bytes += bag.bytes_written
        self._finished_dropped += bag.dropped

    def _failed(self, reason: str) -> None:
        with self._error_lock:
            self._error = reason
        self._warn(reason)
