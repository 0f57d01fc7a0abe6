# SPDX-License-Identifier: Apache-2.0
"""Clips inside tar and tar.gz archives, read where they are: nothing is ever unpacked to disk.

A member is found by its exact name and must be a regular file, so a link or a name such as ``../x`` in a
hostile archive leads nowhere. A plain tar is random access; a compressed one is read front to back: ask for
its members in order, or run ``gunzip clips.tar.gz`` once (readers find ``clips.tar`` in its place).
"""

from __future__ import annotations

import functools
import io
import itertools
import os
import tarfile
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from .media import MediaError

SUFFIXES = (".tar", ".tar.gz", ".tgz")
# Larger members are refused rather than held in memory.
MAX_MEMBER_BYTES = 2 << 30
_OPEN_ARCHIVES = 16
# What tarfile raises for bytes that are no archive, and gzip for a damaged or torn stream.
_DAMAGED = (tarfile.TarError, EOFError, zlib.error, OSError)


def is_archive(path: str | os.PathLike[str]) -> bool:
    """Whether a name is that of an archive."""
    return str(path).lower().endswith(SUFFIXES)


def open_member(path: Path, member: str) -> BinaryIO:
    """A member as a seekable file.

    Raises:
        MediaError: there is no such archive or member, or it is damaged.
    """
    return _archive(str(path), os.getpid(), _signature(path)).open(member)


def members(path: Path) -> Iterator[tuple[str, int]]:
    """(name, bytes) of the regular files in an archive, in their order; reads all of a compressed one.

    Raises:
        MediaError: it is missing, or damaged from some point on.
    """
    yield from _archive(str(path), os.getpid(), _signature(path)).members()


def _signature(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError as error:
        raise MediaError(f"{path} cannot be read ({error.strerror}): download it again", "missing") from error
    return status.st_size, status.st_mtime_ns


@functools.lru_cache(maxsize=_OPEN_ARCHIVES)
def _archive(path: str, pid: int, signature: tuple[int, int]) -> _Archive:
    """One per process, since forked processes would share the file's position, and per state of the file."""
    return _Archive(path)


class _Archive:
    """An open archive; it is indexed as far as it has been read. Threads share its position in the file."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._members: list[tarfile.TarInfo] = []
        self._found: dict[str, tarfile.TarInfo] = {}
        try:
            self._tar = tarfile.open(path, "r:*")  # noqa: SIM115 - lives as long as the cache holds it
        except _DAMAGED as error:
            raise MediaError(f"{path} is no tar archive ({error}): download it again") from error

    def open(self, member: str) -> BinaryIO:
        with self._lock:
            return io.BytesIO(self._read(member))

    def _read(self, member: str) -> bytes:
        info = self._found.get(member) or next((i for i in self._unread() if i.name == member), None)
        if info is None:
            raise MediaError(f"{self._path} holds no file {member!r}: see `tar -tf {self._path}`", "missing")
        if info.size > MAX_MEMBER_BYTES:
            raise MediaError(f"{member!r} in {self._path} is over {MAX_MEMBER_BYTES >> 30} GiB: unpack it")
        try:
            stream = self._tar.extractfile(info)
            data = stream.read() if stream is not None else b""
        except _DAMAGED as error:
            raise self._torn(error) from error
        if len(data) != info.size:
            raise self._torn(f"{len(data)} of {info.size} bytes of {member!r}")
        return data

    def members(self) -> Iterator[tuple[str, int]]:
        for number in itertools.count():
            with self._lock:  # not held between two: another thread may read on meanwhile
                if number >= len(self._members) and next(self._unread(), None) is None:
                    return
                info = self._members[number]
            yield info.name, info.size

    def _unread(self) -> Iterator[tarfile.TarInfo]:
        while True:
            try:
                info = self._tar.next()
            except _DAMAGED as error:
                raise self._torn(error) from error
            if info is None:
                return
            if info.isreg():
                self._members.append(info)
                self._found[info.name] = info
                yield info

    def _torn(self, what: object) -> MediaError:
        return MediaError(f"{self._path} is damaged or cut off ({what}): download it again", "truncated")
