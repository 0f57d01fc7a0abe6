# SPDX-License-Identifier: Apache-2.0
"""A cup with small balls is tipped until they pour out, or leaned a little and set back.

Held-out cups hold a number of balls that training cups never do.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ...look import Split
from ..palette import colours
from ..script import Script
from ..stage import draw_stage, octagon_cup
from ..world import World

PLANS = {"pour": 1.1, "lean": 1.0}
_RADIUS, _HEIGHT = 0.075, 0.085


def script(plan: str, split: Split, rng: np.random.Generator) -> Script:
    """The script of a plan."""
    stage = draw_stage(split, rng, distance=(1.0, 1.2), look_z=0.12)
    count = int(rng.choice((4, 5, 7))) if split == "train" else 6
    cup_colour, ball_colour = colours(2, rng)
    lift = 0.12
    cup = stage.thing(
        "cup",
        cup_colour,
        (_RADIUS, _RADIUS, _HEIGHT),
        (-0.10, 0.0, lift + _HEIGHT),
        rng,
        parts=octagon_cup(_RADIUS, _HEIGHT),
        motion="hinge",
        axis=(0.0, 1.0, 0.0),
        mass=5.0,
        friction=0.2,
    )
    small = 0.028
    balls = []
    for i in range(count):
        angle, layer = i * 2.2 + float(rng.uniform(0.0, 0.5)), i // 3
        at = (-0.10 + 0.036 * np.cos(angle), 0.036 * np.sin(angle), lift + 0.05 + layer * 0.057)
        balls.append(
            stage.thing(
                "ball", ball_colour, (small,) * 3, (float(at[0]), float(at[1]), float(at[2])), rng, mass=0.02
            )
        )
    # Balls of one colour cannot be named apart: number them beyond the vocabulary, so that nothing asks.
    numbered = [replace(ball, name=f"{ball.name} {i}") for i, ball in enumerate(balls)]
    most = np.radians(float(rng.uniform(118, 132) if plan == "pour" else rng.uniform(22, 32)))
    frame_s = float(rng.uniform(0.08, 0.09))
    begins, lasts = float(rng.uniform(0.0, 0.15)), float(rng.uniform(0.45, 0.6))

    def control(world: World, frame: int, seconds: float) -> None:
        share = float(np.clip((seconds - begins) / lasts, 0.0, 1.0 if plan == "pour" else 2.0))
        if plan == "lean" and share > 1.0:
            world.drive(0, most * (2.0 - share), -most / lasts if share < 2.0 else 0.0)
        else:
            world.drive(0, most * share, most / lasts if 0.0 < share < 1.0 else 0.0)

    return Script((cup, *numbered), lambda _: stage.view, frame_s, control)
