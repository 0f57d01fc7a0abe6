# SPDX-License-Identifier: Apache-2.0
"""Visual features by frame pair: encoded once, used by every window that holds the pair.

    pair arrives ─> entry (frames, serial) ─> encode ─> features on the device ─┬─> window 1
                                                                                ├─> window 2, two frames on
    ring of ``pairs`` entries a camera, the longest unused go first             └─> ...

The vision tower computes a temporal patch (two frames) apart from all others, so a pair's features are the
same in every window. Each pair is encoded by a call of its own: one batch shape, hence the same bits whatever
else a window holds. Where nothing is kept (``joint``: evaluation, reinforcement learning) a window's pairs
share one call, which is faster and equal but for rounding.

An entry is found by camera and first tick and used only where its frames are those of the window, by object
or by content: a clock that jumped, another size or another file never gives old features. A cache belongs to
one loaded model and ends with it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ..types import Window

MAX_CAMERAS = 16


@dataclass(eq=False)
class Pair:
    """The frames of one temporal patch.

    Attributes:
        images: (H, W, 3) uint8 each; never written to.
        serial: of this content; no other entry, earlier or later, has it.
        features: (visual tokens of the pair, D) on the device; None: not encoded yet.
    """

    images: tuple[np.ndarray, ...]
    serial: int
    features: Tensor | None = None

    def shows(self, images: tuple[np.ndarray, ...]) -> bool:
        """Whether these are its frames."""
        return all(
            mine is theirs or (mine.shape == theirs.shape and np.array_equal(mine, theirs))
            for mine, theirs in zip(self.images, images, strict=True)
        )


class VisionCache:
    """Pairs of the newest windows of each camera.

    Args:
        encode: (T, H, W, 3) uint8 frames of a pair to features.
        temporal_patch: frames of a pair.
        pairs: most entries a camera; 0 keeps nothing.
        joint: encode all pairs of a window in one call; then ``encode`` takes the frames of several.
    """

    def __init__(
        self,
        encode: Callable[[np.ndarray], Tensor],
        temporal_patch: int,
        pairs: int,
        *,
        joint: bool = False,
    ) -> None:
        self._encode = encode
        self._joint = joint
        self._frames = temporal_patch
        self._limit = pairs
        self._cameras: OrderedDict[str, OrderedDict[int, Pair]] = OrderedDict()
        self._serial = 0
        self.hits = 0
        self.misses = 0

    def pairs(self, window: Window) -> list[Pair]:
        """The entries of a window's pairs, oldest first; new ones are made where there is none."""
        found = [self._pair(window, i) for i in range(0, len(window.frames), self._frames)]
        self._trim(window.camera)
        return found

    def encode(self, pair: Pair) -> Tensor:
        """The features of a pair, computed where they are missing."""
        if pair.features is None:
            pair.features = self._encode(np.stack(pair.images))
        return pair.features

    def encode_all(self, pairs: Sequence[Pair]) -> None:
        """Compute the features that are missing."""
        blind = [pair for pair in pairs if pair.features is None]
        if not self._joint:
            for pair in blind:
                self.encode(pair)
            return
        for shape in {pair.images[0].shape for pair in blind}:
            alike = [pair for pair in blind if pair.images[0].shape == shape]
            features = self._encode(np.stack([image for pair in alike for image in pair.images]))
            for pair, part in zip(alike, features.chunk(len(alike)), strict=True):
                pair.features = part

    def forget(self) -> None:
        """Drop everything: the weights have changed."""
        self._cameras.clear()

    @property
    def bytes_by_camera(self) -> dict[str, int]:
        """Features and frames held."""
        return {
            camera: sum(
                sum(image.nbytes for image in pair.images)
                + (0 if pair.features is None else pair.features.nbytes)
                for pair in ring.values()
            )
            for camera, ring in self._cameras.items()
        }

    def _pair(self, window: Window, first: int) -> Pair:
        images = tuple(frame.image for frame in window.frames[first : first + self._frames])
        ring = self._cameras.setdefault(window.camera, OrderedDict()) if self._limit else OrderedDict()
        tick = window.first_tick + first
        pair = ring.get(tick)
        if pair is None or not pair.shows(images):
            self._serial += 1
            self.misses += 1
            pair = Pair(images, self._serial)
            ring.pop(tick, None)
            ring[tick] = pair
        else:
            ring.move_to_end(tick)
            self.hits += pair.features is not None
        return pair

    def _trim(self, camera: str) -> None:
        if camera in self._cameras:
            self._cameras.move_to_end(camera)
            ring = self._cameras[camera]
            while len(ring) > self._limit:
                ring.popitem(last=False)
        while len(self._cameras) > MAX_CAMERAS:
            self._cameras.popitem(last=False)
