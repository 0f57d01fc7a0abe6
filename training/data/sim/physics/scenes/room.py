# SPDX-License-Identifier: Apache-2.0
"""A table seen whole, from a new side in every frame: pictures for puzzles, not a film.

The table's outline crosses every quarter of the picture, so each tile's place can be told.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ...look import Split
from ..palette import SHAPES, colours, from_ranges
from ..script import CLIP_FRAMES, Script, View
from ..stage import AZIMUTHS, draw_stage

PLANS = {"views": 1.0}
_SPOTS = [(-0.27, -0.25), (0.27, -0.25), (-0.27, 0.25), (0.27, 0.25), (0.0, 0.0)]


def script(plan: str, split: Split, rng: np.random.Generator) -> Script:
    """The script of a plan."""
    stage = draw_stage(split, rng, tilt_deg=0.0)
    count = int(rng.integers(3, 6))
    things = []
    for spot, colour in zip(rng.permutation(_SPOTS)[:count], colours(count, rng), strict=True):
        side = float(rng.uniform(0.06, 0.085))
        x, y = spot + rng.uniform(-0.06, 0.06, 2)
        at = (float(x), float(y), side)
        kind, yaw = str(rng.choice(SHAPES)), float(rng.uniform(0.0, 90.0))
        things.append(stage.thing(kind, colour, (side,) * 3, at, rng, yaw=yaw, motion="fixed"))
    views = [
        replace(
            stage.view,
            azimuth=from_ranges(AZIMUTHS[split], rng),
            elevation=float(rng.uniform(-42.0, -26.0)),
            distance=float(rng.uniform(1.75, 2.0)),
            look_at=(0.0, 0.0, float(rng.uniform(-0.08, -0.02))),
        )
        for _ in range(CLIP_FRAMES)
    ]

    def view(moment: float) -> View:
        return views[round(moment * (CLIP_FRAMES - 1))]

    return Script(tuple(things), view, 0.002)
