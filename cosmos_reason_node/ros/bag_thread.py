# SPDX-License-Identifier: Apache-2.0
"""The thread that writes one bag, or one after the other, from a bounded queue."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path

from ..errors import CosmosReasonError
from .bag_writer import BagWriter
from .past import Entry


def _one_bag() -> BagWriter:
    raise RuntimeError("this recording has one bag only")


class BagThread:
    """Writes entries until a moment, then completes the bag.

    Args:
        writer: of the first bag; the thread closes it.
        past: entries to begin with; they do not count against the queue's bound.
        until_s: moment (monotonic) of the end.
        queue_bytes: entries that may wait; what comes beyond is dropped and counted.
        failed: called from the thread with the reason when writing has to stop.
        warn: called with a sentence when messages begin to be left out.
        split_s: length of a bag, seconds.
        next_writer: opens the bag that follows it.
    """

    def __init__(
        self,
        writer: BagWriter,
        past: Iterable[Entry],
        *,
        until_s: float,
        queue_bytes: int,
        failed: Callable[[str], None],
        warn: Callable[[str], None],
        split_s: float = math.inf,
        next_writer: Callable[[], BagWriter] = _one_bag,
    ) -> None:
        self._writer = writer
        self._past = deque(past)
        self._until_s = until_s
        self._queue_bytes = queue_bytes
        self._failed = failed
        self._warn = warn
        self._split_s = split_s
        self._next_writer = next_writer
        self._split_at_s = time.monotonic() + split_s
        self._closed_bytes = 0
        self._dropped = 0
        self._queue: deque[Entry] = deque()
        self._queued_bytes = 0
        self._ended = False
        self._changed = threading.Condition()
        # A daemon: an exit that does not wait for the disk leaves a bag that bag_repair completes.
        self._thread = threading.Thread(target=self._run, name="bag", daemon=True)
        self._thread.start()

    @property
    def path(self) -> Path:
        """Directory of the bag being written."""
        return self._writer.directory

    @property
    def bytes_written(self) -> int:
        """Bytes of all bags of this thread so far."""
        return self._closed_bytes + self._writer.bytes_written

    @property
    def dropped(self) -> int:
        """Messages the disk was too slow for."""
        return self._dropped

    @property
    def running(self) -> bool:
        """The thread has not ended: a bag is incomplete."""
        return self._thread.is_alive()

    def offer(self, entry: Entry) -> None:
        """Write ``entry`` when its turn comes; never blocks for the disk."""
        with self._changed:
            if self._ended or entry.received_s > self._until_s:
                return
            if self._queued_bytes + len(entry.serialized) > self._queue_bytes:
                self._dropped += 1
                if self._dropped == 1:
                    self._warn(f"the disk is too slow for {self.path}: messages are left out of the bag")
                return
            self._queue.append(entry)
            self._queued_bytes += len(entry.serialized)
            self._changed.notify()

    def stop(self) -> None:
        """Take nothing more; write what waits and complete the bag."""
        with self._changed:
            self._until_s = min(self._until_s, time.monotonic())
            self._changed.notify()

    def join(self, timeout_s: float) -> None:
        """Wait for the end; see ``running``."""
        self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            while (entry := self._next()) is not None:
                if entry.received_s >= self._split_at_s:
                    self._split(entry.received_s)
                self._writer.write(entry.topic, entry.serialized, entry.log_ns)
            self._writer.close()
        except Exception as error:
            self._give_up(error)

    def _next(self) -> Entry | None:
        if self._past:
            return self._past.popleft()
        with self._changed:
            while not self._queue:
                left_s = self._until_s - time.monotonic()
                if left_s <= 0:
                    self._ended = True
                    return None
                self._changed.wait(min(left_s, 1.0))
            entry = self._queue.popleft()
            self._queued_bytes -= len(entry.serialized)
            return entry

    def _split(self, now_s: float) -> None:
        self._writer.close()
        following = self._next_writer()
        self._closed_bytes += self._writer.bytes_written
        self._writer = following
        self._split_at_s = now_s + self._split_s

    def _give_up(self, error: Exception) -> None:
        with self._changed:
            self._ended = True
            self._queue.clear()
            self._queued_bytes = 0
        self._past.clear()
        reason = error.message if isinstance(error, CosmosReasonError) else f"{type(error).__name__}: {error}"
        state = "the bag holds everything up to then"
        try:
            if isinstance(error, OSError):
                raise error  # the disk takes nothing more
            self._writer.close()
        except Exception:
            self._writer.abandon()
            state = (
                f"`python -m cosmos_reason_node.ros.bag_repair {self.path}` completes it once there is room"
            )
        self._failed(f"recording of {self.path} stopped: {reason}; {state}")
