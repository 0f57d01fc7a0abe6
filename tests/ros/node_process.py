# SPDX-License-Identifier: Apache-2.0
"""The real node as a real process, and a checkpoint of random weights for it."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from cosmos_reason_node import deployment

STOP_TIMEOUT_S = 20.0
ROOT = Path(__file__).resolve().parents[2]


@functools.cache
def tiny_model() -> Path:
    """A checkpoint of random weights, with room for long reasoning; made once per test process."""
    directory = Path(tempfile.mkdtemp(prefix="cosmos_reason_tiny_"))
    # In a process of its own: this one has no use for torch.
    subprocess.run([sys.executable, "-m", "tests.tiny_model", directory], check=True, cwd=ROOT, timeout=600)
    config = json.loads((directory / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = 16384
    (directory / "config.json").write_text(json.dumps(config))
    return directory


class NodeProcess:
    """``reason_node`` as the launch files and the demo start it.

    Args:
        log: file for its output.
        parameter_files: ROS parameter files; ``settings`` win over them.
        use_sim_time: take time from /clock.
        settings: parameters; the model defaults to ``tiny_model()``.
    """

    def __init__(
        self,
        log: Path,
        parameter_files: Sequence[Path] = (),
        use_sim_time: bool = False,
        **settings: Any,
    ) -> None:
        if "model" not in settings:
            settings["model"] = str(tiny_model())
        settings.setdefault("threads", 1)
        process = deployment.reason(settings, parameter_files=parameter_files, use_sim_time=use_sim_time)
        self._log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                process.command(),
                env=process.environ(),
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Of the node's process."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Exit code; None while it runs."""
        return self._process.poll()

    def output(self) -> str:
        """What it has written so far."""
        return self._log.read_text(errors="replace")

    def children(self) -> list[psutil.Process]:
        """Its child processes: the engine."""
        return psutil.Process(self.pid).children(recursive=True)

    def wait(self, timeout_s: float) -> int:
        """Exit code, when it ends by itself in time."""
        return self._process.wait(timeout_s)

    def stop(self, number: int = signal.SIGINT) -> int:
        """End it as an operator does: SIGINT reaches its children too, and comes twice.

        Returns:
            Exit code.

        Raises:
            AssertionError: it did not end in time or left a child behind.
        """
        if self._process.poll() is None:
            children = self.children()
            self._process.send_signal(number)
            if number == signal.SIGINT:
                os.killpg(self.pid, number)
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
                raise AssertionError(f"it did not stop:\n{self.output()}") from None
            _, alive = psutil.wait_procs(children, timeout=5.0)
            assert not alive, f"left behind: {alive}"
        return self._process.returncode


@contextmanager
def running_node(log: Path, **kwargs: Any) -> Iterator[NodeProcess]:
    """A node for the time of a block; its output is printed when the block fails."""
    node = NodeProcess(log, **kwargs)
    try:
        yield node
    except BaseException:
        print(node.output())
        raise
    finally:
        node.stop()


def until(condition: Any, what: str, timeout_s: float = 60.0) -> Any:
    """Wait until ``condition()`` is true and return its value; AssertionError after ``timeout_s``."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError(f"{what}: not within {timeout_s:g} s")
