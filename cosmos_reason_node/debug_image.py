# SPDX-License-Identifier: Apache-2.0
"""One picture of what the model saw and said: the newest frame, a strip of the window, the latest answers."""

from __future__ import annotations

import array

import cv2
import numpy as np

from .types import Decision, QueryKind, Verdict, Window

WIDTH = 640
STRIP_FRAMES = 8
LINE_PX = 22
_COLORS = {  # RGB
    Verdict.YES: (120, 220, 120),
    Verdict.NO: (240, 130, 110),
    Verdict.CHOICE: (130, 190, 250),
    Verdict.UNKNOWN: (190, 190, 190),
}


class DebugImage:
    """Collects decisions; draws the newest window with the latest answer of each kind about its camera."""

    def __init__(self) -> None:
        self._latest: dict[tuple[str, QueryKind], Decision] = {}
        self._window: Window | None = None

    def add(self, decision: Decision) -> None:
        """Take a decision."""
        cameras = [window.camera for window in decision.windows]
        kind = decision.query.kind
        if cameras:
            self._window = decision.windows[0]
            self._latest.pop(("", kind), None)
        self._latest[cameras[0] if cameras else "", kind] = decision

    def draw(self) -> np.ndarray | None:
        """(H, 640, 3) uint8 RGB; None before there is a window."""
        if self._window is None:
            return None
        frames = [frame.image for frame in self._window.frames]
        height, width = frames[-1].shape[:2]
        main = cv2.resize(frames[-1], (WIDTH, round(WIDTH * height / width)))
        picks = np.linspace(0, len(frames) - 1, STRIP_FRAMES).round().astype(int)
        thumb = (WIDTH // STRIP_FRAMES, round(WIDTH / STRIP_FRAMES * height / width))
        strip = np.hstack([cv2.resize(frames[i], thumb) for i in picks])
        # Those without a window found no frames to look at, of whichever camera.
        shown = [key for key in sorted(self._latest) if key[0] in ("", self._window.camera)]
        text = np.full((LINE_PX * len(shown) + 8, WIDTH, 3), 24, np.uint8)
        for row, key in enumerate(shown):
            words, color = _line(self._latest[key])
            origin = (8, LINE_PX * (row + 1) - 4)
            cv2.putText(text, words, origin, cv2.FONT_HERSHEY_SIMPLEX, 0.5, color, 1, cv2.LINE_AA)
        return np.vstack([main, strip, text])

    def jpeg(self) -> array.array[int] | None:
        """``draw`` as JPEG, in the form that ROS messages take fastest."""
        image = self.draw()
        if image is None:
            return None
        _, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        return array.array("B", data.tobytes())


def _line(decision: Decision) -> tuple[str, tuple[int, int, int]]:
    """Text (ASCII: the font has nothing else) and color of an answer."""
    cameras = "+".join(window.camera for window in decision.windows)
    kind = decision.query.kind.name.lower().replace("_", " ")
    name = f"{cameras}, {kind}" if cameras else kind
    answer = decision.answer
    if answer is None:
        words, color = f"{name}: {decision.error_code.name}", _COLORS[Verdict.NO]
    else:
        said = answer.verdict.name if answer.verdict is not Verdict.CHOICE else answer.answer
        words = f"{name}: {said} ({answer.confidence:.2f}, {decision.age_s:.1f} s old)"
        color = _COLORS[answer.verdict]
    return words.encode("ascii", "replace").decode()[:80], color
