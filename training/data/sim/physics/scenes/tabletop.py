# SPDX-License-Identifier: Apache-2.0
"""Things that stand still, and a camera that moves one way or not at all."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ...look import Split
from ..palette import SHAPES, colours
from ..script import Script, View
from ..stage import draw_stage

PLANS = {"left": 1.0, "right": 1.0, "up": 1.0, "down": 1.0, "closer": 1.0, "away": 1.0, "still": 1.0}
_SPOTS = [(-0.27, -0.12), (0.0, -0.2), (0.27, -0.12), (-0.15, 0.15), (0.15, 0.15), (0.0, 0.0)]


def script(plan: str, split: Split, rng: np.random.Generator) -> Script:
    """The script of a plan."""
    stage = draw_stage(split, rng, look_z=0.05, tilt_deg=0.0, distance=(1.05, 1.25))
    count = int(rng.integers(2, 4)) if split == "train" else int(rng.integers(2, 5))
    names = colours(count, rng)
    things = []
    for i, spot in enumerate(rng.permutation(_SPOTS)[:count]):
        side = float(rng.uniform(0.06, 0.075))
        x, y = spot + rng.uniform(-0.03, 0.03, 2)
        kind = str(rng.choice(SHAPES))
        yaw = float(rng.uniform(0.0, 90.0))
        things.append(
            stage.thing(kind, names[i], (side,) * 3, (float(x), float(y), side), rng, yaw=yaw, motion="fixed")
        )
    shift = float(rng.uniform(0.28, 0.4))
    _, right, _ = stage.view.axes()

    def view(moment: float) -> View:
        gone = shift * (moment - 0.5)
        start = stage.view
        if plan in ("left", "right"):
            place = np.array(start.look_at) + right * (gone if plan == "right" else -gone)
            return replace(start, look_at=(float(place[0]), float(place[1]), float(place[2])))
        if plan in ("up", "down"):
            x, y, z = start.look_at
            return replace(start, look_at=(x, y, z + 0.8 * (gone if plan == "up" else -gone)))
        if plan in ("closer", "away"):
            return replace(start, distance=start.distance + 1.3 * (gone if plan == "away" else -gone))
        return start

    return Script(tuple(things), view, 0.05)
