# SPDX-License-Identifier: Apache-2.0
"""A message of a bag, and the image in it as the node converts it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from cosmos_reason_node.ros import cdr
from cosmos_reason_node.ros.convert import convert_compressed, convert_image

IMAGE, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"


@dataclass(frozen=True)
class Recorded:
    """A message in a bag.

    Attributes:
        topic: as recorded.
        type: "pkg/msg/Name".
        definition: text of its type and all types in it; "" = the bag has none.
        serialized: CDR bytes.
    """

    topic: str
    type: str
    definition: str
    serialized: bytes


def image_size(message: Recorded) -> tuple[int, int]:
    """(height, width) of an image.

    Raises:
        CosmosReasonError: it cannot be read.
    """
    if message.type == IMAGE:
        image = cdr.read_image(message.serialized)
        return image.height, image.width
    converted = convert_compressed(cdr.read_compressed_image(message.serialized), lambda *_: (28, 28))
    return converted.height, converted.width


def store_image(message: Recorded, path: Path, size: tuple[int, int]) -> None:
    """Write an image, of (height, width) ``size``, as PNG; one that is there already is left.

    Raises:
        CosmosReasonError: it cannot be read.
        OSError: it cannot be written; nothing of it is left behind.
    """
    if message.type == IMAGE:
        rgb = convert_image(cdr.read_image(message.serialized), lambda *_: size).rgb
    else:
        rgb = convert_compressed(cdr.read_compressed_image(message.serialized), lambda *_: size).rgb
    # What an earlier run left is looked at: another bag in simulated time has the same stamps.
    # By its bytes: imread ends the process where the folder's name is not UTF-8.
    kept = np.fromfile(path, np.uint8) if path.exists() else np.zeros(0, np.uint8)
    there = cv2.imdecode(kept, cv2.IMREAD_COLOR) if kept.size else None
    if there is not None and np.array_equal(cv2.cvtColor(there, cv2.COLOR_BGR2RGB), rgb):
        return
    data = cv2.imencode(".png", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))[1].tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(data)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
