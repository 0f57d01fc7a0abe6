# SPDX-License-Identifier: Apache-2.0
"""Two balls roll, a stick waits, a block stands in the middle: what makes it move, if anything?

All three possible causes are in every clip, so that presence does not tell the answer. In plan "weigh" equal
balls hit two blocks of different mass; in plan "race" two balls roll side by side at different speeds.
"""

from __future__ import annotations

import numpy as np

from ...look import Split
from ..palette import colours
from ..script import Script, Thing
from ..stage import BALL_M, BLOCK_M, Stage, cube, draw_stage, size
from ..world import World

PLANS = {"first": 1.5, "second": 1.5, "stick": 1.0, "none": 1.2, "weigh": 2.0, "race": 2.0}
_LANE_M = 0.2


def script(plan: str, split: Split, rng: np.random.Generator) -> Script:
    """The script of a plan."""
    if plan in ("weigh", "race"):
        return _lanes(draw_stage(split, rng, look_z=0.04), rng, weigh=plan == "weigh")
    stage = draw_stage(split, rng, look_z=0.04)
    names = colours(3, rng)
    side = float(rng.uniform(*BLOCK_M))
    kind = str(rng.choice(("block", "can")))
    target = stage.thing(kind, names[0], cube(side), (0.0, 0.0, side), rng, mass=0.14, friction=0.35)
    balls = [
        _ball(stage, names[1], -1.0, plan == "first", rng),
        _ball(stage, names[2], 1.0, plan == "second", rng),
    ]
    # The stick waits on the side away from the camera and points at the block.
    away = -stage.nearer_y()
    stick = stage.prop(
        "stick",
        (0.022, 0.10, 0.022),
        (0.0, away * 0.26, float(side)),
        rng,
        motion="slide",
        axis=(0.0, -away, 0.0),
        mass=5.0,
    )
    reach = 0.25 if plan == "stick" else float(rng.choice((0.0, 0.05)))
    begins, speed = float(rng.uniform(0.1, 0.3)), float(rng.uniform(0.45, 0.6))

    def control(world: World, frame: int, seconds: float) -> None:
        gone = float(np.clip(speed * (seconds - begins), 0.0, reach))
        world.drive(3, gone, speed if 0.0 < gone < reach else 0.0)

    return Script((target, *balls, stick), lambda _: stage.view, float(rng.uniform(0.05, 0.065)), control)


def _ball(stage: Stage, colour: str, side: float, hits: bool, rng: np.random.Generator) -> Thing:
    """A ball coming from one side: it hits the middle, passes it by, or stops short."""
    half = size(BALL_M, rng)
    speed = float(rng.uniform(1.1, 1.4)) if hits else float(rng.uniform(0.5, 0.9))
    passes = rng.random() < 0.6
    lane = 0.0 if hits else float(rng.uniform(0.19, 0.23)) * stage.nearer_y()
    if not hits and not passes:
        speed, lane = 0.0, float(rng.uniform(-0.03, 0.03))
    start = side * float(rng.uniform(0.32, 0.38))
    return stage.thing(
        "ball",
        colour,
        half,
        (start, lane, half[2]),
        rng,
        velocity=(-side * speed, 0.0, 0.0),
        mass=0.25,
        bounce=0.6,
    )


def _lanes(stage: Stage, rng: np.random.Generator, *, weigh: bool) -> Script:
    """Two lanes along x, one nearer to the camera; which lane is the fast or heavy one is a coin flip."""
    names = colours(4, rng)
    winner = int(rng.integers(2))
    half = size(BALL_M, rng)
    things = []
    slow = float(rng.uniform(0.35, 0.45))
    fast = slow * float(rng.uniform(1.9, 2.4))
    for lane in range(2):
        y = (lane - 0.5) * 2.0 * _LANE_M * 0.62
        speed = 1.2 if weigh else fast if lane == winner else slow
        start = float(rng.uniform(-0.42, -0.28) if weigh else rng.uniform(-0.42, -0.34))
        things.append(
            stage.thing(
                "ball", names[lane], half, (start, y, half[2]), rng, velocity=(speed, 0.0, 0.0), mass=0.3
            )
        )
    if weigh:
        side = float(rng.uniform(*BLOCK_M))
        for lane in range(2):
            y = (lane - 0.5) * 2.0 * _LANE_M * 0.62
            mass = float(rng.uniform(2.2, 3.0)) if lane == winner else float(rng.uniform(0.12, 0.2))
            things.append(
                stage.thing(
                    "block", names[2 + lane], cube(side), (-0.1, y, side), rng, mass=mass, friction=0.3
                )
            )
    return Script(tuple(things), lambda _: stage.view, float(rng.uniform(0.05, 0.065)))
