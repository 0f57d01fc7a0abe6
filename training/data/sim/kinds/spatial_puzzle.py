# SPDX-License-Identifier: Apache-2.0
"""Spatial puzzle: a frame cut 2x2, its tiles shown one after the other; which belongs where?"""

from __future__ import annotations

import numpy as np

from training.data.sim.sample import Span

from ..physics.clip import Clip
from ..physics.derive import PLACES, PUZZLE_FRAMES
from .question import Question, choice, free, one_of

GROUP = "spatial_puzzle"
ORDINALS = ("first", "second", "third", "fourth")


def ask(clip: Clip, span: Span, rng: np.random.Generator) -> list[Question]:
    """One question of each direction: the tile of a place, and the place of a tile."""
    if clip.variant != "puzzle" or span != Span(0, PUZZLE_FRAMES):
        return []
    order = clip.tiles.tolist()
    place = int(rng.integers(4))
    shown = order.index(place)
    others = [f"the {name} tile" for i, name in enumerate(ORDINALS) if i != shown]
    tile = f"the {ORDINALS[shown]} tile"
    text = one_of(
        rng,
        f"A picture was cut into four tiles. Which tile is the {PLACES[place]} one?",
        f"The video shows four tiles of one picture. Which tile belongs to the {PLACES[place]}?",
    )
    which = choice(GROUP, text, tile, others, _why(order, rng), rng)
    number = int(rng.integers(4))
    place = order[number]
    text = one_of(
        rng,
        f"A picture was cut into four tiles. Where does the {ORDINALS[number]} tile belong?",
        f"The video shows four tiles of one picture. Where is the {ORDINALS[number]} tile in it?",
    )
    wrong = [name for i, name in enumerate(PLACES) if i != place]
    why = _why(order, rng)
    where = (
        choice(GROUP, text, PLACES[place], wrong, why, rng)
        if rng.random() < 0.5
        else free(GROUP, text, PLACES[place], why)
    )
    return [which, where]


def _why(order: list[int], rng: np.random.Generator) -> str:
    """The place of every tile, in the order shown."""
    places = [PLACES[place] for place in order]
    tiles = [f"the {name} tile is {place}" for name, place in zip(ORDINALS, places, strict=True)]
    return one_of(rng, f"in this order the tiles are {', '.join(places)}.", f"{', '.join(tiles)}.")
