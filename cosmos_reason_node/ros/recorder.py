# SPDX-License-Identifier: Apache-2.0
"""Bags of the moments that matter: the last N seconds are always in memory, capture() writes them and the next N."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rclpy.qos import QoSProfile


@dataclass(frozen=True)
class RecorderReport:
    """State of the recorder.

    Attributes:
        path: bag being written; "" if none. With a capture beside the continuous recording, the capture's.
        bytes_written: bytes of bags since start.
        dropped: messages that could not be written because the disk was too slow.
        buffered_bytes: memory in use for the past.
        error: why recording failed or stopped; "" if it did not.
    """

    path: str
    bytes_written: int
    dropped: int
    buffered_bytes: int
    error: str


class Recorder:
    """Keeps the recent past of some topics in memory and writes bags of it.

    Args:
        directory: where bags go (Config.record_dir; empty = ~/.ros/cosmos_reason).
        keep_s: how far the past reaches.
        buffer_bytes: memory for it; the oldest images go first.
        budget_bytes: disk for all bags in ``directory``.
        now_ns: the node's clock, for the bags' receive stamps.
        warn: called (from any thread) with a sentence when something goes wrong.
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
        raise NotImplementedError  # published early for its signature

    def add_topic(self, topic: str, message_type: str, qos: Sequence[QoSProfile] = ()) -> None:
        """Declare a topic (resolved name, "pkg/msg/Type") before its first record()."""

    def record(self, topic: str, serialized: bytes) -> None:
        """Take one message; never blocks, keeps a reference to the bytes. It is a camera's ``tap``.

        For decisions: ``record(topic, rclpy.serialization.serialize_message(msg))``; the task is recorded
        by passing the latched status message the same way (the newest of a latched topic is always kept).
        """

    def capture(self, before_s: float, after_s: float, label: str) -> Path:
        """Start a bag of the last ``before_s`` and the next ``after_s`` seconds; returns its directory at once.

        Raises:
            CosmosReasonError: INVALID_REQUEST (bad label or times), RECORDING_BUSY (a capture is running),
                DISK_BUDGET_EXCEEDED, RECORDING_FAILED (directory cannot be written).
        """

    def start_continuous(self, split_s: float) -> None:
        """Record everything from now on, a bag every ``split_s`` seconds.

        Raises:
            CosmosReasonError: DISK_BUDGET_EXCEEDED, RECORDING_FAILED.
        """

    def report(self) -> RecorderReport:
        """State now."""

    def close(self, timeout_s: float = 5.0) -> None:
        """Finish the bags being written and stop the writer's thread; messages left after the time are lost."""
