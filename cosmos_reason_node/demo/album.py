# SPDX-License-Identifier: Apache-2.0
"""The frames of a report: each once in the page, shown elsewhere by reference."""

from __future__ import annotations

import base64
import bisect
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from .markup import Markup, element
from .session import Record
from .timeline import Picture

# Most JPEG bytes in the page; more frames are thinned out evenly.
PICTURE_BUDGET = 1_900_000
# Most pictures of a decision's window.
WINDOW_PICTURES = 8


class Album:
    """The frames that go into the page, each once, shown elsewhere by reference."""

    def __init__(self, frames: Mapping[int, bytes], records: Sequence[Record]) -> None:
        seen = sorted({stamp for record in records for stamp in record.frame_stamps_ns} & set(frames))
        chosen = _thin(seen or sorted(frames), frames, PICTURE_BUDGET)
        self._jpegs = [frames[stamp] for stamp in chosen]
        self.pictures = [Picture(f"frame{i}", stamp, *_size(frames[stamp])) for i, stamp in enumerate(chosen)]
        self._stamps = chosen

    def definitions(self) -> Markup:
        """All frames, in a hidden drawing."""
        images = [
            element(
                "image",
                id=picture.identifier,
                width=picture.width,
                height=picture.height,
                href="data:image/jpeg;base64," + base64.b64encode(jpeg).decode(),
            )
            for picture, jpeg in zip(self.pictures, self._jpegs, strict=True)
        ]
        return element("svg", element("defs", images), class_="defs", width=0, height=0, aria_hidden="true")

    def nearest(self, stamp_ns: int) -> Picture | None:
        """The frame closest to a stamp."""
        if not self.pictures:
            return None
        i = bisect.bisect_left(self._stamps, stamp_ns)
        return min(self.pictures[max(0, i - 1) : i + 1], key=lambda p: abs(p.stamp_ns - stamp_ns))

    def window(self, record: Record) -> list[Picture]:
        """Frames of a decision's window that are in the album, evenly thinned to WINDOW_PICTURES."""
        wanted = set(record.frame_stamps_ns)
        found = [picture for picture in self.pictures if picture.stamp_ns in wanted]
        if len(found) <= WINDOW_PICTURES:
            return found
        last = len(found) - 1
        return [found[round(i * last / (WINDOW_PICTURES - 1))] for i in range(WINDOW_PICTURES)]


def window_strip(pictures: Sequence[Picture]) -> Markup | None:
    """Small pictures side by side."""
    return element("div", [view(picture) for picture in pictures], class_="window") if pictures else None


def view(picture: Picture, **attributes: Any) -> Markup:
    """One picture, as wide as its place."""
    box = f"0 0 {picture.width} {picture.height}"
    return element("svg", element("use", href=f"#{picture.identifier}"), viewBox=box, **attributes)


def _thin(stamps: list[int], frames: Mapping[int, bytes], budget: int) -> list[int]:
    total = sum(len(frames[stamp]) for stamp in stamps)
    if total <= budget:
        return stamps
    keep = max(1, int(len(stamps) * budget / total))
    return [stamps[i * len(stamps) // keep] for i in range(keep)]


def _size(jpeg: bytes) -> tuple[int, int]:
    """Width and height of a JPEG file, pixels; 4:3 where it is damaged."""
    image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_GRAYSCALE)
    return (4, 3) if image is None else (image.shape[1], image.shape[0])
