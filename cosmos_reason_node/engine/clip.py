# SPDX-License-Identifier: Apache-2.0
"""A window as a video file in memory, bit for bit: for servers that take a file and nothing else.

    RIFF "AVI "
      hdrl    rate, number and size of frames
      movi    the frames as they are: rows from the last to the first, blue before green before red
      idx1    where each of them begins

AVI states rate and number of frames in its header, so that who reads it need not count or guess. Nothing is
compressed: such servers mostly run on the same board, where 20 MB are copied sooner than 32 frames are
compressed without loss.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np

_KEY_FRAME = 0x10
_HAS_INDEX = 0x10
_MICROSECOND = 1_000_000


def encode_clip(frames: Sequence[np.ndarray], period_ns: int) -> bytes:
    """The frames as an AVI file.

    Args:
        frames: (H, W, 3) uint8 RGB each, at least one, all of one size.
        period_ns: from one to the next; kept to the microsecond.

    Raises:
        ValueError: no frames, frames of several sizes.
    """
    if len({frame.shape for frame in frames}) != 1:
        raise ValueError("a clip needs frames, all of one size")
    height, width = frames[0].shape[:2]
    period_us = max(1, round(period_ns / 1000))
    chunks = [_chunk(b"00db", _bitmap(frame)) for frame in frames]
    size = len(chunks[0])
    file_header = struct.pack(
        "<14I", period_us, 0, 0, _HAS_INDEX, len(frames), 0, 1, size, width, height, 0, 0, 0, 0
    )
    stream_header = struct.pack(
        "<4s4sIHHIIIIIIiI4H",
        b"vids",
        b"DIB ",
        *(0, 0, 0, 0),  # flags, priority, language, initial frames
        *(period_us, _MICROSECOND),  # the rate is the second by the first
        *(0, len(frames)),  # begin, length
        size,
        *(-1, 0),  # quality: default; bytes of a sample: a chunk is one
        *(0, 0, width, height),
    )
    picture = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, size - 8, 0, 0, 0, 0)
    stream = _list(b"strl", _chunk(b"strh", stream_header), _chunk(b"strf", picture))
    header = _list(b"hdrl", _chunk(b"avih", file_header), stream)
    # Offsets count from the word "movi".
    entries = [struct.pack("<4sIII", b"00db", _KEY_FRAME, 4 + i * size, size - 8) for i in range(len(frames))]
    return _list(b"AVI ", header, _list(b"movi", *chunks), _chunk(b"idx1", b"".join(entries)), name=b"RIFF")


def _bitmap(frame: np.ndarray) -> bytes:
    """A frame as a device-independent bitmap: each row begins at a multiple of four bytes."""
    rows = frame[::-1, :, ::-1].reshape(len(frame), -1)
    return np.pad(rows, ((0, 0), (0, -rows.shape[1] % 4))).tobytes()


def _chunk(name: bytes, data: bytes) -> bytes:
    return name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)


def _list(kind: bytes, *chunks: bytes, name: bytes = b"LIST") -> bytes:
    return _chunk(name, kind + b"".join(chunks))
