# SPDX-License-Identifier: Apache-2.0
"""A block laid on a tower so that it sticks out, propped up by a stick that is then pulled away.

It stays when its centre is over the block below and falls when it is not. Held-out towers have heights that
training towers never have.
"""

from __future__ import annotations

import numpy as np

from ...look import Split
from ..palette import colours
from ..script import Script
from ..stage import draw_stage
from ..world import World

PLANS = {"stable": 1.0, "unstable": 1.0}
PULL_FRAME = 6


def script(plan: str, split: Split, rng: np.random.Generator) -> Script:
    """The script of a plan."""
    stage = draw_stage(split, rng, look_z=0.12, tilt_deg=12.0)
    levels = int(rng.choice((1, 3))) if split == "train" else 2
    names = colours(levels + 1, rng)
    half = (float(rng.uniform(0.06, 0.07)), 0.06, 0.048)
    # Each level is a little smaller and out of line: of boxes whose edges coincide MuJoCo (3.3.0) now and
    # then reports a contact centimetres deep, and the tower bursts.
    tower = []
    for level in range(levels):
        footprint = [side * (1.0 - 0.05 * level) for side in half[:2]]
        x, y = float(rng.uniform(-0.004, 0.004)) - 0.05, float(rng.uniform(-0.004, 0.004))
        at = (x, y, half[2] * (2 * level + 1))
        size = (footprint[0], footprint[1], half[2])
        tower.append(stage.thing("block", names[level], size, at, rng, mass=0.5))
    long = (float(rng.uniform(0.11, 0.13)), 0.055, 0.038)
    top = 2.0 * half[2] * levels
    out = half[0] * float(rng.uniform(0.1, 0.5) if plan == "stable" else rng.uniform(1.35, 1.6))
    x = -0.05 + out
    upper = stage.thing("block", names[levels], long, (x, 0.0, top + long[2]), rng, mass=0.25)
    prop_x = max(x + 0.6 * long[0], -0.05 + half[0] + 0.025)  # clear of the tower
    stick = stage.prop(
        "stick",
        (0.018, 0.018, top / 2 - 0.001),
        (prop_x, 0.0, top / 2),
        rng,
        motion="slide",
        axis=(1.0, 0.0, 0.0),
        mass=5.0,
        slick=True,
    )
    frame_s = float(rng.uniform(0.05, 0.06))
    begins = PULL_FRAME * frame_s

    def control(world: World, frame: int, seconds: float) -> None:
        gone = float(np.clip(1.3 * (seconds - begins), 0.0, 0.3))
        world.drive(levels + 1, gone, 1.3 if 0.0 < gone < 0.3 else 0.0)

    return Script((*tower, upper, stick), lambda _: stage.view, frame_s, control, release=PULL_FRAME)
