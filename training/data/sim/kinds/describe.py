# SPDX-License-Identifier: Apache-2.0
"""Descriptions: all things of a picture, all tiles of a puzzle, all movements, in one answer.

A question of the kinds is about one thing, so one answer says little about what was seen; an answer that
names all of it teaches a language model to read its video. For training only: no benchmark asks for them.
"""

from __future__ import annotations

import numpy as np

from training.data.sample import Provenance, Sample, Span

from ..physics.clip import Clip
from ..physics.derive import PLACES
from . import attributes, relationship, states
from .motion import in_view, named, pixel_speed
from .question import Question, coin, free, one_of, the
from .spatial_puzzle import ORDINALS

GROUP = "description"
_MOVED_PX = 6.0  # between the window's ends: certainly somewhere else
_STAYED_PX = 2.0
_ASKED = 2  # rounds of questions about a picture


def describe(clip: Clip, span: Span, rng: np.random.Generator) -> list[Sample]:
    """Descriptions of a window."""
    if clip.variant == "puzzle":
        return _samples(clip, span, [_tiles(clip, rng)])
    asked = [_picture(clip, span.last, rng)]
    if span.length > 2:
        asked += [_ends(clip, span), *_movements(clip, span)]
    return _samples(clip, span, asked)


def ask_of_picture(clip: Clip, span: Span, rng: np.random.Generator) -> list[Sample]:
    """What one pair of frames can answer: a description, attributes, relationships and states."""
    asked = [_picture(clip, span.last, rng)]
    for _ in range(_ASKED):
        for module in (attributes, relationship, states):
            asked += module.ask(clip, span, rng)
    return _samples(clip, span, list({question.query: question for question in asked}.values()))


def _samples(clip: Clip, span: Span, asked: list[Question]) -> list[Sample]:
    origin = Provenance("sim", clip.split, clip.seed, clip.scene, clip.plan, embodiment="")
    return [Sample(span, q.query, q.answer, q.reasoning, origin, q.group) for q in asked]


def _picture(clip: Clip, frame: int, rng: np.random.Generator) -> Question:
    """Things in view in order of place, from left to right or from near to far."""
    things = _in_view(clip, frame)
    across = coin(rng)
    order = clip.pixel[frame, :, 0] if across else clip.depth[frame]
    things.sort(key=lambda i: float(order[i]))
    answer = ", ".join(the(clip, i) for i in things) or "nothing"
    way = "left to right" if across else "near to far"
    text = one_of(
        rng, f"What things are in the last frame, from {way}?", f"What is there at the end, from {way}?"
    )
    return free(GROUP, text, answer, "")


def _ends(clip: Clip, span: Span) -> Question:
    """Things in view at the window's start and at its end."""
    parts = [
        f"in the {name} frame {', '.join(the(clip, i) for i in _in_view(clip, frame)) or 'nothing'}"
        for name, frame in (("first", span.first), ("last", span.last))
    ]
    text = "What things are in the first frame, and what things are in the last frame?"
    return free(GROUP, text, "; ".join(parts), "")


def _movements(clip: Clip, span: Span) -> list[Question]:
    """Where each thing went, as the picture shows it; empty where nothing can be said of some thing."""
    parts = []
    at_end = set(_in_view(clip, span.last))
    for i in _in_view(clip, span.first):
        if i not in at_end:
            return []
        across, down = clip.pixel[span.last, i] - clip.pixel[span.first, i]
        if max(abs(across), abs(down)) < _STAYED_PX:
            way = "stays"
        elif max(abs(across), abs(down)) < _MOVED_PX:
            return []
        elif abs(across) >= abs(down):
            way = "goes to the right" if across > 0 else "goes to the left"
        else:
            way = "goes down" if down > 0 else "goes up"
        speed = pixel_speed(clip, span.last - 1)[i]
        parts.append(f"{the(clip, i)} {way}{' and moves at the end' if speed > 1.0 else ''}")
    if not parts:
        return []
    return [free(GROUP, "How do the things move in the picture?", ", ".join(parts), "")]


def _tiles(clip: Clip, rng: np.random.Generator) -> Question:
    """The place of every tile."""
    places = [PLACES[place] for place in clip.tiles.tolist()]
    if coin(rng):
        text = "A picture was cut into four tiles. Where does each tile belong?"
        return free(GROUP, text, ", ".join(places), "")
    text = "The video shows four tiles of one picture. Which tile belongs to which place?"
    parts = [f"the {name} tile {place}" for name, place in zip(ORDINALS, places, strict=True)]
    return free(GROUP, text, ", ".join(parts), "")


def _in_view(clip: Clip, frame: int) -> list[int]:
    visible = set(in_view(clip, frame))
    return [i for i in named(clip) if i in visible]
