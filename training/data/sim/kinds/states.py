# SPDX-License-Identifier: Apache-2.0
"""States at the end of the window: standing or lying, upright or tipped, full or empty, moving or at rest."""

from __future__ import annotations

import numpy as np

from training.data.sim.sample import Span

from ..physics.clip import Clip
from .motion import LYING, MOVED_PX, SEEN, STANDING, STILL_PX, in_view, named, pixel_speed
from .question import Question, coin, either, one_of, the, yes_no

GROUP = "states"
# Balls mostly roll and blocks mostly stand: share of questions kept by (noun, moves), lest nouns tell.
_KEPT = {("ball", True): 0.5, ("block", False): 0.6}


def ask(clip: Clip, span: Span, rng: np.random.Generator) -> list[Question]:
    """One question about how a thing stands, one about whether it moves."""
    return [*_pose(clip, span, rng), *_motion(clip, span, rng)]


def _pose(clip: Clip, span: Span, rng: np.random.Generator) -> list[Question]:
    if clip.scene == "spill":
        return _cup(clip, span, rng)
    if clip.scene != "topple":
        return []
    visible = set(in_view(clip, span.last))
    poses = {i: float(clip.up[span.last, i]) for i in named(clip, "block") if i in visible}
    found = _one_of_each(
        [i for i, up in poses.items() if up > STANDING],
        [i for i, up in poses.items() if abs(up) < LYING],
        rng,
    )
    if found is None:
        return []
    thing, stands = found
    return _two_ways(the(clip, thing), ("standing", "lying"), stands, rng)


def _cup(clip: Clip, span: Span, rng: np.random.Generator) -> list[Question]:
    if span.length < clip.length:
        return []  # most shorter windows are drawn where balls fall: length would tell
    lean = float(clip.up[span.last, 0])
    balls = clip.of_kind("ball")
    away = np.linalg.norm(clip.position[span.last, balls] - clip.position[span.last, 0], axis=-1)
    outside = np.count_nonzero(away > 1.6 * clip.half[0, 2])
    if coin(rng) and outside in (0, len(balls)) and (lean > 0.6 or outside):
        inside = outside == 0
        place = "in the cup" if inside else "out of the cup"
        truth = coin(rng)
        asked = place if truth else "out of the cup" if inside else "in the cup"
        return [yes_no(GROUP, f"Are the balls {asked} at the end?", truth, f"the balls are {place}.")]
    if 0.5 < lean < 0.9:
        return []
    return _two_ways(the(clip, 0), ("upright", "tipped"), lean >= 0.9, rng)


def _motion(clip: Clip, span: Span, rng: np.random.Generator) -> list[Question]:
    if clip.scene in ("tabletop", "hide", "room", "spill", "odd") or span.last < clip.release:
        return []  # things stand and the camera moves, or one thing only, or nothing can move yet
    speed = pixel_speed(clip, span.last - 1)
    things = [i for i in named(clip) if min(clip.seen[span.last, i], clip.seen[span.last - 1, i]) >= SEEN]
    found = _one_of_each(
        [i for i in things if speed[i] > MOVED_PX], [i for i in things if speed[i] < STILL_PX], rng
    )
    if found is None:
        return []
    thing, moves = found
    if not coin(rng, _KEPT.get((str(clip.kinds[thing]), moves), 1.0)):
        return []
    return _two_ways(the(clip, thing), ("moving", "at rest"), moves, rng)


def _one_of_each(first: list[int], second: list[int], rng: np.random.Generator) -> tuple[int, bool] | None:
    """A thing of the first or the second list, each as often where both have one."""
    if not first and not second:
        return None
    chosen = bool(first) and (not second or coin(rng))
    pool = first if chosen else second
    return pool[int(rng.integers(len(pool)))], chosen


def _two_ways(name: str, words: tuple[str, str], first: bool, rng: np.random.Generator) -> list[Question]:
    right, wrong = words if first else words[::-1]
    why = one_of(rng, f"in the last frames {name} is {right}.", f"{name} is {right} at the end.")
    if coin(rng):
        truth = coin(rng)
        return [yes_no(GROUP, f"Is {name} {right if truth else wrong} at the end?", truth, why)]
    text = f"Is {name} {words[0]} or {words[1]} at the end?"
    return [either(GROUP, text, right, [wrong], why, rng)]
