# SPDX-License-Identifier: Apache-2.0
"""From a sample's media to the window that the model sees, by the node's own rule.

Frames are chosen by their capture times with window.WindowBuffer, so a clip gives the frames that the node
would have kept of a camera that showed it: the first of each tick, ticks without one hold the frame before,
windows begin and end on pairs. Only the chosen frames are turned into RGB; choosing takes the packets' times.

Files differ from a live camera in two things: a frame is shown until the next one, so holes of any length are
held; and their times start at 0, which means "no stamp" to the node, so they are moved by one pair of ticks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

from cosmos_reason_node.models.spec import ModelSpec
from cosmos_reason_node.types import Frame, Window
from cosmos_reason_node.vision.patchify import PatchSpec
from cosmos_reason_node.vision.resize import resize, target_size
from cosmos_reason_node.window import Offer, TimeGrid, WindowBuffer

from . import archive
from .schema import Frames, Media, Video

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".ts")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
ARRAY_NAME = "frames"
# Containers that hold their own frames. Playlists (HLS, ffconcat) are not among them: they open other files.
_CONTAINERS = "mov,matroska,avi,mpegts,mpeg,mpegvideo,ogg,flv,asf,m4v,gif"
# Times in headers are rounded: a frame this much before a part's begin belongs to it, seconds.
_EDGE_S = 1e-3
_NS = 1_000_000_000
_NO_IMAGE = np.empty((0, 0, 3), np.uint8)


class MediaError(Exception):
    """Media of a sample cannot be read; the message names the file and says what to do."""


@dataclass(frozen=True)
class WindowSpec:
    """The window that a model wants.

    Attributes:
        period_ns: length of a tick.
        num_frames: of a full window, even.
        patches: how frames are cut.
        frame_size: fixed (height, width), or None: derived from the picture's with ``max_pixels``.
        max_pixels: most pixels of a frame.
        whole: lengthen the ticks until the whole clip fits, instead of taking its newest frames. For
            benchmarks that ask about all of a long clip.
    """

    period_ns: int
    num_frames: int
    patches: PatchSpec
    frame_size: tuple[int, int] | None = None
    max_pixels: int = 448 * 448
    whole: bool = False

    @classmethod
    def of(cls, model: ModelSpec, *, whole: bool = False) -> WindowSpec:
        """That of a checkpoint."""
        period_ns = TimeGrid.from_fps(model.fps).period_ns
        size, pixels = model.frame_size, model.max_pixels
        return cls(period_ns, model.window_frames, model.patches, size, pixels, whole)

    def size_for(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of frames made of pictures of this size; as ModelSpec.frame_size_for."""
        return self.frame_size or target_size(height, width, self.max_pixels, self.patches.factor)


@dataclass(frozen=True)
class Choice:
    """Frames of a window, by their place in the media.

    Attributes:
        indices: one a tick; an index that repeats is a held tick.
        stamps_ns: of those frames, on the grid.
        first_tick: even.
        period_ns: length of a tick.
    """

    indices: tuple[int, ...]
    stamps_ns: tuple[int, ...]
    first_tick: int
    period_ns: int


def load_window(root: Path, media: Media, spec: WindowSpec) -> Window:
    """Decode one window.

    Args:
        root: the data set's folder.
        media: of a sample.
        spec: what the model wants.

    Raises:
        MediaError: missing, empty, damaged or cut off, or without a single frame.
    """
    if isinstance(media, Frames):
        choice = choose_frames(media, spec)
        images = _read_frames(root, media, sorted(set(choice.indices)), spec)
    else:
        with open_video(root, media) as clip:
            choice = choose(clip.stamps_ns, spec, relative=True)
            images = clip.read(sorted(set(choice.indices)), spec)
    frames = tuple(
        Frame(media.camera, stamp, stamp // choice.period_ns, images[index])
        for index, stamp in zip(choice.indices, choice.stamps_ns, strict=True)
    )
    held = sum(frame.tick != choice.first_tick + i for i, frame in enumerate(frames))
    return Window(media.camera, frames, choice.first_tick, choice.period_ns, held, spec.num_frames)


def choose(stamps_ns: Sequence[int], spec: WindowSpec, *, relative: bool = False) -> Choice:
    """Which frames the node would have kept of a camera with these stamps.

    Args:
        stamps_ns: capture times, not decreasing, at least one.
        spec: what the model wants.
        relative: times count from the begin of a recording, not from an epoch.
    """
    period = spec.period_ns
    span = stamps_ns[-1] - stamps_ns[0]
    if spec.whole and span >= period * spec.num_frames:
        period = span // spec.num_frames + 1
        shift = 2 * period - stamps_ns[0]
    elif relative:
        shift = 2 * period
    else:
        shift = 2 * period - stamps_ns[0] if stamps_ns[0] <= 0 else 0
    buffer = WindowBuffer("", TimeGrid(period), spec.num_frames, max_hold_s=span / _NS + 1.0)
    index_of: dict[int, int] = {}
    for index, stamp in enumerate(stamps_ns):
        if buffer.offer(stamp + shift) is Offer.SAMPLE:
            index_of[stamp + shift] = index
            buffer.put(Frame("", stamp + shift, (stamp + shift) // period, _NO_IMAGE))
    window = buffer.window()
    if window is None:  # less than a pair of ticks: a still picture fills one
        stamp, index = next(reversed(index_of.items()))
        return Choice((index, index), (stamp, stamp), stamp // period // 2 * 2, period)
    stamps = tuple(frame.stamp_ns for frame in window.frames)
    return Choice(tuple(index_of[stamp] for stamp in stamps), stamps, window.first_tick, period)


def choose_frames(media: Frames, spec: WindowSpec) -> Choice:
    """``choose`` for single pictures; those that lie on this grid already are taken as they are."""
    count = len(media.stamps_ns)
    grid = media.grid
    if grid is None or grid.period_ns != spec.period_ns or (spec.whole and count > spec.num_frames):
        return choose(media.stamps_ns, spec)
    first = max(0, count - spec.num_frames)
    kept = range(first, count)
    return Choice(tuple(kept), media.stamps_ns[first:], grid.first_tick + first, grid.period_ns)


class Clip:
    """An open video: the times of its frames, and the frames.

    Args:
        source: a path or a seekable file.
        part: which part of it.
        shown: its name in messages.

    Raises:
        MediaError: it cannot be opened, holds no frames, or is cut off.
    """

    def __init__(self, source: Any, part: Video, shown: str) -> None:
        self._shown = shown
        try:
            self._container = av.open(source, options={"format_whitelist": _CONTAINERS})
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise self._bad(error) from error
        try:
            if not self._container.streams.video:
                raise MediaError(f"{shown} holds no video stream: check what wrote it")
            self._stream = self._container.streams.video[0]
            self._stream.thread_count = 1  # parallel over clips, not within one
            self._origin = self._stream.start_time or 0
            self._base = self._stream.time_base or Fraction(1, av.time_base)
            times = self._packet_times(part) or self._frame_times()
            low, high = _bounds(part)
            self._times = [pts for pts in times if low <= self._ns(pts) < high]
            if not self._times:
                raise MediaError(
                    f"{shown} has no frame from {part.start_s:g} s on"
                    + (f" and before {part.end_s:g} s" if part.end_s is not None else "")
                    + ": correct the part's times, or download the file again"
                )
            self.stamps_ns = [self._ns(pts) for pts in self._times]
        except BaseException:
            self._container.close()
            raise

    def close(self) -> None:
        """Release the file."""
        self._container.close()

    def read(self, indices: Sequence[int], spec: WindowSpec) -> dict[int, np.ndarray]:
        """Frames by index into ``stamps_ns``, (h, w, 3) uint8 RGB at the model's size.

        Raises:
            MediaError: one of them cannot be decoded.
        """
        wanted = {self._times[index]: index for index in indices}
        found = self._decode(wanted, spec, min(wanted))
        if len(found) < len(wanted):  # the seek landed behind a frame that it needs
            found |= self._decode(wanted, spec, self._origin)
        missing = sorted(set(indices) - set(found))
        if missing:
            at_s = self.stamps_ns[missing[0]] / _NS
            raise MediaError(f"{self._shown}: the frame at {at_s:.2f} s cannot be decoded; download it again")
        return found

    def _decode(self, wanted: dict[int, int], spec: WindowSpec, seek: int) -> dict[int, np.ndarray]:
        found: dict[int, np.ndarray] = {}
        last = max(wanted)
        try:
            self._container.seek(seek, stream=self._stream)
            for frame in self._container.decode(self._stream):
                index = wanted.get(frame.pts) if frame.pts is not None else None
                if index is not None and not frame.is_corrupt:
                    found[index] = _rgb(frame, spec)
                if len(found) == len(wanted) or (frame.pts is not None and frame.pts > last):
                    break
        except (av.error.FFmpegError, OSError) as error:
            raise self._bad(error) from error
        return found

    def _packet_times(self, part: Video) -> list[int]:
        """Presentation times around ``part`` in the stream's time base, sorted; empty if there are none."""
        times, count = [], 0
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
                if packet.dts is not None and self._ns(packet.dts) > high:
                    return sorted(times)
        except (av.error.FFmpegError, OSError) as error:
            raise self._bad(error) from error
        promised = self._stream.frames if "mp4" in self._container.format.name and not part.start_s else 0
        if count < promised:
            raise MediaError(
                f"{self._shown} is cut off: it holds {count} of {promised} frames; download or write it again"
            )
        return sorted(times)

    def _frame_times(self) -> list[int]:
        """The same by decoding everything, for containers whose packets carry no times."""
        try:
            self._container.seek(self._origin, stream=self._stream)
            times = sorted({f.pts for f in self._container.decode(self._stream) if f.pts is not None})
        except (av.error.FFmpegError, OSError) as error:
            raise self._bad(error) from error
        if not times:
            raise MediaError(f"{self._shown} holds no frame that can be decoded: download or write it again")
        return times

    def _ns(self, pts: int) -> int:
        """Time since the first frame."""
        return round((pts - self._origin) * self._base * _NS)

    def _pts(self, time_s: float) -> int:
        return self._origin + round(time_s / self._base)

    def _bad(self, error: object) -> MediaError:
        return MediaError(
            f"{self._shown} cannot be decoded ({error}): it is damaged, cut off or no video; try to play it, "
            "or download it again"
        )


def _bounds(part: Video) -> tuple[float, float]:
    """Begin and end of a part, nanoseconds since the first frame."""
    low = (part.start_s - _EDGE_S) * _NS
    return low, np.inf if part.end_s is None else (part.end_s - _EDGE_S) * _NS


@contextmanager
def open_video(root: Path, media: Video) -> Iterator[Clip]:
    """Open a video of a data set, in its archive if it lies in one.

    Raises:
        MediaError: see Clip.
    """
    path = root / media.path
    shown = f"{path}:{media.member}" if media.member else str(path)
    source: Any
    if media.member:
        try:
            source = archive.open_member(path, media.member)
        except archive.ArchiveError as error:
            raise MediaError(str(error)) from error
        if source.getbuffer().nbytes == 0:
            raise MediaError(f"{shown} is empty (0 bytes): download it again")
    else:
        _check_file(path)
        source = f"file:{path}"
    clip = Clip(source, media, shown)
    try:
        yield clip
    finally:
        clip.close()


def _rgb(frame: av.VideoFrame, spec: WindowSpec) -> np.ndarray:
    image: np.ndarray = frame.to_ndarray(format="rgb24")
    if frame.rotation % 360:  # phones record it beside the pixels; counter-clockwise degrees
        image = np.ascontiguousarray(np.rot90(image, round(frame.rotation / 90) % 4))
    return resize(image, spec.size_for(*image.shape[:2]))


def _read_frames(root: Path, media: Frames, indices: list[int], spec: WindowSpec) -> dict[int, np.ndarray]:
    images: dict[int, np.ndarray]
    if not media.is_array:
        by_path: dict[str, np.ndarray] = {}
        for index in indices:
            name = media.paths[index]
            if name not in by_path:
                by_path[name] = _read_image(root / name)
        images = {index: by_path[media.paths[index]] for index in indices}
    else:
        array = _read_array(root / media.paths[0])
        rows = media.index or range(len(media.stamps_ns))
        if max(rows) >= len(array):
            raise MediaError(
                f"{root / media.paths[0]} holds {len(array)} frames, but frame {max(rows)} is asked for"
            )
        images = {index: array[rows[index]] for index in indices}
    return {index: resize(image, spec.size_for(*image.shape[:2])) for index, image in images.items()}


def _read_image(path: Path) -> np.ndarray:
    _check_file(path)
    pixels = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)
    if pixels is None:
        raise MediaError(f"{path} is no picture that can be decoded, or it is cut off: download it again")
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def _read_array(path: Path) -> np.ndarray:
    _check_file(path)
    try:
        loaded = np.load(path, allow_pickle=False, mmap_mode="r" if path.suffix == ".npy" else None)
        array: np.ndarray = loaded if isinstance(loaded, np.ndarray) else loaded[ARRAY_NAME]
    except (OSError, ValueError, EOFError, KeyError) as error:
        raise MediaError(
            f"{path} holds no array {ARRAY_NAME!r} that can be read ({error}): make it again"
        ) from error
    except Exception as error:  # zipfile and zlib have errors of their own for damaged archives
        raise MediaError(f"{path} is damaged or cut off ({error}): make it again") from error
    if array.ndim != 4 or array.shape[3] != 3 or array.dtype != np.uint8:
        raise MediaError(f"{path} holds {array.dtype} {array.shape}; expected (N, H, W, 3) uint8 RGB frames")
    return array


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise MediaError(f"{path} is a folder; name a file")
    try:
        size = path.stat().st_size
    except OSError as error:
        raise MediaError(
            f"{path} is missing or cannot be read ({error.strerror}): download it again"
        ) from error
    if size == 0:
        raise MediaError(f"{path} is empty (0 bytes): download it again")
