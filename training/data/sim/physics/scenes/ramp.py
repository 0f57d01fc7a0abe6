# SPDX-License-Identifier: Apache-2.0
"""A thing on a board, held by a gate that is lifted: does it go down or stay?

What happens follows from shape and slope, which are seen before the gate moves: a ball rolls down any slope,
a block stays on a gentle one and slides down a steep one, and on a level board all stay.
"""

from __future__ import annotations

import numpy as np

from ...look import Split
from ..palette import colours
from ..script import Part, Script
from ..stage import draw_stage
from ..world import World

PLANS = {"ball_slope": 1.5, "ball_level": 1.0, "block_steep": 1.5, "block_gentle": 1.0}
_BOARD = (0.26, 0.1, 0.014)
GATE_FRAME = 6  # an even one: windows before it end on it


def script(plan: str, split: Split, rng: np.random.Generator) -> Script:
    """The script of a plan."""
    stage = draw_stage(split, rng, look_z=0.1, tilt_deg=6.0)
    shape, slope = plan.split("_")
    degrees = float(
        rng.uniform(*{"slope": (14, 28), "level": (0, 0), "steep": (27, 32), "gentle": (9, 13)}[slope])
    )
    angle = np.radians(degrees)
    base = 0.06  # height of the board's lower end
    centre = (-0.08, 0.0, base + _BOARD[0] * np.sin(angle))
    legs = float(centre[2] - 0.03)
    board = stage.prop(
        "board",
        _BOARD,
        centre,
        rng,
        parts=(
            Part("box", _BOARD, turn=(0.0, degrees, 0.0)),
            Part("box", (0.02, 0.07, legs / 2 + 0.01), (-0.02, 0.0, -legs / 2 - 0.02)),
        ),
        friction=0.3,
    )
    radius = float(rng.uniform(0.055, 0.065))
    along = -0.6 * _BOARD[0]
    normal = radius + _BOARD[2] + 0.001
    at = (
        centre[0] + along * np.cos(angle) + normal * np.sin(angle),
        0.0,
        centre[2] - along * np.sin(angle) + normal * np.cos(angle),
    )
    name = colours(1, rng)[0]
    turned = (Part("box", (radius,) * 3, turn=(0.0, degrees, 0.0)),) if shape == "block" else ()
    friction = 0.3 if slope == "steep" else 0.9
    thing = stage.thing(shape, name, (radius,) * 3, at, rng, parts=turned, friction=friction)
    ahead = radius + 0.012
    gate_half = (0.01, 0.09, radius)
    gate = stage.prop(
        "gate",
        gate_half,
        (at[0] + ahead * np.cos(angle), 0.0, at[2] - ahead * np.sin(angle)),
        rng,
        parts=(Part("box", gate_half, turn=(0.0, degrees, 0.0)),),
        motion="slide",
        axis=(float(np.sin(angle)), 0.0, float(np.cos(angle))),
        mass=5.0,
        slick=True,
    )
    frame_s = float(rng.uniform(0.06, 0.07))
    opens = GATE_FRAME * frame_s

    def control(world: World, frame: int, seconds: float) -> None:
        lifted = float(np.clip(1.2 * (seconds - opens), 0.0, 0.25))
        world.drive(2, lifted, 1.2 if 0.0 < lifted < 0.25 else 0.0)

    return Script((thing, board, gate), lambda _: stage.view, frame_s, control, release=GATE_FRAME)
