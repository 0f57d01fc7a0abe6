# SPDX-License-Identifier: Apache-2.0
"""A video's file, measured once: times, motion, sharpness, and a signature to find copies by; and its frames.

All of a video is decoded once, one frame in 1/4 s looked at. What was measured is kept in the store under
the digest of the file's content, so moved or renamed files are not decoded again.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from cosmos_reason_node.video import VideoError, VideoFile, shrink

from .config import FrameSettings
from .message import Picture

MEASURE = 1  # version of what is measured; raise it when that changes
_STEP_S = 0.25
_SHARP_SIDE = 320
_SIGNATURE_FRAMES, _SIGNATURE_SIDE = 8, 12
SIGNATURE_SHAPE = (2, _SIGNATURE_FRAMES * _SIGNATURE_SIDE**2)
_LOST_FRAMES = 0.9  # with fewer of the promised frames the file was cut off


@dataclass(frozen=True)
class Clip:
    """A video file that can be decoded.

    Attributes:
        path: of the file.
        digest: sha256 of its content, hex.
        width, height: pixels.
        times_s: of all frames up to where reading was stopped, seconds from the first.
        length_s: to the end of the last frame that was read.
        motion: mean absolute change of grey level between frames 1/4 s apart, 0-255.
        sharpness: median over frames of the variance of the Laplacian, the longer side at most 320 pixels.
        signature: SIGNATURE_SHAPE float32, rows of unit length: the mean picture, and the course around it.
    """

    path: Path
    digest: str
    width: int
    height: int
    times_s: tuple[float, ...]
    length_s: float
    motion: float
    sharpness: float
    signature: np.ndarray


def file_digest(path: Path) -> str:
    """sha256 of a file's content, hex."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def record_key(digest: str, most_s: float) -> str:
    """Under which the measurements of a file are kept."""
    return f"measure-{MEASURE}-{most_s:g}-{digest}"


def measure(path: Path, most_s: float) -> dict[str, Any]:
    """Decode a video and measure it; the record of a ``Clip``, for ``clip_of``.

    Args:
        path: of the file.
        most_s: reading stops after so many seconds of video.

    Raises:
        VideoError: it is missing, empty, no video, or cut off.
    """
    video = VideoFile(path)
    try:
        times: list[float] = []
        grey: list[np.ndarray] = []  # (64, 64) float32
        small: list[np.ndarray] = []  # (side, side) float32
        sharpness: list[float] = []
        stopped = False
        while (time_s := video.advance()) is not None:
            times.append(round(time_s, 6))
            if time_s > most_s:
                stopped = True
                break
            if time_s >= len(grey) * _STEP_S - 1e-3:
                image = cv2.cvtColor(shrink(video.image(), _SHARP_SIDE), cv2.COLOR_BGR2GRAY)
                sharpness.append(float(cv2.Laplacian(image, cv2.CV_32F).var()))
                grey.append(cv2.resize(image, (64, 64), interpolation=cv2.INTER_AREA).astype(np.float32))
                side = (_SIGNATURE_SIDE, _SIGNATURE_SIDE)
                small.append(cv2.resize(grey[-1], side, interpolation=cv2.INTER_AREA))
    finally:
        video.close()
    promised = video.info.frames
    if not stopped and len(times) < _LOST_FRAMES * promised:
        raise VideoError(
            f"{path} gives {len(times)} of the {promised} frames that it promises: "
            "it was cut off; get it again"
        )
    motion = [float(np.abs(b - a).mean()) for a, b in itertools.pairwise(grey)]
    last_s = times[-1] - times[-2] if len(times) > 1 else 1 / video.info.fps
    return {
        "width": video.info.width,
        "height": video.info.height,
        "times_s": times,
        "length_s": round(times[-1] + last_s, 6),
        "motion": round(float(np.mean(motion)) if motion else 0.0, 4),
        "sharpness": round(float(np.median(sharpness)), 3),
        "signature": base64.b64encode(_signature(np.stack(small)).tobytes()).decode("ascii"),
    }


def clip_of(path: Path, digest: str, record: dict[str, Any]) -> Clip:
    """The clip of a file with the content ``digest``, from the record of its measurements."""
    raw = np.frombuffer(base64.b64decode(record["signature"]), np.int8).reshape(2, -1).astype(np.float32)
    signature = raw / np.maximum(np.linalg.norm(raw, axis=1, keepdims=True), 1e-6)
    return Clip(path, digest, **{**record, "times_s": tuple(record["times_s"]), "signature": signature})


def likeness(signatures: np.ndarray, signature: np.ndarray) -> np.ndarray:
    """How much clips are one another's copies: correlation of picture or of course, whichever is less.

    Args:
        signatures: (N, *SIGNATURE_SHAPE).
        signature: SIGNATURE_SHAPE.

    Returns:
        (N,), at most 1.
    """
    return np.einsum("nks,ks->nk", signatures, signature).min(1)


def frame_times(clip: Clip, settings: FrameSettings) -> list[float]:
    """Times of the frames to send, seconds: the first frame at or after each point of an even grid."""
    count = max(1, min(settings.most, round(clip.length_s * settings.fps)))
    wanted = np.arange(count) * (clip.length_s / count)
    index = np.searchsorted(clip.times_s, wanted - 1e-6)
    return [clip.times_s[i] for i in np.unique(np.minimum(index, len(clip.times_s) - 1))]


def pictures(clip: Clip, settings: FrameSettings) -> list[tuple[float, Picture]]:
    """Frames to send, with their times in seconds; decoded when the first one is loaded."""
    times = frame_times(clip, settings)
    size = f"{settings.max_side}px q{settings.quality}"

    @lru_cache(maxsize=1)
    def encoded() -> list[bytes]:
        return _encode(clip.path, times, settings)

    def picture(i: int) -> Picture:
        return Picture(f"{clip.digest} {times[i]:.3f} s {size}", lambda: encoded()[i])

    return [(time, picture(i)) for i, time in enumerate(times)]


def _encode(path: Path, times: list[float], settings: FrameSettings) -> list[bytes]:
    """JPEG files of the frames at ``times``."""
    out: list[bytes] = []
    video = VideoFile(path)
    try:
        while len(out) < len(times):
            time_s = video.advance()
            if time_s is None:
                raise VideoError(f"{path} ends before {times[len(out)]:.2f} s: did it change during the run?")
            if time_s >= times[len(out)] - 1e-3:
                image = shrink(video.image(), settings.max_side)
                _, data = cv2.imencode(".jpg", image, (cv2.IMWRITE_JPEG_QUALITY, settings.quality))
                out.append(data.tobytes())
    finally:
        video.close()
    return out


def _signature(small: np.ndarray) -> np.ndarray:
    """(2, frames x side x side) int8 of (T, side, side) pictures."""
    picks = small[np.linspace(0, len(small) - 1, _SIGNATURE_FRAMES).round().astype(int)]
    mean = np.repeat(picks.mean(0, keepdims=True), _SIGNATURE_FRAMES, 0)
    rows = np.stack([mean - mean.mean(), picks - mean]).reshape(2, -1)
    peak = np.abs(rows).max(1, keepdims=True)
    return np.round(rows / np.maximum(peak, 1e-6) * 127).astype(np.int8)
