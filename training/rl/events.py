# SPDX-License-Identifier: Apache-2.0
"""Numbers for TensorBoard.

tensorboardX's writer of scalars has a thread and a bounded queue: once that thread has met a full disk, the
next numbers wait for ever, and the run with them. Here they are written by who has them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Events:
    """One file of events, made with the first numbers.

    A disk that does not take them ends the file, not the run.

    Args:
        directory: of the files; each life of a run adds one.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._writer: Any = None
        self._ended = False

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of a step, by name."""
        if self._ended:
            return
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        summary = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])
        try:
            if self._writer is None:
                self._directory.mkdir(parents=True, exist_ok=True)
                self._writer = EventsWriter(str(self._directory / "events"))
            self._writer.write_event(Event(wall_time=time.time(), step=step, summary=summary))
            self._writer.flush()
        except OSError as error:
            self._ended = True
            print(f"no more TensorBoard events: {self._directory} cannot be written ({error})", flush=True)
