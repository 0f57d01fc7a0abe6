# SPDX-License-Identifier: Apache-2.0
"""From a sample's media to the window that the model sees, by the node's own rule.

Frames are chosen by their capture times with window.WindowBuffer, so a clip gives the frames that the node
would have kept of a camera that showed it: the first of each tick, ticks without one hold the frame before,
windows begin and end on pairs. Only the chosen frames are turned into RGB; choosing takes the packets' times.

Files differ from a live camera in two things: a frame is shown until the next one, so holes of any length are
held; and their times start at 0, which means "no stamp" to the node, so they are moved by one pair of ticks.
"""

from __future__ import annotations

import math
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from cosmos_reason_node.models.spec import ModelSpec
from cosmos_reason_node.types import Frame, Window
from cosmos_reason_node.vision.patchify import PatchSpec
from cosmos_reason_node.vision.resize import resize, target_size
from cosmos_reason_node.window import Offer, TimeGrid, WindowBuffer

from .schema import Frames, Media

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".ts")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
ARRAY_NAME = "frames"
NS = 1_000_000_000
_NO_IMAGE = np.empty((0, 0, 3), np.uint8)


class MediaError(Exception):
    """Media of a sample cannot be read; the message names the file and says what to do.

    Args:
        message: the sentence.
        reason: in one word: "missing", "empty", "truncated", "unreadable".
    """

    def __init__(self, message: str, reason: str = "unreadable") -> None:
        super().__init__(message)
        self.message, self.reason = message, reason

    def __reduce__(self) -> tuple[type[MediaError], tuple[str, str]]:
        """Errors of worker processes are pickled."""
        return MediaError, (self.message, self.reason)


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
        from .clip import open_video  # here: PyAV is not needed where data sets hold arrays or pictures

        with open_video(root, media) as clip:
            choice = choose(clip.stamps_ns, spec, relative=True)
            images = clip.read(sorted(set(choice.indices)), spec)
    frames = tuple(
        Frame(media.camera, stamp, stamp // choice.period_ns, images[index])
        for index, stamp in zip(choice.indices, choice.stamps_ns, strict=True)
    )
    held = sum(frame.tick != choice.first_tick + i for i, frame in enumerate(frames))
    return Window(media.camera, frames, choice.first_tick, choice.period_ns, held, spec.num_frames)


def choose(
    stamps_ns: Sequence[int], spec: WindowSpec, *, relative: bool = False, hold_s: float = math.inf
) -> Choice:
    """Which frames the node would have kept of a camera with these stamps.

    Args:
        stamps_ns: capture times in the order of arrival, at least one.
        spec: what the model wants.
        relative: times count from the begin of a recording, not from an epoch.
        hold_s: longest hole that is bridged; longer ones restart the window (Config.max_hold_s).
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
    hold_s = min(hold_s, abs(span) / NS + 1.0)
    buffer = WindowBuffer("", TimeGrid(period), spec.num_frames, max_hold_s=hold_s)
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


def _read_frames(root: Path, media: Frames, indices: list[int], spec: WindowSpec) -> dict[int, np.ndarray]:
    images: dict[int, np.ndarray]
    if not media.is_array:
        by_path: dict[str, np.ndarray] = {}
        for index in indices:
            name = media.paths[index]
            if name not in by_path:
                by_path[name] = read_image(root / name)
        images = {index: by_path[media.paths[index]] for index in indices}
    else:
        array = read_array(root / media.paths[0])
        rows = media.index or range(len(media.stamps_ns))
        if max(rows) >= len(array):
            raise MediaError(
                f"{root / media.paths[0]} holds {len(array)} frames, but frame {max(rows)} is asked for"
            )
        images = {index: array[rows[index]] for index in indices}
    return {index: resize(image, spec.size_for(*image.shape[:2])) for index, image in images.items()}


def read_image(path: Path) -> np.ndarray:
    """A picture, (H, W, 3) uint8 RGB.

    Raises:
        MediaError: there is none that can be decoded.
    """
    check_file(path)
    pixels = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)
    if pixels is None:
        raise MediaError(f"{path} is no picture that can be decoded, or it is cut off: download it again")
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def read_array(path: Path) -> np.ndarray:
    """The frames of a .npz or .npy, (N, H, W, 3) uint8 RGB.

    Raises:
        MediaError: there are none that can be read.
    """
    check_file(path)
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


def check_file(path: Path) -> None:
    """Whether a media file is there and not empty.

    Raises:
        MediaError: it is not.
    """
    try:
        found = path.stat()
    except OSError as error:
        raise MediaError(
            f"{path} is missing or cannot be read ({error.strerror}): download it again", "missing"
        ) from error
    if stat.S_ISDIR(found.st_mode):
        raise MediaError(f"{path} is a folder; name a file")
    if not stat.S_ISREG(found.st_mode):
        raise MediaError(f"{path} is no regular file")
    if found.st_size == 0:
        raise MediaError(f"{path} is empty (0 bytes): download it again", "empty")
