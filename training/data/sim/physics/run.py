# SPDX-License-Identifier: Apache-2.0
"""Makes the clip of a seed: draws scene and plan, runs the script."""

from __future__ import annotations

import numpy as np

from ..episode import split_of
from .clip import Clip
from .scenes import collide, drop, hide, odd, ramp, room, spill, stack, tabletop, topple
from .world import make_clip

# Scene -> (its module, how often it is drawn).
SCENES = {
    "topple": (topple, 1.2),
    "collide": (collide, 1.2),
    "drop": (drop, 1.0),
    "ramp": (ramp, 0.7),
    "stack": (stack, 0.7),
    "spill": (spill, 0.7),
    "hide": (hide, 1.6),
    "tabletop": (tabletop, 1.2),
    "odd": (odd, 1.0),
    "room": (room, 1.0),
}


def run_clip(seed: int, *, scene: str = "", plan: str = "", render: bool = True) -> Clip:
    """Make the clip of ``seed``; the same seed gives the same clip in any process.

    Args:
        seed: determines everything that the arguments below leave open; its split as for episodes.
        scene: chooses the scene instead of drawing it.
        plan: chooses the plan of the scene.
        render: without it ``frames`` is empty and all else the same, tens of times faster.

    Raises:
        ValueError: no such scene or plan.
    """
    rng = np.random.default_rng([seed, 1])  # apart from the robot episode of the same seed
    shares = np.array([share for _, share in SCENES.values()])
    drawn = str(rng.choice(list(SCENES), p=shares / shares.sum()))
    scene = scene or drawn
    if scene not in SCENES:
        raise ValueError(f"there is no scene {scene!r}: scenes are {', '.join(SCENES)}")
    module = SCENES[scene][0]
    plans = np.array(list(module.PLANS.values()))
    drawn = str(rng.choice(list(module.PLANS), p=plans / plans.sum()))
    plan = plan or drawn
    if plan not in module.PLANS:
        raise ValueError(f"scene {scene} has no plan {plan!r}: plans are {', '.join(module.PLANS)}")
    split = split_of(seed)
    script = module.script(plan, split, rng)
    return make_clip(seed, split, scene, plan, script, rng, render=render)
