# SPDX-License-Identifier: Apache-2.0
"""Every media file of a data set, read once by a pool of processes: content hash, fingerprint, what is wrong.

::

    units --> groups (an archive front to back; else a few files) --> at most 4 a worker in flight --> facts
                                                                        |
              a group that kills its worker or takes too long is read again file by file, and the file named

Hashes are of the file's bytes, streamed; fingerprints are of three decoded frames. What lies between these is
decoded too, so that damage is found, but not of hours-long videos.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import cv2

from cosmos_reason_node.parent_death import die_with
from cosmos_reason_node.vision.patchify import PatchSpec

from . import archive
from .fingerprint import SIDE, fingerprint
from .media import IMAGE_SUFFIXES, MediaError, WindowSpec, check_file, read_array, read_image
from .schema import ARRAY_SUFFIXES, Sample, Video

# Reading one file may take this long, then its process is killed: decoders can be kept busy for ever.
FILE_SECONDS = 300
# Videos of up to so many frames are decoded from the first to the last; longer ones would take too long.
_ALL_FRAMES = 5000
_GROUP = 8
_IN_FLIGHT = 4
# Of a worker process: as FILE_SECONDS; 0 = no limit, in the process that was asked to scan.
_limit_s = 0
_SPEC = WindowSpec(1, 2, PatchSpec(), frame_size=(8 * SIDE, 8 * SIDE))


@dataclass(frozen=True)
class Unit:
    """A file, or a member of an archive.

    Attributes:
        path: relative to the data set.
        member: name in the archive; "" = the file itself.
        parts: parts of a video that samples ask about, seconds; each must hold a frame.
        frames: for an array, one more than the largest row asked for.
    """

    path: str
    member: str = ""
    parts: tuple[tuple[float, float | None], ...] = ()
    frames: int = 0

    @property
    def name(self) -> str:
        """As shown to the user."""
        return f"{self.path}:{self.member}" if self.member else self.path


@dataclass(frozen=True)
class Facts:
    """What was found in a unit.

    Attributes:
        unit: the unit.
        digest: sha256 of its content, hex; "" when it could not be read.
        size: bytes.
        fingerprint: see fingerprint.py; () = none.
        reason: "missing", "empty", "truncated", "unreadable"; "" = it is fine.
        message: what is wrong and what to do.
    """

    unit: Unit
    digest: str = ""
    size: int = 0
    fingerprint: tuple[int, ...] = ()
    reason: str = ""
    message: str = ""


def units_of(samples: Sequence[Sample]) -> dict[Unit, list[Sample]]:
    """Files that samples use, with those samples."""
    users: dict[tuple[str, str], list[Sample]] = {}
    parts: dict[tuple[str, str], set[tuple[float, float | None]]] = {}
    frames: dict[tuple[str, str], int] = {}
    for sample in samples:
        for media in sample.media:
            for path in dict.fromkeys(media.paths):
                key = (path, media.member if isinstance(media, Video) else "")
                users.setdefault(key, []).append(sample)
                if isinstance(media, Video):
                    parts.setdefault(key, set()).add((media.start_s, media.end_s))
                elif media.is_array:
                    needed = 1 + max(media.index, default=len(media.stamps_ns) - 1)
                    frames[key] = max(needed, frames.get(key, 0))
    order = functools.partial(sorted, key=lambda part: (part[0], part[1] or 0.0))
    return {
        Unit(*key, tuple(order(parts.get(key, ()))), frames.get(key, 0)): found
        for key, found in users.items()
    }


def scan(
    root: Path,
    units: Sequence[Unit],
    processes: int = 0,
    progress: Callable[[int], None] = lambda done: None,
    file_seconds: int = FILE_SECONDS,
) -> dict[Unit, Facts]:
    """Read all units.

    Args:
        root: the data set.
        units: what to read.
        processes: worker processes; 0 = one a core, at most 8. 1 reads in this process, where a file that
            crashes or hangs the decoder takes this process with it.
        progress: called with the number of units done so far.
        file_seconds: a file that takes longer is given up.
    """
    found: dict[Unit, Facts] = {}
    groups = list(_groups(units))
    if processes == 1:
        results: Iterator[list[Facts]] = (_read_group(str(root), group) for group in groups)
    else:
        results = _pooled(root, groups, processes or min(os.cpu_count() or 1, 8), file_seconds)
    for facts in results:
        found |= {fact.unit: fact for fact in facts}
        progress(len(found))
    return found


def _groups(units: Sequence[Unit]) -> Iterator[tuple[Unit, ...]]:
    """Members of an archive together, in the archive's order when it can be told; other files by the few."""
    plain = [unit for unit in units if not unit.member]
    yield from (tuple(plain[i : i + _GROUP]) for i in range(0, len(plain), _GROUP))
    inside = sorted((unit for unit in units if unit.member), key=lambda unit: unit.path)
    for _, group in itertools.groupby(inside, key=lambda unit: unit.path):
        yield tuple(group)


def _pooled(
    root: Path, groups: Sequence[tuple[Unit, ...]], workers: int, limit_s: int
) -> Iterator[list[Facts]]:
    waiting = list(reversed(groups))
    while waiting:
        running: dict[Future[list[Facts]], tuple[Unit, ...]] = {}
        with _pool(workers, limit_s) as pool:
            try:
                while waiting or running:
                    while waiting and len(running) < _IN_FLIGHT * workers:
                        running[pool.submit(_read_group, str(root), waiting[-1])] = waiting[-1]
                        waiting.pop()
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        yield future.result()
                        del running[future]
                return
            except BrokenProcessPool:
                suspects = list(running.values())
        for unit in itertools.chain.from_iterable(suspects):
            yield [_read_alone(root, unit, limit_s)]


def _read_alone(root: Path, unit: Unit, limit_s: int) -> Facts:
    """A unit in a process of its own, which may die of it."""
    with _pool(1, limit_s) as pool:
        try:
            return pool.submit(_read_group, str(root), (unit,)).result()[0]
        except BrokenProcessPool:
            message = (
                f"{root / unit.name} crashes the decoder or keeps it over {limit_s} s: remove it, or cut or "
                "convert it (mp4 and mkv are read fastest)"
            )
            return Facts(unit, reason="unreadable", message=message)


@contextmanager
def _pool(workers: int, limit_s: int) -> Iterator[ProcessPoolExecutor]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, f"{__package__}.clip"])
    pool = ProcessPoolExecutor(workers, context, _start_worker, (limit_s,))
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker(limit_s: int) -> None:
    global _limit_s
    _limit_s = limit_s
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the parent, and that its workers
    die_with(os.getppid())  # the fork server, which itself ends with the process that started it
    cv2.setNumThreads(1)


def _read_group(root: str, group: Sequence[Unit]) -> list[Facts]:
    if group and group[0].member:
        order = _archive_order(Path(root) / group[0].path)
        group = sorted(group, key=lambda unit: order.get(unit.member, len(order)))
    return [_read_unit(Path(root), unit) for unit in group]


def _archive_order(path: Path) -> dict[str, int]:
    names: list[str] = []
    with suppress(MediaError):  # each of its members will say so
        names.extend(name for name, _ in archive.members(path))
    return {name: i for i, name in enumerate(names)}


def _read_unit(root: Path, unit: Unit) -> Facts:
    digest, size = "", 0
    if _limit_s:
        signal.alarm(_limit_s)  # nobody handles it: it ends the process
    try:
        # Read once: going back in a compressed archive is to unpack all of it up to there again.
        content = archive.open_member(root / unit.path, unit.member) if unit.member else None
        digest, size = _digest(root, unit, content)
        suffix = PurePosixPath(unit.member or unit.path).suffix.lower()
        if suffix in ARRAY_SUFFIXES:
            code = _check_array(root / unit.path, unit)
        elif suffix in IMAGE_SUFFIXES:
            read_image(root / unit.path)
            code = ()
        else:
            code = _check_video(root, unit, content)
        return Facts(unit, digest, size, code)
    except MediaError as error:
        return Facts(unit, digest, size, reason=error.reason, message=error.message)
    finally:
        if _limit_s:
            signal.alarm(0)


def _digest(root: Path, unit: Unit, content: BinaryIO | None) -> tuple[str, int]:
    path = root / unit.path
    if content:
        data = content.read()
        return hashlib.sha256(data).hexdigest(), len(data)
    check_file(path)
    try:
        with open(path, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest(), stream.tell()
    except OSError as error:
        raise MediaError(f"{path} cannot be read ({error.strerror}): see `ls -l {path}`") from error


def _check_array(path: Path, unit: Unit) -> tuple[int, ...]:
    array = read_array(path)
    if len(array) < unit.frames:
        what = f"{path} holds {len(array)} frames, but {unit.frames} are asked for: make it again"
        raise MediaError(what, "truncated")
    return fingerprint([array[i] for i in _three(len(array))])


def _check_video(root: Path, unit: Unit, content: BinaryIO | None) -> tuple[int, ...]:
    from .clip import open_video

    if content:
        content.seek(0)
    with open_video(root, Video(unit.path, unit.member), content) as clip:
        three = _three(len(clip.stamps_ns))
        frames = clip.read(sorted(set(three)), _SPEC, between=len(clip.stamps_ns) <= _ALL_FRAMES)
        code = fingerprint([frames[i] for i in three])
        for start_s, end_s in unit.parts:
            clip.check_part(Video(unit.path, unit.member, start_s, end_s))
    return code


def _three(count: int) -> tuple[int, int, int]:
    """First, middle and last of ``count``."""
    return 0, (count - 1) // 2, count - 1
