# SPDX-License-Identifier: Apache-2.0
"""A video file: the times of its frames, and the frames that are asked for. PyAV (FFmpeg)."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from cosmos_reason_node.video import FALLBACK_FPS
from cosmos_reason_node.vision.resize import resize

from . import archive
from .media import NS, MediaError, WindowSpec, check_file
from .schema import Video

# Containers that hold their own frames. Playlists (HLS, ffconcat) are not among them: they open other files.
_CONTAINERS = "mov,matroska,avi,mpegts,mpeg,mpegvideo,ogg,flv,asf,m4v,gif"
# Of these, packets tell the times of frames, and seeking lands where it should.
_EXACT = ("mov", "matroska")
# Times in headers are rounded: a frame this much before a part's begin belongs to it, seconds.
_EDGE_S = 1e-3
# Further back than frames are ever stored from where they are shown, seconds.
_BACK_S = 10.0


class Clip:
    """An open video: the times of its frames, and the frames.

    Args:
        source: a path or a seekable file.
        part: which part of it.
        shown: its name in messages.
        head: its first bytes.

    Raises:
        MediaError: it cannot be opened, holds no frames, or is cut off.
    """

    def __init__(self, source: Any, part: Video, shown: str, head: bytes) -> None:
        self._shown, self._source, self._head = shown, source, head
        self._open()
        self._origin = self._stream.start_time or 0
        self._keys: list[tuple[int, int]] = []  # (presentation time, where to seek to) of key frames
        try:
            exact = any(name in self._container.format.name for name in _EXACT)
            self._all = self._packet_times(part) if exact else []
            self._keys.sort()
            self._exact = bool(self._all)
            if not self._exact:
                self._all = self._frame_times()
                self._origin = self._all[0]
            self._times = self.check_part(part)
            self.stamps_ns = [self._ns(pts) for pts in self._times]
        except BaseException:
            self._container.close()
            raise

    def _open(self) -> None:
        try:
            self._container = av.open(self._source, options={"format_whitelist": _CONTAINERS})
        except (av.error.FFmpegError, OSError, ValueError) as error:
            if self._head[4:8] == b"ftyp":  # an mp4; its index is written last
                what = f"{self._shown} is cut off: its index is missing; download or write it again"
                raise MediaError(what, "truncated") from error
            raise self._bad(error) from error
        if not self._container.streams.video:
            self._container.close()
            raise MediaError(f"{self._shown} holds no video stream: check what wrote it")
        self._stream = self._container.streams.video[0]
        self._stream.thread_count = 1  # parallel over clips, not within one
        self._base = self._stream.time_base or Fraction(1, av.time_base)
        self._reformatter = VideoReformatter()  # one for all frames: it keeps its tables

    def _reopen(self) -> None:
        """Back to the first frame: exact for every container, as seeking is not."""
        self._container.close()
        if hasattr(self._source, "seek"):
            self._source.seek(0)
        self._open()

    def check_part(self, part: Video) -> list[int]:
        """Presentation times of the frames of ``part``.

        Raises:
            MediaError: there are none.
        """
        first, end = (bisect.bisect_left(self._all, bound, key=self._ns) for bound in _bounds(part))
        times = self._all[first:end]
        if not times:
            raise MediaError(
                f"{self._shown} has no frame from {part.start_s:g} s on"
                + (f" and before {part.end_s:g} s" if part.end_s is not None else "")
                + ": correct the part's times, or download the file again",
                "truncated",
            )
        return times

    def close(self) -> None:
        """Release the file."""
        self._container.close()

    def read(
        self, indices: Sequence[int], spec: WindowSpec, *, between: bool = False
    ) -> dict[int, np.ndarray]:
        """Frames by index into ``stamps_ns``, (h, w, 3) uint8 RGB at the model's size.

        Args:
            indices: in any order.
            spec: says the size.
            between: decode all that lies between them too, so that damage there is an error.

        Raises:
            MediaError: one of them cannot be decoded.
        """
        if self._exact:
            wanted = {self._times[i]: i for i in indices}
            found: dict[int, np.ndarray] = {}
            for run in [sorted(wanted)] if between else self._runs(sorted(wanted)):
                key = self._key_before(run[0])
                start = self._keys[key][1] if key >= 0 else run[0]
                found |= self._decode({pts: wanted[pts] for pts in run}, spec, start)
            # Where a seek landed behind a frame that it needs: from further back, in the end from the first.
            for start_s in (_BACK_S, None):
                left = {pts: i for pts, i in wanted.items() if i not in found}
                if left:
                    back = None if start_s is None else min(left) - round(start_s / self._base)
                    found |= self._decode(left, spec, back)
        else:
            first = self._all.index(self._times[0])
            found = self._count({first + i: i for i in indices}, spec)
        missing = sorted(set(indices) - set(found))
        if missing:
            at_s = self.stamps_ns[missing[0]] / NS
            raise MediaError(f"{self._shown}: the frame at {at_s:.2f} s cannot be decoded; download it again")
        return found

    def _runs(self, wanted: Sequence[int]) -> Iterator[list[int]]:
        """Frames to decode in one go, by their sorted times: between two runs a key frame is passed over.

        So three frames of a film cost three seeks, and frames that follow each other cost one.
        """
        run: list[int] = []
        last = 0
        for pts in wanted:
            key = self._key_before(pts)
            if run and key > last + 1:
                yield run
                run = []
            run.append(pts)
            last = key
        yield run

    def _key_before(self, pts: int) -> int:
        """Place in ``_keys`` of the last key frame that is shown no later than ``pts``; -1 = there is none.

        A frame that is stored behind a key frame but shown before it may need the key frame before that one.
        """
        return bisect.bisect_right(self._keys, pts, key=lambda key: key[0]) - 1

    def _decode(self, wanted: dict[int, int], spec: WindowSpec, start: int | None) -> dict[int, np.ndarray]:
        """Frames by their time, from the key frame before ``start`` on; None = from the first."""
        found: dict[int, np.ndarray] = {}
        last = max(wanted)
        if start is None:
            self._reopen()
        try:
            if start is not None:
                self._container.seek(max(start, min(0, self._origin)), stream=self._stream)
            for frame in self._container.decode(self._stream):
                index = wanted.get(frame.pts) if frame.pts is not None else None
                if index is not None and not frame.is_corrupt:
                    found[index] = self._rgb(frame, spec)
                if len(found) == len(wanted) or (frame.pts is not None and frame.pts > last):
                    break
        except (av.error.FFmpegError, OSError) as error:
            raise self._bad(error) from error
        return found

    def _count(self, wanted: dict[int, int], spec: WindowSpec) -> dict[int, np.ndarray]:
        """Frames by their number in the file, from the first on."""
        found: dict[int, np.ndarray] = {}
        self._reopen()
        try:
            for number, frame in enumerate(self._container.decode(self._stream)):
                if number in wanted and not frame.is_corrupt:
                    found[wanted[number]] = self._rgb(frame, spec)
                if number >= max(wanted):
                    break
        except (av.error.FFmpegError, OSError) as error:
            raise self._bad(error) from error
        return found

    def _rgb(self, frame: av.VideoFrame, spec: WindowSpec) -> np.ndarray:
        image: np.ndarray = self._reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
        if frame.rotation % 360:  # phones record it beside the pixels; counter-clockwise degrees
            image = np.ascontiguousarray(np.rot90(image, round(frame.rotation / 90) % 4))
        return resize(image, spec.size_for(*image.shape[:2]))

    def _packet_times(self, part: Video) -> list[int]:
        """Presentation times around ``part`` in the stream's time base, sorted; empty if there are none."""
        times, count = [], 0
        self._keys.clear()
        high = _bounds(part)[1]
        try:
            if part.start_s:
                self._container.seek(self._pts(part.start_s), stream=self._stream)
            for packet in self._container.demux(self._stream):
                if packet.size == 0:
                    continue
                count += 1
                if packet.is_corrupt:
                    raise self._bad(f"frame {count} is incomplete")
                if packet.pts is None:
                    return []
                if not packet.is_discard:
                    times.append(packet.pts)
                if packet.is_keyframe:  # some containers are sought by one time, some by the other
                    dts = packet.pts if packet.dts is None else packet.dts
                    self._keys.append((packet.pts, min(packet.pts, dts)))
                if packet.dts is not None and self._ns(packet.dts) > high:
                    return sorted(times)
        except (av.error.FFmpegError, OSError) as error:
            raise self._bad(error) from error
        promised = self._stream.frames if "mp4" in self._container.format.name and not part.start_s else 0
        if count < promised:
            raise MediaError(
                f"{self._shown} is cut off: it holds {count} of {promised} frames; download it again",
                "truncated",
            )
        return sorted(times)

    def _frame_times(self) -> list[int]:
        """The same by decoding everything, one for each frame: for containers that can only be played."""
        self._reopen()
        try:
            times = [frame.pts for frame in self._container.decode(self._stream)]
        except (av.error.FFmpegError, OSError) as error:
            raise self._bad(error) from error
        if not times:
            raise MediaError(f"{self._shown} holds no frame that can be decoded: download or write it again")
        if None in times:
            step = 1 / (self._base * (self._stream.average_rate or FALLBACK_FPS))
            return [round(i * step) for i in range(len(times))]
        return sorted(times)

    def _ns(self, pts: int) -> int:
        """Time since the first frame, to the nearest nanosecond."""
        ticks, base = pts - self._origin, self._base  # a Fraction's own arithmetic is ten times slower
        return (2 * ticks * base.numerator * NS + base.denominator) // (2 * base.denominator)

    def _pts(self, time_s: float) -> int:
        return self._origin + round(time_s / self._base)

    def _bad(self, error: object) -> MediaError:
        what = getattr(error, "strerror", None) or error  # FFmpeg's own numbers say nothing to a reader
        return MediaError(
            f"{self._shown} cannot be decoded ({what}): it is damaged, cut off or no video; try to play it, "
            "or download it again"
        )


def _bounds(part: Video) -> tuple[float, float]:
    """Begin and end of a part, nanoseconds since the first frame."""
    low = (part.start_s - _EDGE_S) * NS
    return low, np.inf if part.end_s is None else (part.end_s - _EDGE_S) * NS


@contextmanager
def open_video(root: Path, media: Video, content: BinaryIO | None = None) -> Iterator[Clip]:
    """Open a video of a data set, in its archive if it lies in one.

    Args:
        root: the data set's folder.
        media: the video, and which part of it.
        content: of the archive's member, where it has been read already.

    Raises:
        MediaError: see Clip.
    """
    path = root / media.path
    shown = f"{path}:{media.member}" if media.member else str(path)
    source: Any
    if media.member:
        source = content or archive.open_member(path, media.member)
        head = source.read(8)
        source.seek(0)
        if not head:
            raise MediaError(f"{shown} is empty (0 bytes): download it again", "empty")
    else:
        check_file(path)
        source = f"file:{path}"
        with open(path, "rb") as stream:
            head = stream.read(8)
    clip = Clip(source, media, shown, head)
    try:
        yield clip
    finally:
        clip.close()
