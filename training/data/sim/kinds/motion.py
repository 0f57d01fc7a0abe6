# SPDX-License-Identifier: Apache-2.0
"""What the states of a window say about motion; shared by the kinds.

Indices of frames are those of the clip. "Visibly" means by about a pixel of the 112 or more.
"""

from __future__ import annotations

import numpy as np

from training.data.sim.sample import Span

from ..physics.clip import Clip

SEEN = 0.6  # share of a thing that must be in view for a question to name it
MOVED_PX = 1.0  # between two frames: certainly moving
STILL_PX = 0.2  # certainly not
_MOVED_M = 0.015  # since the window's start: certainly moved
STANDING, LYING = 0.99, 0.45  # cosine of the lean: above, certainly standing; below, certainly lying


def in_view(clip: Clip, frame: int) -> list[int]:
    """Things that can be named in a question about this frame."""
    visible = (clip.seen[frame] >= SEEN) & clip.present[frame]
    return [int(i) for i in np.flatnonzero(visible)]


def named(clip: Clip, *kinds: str) -> list[int]:
    """Things with a colour in their name (those numbered apart cannot be named), of ``kinds`` or of any."""
    names, colours = clip.names.tolist(), clip.colours.tolist()
    return [
        i
        for i, kind in enumerate(clip.kinds.tolist())
        if colours[i] and names[i] == f"{colours[i]} {kind}" and (not kinds or kind in kinds)
    ]


def pixel_speed(clip: Clip, frame: int) -> np.ndarray:
    """(N,) pixels that each thing moves between ``frame`` and the next; turning counts as moving too."""
    shift = np.linalg.norm(clip.pixel[frame + 1] - clip.pixel[frame], axis=-1)
    # A thing that turns in place moves its ends: 0.05 of lean is about a pixel at a tall block's top.
    return np.maximum(shift, 20.0 * np.abs(clip.up[frame + 1] - clip.up[frame]))


def moves_at(clip: Clip, frame: int) -> bool:
    """Whether anything in view visibly moves between ``frame`` and the next."""
    visible = clip.seen[frame] >= 0.3
    return bool((pixel_speed(clip, frame)[visible] >= MOVED_PX).any())


def onset(clip: Clip, span: Span, thing: int) -> int:
    """First frame at which a thing has left its place of the window's start; -1 if it never does."""
    path = clip.position[span.first : span.last + 1, thing]
    gone = np.linalg.norm(path - path[0], axis=-1) > _MOVED_M
    return span.first + int(gone.argmax()) if gone.any() else -1


def first_true(values: np.ndarray, span: Span) -> int:
    """First frame of the window at which an (F,) array is true; -1 for none."""
    part = values[span.first : span.last + 1]
    return span.first + int(part.argmax()) if part.any() else -1


def travelled(clip: Clip, span: Span, thing: int) -> float:
    """Length of a thing's way in the window, metres."""
    path = clip.position[span.first : span.last + 1, thing]
    return float(np.linalg.norm(np.diff(path, axis=0), axis=-1).sum())


def extreme(scores: dict[int, float], gap: float) -> int:
    """The thing with the highest score, if it leads the next by ``gap``; else -1."""
    ranked = sorted(scores, key=lambda i: scores[i], reverse=True)
    if len(ranked) < 2 or scores[ranked[0]] - scores[ranked[1]] < gap:
        return -1
    return ranked[0]
