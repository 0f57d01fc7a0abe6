# SPDX-License-Identifier: Apache-2.0
"""Frame size: which size the model sees, and resizing to it.

Sizes follow the rule of Qwen2.5-VL's processor (both sides multiples of patch x merge, area within bounds,
aspect ratio kept as closely as those allow). Shrinking averages over the source area, which is antialiased
like the processor's filter and many times faster; tests state how far the two are apart.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

MIN_PIXELS = 56 * 56
# A square of 448: 32 of them are the 6,422,528 pixels that Cosmos-Reason1 is configured with for one video.
DEFAULT_MAX_PIXELS = 448 * 448
MAX_ASPECT = 200


def target_size(
    height: int,
    width: int,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    factor: int = 28,
    min_pixels: int = MIN_PIXELS,
) -> tuple[int, int]:
    """Size at which the model sees a frame.

    Args:
        height: of the camera's image, pixels.
        width: of the camera's image, pixels.
        max_pixels: upper bound on the area, at least ``factor**2``.
        factor: patch size x merge size; both results are multiples of it.
        min_pixels: lower bound on the area; gives way to ``max_pixels`` when the two cannot both be met.

    Returns:
        (height, width).

    Raises:
        ValueError: for a side under one pixel, an aspect ratio over 200, or bounds that no size meets.
    """
    if height < 1 or width < 1:
        raise ValueError(f"an image needs at least one pixel a side, got {height}x{width} (height x width)")
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise ValueError(
            f"the aspect ratio of {height}x{width} is over {MAX_ASPECT}: crop the image or check the camera"
        )
    if max_pixels < factor * factor:
        raise ValueError(
            f"max_pixels must be at least {factor * factor} (one visual token), got {max_pixels}"
        )
    rows, columns = max(1, round(height / factor)), max(1, round(width / factor))
    most = max_pixels // factor**2
    if rows * columns > most:
        shrink = math.sqrt(height * width / max_pixels)
        rows = max(1, math.floor(height / shrink / factor))
        columns = max(1, math.floor(width / shrink / factor))
        # A flat image whose short side was lifted to one row can still be over the bound.
        rows, columns = min(rows, most // columns or 1), min(columns, most // rows or 1)
    elif rows * columns * factor**2 < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        grown_rows, grown_columns = math.ceil(height * grow / factor), math.ceil(width * grow / factor)
        if grown_rows * grown_columns <= most:
            rows, columns = grown_rows, grown_columns
    return rows * factor, columns * factor


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize one frame.

    Args:
        image: (H, W, 3) uint8.
        size: (height, width) wanted.

    Returns:
        (height, width, 3) uint8, contiguous; ``image`` itself when it has that size already.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"expected an (H, W, 3) uint8 image, got {image.shape} {image.dtype}")
    height, width = size
    if image.shape[:2] == (height, width):
        return np.ascontiguousarray(image)
    if height <= image.shape[0] and width <= image.shape[1]:
        return _shrink(image, height, width)
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)


def _shrink(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Average over the source area, by steps that OpenCV does fast.

    INTER_AREA at a ratio that is not whole takes 3 ms for 640x480 and 11 ms for 1920x1080, most of what one
    sampled frame costs. Halving, and bilinear steps of less than 1.5, take a quarter to a seventh of that and
    are about as close to the processor's filter (tests state both distances).
    """
    while min(image.shape[0] / height, image.shape[1] / width) >= 3 and not (
        image.shape[0] % 2 or image.shape[1] % 2
    ):
        image = cv2.resize(image, (image.shape[1] // 2, image.shape[0] // 2), interpolation=cv2.INTER_AREA)
    ratio = max(image.shape[0] / height, image.shape[1] / width)
    whole = image.shape[0] % height == 0 and image.shape[1] % width == 0
    if ratio < 1.5 and not whole:
        return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    if ratio < 3 and not whole:
        image = cv2.resize(image, (2 * width, 2 * height), interpolation=cv2.INTER_LINEAR)
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
