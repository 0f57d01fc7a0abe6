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

The continuous recording, a capture and the bags of corrections are written side by side. ``record`` runs in
the executor's thread for every image; it appends to at most three deques and returns.
"""

from __future__ import annotations

import functools
import math
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
RETRY_S = 60.0
# The continuous recording begins once the disk takes so much: else there is an empty bag a minute.
_RESUME_BYTES = 64 << 20
_MARGIN_S = 1.0  # before and after what a correction is about
_MAX_CORRECTED = 4  # bags of corrections at a time
_CAPTURE, _CONTINUOUS = "capture", "continuous"


@dataclass(frozen=True)
class RecorderReport:
    """State of the recorder.

    Attributes:
        recording: bag of the continuous recording; "" when it does not run.
        capturing: bag of a capture or of a correction that is not complete yet; "" if none.
        bytes_written: bytes of bags since start.
        dropped: messages that could not be written because the disk was too slow.
        buffered_bytes: memory in use for the past.
        buffered_s: how far the past in memory reaches, seconds.
        error: why a recording failed or stopped; "" once one of its kind has begun since.
    """

    recording: str
    capturing: str
    bytes_written: int
    dropped: int
    buffered_bytes: int
    buffered_s: float
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
        self._corrected: list[BagThread] = []
        self._covered: tuple[float, float, Path] | None = (
            None  # past of the newest of these bags: from, until
        )
        self._split_s: float | None = None  # the continuous recording is wanted
        self._continuous_since_s = 0.0
        self._retry_at_s = 0.0
        self._finished_bytes = 0
        self._finished_dropped = 0
        self._errors: dict[str, str] = {}  # by the kind of recording
        self._error_lock = threading.Lock()

    def keep(self, keep_s: float) -> None:
        """Let the past reach ``keep_s`` seconds from now on; what is forgotten does not come back."""
        self._past.keep(keep_s)

    def sample(self, period_ns: int) -> None:
        """The model samples an image each ``period_ns``: when memory is short, these outlast the others."""
        self._past.thin(period_ns)

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
            The bag's directory, at once; it is complete when report().capturing is empty again.

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
                f"{self._capture.path} is still being written; ask again when status.capturing is empty",
            )
        now_s = time.monotonic()
        past = self._past.between(now_s - before_s)
        writer = self._open(f"capture_{label}" if label else "capture", _bytes(past))
        self._capture = self._thread(_CAPTURE, writer, past, until_s=now_s + after_s)
        return writer.directory

    def capture_corrected(self, first: Mapping[str, int], published_s: float) -> Path | None:
        """Write a bag of the images that a decision was about, and of the decision.

        They are found by their stamps, so it does not matter how the node's clock went meanwhile.

        Args:
            first: topic -> stamp of the oldest image, nanoseconds of capture time.
            published_s: when the decision was published, on the monotonic clock.

        Returns:
            The bag's directory, possibly one of an earlier correction; None when the continuous recording
            holds the images.

        Raises:
            CosmosReasonError: INVALID_REQUEST (memory no longer holds them), RECORDING_BUSY,
                DISK_BUDGET_EXCEEDED, RECORDING_FAILED.
        """
        self._reap()
        found = [self._past.received_s(topic, stamp_ns, published_s) for topic, stamp_ns in first.items()]
        # The images that memory has lost came before the decision was published.
        begin_s = min(published_s if moment is None else moment for moment in found)
        if self._continuous is not None and self._continuous_since_s <= begin_s:
            return None
        if None in found:
            raise CosmosReasonError(
                ErrorCode.INVALID_REQUEST,
                f"memory reaches back {self._past.reach_s(time.monotonic()):.1f} s, they are older; correct "
                "sooner, or raise record_memory_s or record_buffer_mb",
            )
        if self._covered is not None:
            since_s, until_s, path = self._covered
            if since_s <= begin_s and published_s <= until_s and path.exists():
                return path
        if len(self._corrected) >= _MAX_CORRECTED:
            raise CosmosReasonError(
                ErrorCode.RECORDING_BUSY, f"{self._corrected[0].path} is still being written; ask again"
            )
        since_s, until_s = begin_s - _MARGIN_S, min(published_s + _MARGIN_S, time.monotonic())
        past = self._past.between(since_s, until_s)
        writer = self._open("capture_corrected", _bytes(past))
        self._corrected.append(self._thread(_CAPTURE, writer, past, until_s=until_s))
        self._covered = since_s, until_s, writer.directory
        return writer.directory

    def start_continuous(self, split_s: float) -> None:
        """Record everything from now on, a bag every ``split_s`` seconds; see ``tend``.

        Where the disk takes nothing now, it begins once there is room: a full disk is no reason for a robot
        to be without its node. Until then report().error says why.

        Raises:
            CosmosReasonError: RECORDING_BUSY (it runs already).
        """
        self._reap()
        if self._continuous is not None:
            raise CosmosReasonError(ErrorCode.RECORDING_BUSY, "the continuous recording is already running")
        self._split_s = split_s
        self._try_continuous(split_s)

    def tend(self) -> None:
        """Go on with a continuous recording that stopped, RETRY_S later; call it about once a second."""
        self._reap()
        if self._split_s is None or self._continuous is not None or time.monotonic() < self._retry_at_s:
            return
        self._try_continuous(self._split_s)

    def report(self) -> RecorderReport:
        """State now."""
        self._reap()
        bags = self._bags()
        capturing = [bag for bag in bags if bag is not self._continuous]
        with self._error_lock:
            error = "; ".join(self._errors.values())
        return RecorderReport(
            recording=str(self._continuous.path) if self._continuous is not None else "",
            capturing=str(capturing[0].path) if capturing else "",
            bytes_written=self._finished_bytes + sum(bag.bytes_written for bag in bags),
            dropped=self._finished_dropped + sum(bag.dropped for bag in bags),
            buffered_bytes=self._past.size,
            buffered_s=self._past.reach_s(time.monotonic()),
            error=error,
        )

    def close(self, timeout_s: float = 5.0) -> None:
        """Complete the bags being written; after ``timeout_s`` they are left as they are (see bag_repair)."""
        end_s = time.monotonic() + timeout_s
        self._split_s = None
        bags = self._bags()
        for bag in bags:
            bag.stop()
        for bag in bags:
            bag.join(max(0.0, end_s - time.monotonic()))
            if bag.running:
                kind = _CONTINUOUS if bag is self._continuous else _CAPTURE
                self._failed(
                    kind,
                    f"{bag.path} could not be completed in time and is still being written; should the "
                    f"process end before that, `python -m cosmos_reason_node.ros.bag_repair {bag.path}` "
                    "completes it",
                )
        self._reap()

    def _bags(self) -> list[BagThread]:
        """Those being written, the continuous recording's last."""
        return [bag for bag in (self._capture, *self._corrected, self._continuous) if bag is not None]

    def _try_continuous(self, split_s: float) -> None:
        now_s = time.monotonic()
        self._retry_at_s = now_s + RETRY_S
        try:
            writer = self._open("continuous", min(_RESUME_BYTES, self._budget_bytes // 10))
        except CosmosReasonError as error:
            self._failed(_CONTINUOUS, f"the continuous recording waits: {error.message}")
            return
        self._continuous = self._thread(
            _CONTINUOUS,
            writer,
            self._past.between(now_s),
            until_s=math.inf,
            split_s=split_s,
            next_writer=lambda: self._open("continuous"),
        )
        self._continuous_since_s = now_s

    def _thread(self, kind: str, writer: BagWriter, past: Sequence[Entry], **times: Any) -> BagThread:
        """The thread of a recording that begins: what went wrong with the one before is over."""
        with self._error_lock:
            self._errors.pop(kind, None)
        failed = functools.partial(self._failed, kind)
        return BagThread(writer, past, queue_bytes=_QUEUE_BYTES, failed=failed, warn=self._warn, **times)

    def _open(self, name: str, room_bytes: int = 0) -> BagWriter:
        """A new bag with all topics declared, on a disk that takes ``room_bytes`` more.

        Called from threads of bags as well (splits).
        """
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            if self._budget is None:
                self._budget = DiskBudget(self._directory, self._budget_bytes)
            self._budget.measure()
            self._budget.require(room_bytes)
            writer = BagWriter(self._unused(name), self._budget.spend)
            try:
                for topic in list(self._topics.values()):
                    writer.add_topic(topic)
            except OSError:
                writer.discard()
                raise
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
        for bag in self._bags():
            if not bag.running:
                self._finished_bytes += bag.bytes_written
                self._finished_dropped += bag.dropped
                if bag is self._continuous:
                    self._continuous = None
                    self._retry_at_s = time.monotonic() + RETRY_S
                elif bag is self._capture:
                    self._capture = None
                else:
                    self._corrected.remove(bag)

    def _failed(self, kind: str, reason: str) -> None:
        with self._error_lock:
            self._errors[kind] = reason
        if kind == _CAPTURE:
            self._covered = None  # it may be the bag that could not be completed
        self._warn(reason)


def _bytes(entries: Sequence[Entry]) -> int:
    return sum(len(entry.serialized) for entry in entries)
