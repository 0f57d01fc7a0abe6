# SPDX-License-Identifier: Apache-2.0
"""Attributes: colour, shape and number of the things in the last frame."""

from __future__ import annotations

import numpy as np

from training.data.sim.sample import Span

from ..physics.clip import Clip
from ..physics.palette import COLOURS, SHAPES
from .motion import in_view, named
from .question import Question, coin, either, one_of, pick, the, yes_no

GROUP = "attributes"
NUMBERS = ("one", "two", "three", "four", "five")
_SHARE = 0.5  # of windows; most scenes could ask


def ask(clip: Clip, span: Span, rng: np.random.Generator) -> list[Question]:
    """One question about a thing in view."""
    if clip.scene == "room" or not coin(rng, _SHARE):
        return []
    visible = set(in_view(clip, span.last))
    things = [i for i in named(clip) if i in visible]
    partly = [
        i
        for i in named(clip)
        if i not in visible and clip.present[span.last, i] and clip.seen[span.last, i] > 0
    ]
    if not things or partly:
        return []
    form = pick(rng, range(4))
    thing = pick(rng, things)
    kind, colour = str(clip.kinds[thing]), str(clip.colours[thing])
    kinds = [str(clip.kinds[i]) for i in things]
    if form == 0 and kinds.count(kind) == 1 and kind != "cup":
        wrong = [str(name) for name in rng.permutation([c for c in COLOURS if c != colour])[:3]]
        why = one_of(rng, f"the {kind} is {colour}.", f"there is a {colour} {kind}.")
        return [either(GROUP, f"What colour is the {kind}?", colour, wrong, why, rng)]
    if form == 1 and clip.scene in ("tabletop", "hide"):  # where all shapes are equally frequent
        wrong = [f"a {shape}" for shape in SHAPES if shape != kind]
        why = one_of(rng, f"the {colour} thing is a {kind}.", f"there is a {colour} {kind}.")
        return [either(GROUP, f"What is the {colour} thing?", f"a {kind}", wrong, why, rng)]
    if form == 2 and clip.scene == "tabletop" and len(things) <= 4:
        count = NUMBERS[len(things) - 1]
        wrong = [number for number in NUMBERS[:4] if number != count]
        why = f"there are {count}: {', '.join(the(clip, i) for i in things)}."
        return [either(GROUP, "How many coloured things are on the table?", count, wrong, why, rng)]
    return [_is_there(clip, things, thing, rng)]


def _is_there(clip: Clip, things: list[int], thing: int, rng: np.random.Generator) -> Question:
    """Is there a red ball? If not, at least its shape or its colour is in the picture."""
    kind, colour = str(clip.kinds[thing]), str(clip.colours[thing])
    have = {str(clip.names[i]) for i in things}
    truth = coin(rng)
    name = f"{colour} {kind}"
    if not truth:
        colours = [c for c in COLOURS if f"{c} {kind}" not in have]
        name = f"{one_of(rng, *colours)} {kind}"
    why = (
        f"there is a {name}."
        if truth
        else f"the {kind} is {colour}."
        if len(things) == 1
        else f"there is no {name}."
    )
    return yes_no(GROUP, f"Is there a {name} at the end?", truth, why)
