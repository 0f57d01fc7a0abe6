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

# Of a topic's clock, in messages.
SET_BACK = "was set back while the bag was recorded (a simulation that began anew): record a bag for each run"


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


class Clock:
    """Notices stamps that come again in another run of a clock that was set back, by a second or more.

    Stamps that repeat within a run are no other moment: the node takes the first image of each.
    """

    def __init__(self) -> None:
        self._newest_ns, self._run = 0, 0
        self._run_of: dict[int, int] = {}

    def repeats(self, stamp_ns: int) -> bool:
        """Whether an earlier run had this stamp; call it for each image of a topic, in the bag's order."""
        if stamp_ns <= 0:  # none
            return False
        if stamp_ns < self._newest_ns - 10**9:
            self._run, self._newest_ns = self._run + 1, stamp_ns
        self._newest_ns = max(self._newest_ns, stamp_ns)
        return self._run_of.setdefault(stamp_ns, self._run) != self._run


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
