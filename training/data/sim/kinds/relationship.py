# SPDX-License-Identifier: Apache-2.0
"""Relationship: where things are to each other in the last frame, as the camera sees them."""

from __future__ import annotations

import numpy as np

from training.data.sim.sample import Span

from ..physics.clip import Clip
from .motion import extreme, in_view, named
from .question import Question, coin, either, one_of, pick, the, yes_no

GROUP = "relationship"
_ASIDE_PX = 10.0
_NEARER_M = 0.09


def ask(clip: Clip, span: Span, rng: np.random.Generator) -> list[Question]:
    """One question, about a pair or about the outermost of all."""
    if clip.scene in ("spill", "odd", "drop"):
        return []
    visible = set(in_view(clip, span.last))
    things = [i for i in named(clip) if i in visible]
    if len(things) < 2:
        return []
    if coin(rng):
        return _pair(clip, span.last, things, rng)
    return _outermost(clip, span.last, things, rng)


def _pair(clip: Clip, frame: int, things: list[int], rng: np.random.Generator) -> list[Question]:
    a, b = (int(i) for i in rng.permutation(things)[:2])
    x, depth, z = clip.pixel[frame, :, 0], clip.depth[frame], clip.position[frame, :, 2]
    touches = clip.touch[frame, a, b] and abs(z[a] - z[b]) > 0.04
    if touches:
        higher, lower = (a, b) if z[a] > z[b] else (b, a)
        truth = coin(rng)
        first, second = (higher, lower) if truth else (lower, higher)
        text = f"Is {the(clip, first)} on top of {the(clip, second)}?"
        return [yes_no(GROUP, text, truth, f"{the(clip, higher)} lies on {the(clip, lower)}.")]
    relations = []
    if abs(x[a] - x[b]) >= _ASIDE_PX:
        relations.append(("to the left of", "to the right of", x[a] < x[b]))
    if abs(depth[a] - depth[b]) >= _NEARER_M:
        relations.append(("nearer to the camera than", "farther from the camera than", depth[a] < depth[b]))
    if not relations:
        return []
    one, other, holds = relations[int(rng.integers(len(relations)))]
    # Naming the pair in either order and either relation by chance keeps yes and no equally frequent.
    asked, truth = (one, bool(holds)) if coin(rng) else (other, not holds)
    fact = f"{the(clip, a)} is {one if holds else other} {the(clip, b)}."
    return [yes_no(GROUP, f"Is {the(clip, a)} {asked} {the(clip, b)}?", truth, fact)]


def _outermost(clip: Clip, frame: int, things: list[int], rng: np.random.Generator) -> list[Question]:
    x, depth = clip.pixel[frame, :, 0], clip.depth[frame]
    what, way, scores, gap = [
        ("farthest to the left", "right to left", -x, _ASIDE_PX * 0.8),
        ("farthest to the right", "left to right", x, _ASIDE_PX * 0.8),
        ("nearest to the camera", "far to near", -depth, _NEARER_M * 0.8),
        ("farthest from the camera", "near to far", depth, _NEARER_M * 0.8),
    ][pick(rng, range(4))]
    found = extreme({i: float(scores[i]) for i in things}, gap)
    if found < 0:
        return []
    text = one_of(rng, f"Which thing is {what} at the end?", f"In the last frame, which thing is {what}?")
    wrong = [the(clip, i) for i in things if i != found]
    order = sorted(things, key=lambda i: float(scores[i]))
    why = f"from {way} there is {', '.join(the(clip, i) for i in order)}."
    return [either(GROUP, text, the(clip, found), wrong, why, rng)]
