# SPDX-License-Identifier: Apache-2.0
"""Clips made of clips: played backwards, or one frame cut into tiles.

Both are made when a window is drawn, not when a clip is generated: every clip is then seen in both directions
and every frame in any of the 24 orders of its tiles.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np

from cosmos_reason_node.vision.resize import resize

from ..look import Split
from .clip import FRAME_SIDE, Clip

PLACES = ("top left", "top right", "bottom left", "bottom right")
TILE_FRAMES = 2  # a tile fills one pair of frames: one temporal patch
PUZZLE_FRAMES = len(PLACES) * TILE_FRAMES
_PER_FRAME = ("frames", "position", "up", "present", "seen", "pixel", "depth", "touch", "landed", "camera")


def reverse(clip: Clip) -> Clip:
    """The clip played backwards, with its states."""
    if clip.variant != "recorded":
        raise ValueError(f"only a recorded clip can be reversed, this one is {clip.variant}")
    return _flipped(clip, "reversed")


def forward_states(clip: Clip) -> Clip:
    """A reversed clip turned round again: what its states were, and its frames."""
    return _flipped(clip, "forward")


def _flipped(clip: Clip, variant: str) -> Clip:
    flipped = {name: getattr(clip, name)[::-1] for name in _PER_FRAME}
    return replace(clip, variant=variant, release=-1, **flipped)


def tiles(frame: np.ndarray, order: np.ndarray) -> np.ndarray:
    """(8, 112, 112, 3): the four quarters of a (112, 112, 3) frame, enlarged, two frames each.

    Args:
        frame: uint8 RGB.
        order: (4,) which place's quarter is shown first, second, ...
    """
    half = FRAME_SIDE // 2
    quarters = [frame[y : y + half, x : x + half] for y in (0, half) for x in (0, half)]
    shown = [resize(np.ascontiguousarray(quarters[place]), (FRAME_SIDE, FRAME_SIDE)) for place in order]
    return np.repeat(np.stack(shown), TILE_FRAMES, axis=0)


def puzzle(frame: np.ndarray, order: np.ndarray, *, seed: int, split: Split, scene: str) -> Clip:
    """A frame of any source as a puzzle; the clip has no named things.

    Args:
        frame: (112, 112, 3) uint8 RGB; (0, 0, 3) makes a clip without frames.
        order: (4,) permutation of 0..3, see ``tiles``.
        seed: of the clip or episode that the frame comes from.
        split: its split.
        scene: its scene.
    """
    if sorted(order.tolist()) != [0, 1, 2, 3]:
        raise ValueError(f"{order.tolist()} is no order of four tiles")
    empty: dict[str, Any] = {field.name: np.zeros((PUZZLE_FRAMES, 0), np.float32) for field in fields(Clip)}
    words = {name: np.zeros(0, "<U1") for name in ("names", "kinds", "colours")}
    shown = tiles(frame, order) if frame.size else np.zeros((0, FRAME_SIDE, FRAME_SIDE, 3), np.uint8)
    state: dict[str, Any] = {
        "seed": seed,
        "split": split,
        "scene": scene,
        "plan": "",
        "variant": "puzzle",
        "release": -1,
        "tiles": np.asarray(order),
        "frames": shown,
        "camera": np.zeros((PUZZLE_FRAMES, 6), np.float32),
    }
    return Clip(**{**empty, **words, **state})
