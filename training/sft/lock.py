# SPDX-License-Identifier: Apache-2.0
"""One run a folder."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .config import ConfigError


@contextmanager
def only_run(directory: Path, wait_s: float = 0.0) -> Iterator[None]:
    """Hold ``run.output``, so that two runs do not write into one; it is made if it is not there.

    The lock ends with its process, however that ends.

    Args:
        directory: of the run.
        wait_s: for another run to end, seconds.

    Raises:
        ConfigError: another run holds it, or it cannot be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(f"run.output: {directory} cannot be written ({error}); choose another") from error
    try:
        if not _locked(descriptor, wait_s):
            raise ConfigError(f"run.output: another run is writing to {directory}; choose another")
        yield
    finally:
        os.close(descriptor)


def _locked(descriptor: int, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= end:
                return False
            time.sleep(0.2)
