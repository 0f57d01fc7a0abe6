# SPDX-License-Identifier: Apache-2.0
"""Plain processes from deployment.py's definitions: started with a log each, watched, all ended."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from ..deployment import Process

# How long a process may take after SIGINT, then after SIGTERM, before it is killed, seconds.
_STOP_STEPS = ((signal.SIGINT, 8.0), (signal.SIGTERM, 3.0), (signal.SIGKILL, 3.0))
_TAIL_LINES = 25


class ProcessFailed(Exception):
    """A process ended with an error, or before its time. The message has the end of its log."""


@dataclass(frozen=True)
class Running:
    """A started process and the file that has its output."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def ended(self) -> bool:
        """Whether it has ended, for whatever reason."""
        return self.process.poll() is not None

    def check(self, *, may_end: bool = False) -> None:
        """Raise ProcessFailed if it has ended; ``may_end``: only if with an error."""
        code = self.process.poll()
        if code is None or (may_end and code == 0):
            return
        raise ProcessFailed(f"{self.name} ended {_reason(code)}; the end of {self.log}:\n{self.tail()}")

    def tail(self) -> str:
        """Last lines of its log, indented."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-_TAIL_LINES:]
        return "\n".join(f"    {line}" for line in lines) or "    (empty)"


class Processes:
    """Starts processes and, as a context manager, ends them all: asked first, killed at last.

    Args:
        logs: directory for ``<name>.log``.
        env: full environment of the processes.
    """

    def __init__(self, logs: Path, env: Mapping[str, str]) -> None:
        self._logs = logs
        self._env = dict(env)
        self._running: list[Running] = []

    def start(self, definition: Process) -> Running:
        """Start one; it is named after its executable."""
        log = self._logs / f"{definition.executable}.log"
        with open(log, "wb") as output:
            process = subprocess.Popen(
                definition.command(),
                env=definition.environ(self._env),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches this program first, which then stops them in order
            )
        self._running.append(Running(definition.executable, process, log))
        return self._running[-1]

    def stop(self) -> None:
        """End all that still run, the last started first; returns within a bounded time."""
        for started in reversed(self._running):
            for number, patience_s in _STOP_STEPS:
                if started.ended:
                    break
                _signal(started.process.pid, number, group=number != signal.SIGINT)
                _wait(started.process, patience_s)
            _signal(started.process.pid, signal.SIGKILL, group=True)  # children that outlived it
        self._running.clear()

    def __enter__(self) -> Processes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _signal(pid: int, number: signal.Signals, *, group: bool) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        (os.killpg if group else os.kill)(pid, number)


def _wait(process: subprocess.Popen[bytes], seconds: float) -> None:
    end_s = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < end_s:
        time.sleep(0.05)


def _reason(code: int) -> str:
    if code >= 0:
        return f"with exit code {code}"
    return f"by signal {signal.Signals(-code).name}" if -code in set(signal.Signals) else f"by signal {-code}"
