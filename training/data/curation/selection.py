# SPDX-License-Identifier: Apache-2.0
"""Which videos are good enough: rules on what was measured, and no video twice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from cosmos_reason_node.video import VideoError, check_name

from .clip import SIGNATURE_SHAPE, Clip, clip_of, file_digest, likeness, measure, record_key
from .config import ConfigError, Select
from .outcome import Books, Rejected
from .store import Store

SUFFIXES = {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg"}


def find_videos(places: Sequence[str], leave_out: Path) -> list[Path]:
    """Files, and all videos in folders, each once, in the order of their names.

    Args:
        places: files and folders.
        leave_out: folder that is not searched (the run's own).

    Raises:
        ConfigError: a place does not exist, or there is no video at all.
    """
    found: dict[Path, None] = {}
    for place in map(Path, places):
        if place.is_dir():
            inside = (path for path in place.rglob("*") if path.suffix.lower() in SUFFIXES)
            found |= {path: None for path in inside if path.is_file() and not _within(path, leave_out)}
        elif place.exists():
            found[place] = None
        else:
            raise ConfigError(f"videos: there is no file or folder {place}")
    if not found:
        raise ConfigError(f"videos: no video in {', '.join(places)}; known: {' '.join(sorted(SUFFIXES))}")
    return sorted(found)


async def select(
    paths: Sequence[Path], settings: Select, store: Store, books: Books, progress: Callable[[int], None]
) -> list[Clip]:
    """The good videos of ``paths``, in their order. ``progress`` is told how many were measured."""
    slots = asyncio.Semaphore(settings.workers)
    done = 0

    async def measured(path: Path) -> Clip | Exception:
        nonlocal done
        async with slots:
            try:
                check_name(path)  # here: a copy of what was measured before is not opened
                digest = await asyncio.to_thread(file_digest, path)
                key = record_key(digest, settings.max_s)
                record = store.get(key)
                if record is None:
                    record = await asyncio.to_thread(measure, path, settings.max_s)
                    store.put(key, record)
                return clip_of(path, digest, record)
            except (VideoError, OSError) as error:
                return error
            finally:
                done += 1
                progress(done)

    kept: list[Clip] = []
    copies = _Copies(len(paths), settings.near_duplicate)
    for path, clip in zip(paths, await asyncio.gather(*map(measured, paths)), strict=True):
        try:
            with books.item("select", str(path), str(path)):
                if isinstance(clip, Exception):
                    raise Rejected("unreadable", str(clip))
                _check(clip, settings)
                copies.check(clip)
        except Rejected:
            continue
        assert isinstance(clip, Clip)
        kept.append(clip)
    return kept


def _check(clip: Clip, settings: Select) -> None:
    if clip.length_s < settings.min_s:
        raise Rejected("too_short", f"{clip.length_s:.2f} s, needed {settings.min_s:g}")
    if clip.length_s > settings.max_s:
        raise Rejected("too_long", f"over {settings.max_s:g} s: cut it into shots first")
    if min(clip.width, clip.height) < settings.min_side:
        raise Rejected("too_small", f"{clip.width}x{clip.height}, shorter side under {settings.min_side}")
    if clip.motion < settings.min_motion:
        raise Rejected("too_still", f"motion {clip.motion:.2f}, needed {settings.min_motion:g}")
    if clip.sharpness < settings.min_sharpness:
        raise Rejected("blurred", f"sharpness {clip.sharpness:.1f}, needed {settings.min_sharpness:g}")


class _Copies:
    """Finds copies among the clips that have passed.

    Args:
        most: number of clips.
        threshold: likeness from which on a clip is a copy.
    """

    def __init__(self, most: int, threshold: float) -> None:
        self._threshold = threshold
        self._by_digest: dict[str, Clip] = {}
        self._signatures = np.empty((most, *SIGNATURE_SHAPE), np.float32)

    def check(self, clip: Clip) -> None:
        """Remember a clip that is new.

        Raises:
            Rejected: "duplicate" or "near_duplicate".
        """
        if clip.digest in self._by_digest:
            raise Rejected("duplicate", f"same content as {self._by_digest[clip.digest].path}")
        count = len(self._by_digest)
        alike = likeness(self._signatures[:count], clip.signature)
        if count and alike.max() > self._threshold:
            other = list(self._by_digest.values())[int(alike.argmax())]
            raise Rejected("near_duplicate", f"{alike.max():.3f} alike {other.path}")
        self._signatures[count] = clip.signature
        self._by_digest[clip.digest] = clip


def _within(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())
