# SPDX-License-Identifier: Apache-2.0
"""Reading serialized images where they lie.

A camera delivers many more images than the window wants, so subscriptions take the serialized bytes and
look at the stamp alone; only an image that is wanted is parsed, and its pixels are never copied by that. The
layout is the OMG's Common Data Representation (CDR): four bytes of encapsulation header, then the fields,
each aligned to its size counted from after that header. Everything is bounds-checked: bytes from the network
are not trusted.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from ..errors import CosmosReasonError, ErrorCode

_HEADER_SIZE = 4
# Representation identifier -> byte order. XCDR1 and plain XCDR2 differ in 8-byte fields; images have none.
_BYTE_ORDER = {b"\x00\x00": ">", b"\x00\x01": "<", b"\x00\x06": ">", b"\x00\x07": "<"}
_STAMP = {order: struct.Struct(order + "iI") for order in "<>"}
_UINT32 = {order: struct.Struct(order + "I") for order in "<>"}
_NS_PER_S = 1_000_000_000


@dataclass(frozen=True)
class RawImage:
    """sensor_msgs/Image without a copy of its pixels.

    Attributes:
        frame_id: tf frame of the camera.
        height, width: pixels.
        encoding: name of the pixel format (sensor_msgs/image_encodings.hpp).
        big_endian: byte order of 16-bit and float pixels.
        step: bytes from one row to the next.
        data: ``step * height`` bytes when the message is right; nothing here checks that.
    """

    frame_id: str
    height: int
    width: int
    encoding: str
    big_endian: bool
    step: int
    data: memoryview


@dataclass(frozen=True)
class CompressedImage:
    """sensor_msgs/CompressedImage without a copy of its data.

    Attributes:
        frame_id: tf frame of the camera.
        format: what the publisher says about the data ("jpeg", "rgb8; jpeg compressed bgr8", ...).
        data: the compressed file.
    """

    frame_id: str
    format: str
    data: memoryview


def read_stamp(serialized: bytes) -> int:
    """Capture stamp of a serialized message that starts with a std_msgs/Header.

    Returns:
        Nanoseconds; -1 for a stamp that is no time (nanosec of a second or more).

    Raises:
        CosmosReasonError: BAD_IMAGE when these bytes are no such message.
    """
    order = _BYTE_ORDER.get(serialized[:2])
    if order is None or len(serialized) < _HEADER_SIZE + 8:
        raise _bad(
            f"a message of {len(serialized)} bytes that starts with {serialized[:4].hex()!r} is not plain CDR"
        )
    sec, nanosec = _STAMP[order].unpack_from(serialized, _HEADER_SIZE)
    return sec * _NS_PER_S + nanosec if nanosec < _NS_PER_S else -1


def read_image(serialized: bytes) -> RawImage:
    """Parse a serialized sensor_msgs/Image; ``data`` is a view into ``serialized``.

    Raises:
        CosmosReasonError: BAD_IMAGE when the message is cut off or is no Image.
    """
    reader = _Reader(serialized)
    reader.skip(8)  # stamp
    return RawImage(
        frame_id=reader.string(),
        height=reader.uint32(),
        width=reader.uint32(),
        encoding=reader.string(),
        big_endian=reader.uint8() != 0,
        step=reader.uint32(),
        data=reader.octets(),
    )


def read_compressed_image(serialized: bytes) -> CompressedImage:
    """Parse a serialized sensor_msgs/CompressedImage; ``data`` is a view into ``serialized``.

    Raises:
        CosmosReasonError: BAD_IMAGE when the message is cut off or is no CompressedImage.
    """
    reader = _Reader(serialized)
    reader.skip(8)  # stamp
    return CompressedImage(frame_id=reader.string(), format=reader.string(), data=reader.octets())


class _Reader:
    """Walks over the fields of one CDR message."""

    def __init__(self, serialized: bytes) -> None:
        order = _BYTE_ORDER.get(serialized[:2])
        if order is None or len(serialized) < _HEADER_SIZE:
            raise _bad(f"the message starts with {serialized[:4].hex()!r}, which is not plain CDR")
        self._uint32 = _UINT32[order]
        self._view = memoryview(serialized)
        self._at = _HEADER_SIZE

    def skip(self, size: int) -> None:
        self._take(size)

    def uint8(self) -> int:
        return self._view[self._take(1)]

    def uint32(self) -> int:
        self._at = (self._at + 3) & ~3  # the header's four bytes keep the alignment of 4
        return self._uint32.unpack_from(self._view, self._take(4))[0]

    def octets(self) -> memoryview:
        size = self.uint32()
        start = self._take(size)
        return self._view[start : start + size]

    def string(self) -> str:
        return str(self.octets(), "utf-8", "replace").rstrip("\0")  # the length counts the closing NUL

    def _take(self, size: int) -> int:
        start, end = self._at, self._at + size
        if end > len(self._view):
            raise _bad(
                f"the message of {len(self._view)} bytes is cut off: {size} bytes should follow at {start}"
            )
        self._at = end
        return start


def _bad(what: str) -> CosmosReasonError:
    return CosmosReasonError(
        ErrorCode.BAD_IMAGE, f"{what}; check that the publisher sends the message type of this topic"
    )
