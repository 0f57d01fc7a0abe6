# SPDX-License-Identifier: Apache-2.0
"""Keeps what comes while the node is watched: decisions at once on disk, a small picture of every image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from .session import DECISIONS_FILE, Record

# Longer side of kept pictures, pixels.
PICTURE_SIDE = 288
JPEG_QUALITY = 78
# Pictures kept at most (about 50 MB); the oldest go first.
MAX_PICTURES = 5000


def picture_size(height: int, width: int) -> tuple[int, int]:
    """(height, width) of the picture kept of an image."""
    scale = min(1.0, PICTURE_SIDE / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


class Collector:
    """Writes ``decisions.jsonl`` line by line, so that a crash loses nothing.

    Args:
        directory: of the session; exists.
    """

    def __init__(self, directory: Path) -> None:
        self.records: list[Record] = []
        self.images = 0
        self.first_stamp_ns = 0  # of the first image seen here or by the node; 0 before
        self.newest_stamp_ns = 0
        self._pictures: dict[int, bytes] = {}
        self._file = open(directory / DECISIONS_FILE, "w", encoding="utf-8")  # noqa: SIM115 - closed by close()

    def add_decision(self, decision: dict[str, Any]) -> Record:
        """Keep a decision as ``messages.decision_json`` makes it."""
        self._file.write(json.dumps(decision, ensure_ascii=False) + "\n")
        self._file.flush()
        record = Record.from_json(decision)
        self.records.append(record)
        if record.frame_stamps_ns:
            self._see(min(record.frame_stamps_ns))
            self._see(max(record.frame_stamps_ns))
        return record

    def add_image(self, stamp_ns: int, rgb: np.ndarray) -> None:
        """Keep an image, (h, w, 3) uint8 RGB."""
        self.images += 1
        self._see(stamp_ns)
        ok, jpeg = cv2.imencode(".jpg", rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        if ok:
            self._pictures[stamp_ns] = jpeg.tobytes()
        if len(self._pictures) > MAX_PICTURES:
            del self._pictures[next(iter(self._pictures))]

    def pictures(self) -> dict[int, bytes]:
        """JPEG files by capture stamp (ns) of the images that are in the window of a decision."""
        seen = {stamp for record in self.records for stamp in record.frame_stamps_ns}
        return {stamp: jpeg for stamp, jpeg in self._pictures.items() if stamp in seen}

    def _see(self, stamp_ns: int) -> None:
        self.first_stamp_ns = min(self.first_stamp_ns or stamp_ns, stamp_ns)
        self.newest_stamp_ns = max(self.newest_stamp_ns, stamp_ns)

    def close(self) -> None:
        """Close the file; more calls do nothing."""
        self._file.close()
