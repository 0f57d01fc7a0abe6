# SPDX-License-Identifier: Apache-2.0
"""How much disk the bags may take."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from ..errors import CosmosReasonError, ErrorCode

# Left free for everything else on the disk.
MIN_FREE_BYTES = 256 << 20
_CHECK_EVERY_BYTES = 16 << 20


class DiskBudget:
    """Bytes that all bags of one directory may take together. Thread-safe.

    Nothing is ever deleted: who runs the robot decides which bags go.

    Args:
        directory: holds the bags; exists.
        limit_bytes: for everything in it.
        min_free_bytes: of the disk, stays free.
    """

    def __init__(self, directory: Path, limit_bytes: int, min_free_bytes: int = MIN_FREE_BYTES) -> None:
        self._directory = directory
        self._limit = limit_bytes
        self._min_free = min_free_bytes
        self._lock = threading.Lock()
        self._used = 0
        self._unchecked = 0
        self._free = 0
        self.measure()

    def measure(self) -> None:
        """Count what is in the directory now; call before a bag is begun."""
        used = sum(_size(path) for path in self._directory.rglob("*"))
        free = self._measure_free()
        with self._lock:
            self._used, self._free, self._unchecked = used, free, 0

    def spend(self, size: int) -> None:
        """Account for ``size`` bytes that are about to be written.

        Raises:
            CosmosReasonError: DISK_BUDGET_EXCEEDED; nothing was accounted for.
        """
        try:
            self._spend(size)
        except CosmosReasonError:
            self.measure()  # bags may have been moved away since
            self._spend(size)

    def require(self, size: int) -> None:
        """Raise as ``spend`` would; nothing is accounted for."""
        with self._lock:
            self._check(size)

    def _spend(self, size: int) -> None:
        with self._lock:
            self._check(size)
            self._used += size
            self._unchecked += size

    def _check(self, size: int) -> None:
        if self._used + size > self._limit:
            raise CosmosReasonError(
                ErrorCode.DISK_BUDGET_EXCEEDED,
                f"the bags in {self._directory} take {self._used / 2**20:.0f} of "
                f"{self._limit / 2**20:.0f} MiB; move some away or raise record_budget_mb",
            )
        if self._unchecked >= _CHECK_EVERY_BYTES:
            self._free, self._unchecked = self._measure_free(), 0
        if self._free - self._unchecked - size < self._min_free:
            raise CosmosReasonError(
                ErrorCode.DISK_BUDGET_EXCEEDED,
                f"the disk of {self._directory} has {self._free / 2**20:.0f} MiB left, of which "
                f"{self._min_free / 2**20:.0f} stay free; make room or set record_dir to another disk",
            )

    def _measure_free(self) -> int:
        space = os.statvfs(self._directory)
        return space.f_bavail * space.f_frsize


def _size(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except FileNotFoundError:  # moved away meanwhile
        return 0
