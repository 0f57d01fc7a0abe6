# SPDX-License-Identifier: Apache-2.0
"""Frames of a video file or a camera device, with their own times. OpenCV only; no ROS.

Images are (H, W, 3) uint8 in BGR order, as OpenCV decodes them (the ROS encoding ``bgr8``).
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

# Rate assumed for a file that does not say and for its last frame's length, frames per second.
FALLBACK_FPS = 30.0
# Rates outside are taken for a broken header, frames per second.
_PLAUSIBLE_FPS = (0.1, 1000.0)


class VideoError(Exception):
    """A video or a camera cannot be read; the message says what to do."""


@dataclass(frozen=True)
class VideoInfo:
    """What a file says about itself.

    Attributes:
        width, height: pixels, after the rotation that phones record beside the pixels.
        fps: nominal rate, frames per second; variable-rate files deviate from it frame by frame.
        frames: number of frames the header promises; 0 = it does not say.
    """

    width: int
    height: int
    fps: float
    frames: int

    @property
    def duration_s(self) -> float:
        """Length the header promises, seconds; 0 = it does not say."""
        return self.frames / self.fps


class VideoFile:
    """A video file, read frame by frame from the start.

    Args:
        path: file of any container and codec that OpenCV's FFmpeg reads.

    Raises:
        VideoError: there is no such file, it is empty, its name is not UTF-8, or not one frame can be
            decoded.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).expanduser()
        _check_file(self.path)
        self._capture = self._open()
        self._index = 0
        self._time_s = 0.0
        self._origin_s = 0.0
        first = self._decode_first()
        self.info = VideoInfo(
            width=first.shape[1],
            height=first.shape[0],
            fps=_plausible_fps(self._capture.get(cv2.CAP_PROP_FPS)),
            frames=max(0, int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))),
        )
        self.rewind()

    def advance(self) -> float | None:
        """Go to the next frame without decoding it into an image.

        Returns:
            Its time since the first frame, seconds, strictly increasing; None at the end of the file.
        """
        if not self._capture.grab():
            return None
        position_s = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1e3
        if self._index == 0:
            self._origin_s = position_s
        time_s = position_s - self._origin_s
        if self._index and not time_s > self._time_s:  # also NaN: the file has no usable time for this frame
            time_s = self._time_s + 1 / self.info.fps
        self._index += 1
        self._time_s = time_s
        return time_s

    def image(self) -> np.ndarray:
        """The frame that ``advance`` went to, (H, W, 3) uint8 BGR.

        Raises:
            VideoError: it cannot be decoded.
        """
        ok, image = self._capture.retrieve()
        if not ok or image is None:
            raise VideoError(f"{self.path}: frame {self._index} cannot be decoded; the file may be damaged")
        return image

    def rewind(self) -> None:
        """Back to before the first frame."""
        self._capture.release()  # opening again is exact for every codec; seeking is not
        self._capture = self._open()
        self._index = 0
        self._time_s = 0.0
        self._origin_s = 0.0

    def close(self) -> None:
        """Release the file."""
        self._capture.release()

    def _open(self) -> cv2.VideoCapture:
        backends = cv2.videoio_registry.getStreamBackends()
        backend = cv2.CAP_FFMPEG if cv2.CAP_FFMPEG in backends else cv2.CAP_ANY
        return cv2.VideoCapture(str(self.path), backend)

    def _decode_first(self) -> np.ndarray:
        ok, image = self._capture.read() if self._capture.isOpened() else (False, None)
        if not ok or image is None:
            raise VideoError(
                f"{self.path} is not a video that can be decoded (damaged, cut off while it was written, or "
                "of an unknown format); try to play it, or convert it: `ffmpeg -i IN -c:v libx264 OUT.mp4`"
            )
        return image


class CameraDevice:
    """A camera of this machine (V4L2).

    Args:
        device: path, e.g. "/dev/video0".

    Raises:
        VideoError: there is no such device, it may not be opened, or it gives no images.
    """

    def __init__(self, device: str) -> None:
        self.path = Path(device)
        _check_device(self.path)
        self._capture = cv2.VideoCapture(str(self.path), cv2.CAP_V4L2)
        if not self._capture.isOpened():
            raise VideoError(
                f"{self.path} cannot be opened as a camera; another program may be using it "
                f"(`fuser {self.path}`), or it is not a capture device (`v4l2-ctl --list-devices`)"
            )

    def image(self) -> np.ndarray:
        """Wait for the next image (OpenCV gives up after 10 s), (H, W, 3) uint8 BGR.

        Raises:
            VideoError: none came.
        """
        ok, image = self._capture.read()
        if not ok or image is None:
            raise VideoError(f"{self.path} stopped giving images; was it unplugged?")
        return image

    def close(self) -> None:
        """Release the device."""
        self._capture.release()


def shrink(image: np.ndarray, max_side: int) -> np.ndarray:
    """Scale (H, W, 3) down so that its longer side is at most ``max_side`` pixels; 0 leaves it as it is."""
    scale = max_side / max(image.shape[:2])
    if max_side <= 0 or scale >= 1:
        return image
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def check_name(path: Path) -> None:
    """Whether OpenCV can be given a path; one that is not UTF-8 ends the process without a message.

    Raises:
        VideoError: it cannot.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        shown = str(path).encode(errors="backslashreplace").decode()  # as it is, it cannot be printed either
        raise VideoError(f"the name {shown} is not UTF-8 where it shows \\udc..: rename it") from None


def _check_file(path: Path) -> None:
    check_name(path)
    if path.is_dir():
        raise VideoError(f"{path} is a directory; give a video file")
    if not path.exists():
        raise VideoError(f"there is no video {path}")
    if path.stat().st_size == 0:
        raise VideoError(f"{path} is empty (0 bytes)")
    if not os.access(path, os.R_OK):
        raise VideoError(f"{path} may not be read by this user; see `ls -l {path}`")


def _check_device(path: Path) -> None:
    check_name(path)
    if not path.exists():
        found = ", ".join(sorted(str(p) for p in Path("/dev").glob("video*")))
        raise VideoError(
            f"there is no camera {path}; "
            + (
                f"devices here: {found}"
                if found
                else "this machine has no /dev/video* at all: plug a camera in"
            )
        )
    if not path.is_char_device():
        raise VideoError(f"{path} is not a camera device; give a video file or /dev/video*")
    if not os.access(path, os.R_OK | os.W_OK):
        raise VideoError(
            f"{path} may not be opened by this user; `sudo usermod -aG video $USER`, log in again"
        )


def _plausible_fps(fps: float) -> float:
    low, high = _PLAUSIBLE_FPS
    return fps if math.isfinite(fps) and low <= fps <= high else FALLBACK_FPS
