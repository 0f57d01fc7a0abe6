# SPDX-License-Identifier: Apache-2.0
"""Order: which of several things landed, fell, was hit or went out of sight first, or last."""

from __future__ import annotations

from typing import Any

import numpy as np

from training.data.sim.sample import Span

from ..physics.clip import Clip
from .motion import SEEN, extreme, first_true, named
from .question import Question, either, one_of, the

GROUP = "order"
_APART = 1.5  # frames


def events(clip: Clip, span: Span) -> tuple[str, str, dict[int, float]]:
    """A noun, what happens to several things of that kind in the window, and to each at which frame."""
    if clip.scene == "drop":
        return "ball", "lands on the table", _when(clip, clip.landed, span, named(clip, "ball"))
    blocks = named(clip, "block")
    if clip.scene == "topple":
        return "block", "falls", _when(clip, clip.up < 0.85, span, blocks)
    if clip.scene == "collide" and len(blocks) == 2:
        balls = clip.of_kind("ball")
        return "block", "is hit", _when(clip, clip.touch[:, :, balls].any(-1), span, blocks)
    if clip.scene == "hide":
        shown = [i for i in named(clip) if clip.seen[span.first, i] >= SEEN]
        return "thing", "goes out of sight", _when(clip, clip.seen < 0.3, span, shown)
    return "", "", {}


def _when(clip: Clip, happened: Any, span: Span, things: list[int]) -> dict[int, float]:
    """First frame after the window's first at which an (F, N) array is true of each thing that it is ever."""
    frames = {i: first_true(happened[:, i], span) for i in things}
    return {i: float(frame) for i, frame in frames.items() if frame > span.first}


def ask(clip: Clip, span: Span, rng: np.random.Generator) -> list[Question]:
    """First or last, by chance."""
    noun, event, when = events(clip, span)
    if len(when) < 2:
        return []
    first = bool(rng.random() < 0.5)
    found = extreme({i: -frame if first else frame for i, frame in when.items()}, _APART)
    if found < 0:
        return []
    which = "first" if first else "last"
    text = one_of(rng, f"Which {noun} {event} {which}?", f"Which {noun} is the {which} that {event}?")
    others = [int(i) for i in rng.permutation([i for i in when if i != found])]
    than = the(clip, others[0])
    why = f"{than} {event} {'later' if first else 'earlier'} than {the(clip, found)}."
    return [either(GROUP, text, the(clip, found), [the(clip, i) for i in others], why, rng)]
