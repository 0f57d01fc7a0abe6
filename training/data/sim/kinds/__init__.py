# SPDX-License-Identifier: Apache-2.0
"""Question kinds about clips: the paper's intuitive physics and eight kinds of its physical common sense.

Each module has ``GROUP`` and ``ask(clip, span, rng) -> list[Question]``, which asks only what the simulator's
state decides. ``draw`` chooses a window (and plays it backwards, or cuts a frame into tiles), and
``questions_for`` asks all that can be asked about it. Every sample carries its reasoning: with it as target
it is a reasoning sample, without it an understanding sample.
"""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType

import numpy as np

from training.data.schema import CATEGORIES, QuestionKind
from training.data.sim.sample import SimProvenance, SimSample, Span

from ..physics.clip import Clip
from ..physics.derive import PUZZLE_FRAMES, puzzle, reverse
from . import (
    anti_physics,
    arrow_of_time,
    attributes,
    camera,
    causality,
    mechanics,
    object_permanence,
    order,
    relationship,
    spatial_puzzle,
    states,
)

_COMMON_SENSE: tuple[ModuleType, ...] = (
    anti_physics,
    attributes,
    camera,
    causality,
    mechanics,
    order,
    relationship,
    states,
)
COMMON_SENSE = tuple(module.GROUP for module in _COMMON_SENSE)
INTUITIVE_PHYSICS = (arrow_of_time.GROUP, spatial_puzzle.GROUP, object_permanence.GROUP)
GROUPS = (*INTUITIVE_PHYSICS, *COMMON_SENSE)
_ARROW_SHARE = 0.5  # of draws from clips whose direction can be decided
_BEFORE_SHARE = 0.6  # of draws from clips in which something is let go: windows that end before it
_WHOLE_SHARE = 0.6


def kind_and_category(group: str) -> tuple[QuestionKind, str]:
    """How a group is filed in the sample record of all sources (training.data.schema)."""
    if group in COMMON_SENSE:
        return QuestionKind.COMMON_SENSE, group
    return QuestionKind(group), group if group in CATEGORIES else ""


def draw(clip: Clip, rng: np.random.Generator) -> tuple[Clip, Span]:
    """A window worth asking about, of this clip, of its reverse or of a puzzle made of one of its frames.

    The direction is asked only of windows drawn for it, forward and reversed equally often.
    """
    if clip.scene == "room":
        frame = (
            clip.frames[int(rng.integers(clip.length))] if len(clip.frames) else np.zeros((0, 0, 3), np.uint8)
        )
        made = puzzle(frame, rng.permutation(4), seed=clip.seed, split=clip.split, scene=clip.scene)
        return made, Span(0, PUZZLE_FRAMES)
    decided = arrow_of_time.spans(clip) if rng.random() < _ARROW_SHARE else []
    if decided:
        span = decided[int(rng.integers(len(decided)))]
        if rng.random() < 0.5:
            return replace(clip, variant="forward"), span
        return reverse(clip), Span(clip.length - 1 - span.last, span.length)
    if clip.release > 0 and rng.random() < _BEFORE_SHARE:
        return clip, Span(0, clip.release)
    if clip.scene in ("hide", "odd") or rng.random() < _WHOLE_SHARE:
        return clip, Span(0, clip.length)
    length = int(rng.choice((8, 10, 12, 14)))
    return clip, Span(2 * int(rng.integers((clip.length - length) // 2 + 1)), length)


def questions_for(clip: Clip, span: Span, rng: np.random.Generator) -> list[SimSample]:
    """All samples of one window; empty where nothing can be decided."""
    if span.last >= clip.length:
        raise ValueError(f"the clip has {clip.length} frames, the window ends at {span.last}")
    if clip.variant == "puzzle":
        asked = spatial_puzzle.ask(clip, span, rng)
    elif clip.variant == "reversed":
        asked = arrow_of_time.ask(clip, span, rng)
    else:
        asked = object_permanence.ask(clip, span, rng)
        if clip.variant == "forward":
            asked += arrow_of_time.ask(clip, span, rng)
        for module in _COMMON_SENSE:
            asked += module.ask(clip, span, rng)
    origin = SimProvenance("sim", clip.split, clip.seed, clip.scene, clip.plan, embodiment="")
    return [SimSample(span, q.query, q.answer, q.reasoning, origin, q.group) for q in asked]
