# SPDX-License-Identifier: Apache-2.0
"""A strip of a window's frames, small enough that hundreds fit into a page."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from cosmos_reason_node.types import Window

HEIGHT = 84  # of a frame, pixels
FRAMES = 8
_MAX_WIDTH = 1400
_QUALITY = 70


def strip(windows: Sequence[Window]) -> bytes:
    """JPEG of up to FRAMES frames side by side, oldest first, one row a camera."""
    rows = [_row(window) for window in windows]
    width = max(row.shape[1] for row in rows)
    sheet = np.concatenate([np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0))) for row in rows])
    ok, jpeg = cv2.imencode(
        ".jpg", np.ascontiguousarray(sheet[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, _QUALITY]
    )
    if not ok:
        raise RuntimeError("OpenCV cannot write a JPEG")
    return jpeg.tobytes()


def strip_path(directory: Path, stimulus: str) -> Path:
    """Where the strip of a stimulus is kept."""
    return directory / f"{hashlib.sha256(stimulus.encode()).hexdigest()[:20]}.jpg"


def _row(window: Window) -> np.ndarray:
    count = min(FRAMES, len(window.frames))
    chosen = [round(i * (len(window.frames) - 1) / max(1, count - 1)) for i in range(count)]
    height, width = window.frames[0].image.shape[:2]
    size = (max(1, round(width * HEIGHT / height)), HEIGHT)
    row = np.concatenate(
        [cv2.resize(window.frames[i].image, size, interpolation=cv2.INTER_AREA) for i in chosen], axis=1
    )
    if row.shape[1] > _MAX_WIDTH:
        row = cv2.resize(row, (_MAX_WIDTH, max(1, round(HEIGHT * _MAX_WIDTH / row.shape[1]))))
    return row
