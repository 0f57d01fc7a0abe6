# SPDX-License-Identifier: Apache-2.0
"""Mechanics: what will happen, and which is heavier, faster, or bounces higher.

What will happen is asked of windows that end before anything is let go; the truth is the rest of the clip.
"""

from __future__ import annotations

import numpy as np

from training.data.sim.sample import Span

from ..physics.clip import Clip
from .motion import SEEN, extreme, named, travelled
from .question import Question, coin, either, one_of, the, yes_no

GROUP = "mechanics"


def ask(clip: Clip, span: Span, rng: np.random.Generator) -> list[Question]:
    """What the scene lets be asked."""
    if clip.scene in ("ramp", "stack"):
        return _prediction(clip, span, rng)
    if clip.scene == "collide" and clip.plan == "weigh":
        return _heavier(clip, span, rng)
    if clip.scene == "collide" and clip.plan == "race":
        return _faster(clip, span, rng)
    return _bounce(clip, span, rng) if clip.scene == "drop" else []


def _prediction(clip: Clip, span: Span, rng: np.random.Generator) -> list[Question]:
    if span.last >= clip.release:
        return []
    thing = int(named(clip)[-1])  # the upper block of a stack, the only thing on a ramp
    goes, name = gives_way(clip, thing), the(clip, thing)
    if goes is None:
        return []
    if clip.scene == "stack":
        when, text = "when the stick is pulled away", f"Will {name} fall when the stick is pulled away?"
        right, wrong = ("it falls", "it stays") if goes else ("it stays", "it falls")
        why = (
            one_of(
                rng, f"most of {name} is not over the block below.", f"the middle of {name} is not supported."
            )
            if goes
            else one_of(
                rng, f"most of {name} is over the block below.", f"the middle of {name} is supported."
            )
        )
        others = [wrong]
    else:
        when, text = "when the gate opens", f"Will {name} go down when the gate opens?"
        down = "it rolls down" if clip.kinds[thing] == "ball" else "it slides down"
        right = down if goes else "it stays"
        others = [option for option in ("it rolls down", "it slides down", "it stays") if option != right]
        why = _slope(clip, thing, goes, rng)
    if coin(rng):
        return [yes_no(GROUP, text, goes, why)]
    asked = one_of(rng, f"What will happen to {name} {when}?", f"What does {name} do {when}?")
    return [either(GROUP, asked, right, others, why, rng)]


def gives_way(clip: Clip, thing: int) -> bool | None:
    """Whether a thing leaves its place once it is let go; None where one could argue."""
    path, up = clip.position[clip.release :, thing], clip.up[clip.release :, thing]
    gone, turned = float(np.linalg.norm(path[-1] - path[0])), float(up[0] - up[-1])
    if gone >= 0.05 or turned > 0.1:
        return True
    return False if gone < 0.02 and turned < 0.02 else None


def _slope(clip: Clip, thing: int, goes: bool, rng: np.random.Generator) -> str:
    name = the(clip, thing)
    if clip.kinds[thing] == "ball":
        return "the board slopes, and a ball rolls down a slope." if goes else "the board is level."
    if goes:
        return one_of(rng, "the board is steep.", f"the board is too steep for {name}.")
    return one_of(rng, "the slope is gentle.", f"the slope is too gentle for {name} to slide.")


def _compare(
    clip: Clip, text: str, scores: dict[int, float], ratio: float, why: str, rng: np.random.Generator
) -> list[Question]:
    """Which thing scores highest, if ``ratio`` times the next; ``why`` names {it} and {other}."""
    logs = {i: float(np.log(max(score, 1e-4))) for i, score in scores.items()}
    found = extreme(logs, float(np.log(ratio)))
    if found < 0:
        return []
    other = next(i for i in scores if i != found)
    why = why.format(it=the(clip, found), other=the(clip, other))
    return [either(GROUP, text, the(clip, found), [the(clip, i) for i in scores if i != found], why, rng)]


def _heavier(clip: Clip, span: Span, rng: np.random.Generator) -> list[Question]:
    blocks = named(clip, "block")
    moved = {i: travelled(clip, span, i) for i in blocks}
    hit = all(clip.touch[span.first : span.last - 2, i].any() for i in blocks)
    # The state that is seen must say the same as the masses do.
    if not hit or extreme({i: -way for i, way in moved.items()}, 0.03) != max(
        blocks, key=lambda i: clip.heavy[i]
    ):
        return []
    text = one_of(rng, "Equal balls hit the blocks. Which block is heavier?", "Which block is heavier?")
    why = one_of(rng, "{it} moves less than {other} after the blow.", "{other} is pushed farther than {it}.")
    return _compare(clip, text, {i: float(clip.heavy[i]) for i in blocks}, 2.0, why, rng)


def _faster(clip: Clip, span: Span, rng: np.random.Generator) -> list[Question]:
    balls = named(clip, "ball")
    if min(clip.seen[span.first + 1, i] for i in balls) < 0.3 or span.length < 6:
        return []
    text = one_of(rng, "Which ball is faster?", "Which ball rolls faster?")
    why = one_of(
        rng, "{it} goes farther than {other} in the same time.", "{other} rolls more slowly than {it}."
    )
    return _compare(clip, text, {i: travelled(clip, span, i) for i in balls}, 1.5, why, rng)


def _bounce(clip: Clip, span: Span, rng: np.random.Generator) -> list[Question]:
    scores = {}
    for i in named(clip, "ball"):
        landed = np.flatnonzero(clip.landed[span.first : span.last + 1, i])
        if len(landed) == 0 or span.first + landed[0] > span.last - 4 or clip.seen[span.last, i] < SEEN:
            return []
        after = clip.position[span.first + landed[0] : span.last + 1, i, 2]
        scores[i] = float(after.max() - clip.half[i, 2])
    if len(scores) != 2:
        return []
    text = one_of(rng, "Which ball bounces higher?", "Which ball comes higher after it lands?")
    return _compare(clip, text, scores, 1.7, "{other} stays lower than {it} after it lands.", rng)
