# SPDX-License-Identifier: Apache-2.0
"""Clips that look the same though their bytes differ: encoded anew, scaled, or shown backwards.

A fingerprint is three codes, of a clip's first, middle and last frame. A code has a bit for each step of a
coarse grid, right and down, that gets clearly brighter. Codes are looked up by quarters that are equal
(locality sensitive hashing), and then compared as a whole.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

import cv2
import numpy as np

K = TypeVar("K")

SIDE = 17  # cells a side: 16 steps
# Steps of fewer grey levels are none: encoding anew moves values by a few.
_STEP = 8
_BITS = 2 * SIDE * (SIDE - 1)
# A frame with fewer steps than this (share of bits) says too little to be recognised by.
_MIN_STEPS = 0.04
# Codes are of the same picture when they differ in at most this share of the steps that either has.
_MAX_DIFFERENT = 0.15
_QUARTERS = 4
_MIN_QUARTER_STEPS = 4
# Clips compared in one bucket; more are only found through their other quarters.
_MAX_BUCKET = 64


def fingerprint(images: Sequence[np.ndarray]) -> tuple[int, ...]:
    """Codes of the first, middle and last of ``images``, (H, W, 3) uint8 RGB; () without structure."""
    codes = []
    for image in (images[0], images[(len(images) - 1) // 2], images[-1]):
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        cells = cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.int16)
        steps = np.concatenate([(np.diff(cells, axis=axis) > _STEP).ravel() for axis in (0, 1)])
        if steps.mean() < _MIN_STEPS:
            return ()
        codes.append(int.from_bytes(np.packbits(steps).tobytes(), "big"))
    return tuple(codes)


def alike(a: Sequence[int], b: Sequence[int]) -> bool:
    """Whether two fingerprints are of the same clip, in either direction of time."""
    return _different(a, b) <= _MAX_DIFFERENT or _different(a, b[::-1]) <= _MAX_DIFFERENT


def alike_groups(prints: Mapping[K, Sequence[int]]) -> Iterator[list[K]]:
    """Groups of two and more keys whose fingerprints are alike."""
    buckets: dict[tuple[int, int], list[K]] = defaultdict(list)
    for key, codes in prints.items():
        for bucket in {quarter for code in codes for quarter in _quarters(code)}:
            if len(buckets[bucket]) < _MAX_BUCKET:
                buckets[bucket].append(key)
    leader: dict[K, K] = {}

    def find(key: K) -> K:
        while key in leader:
            key = leader[key]
        return key

    for keys in buckets.values():
        for i, a in enumerate(keys):
            for b in keys[:i]:
                if find(a) != find(b) and alike(prints[a], prints[b]):
                    leader[find(a)] = find(b)
    groups: dict[K, list[K]] = defaultdict(list)
    for key in prints:
        groups[find(key)].append(key)
    yield from (group for group in groups.values() if len(group) > 1)


def _different(a: Sequence[int], b: Sequence[int]) -> float:
    both = sum((x | y).bit_count() for x, y in zip(a, b, strict=True))
    return sum((x ^ y).bit_count() for x, y in zip(a, b, strict=True)) / max(1, both)


def _quarters(code: int) -> Iterator[tuple[int, int]]:
    width = _BITS // _QUARTERS
    for i in range(_QUARTERS):
        bits = (code >> (i * width)) & ((1 << width) - 1)
        if bits.bit_count() >= _MIN_QUARTER_STEPS:
            yield i, bits
