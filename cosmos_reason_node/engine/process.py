# SPDX-License-Identifier: Apache-2.0
"""One engine process as its host holds it: start, write, read, kill."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import queue
import select
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

from .spec import EngineSpec
from .wire import RECEIVE_BYTES, Decoder, KeptImages, Message, send

_log = logging.getLogger(__name__)

_REAP_S = 5.0


class EngineProcess:
    """A running ``worker`` with its socket and the thread that writes to it.

    The kernel kills it when the thread that made this object ends, so that thread must live as long.

    Args:
        spec: what it loads.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(self, spec: EngineSpec) -> None:
        self.outbox: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._decoder = Decoder()
        self._connection, theirs = socket.socketpair()
        try:
            self._popen = subprocess.Popen(
                [
                    sys.executable or "python3",
                    "-m",
                    "cosmos_reason_node.engine.worker",
                    f"--spec={json.dumps(dataclasses.asdict(spec))}",
                    f"--fd={theirs.fileno()}",
                    f"--parent={os.getpid()}",
                ],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env=_environment(spec),
            )
        except OSError:
            self._connection.close()
            raise
        finally:
            theirs.close()
        self._poll = select.poll()  # select() is limited to 1024 descriptors
        self._poll.register(self._connection, select.POLLIN)
        self._writer = threading.Thread(target=self._write, name="engine-host-writer", daemon=True)
        self._writer.start()

    @property
    def pid(self) -> int:
        """Process id."""
        return self._popen.pid

    def receive(self, timeout_s: float) -> list[Message] | None:
        """Messages that arrived, after waiting at most ``timeout_s``; None at the end of the process."""
        if not self._poll.poll(timeout_s * 1e3):
            return []
        try:
            data = self._connection.recv(RECEIVE_BYTES)
        except OSError:
            data = b""
        return self._decoder.feed(data) if data else None

    def exit_reason(self) -> str:
        """Why it ended, in words."""
        try:
            code = self._popen.wait(1.0)
        except subprocess.TimeoutExpired:
            return "it closed its connection"
        if code >= 0:
            return f"exit code {code}"
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        hint = " (by someone, or by the system for want of memory)" if name == "SIGKILL" else ""
        return f"killed by {name}{hint}"

    def kill(self) -> None:
        """End it for certain and release everything."""
        self._popen.kill()
        try:
            self._popen.wait(_REAP_S)
        except subprocess.TimeoutExpired:
            _log.error("the killed engine process %d does not go away", self._popen.pid)
        self.outbox.put(None)
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)  # wakes the writer
        self._writer.join(_REAP_S)
        self._connection.close()

    def _write(self) -> None:
        images = KeptImages()
        while (message := self.outbox.get()) is not None:
            try:
                send(self._connection, message, images)
            except OSError:
                return  # the reading side sees the end, too


def _environment(spec: EngineSpec) -> dict[str, str]:
    """This process's environment, with the package importable and everything remote switched off."""
    root = str(Path(__file__).resolve().parents[2])
    path = os.environ.get("PYTHONPATH", "")
    changes = {
        "PYTHONPATH": f"{root}{os.pathsep}{path}" if path else root,
        "PYTHONSAFEPATH": "1",  # a torch.py in the working directory is not torch
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if spec.threads > 0:
        changes["OMP_NUM_THREADS"] = str(spec.threads)
    return {**os.environ, **changes}
