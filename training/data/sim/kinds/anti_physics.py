# SPDX-License-Identifier: Apache-2.0
"""Anti-physics: does the window show something that cannot be? Decided from the states, not from the plan."""

from __future__ import annotations

import numpy as np

from training.data.sim.sample import Span

from ..physics.clip import Clip
from .question import Question, coin, either, one_of, yes_no

GROUP = "anti_physics"
THROUGH = "the ball passes through the block"
JUMP = "the ball jumps to another place"
UPWARD = "the ball turns upward in the air"
NOTHING = "nothing is wrong"
_BALL, _BLOCK = 0, 1


def wrong_in(clip: Clip, span: Span) -> str:
    """What cannot be, in words; NOTHING where all of it can; "" where one could argue."""
    path = clip.position[span.first : span.last + 1, _BALL]
    steps = np.linalg.norm(np.diff(path, axis=0), axis=-1)
    if steps.max() > 0.12 + np.median(steps):
        return JUMP
    inside = _depth_inside(clip, span)
    if inside > 0.5:
        return THROUGH
    if inside > 0.1:
        return ""
    fall = np.diff(path[:, 2])
    rising = (fall[1:] > 0.003) & (np.minimum.accumulate(fall)[:-1] < -0.01)
    landed = np.logical_or.accumulate(clip.landed[span.first + 1 : span.last + 1, _BALL])
    free_rise = rising & ~landed[1:]
    if free_rise[-2:].all() and free_rise.sum() >= 2:
        return UPWARD
    return "" if free_rise.any() else NOTHING


def _depth_inside(clip: Clip, span: Span) -> float:
    """How deep the ball gets into the block, as a share of its radius, between frames too."""
    ball = clip.position[span.first : span.last + 1, _BALL]
    block = clip.position[span.first : span.last + 1, _BLOCK]
    radius, reach = float(clip.half[_BALL, 0]), float(clip.half[_BLOCK, 0])
    deepest = 0.0
    for share in np.linspace(0.0, 1.0, 5):
        apart = (1 - share) * (ball[:-1] - block[:-1]) + share * (ball[1:] - block[1:])
        # A block turned about the vertical reaches at least its half side in every direction.
        deepest = max(deepest, float((radius + reach - np.linalg.norm(apart, axis=-1)).max()) / radius)
    return deepest


def ask(clip: Clip, span: Span, rng: np.random.Generator) -> list[Question]:
    """Whether it is possible, or what is wrong."""
    if clip.scene != "odd" or span.length < 10:
        return []
    found = wrong_in(clip, span)
    if not found:
        return []
    fine = found == NOTHING
    why = one_of(rng, "the ball moves as it must.", "nothing moves without a cause.") if fine else f"{found}."
    if coin(rng):
        text = one_of(rng, "Is what the video shows possible?", "Can this happen in the real world?")
        return [yes_no(GROUP, text, fine, why if fine else f"{why} That cannot happen.")]
    if fine and coin(rng, 0.6):
        return []  # else "nothing" would be right as often as all the rest together
    text = one_of(rng, "What is wrong in the video?", "What in the video cannot happen?")
    others = [option for option in (THROUGH, JUMP, UPWARD, NOTHING) if option != found]
    return [either(GROUP, text, found, others, why, rng)]
