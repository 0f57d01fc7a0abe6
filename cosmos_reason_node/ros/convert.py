# SPDX-License-Identifier: Apache-2.0
"""From a ROS image to the model's frame: (H, W, 3) uint8 RGB at the size the model sees.

The distribution's cv_bridge is not used even where there is one: it wants a deserialized message (one more
copy of the pixels), has no defined answer for depth images, and the same camera would give slightly different
numbers with and without it. Tests cover every encoding here with padded rows and in both byte orders.

Deep images become 8 bit by fixed scales, so that the same scene gives the same numbers in every frame:

- colour, mono and bayer of 16 bit: the full range, 65535 -> 255 (what cv_bridge does);
- depth, ``16UC1`` in millimetres and ``32FC1`` in metres (REP 118): 0 to 10 m -> 0 to 255, farther is 255;
  0, NaN and infinity, "no reading", are 0. A scale fitted to each frame would flicker.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import simplejpeg

from ..errors import CosmosReasonError, ErrorCode
from ..vision.resize import resize
from .cdr import CompressedImage, RawImage

# Frames are small: a pool of threads costs more CPU than it saves, and the other cores are the engine's.
cv2.setNumThreads(1)

# Given the camera's (height, width), the (height, width) wanted.
SizeRule = Callable[[int, int], tuple[int, int]]

MAX_SIDE = 16384
MAX_PIXELS = 100_000_000
DEPTH_RANGE_M = 10.0
_UINT16_TO_8 = 255.0 / 65535.0


@dataclass(frozen=True)
class Converted:
    """A frame's pixels and what they came from.

    Attributes:
        rgb: (h, w, 3) uint8 at the size wanted.
        encoding: of the source, as the publisher calls it.
        height, width: of the source, pixels.
    """

    rgb: np.ndarray
    encoding: str
    height: int
    width: int


@dataclass(frozen=True)
class _Encoding:
    """How a pixel lies in memory, and what makes RGB of it.

    Attributes:
        channels: values a pixel.
        dtype: numpy type of a value, without byte order.
        color: cv2.COLOR_* that leads to RGB; None when it is RGB (or BGR, see ``swap``) already.
        swap: the channels are BGR; swapped after resizing, when there are fewer pixels.
        depth_per_m: for depth images the value of one metre.
    """

    channels: int
    dtype: str = "u1"
    color: int | None = None
    swap: bool = False
    depth_per_m: float = 0.0


def _bayer(pattern: str, dtype: str) -> _Encoding:
    return _Encoding(1, dtype, getattr(cv2, f"COLOR_Bayer{pattern.upper()}2RGB"))


ENCODINGS: dict[str, _Encoding] = {
    "rgb8": _Encoding(3),
    "bgr8": _Encoding(3, swap=True),
    "8UC3": _Encoding(3, swap=True),  # OpenCV's default order
    "rgba8": _Encoding(4, color=cv2.COLOR_RGBA2RGB),
    "bgra8": _Encoding(4, color=cv2.COLOR_BGRA2RGB),
    "mono8": _Encoding(1, color=cv2.COLOR_GRAY2RGB),
    "8UC1": _Encoding(1, color=cv2.COLOR_GRAY2RGB),
    "rgb16": _Encoding(3, "u2"),
    "bgr16": _Encoding(3, "u2", swap=True),
    "rgba16": _Encoding(4, "u2", cv2.COLOR_RGBA2RGB),
    "bgra16": _Encoding(4, "u2", cv2.COLOR_BGRA2RGB),
    "mono16": _Encoding(1, "u2", cv2.COLOR_GRAY2RGB),
    "16UC1": _Encoding(1, "u2", cv2.COLOR_GRAY2RGB, depth_per_m=1000.0),
    "32FC1": _Encoding(1, "f4", cv2.COLOR_GRAY2RGB, depth_per_m=1.0),
    "yuv422": _Encoding(2, color=cv2.COLOR_YUV2RGB_UYVY),
    "uyvy": _Encoding(2, color=cv2.COLOR_YUV2RGB_UYVY),
    "yuv422_yuy2": _Encoding(2, color=cv2.COLOR_YUV2RGB_YUYV),
    "yuyv": _Encoding(2, color=cv2.COLOR_YUV2RGB_YUYV),
    **{
        f"bayer_{pattern}{bits}": _bayer(pattern, dtype)
        for pattern in ("rggb", "bggr", "gbrg", "grbg")
        for bits, dtype in ((8, "u1"), (16, "u2"))
    },
}


def convert_image(image: RawImage, size_rule: SizeRule) -> Converted:
    """Convert and resize a sensor_msgs/Image.

    Args:
        image: the message's fields.
        size_rule: gives the size wanted for the image's size.

    Raises:
        CosmosReasonError: BAD_IMAGE with what is wrong and what to do.
    """
    size = _wanted_size(size_rule, image.height, image.width)
    encoding, pixels = _pixels(image)
    if encoding.depth_per_m:
        pixels = _depth_to_8_bit(pixels, encoding.depth_per_m)
    elif pixels.dtype != np.uint8:
        pixels = cv2.convertScaleAbs(pixels, alpha=_UINT16_TO_8)
    if encoding.color is not None:
        pixels = cv2.cvtColor(pixels, encoding.color)
    rgb = resize(pixels, size)
    if encoding.swap:
        rgb = cv2.cvtColor(rgb, cv2.COLOR_BGR2RGB)
    return Converted(_owned(rgb, image.data), image.encoding, image.height, image.width)


def convert_compressed(image: CompressedImage, size_rule: SizeRule) -> Converted:
    """Decode and resize a sensor_msgs/CompressedImage (JPEG or PNG; told apart by their first bytes).

    Raises:
        CosmosReasonError: BAD_IMAGE with what is wrong and what to do.
    """
    data = image.data
    if not len(data):
        raise _bad("the compressed image has no data; check the camera driver")
    if "compressedDepth" in image.format:
        raise _bad(
            "compressedDepth images are not read; subscribe to the raw depth topic (16UC1 or 32FC1) instead"
        )
    head = bytes(data[:24])
    if head.startswith(b"\xff\xd8"):
        return _jpeg(data, image.format, size_rule)
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return _png(data, head, image.format, size_rule)
    raise _bad(f"compressed format {image.format!r} is not JPEG or PNG; set the publisher's format to jpeg")


def _pixels(image: RawImage) -> tuple[_Encoding, np.ndarray]:
    """(H, W) or (H, W, C) array over the message's bytes, of native byte order; a view where possible."""
    encoding = ENCODINGS.get(image.encoding)
    if encoding is None:
        raise _bad(
            f"encoding {image.encoding!r} is not known; convert it (image_proc) to one of "
            f"{', '.join(ENCODINGS)}"
        )
    if encoding.channels == 2 and image.width % 2:
        raise _bad(f"a {image.encoding} image must have an even width, not {image.width}")
    dtype = np.dtype(encoding.dtype)
    row = image.width * encoding.channels * dtype.itemsize
    if image.step < row:
        raise _bad(
            f"step is {image.step} bytes but {image.width} pixels of {image.encoding} take {row}; "
            "the publisher must set step to the bytes of a row"
        )
    if len(image.data) != image.step * image.height:
        raise _bad(
            f"{len(image.data)} bytes of data, but step {image.step} x height {image.height} is "
            f"{image.step * image.height}; the publisher sent an incomplete or mislabelled image"
        )
    rows = np.frombuffer(image.data, np.uint8).reshape(image.height, image.step)[:, :row]
    if dtype.itemsize > 1:
        values = np.ascontiguousarray(rows).view(dtype.newbyteorder(">" if image.big_endian else "<"))
        rows = values.astype(dtype, copy=False)  # native order
    if encoding.channels == 1:
        return encoding, rows
    return encoding, rows.reshape(image.height, image.width, encoding.channels)


def _depth_to_8_bit(depth: np.ndarray, per_m: float) -> np.ndarray:
    if depth.dtype.kind == "f":
        depth = np.where(np.isfinite(depth), np.maximum(depth, 0), 0)
    return cv2.convertScaleAbs(depth, alpha=255.0 / (DEPTH_RANGE_M * per_m))


def _jpeg(data: memoryview, declared: str, size_rule: SizeRule) -> Converted:
    try:
        height, width, colours, *_ = simplejpeg.decode_jpeg_header(data)
    except ValueError as error:
        raise _bad(f"the JPEG's header cannot be read ({error}); check the camera driver") from error
    size = _wanted_size(size_rule, height, width)
    bayer = _mosaic(declared) if colours == "Gray" else None
    try:
        if bayer is not None:  # shrinking would mix its colours
            grey = simplejpeg.decode_jpeg(data, "GRAY")
            return Converted(resize(cv2.cvtColor(grey, bayer), size), "jpeg", height, width)
        # libjpeg shrinks by eighths while it decodes, which is cheap. It is asked for twice the size wanted:
        # the averaging that is left to resize() then decides the numbers, as it does for raw images.
        rgb = simplejpeg.decode_jpeg(data, "RGB", min_height=2 * size[0], min_width=2 * size[1])
    except ValueError as error:
        raise _bad(f"the JPEG is damaged or cut off ({error}); check the link to the camera") from error
    return Converted(resize(rgb, size), "jpeg", height, width)


def _png(data: memoryview, head: bytes, declared: str, size_rule: SizeRule) -> Converted:
    if len(head) < 24:
        raise _bad("the PNG is cut off; check the link to the camera")
    width, height = struct.unpack(">II", head[16:24])  # IHDR is first; read before any memory is asked for
    size = _wanted_size(size_rule, height, width)
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        pixels = None
    if pixels is None or pixels.shape[:2] != (height, width):
        raise _bad("the PNG is damaged or cut off; check the link to the camera")
    if pixels.dtype == np.uint16:
        depth = declared.startswith("16UC1")
        pixels = _depth_to_8_bit(pixels, 1000.0) if depth else cv2.convertScaleAbs(pixels, alpha=_UINT16_TO_8)
    color = {2: cv2.COLOR_GRAY2RGB, 3: cv2.COLOR_BGR2RGB, 4: cv2.COLOR_BGRA2RGB}
    grey = pixels.ndim == 2
    bayer = _mosaic(declared) if grey else None
    rgb = cv2.cvtColor(pixels, color[2 if grey else pixels.shape[2]] if bayer is None else bayer)
    return Converted(resize(rgb, size), "png", height, width)


def _mosaic(declared: str) -> int | None:
    """What makes RGB of one channel that is a Bayer camera's mosaic; None when it is grey.

    compressed_image_transport sends the mosaic as it is where ``format`` names it and no other encoding after
    it: "bayer_rggb8; png compressed ", "bayer_rggb8; jpeg compressed bayer_rggb8".
    """
    source, _, rest = declared.partition(";")
    sent = rest.partition("compressed")[2].strip() or source.strip()
    encoding = ENCODINGS.get(sent)
    return encoding.color if encoding is not None and sent.startswith("bayer_") else None


def _wanted_size(size_rule: SizeRule, height: int, width: int) -> tuple[int, int]:
    if not (0 < height <= MAX_SIDE and 0 < width <= MAX_SIDE and height * width <= MAX_PIXELS):
        raise _bad(
            f"an image of {width}x{height} pixels is empty or absurd (at most {MAX_SIDE} a side and "
            f"{MAX_PIXELS // 1_000_000} million in all); check the camera driver"
        )
    try:
        return size_rule(height, width)
    except ValueError as error:
        raise _bad(str(error)) from error


def _owned(rgb: np.ndarray, data: memoryview) -> np.ndarray:
    """A frame outlives its message: never a view that would keep (or change with) the message's bytes."""
    return rgb.copy() if np.shares_memory(rgb, np.frombuffer(data, np.uint8)) else rgb


def _bad(what: str) -> CosmosReasonError:
    return CosmosReasonError(ErrorCode.BAD_IMAGE, what)
