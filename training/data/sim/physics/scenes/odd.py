# SPDX-License-Identifier: Apache-2.0
"""What physics allows and what it does not, in pairs that look alike until the moment that matters.

hit / through        a ball rolls against a standing block, or right through it
roll / jump          a ball rolls on, or is suddenly elsewhere
fall / float         a ball falls and bounces, or turns upwards in the air
"""

from __future__ import annotations

import numpy as np

from ...look import Split
from ..palette import colours
from ..script import Script
from ..stage import Stage, cube, draw_stage, size
from ..world import World

PLANS = {"hit": 1.0, "roll": 1.0, "fall": 1.0, "through": 1.0, "jump": 1.0, "float": 1.0}


def script(plan: str, split: Split, rng: np.random.Generator) -> Script:
    """The script of a plan."""
    if plan in ("fall", "float"):
        return _air(draw_stage(split, rng, distance=(1.1, 1.25), look_z=0.2), rng, floats=plan == "float")
    stage = draw_stage(split, rng, look_z=0.04, tilt_deg=12.0)
    ball_colour, block_colour = colours(2, rng)
    half = size((0.06, 0.07), rng)
    side = float(rng.uniform(0.058, 0.068))
    # A block is always there: in the ball's way, or behind its lane for those that only roll.
    in_way = plan in ("hit", "through")
    lane = 0.0 if in_way else stage.nearer_y() * 0.1
    ball = stage.thing(
        "ball",
        ball_colour,
        half,
        (float(rng.uniform(-0.42, -0.36)), lane, half[2]),
        rng,
        velocity=(float(rng.uniform(0.75, 0.95)), 0.0, 0.0),
        mass=0.5,
    )
    through = plan == "through"
    block = stage.thing(
        "block",
        block_colour,
        cube(side),
        (0.02, lane if in_way else -stage.nearer_y() * 0.12, side),
        rng,
        mass=0.14,
        motion="fixed" if through else "free",
        ghost=through,
    )
    moment = float(rng.uniform(0.30, 0.45))
    sense = float(rng.choice((-1.0, 1.0)))
    state = {"done": False}

    def control(world: World, frame: int, seconds: float) -> None:
        if plan == "jump" and not state["done"] and seconds >= moment:
            world.put(0, np.array(stage.turn(sense * 0.24, 0.0, 0.0)))
            state["done"] = True

    return Script((ball, block), lambda _: stage.view, float(rng.uniform(0.052, 0.06)), control)


def _air(stage: Stage, rng: np.random.Generator, *, floats: bool) -> Script:
    """A thrown ball that comes down, or at some height turns up again."""
    colour, other = colours(2, rng)
    half = size((0.06, 0.07), rng)
    ball = stage.thing(
        "ball",
        colour,
        half,
        (float(rng.uniform(-0.22, -0.12)), 0.0, float(rng.uniform(0.34, 0.42))),
        rng,
        velocity=(float(rng.uniform(0.3, 0.5)), 0.0, 0.0),
        bounce=0.6,
        rolls=False,
    )
    side = float(rng.uniform(0.058, 0.068))
    block = stage.thing("block", other, cube(side), (0.3, -stage.nearer_y() * 0.15, side), rng)
    turn = float(rng.uniform(0.12, 0.17))

    def control(world: World, frame: int, seconds: float) -> None:
        if floats and seconds >= turn:
            world.push(0, (0.0, 0.0, 9.81 * 2.0))

    return Script((ball, block), lambda _: stage.view, float(rng.uniform(0.03, 0.034)), control)
