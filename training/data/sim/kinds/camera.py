# SPDX-License-Identifier: Apache-2.0
"""Camera: which way it moves, or whether it stands still while things move."""

from __future__ import annotations

import numpy as np

from training.data.sim.sample import Span

from ..physics.clip import Clip
from ..physics.script import View
from .question import Question, coin, either, one_of, yes_no

GROUP = "camera"
STILL = "it stands still"
_OPPOSITE = {
    "it moves to the left": "it moves to the right",
    "it moves up": "it moves down",
    "it moves closer": "it moves away",
    "it circles to the left": "it circles to the right",
}
MOVES = (*_OPPOSITE, *_OPPOSITE.values())
_OPPOSITE |= {right: left for left, right in _OPPOSITE.items()}
_LEAST_M = 0.12
_LEAST_DEG = 25.0
_STILL_SHARE = 0.05  # of the windows of scenes with a standing camera that are asked about


def movement(clip: Clip, span: Span) -> str:
    """The camera's movement in words; "" where it is too small to say."""
    first, last = clip.camera[span.first], clip.camera[span.last]
    if np.allclose(first, last):
        return STILL
    turn = float(last[0] - first[0])
    if abs(turn) >= _LEAST_DEG:
        return f"it circles to the {'right' if turn > 0 else 'left'}"  # azimuth grows to the camera's right
    start, end = (View(float(c[0]), float(c[1]), float(c[2]), tuple(c[3:].tolist())) for c in (first, last))
    way = end.eye() - start.eye()
    forward, right, _ = start.axes()
    amounts = {
        "it moves to the right": way @ right,
        "it moves up": way[2] if abs(way @ forward) < 0.95 * np.linalg.norm(way) else 0.0,
        "it moves closer": way @ forward if abs(way @ forward) >= 0.95 * np.linalg.norm(way) else 0.0,
    }
    name = max(amounts, key=lambda key: abs(amounts[key]))
    if abs(amounts[name]) < _LEAST_M:
        return ""
    return name if amounts[name] > 0 else _OPPOSITE[name]


def ask(clip: Clip, span: Span, rng: np.random.Generator) -> list[Question]:
    """Which way, or whether it goes a certain way."""
    moved = movement(clip, span)
    if (
        not moved
        or clip.scene == "room"
        or (moved == STILL and clip.scene != "tabletop" and not coin(rng, _STILL_SHARE))
    ):
        return []
    why = _why(moved, rng)
    others = [name for name in (*MOVES, STILL) if name not in (moved, _OPPOSITE.get(moved))]
    if coin(rng, 0.4):
        truth = coin(rng)
        asked = (
            moved
            if truth
            else _OPPOSITE.get(moved)
            if moved != STILL and coin(rng, 0.7)
            else one_of(rng, *others)
        )
        text = f"Is this what the camera does: {asked}?"
        return [yes_no(GROUP, text, truth, why)]
    wrong = [str(name) for name in rng.permutation(others)]
    wrong = [_OPPOSITE[moved], *wrong[:2]] if moved != STILL else wrong[:3]
    text = one_of(rng, "What does the camera do?", "How does the camera move?")
    return [either(GROUP, text, moved, wrong, why, rng)]


def _why(moved: str, rng: np.random.Generator) -> str:
    if moved == STILL:
        return one_of(
            rng, "the table stays where it is in the picture.", "the table does not move in the picture."
        )
    return {
        "it moves to the left": "the table goes to the right in the picture.",
        "it moves to the right": "the table goes to the left in the picture.",
        "it moves up": "the table goes down in the picture.",
        "it moves down": "the table goes up in the picture.",
        "it moves closer": "the things on the table become larger.",
        "it moves away": "the things on the table become smaller.",
        "it circles to the left": "the table turns, and what is near goes to the right.",
        "it circles to the right": "the table turns, and what is near goes to the left.",
    }[moved]
