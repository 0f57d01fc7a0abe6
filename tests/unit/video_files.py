# SPDX-License-Identifier: Apache-2.0
"""Small videos for tests, made on the spot."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

_CLOCK = 90_000  # ticks a second


def write_video(path: Path, times_s: Sequence[float], size: tuple[int, int] = (64, 48)) -> Path:
    """An mp4 whose frame ``i`` is shown at ``times_s[i]`` and is as bright as 8 * i % 256.

    Args:
        path: to write.
        times_s: strictly increasing, seconds.
        size: (width, height), pixels.
    """
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.time_base = Fraction(1, _CLOCK)
        stream.codec_context.thread_count = 1
        for i, time_s in enumerate(times_s):
            image = np.full((size[1], size[0], 3), 8 * i % 256, np.uint8)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = round(time_s * _CLOCK), Fraction(1, _CLOCK)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def steady(count: int, fps: float) -> list[float]:
    """Times of a constant-rate video."""
    return [i / fps for i in range(count)]
