# SPDX-License-Identifier: Apache-2.0
"""A tall block or a row of dominoes; a stick pushes it or a ball runs into it. It falls or it stays."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ...look import Split
from ..palette import colours
from ..script import Script, Thing
from ..stage import Stage, draw_stage
from ..world import World

PLANS = {"push": 1.3, "nudge": 1.0, "ball": 2.3, "light_ball": 1.0, "dominoes": 2.5, "gap": 1.3}
_STICK_Z = (0.22, 0.28)


def script(plan: str, split: Split, rng: np.random.Generator) -> Script:
    """The script of a plan."""
    stage = draw_stage(split, rng, look_z=0.1)
    if plan in ("dominoes", "gap"):
        return _dominoes(stage, rng, gap=plan == "gap")
    names = colours(3, rng)
    tall = stage.thing(
        "block",
        names[0],
        (float(rng.uniform(0.042, 0.05)), 0.055, float(rng.uniform(0.16, 0.19))),
        (0.06, 0.0, 0.0),
        rng,
        mass=0.3,
    )
    tall = _on_table(tall)
    # Both possible causes are in every picture; only one of them acts.
    far = float(rng.choice((-1.0, 1.0))) * 0.22
    by_ball = plan in ("ball", "light_ball")
    start = float(rng.uniform(-0.42, -0.34))
    radius = 0.06 if plan == "light_ball" else 0.072
    rolling = (
        (float(rng.uniform(1.6, 1.9)), 0.0, 0.0) if by_ball else (float(rng.uniform(0.5, 0.9)), 0.0, 0.0)
    )
    ball = stage.thing(
        "ball",
        names[1],
        (radius, radius, radius),
        (start, 0.0 if by_ball else far, radius),
        rng,
        velocity=rolling,
        mass=0.03 if plan == "light_ball" else 0.9,
    )
    height = float(rng.uniform(*_STICK_Z))
    stick = _stick(stage, -0.30, far if by_ball else 0.0, height, rng)
    reach = {"push": 0.36, "nudge": float(rng.uniform(0.13, 0.175))}.get(plan, 0.0)  # a nudge stops short
    begins = float(rng.uniform(0.05, 0.2))
    speed = 0.28 if plan == "nudge" else float(rng.uniform(0.6, 0.9))

    def control(world: World, frame: int, seconds: float) -> None:
        gone = float(np.clip(speed * (seconds - begins), 0.0, reach))
        world.drive(2, gone, speed if 0.0 < gone < reach else 0.0)

    return Script((tall, ball, stick), lambda _: stage.view, float(rng.uniform(0.06, 0.072)), control)


def _stick(stage: Stage, x: float, y: float, z: float, rng: np.random.Generator) -> Thing:
    """A stick that can be driven along x."""
    return stage.prop(
        "stick", (0.13, 0.022, 0.022), (x, y, z), rng, motion="slide", axis=(1.0, 0.0, 0.0), mass=5.0
    )


def _on_table(thing: Thing) -> Thing:
    return replace(thing, at=(thing.at[0], thing.at[1], thing.half[2]))


def _dominoes(stage: Stage, rng: np.random.Generator, *, gap: bool) -> Script:
    """A row; with a gap the chain stops. Held-out rows are of a length that training rows never have."""
    count = int(rng.choice((3, 4))) if stage.split == "train" else 5
    pitch = float(rng.uniform(0.115, 0.13))
    hole = int(rng.integers(1, count)) if gap else count
    xs = np.arange(count) * pitch + np.where(np.arange(count) >= hole, 0.19, 0.0)
    xs -= xs.mean() - 0.03
    names = colours(count, rng)
    half = (0.02, 0.06, float(rng.uniform(0.11, 0.125)))
    row = [
        stage.thing("block", names[i], half, (float(xs[i]), 0.0, half[2]), rng, mass=0.15)
        for i in range(count)
    ]
    stick = _stick(stage, float(xs[0]) - 0.22, 0.0, 0.19, rng)
    begins, speed = float(rng.uniform(0.02, 0.1)), float(rng.uniform(0.5, 0.7))

    def control(world: World, frame: int, seconds: float) -> None:
        gone = float(np.clip(speed * (seconds - begins), 0.0, 0.16))
        world.drive(count, gone, speed if 0.0 < gone < 0.16 else 0.0)

    return Script((*row, stick), lambda _: stage.view, float(rng.uniform(0.05, 0.06)), control)
