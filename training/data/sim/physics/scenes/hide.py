# SPDX-License-Identifier: Apache-2.0
"""Things out of sight for a while: a screen passes before them, or the camera goes round a screen.

In plan "taken" one of them is taken away while no part of it can be seen, in plan "kept" none is. Until the
place comes into view again the two give the same pictures (a test compares them).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ...look import Split
from ..palette import SHAPES, colours
from ..script import Script, Thing, View
from ..stage import Stage, draw_stage
from ..world import World

PLANS = {"pass_taken": 1.0, "pass_kept": 1.0, "orbit_taken": 1.0, "orbit_kept": 1.0}


def script(plan: str, split: Split, rng: np.random.Generator) -> Script:
    """The script of a plan."""
    how, end = plan.split("_")
    stage = draw_stage(split, rng, look_z=0.06, tilt_deg=0.0)
    near = stage.nearer_y()
    count = int(rng.integers(2, 4))
    names, kinds = colours(count, rng), [str(rng.choice(SHAPES)) for _ in range(count)]
    spots = rng.permutation([-0.26, 0.0, 0.26])[:count] if how == "pass" else _orbit_spots(count, rng)
    things = []
    for i in range(count):
        side = float(rng.uniform(0.055, 0.068))
        y = -near * _depth(how, i, rng)
        at = (float(spots[i]) + float(rng.uniform(-0.02, 0.02)), y, side)
        things.append(stage.thing(kinds[i], names[i], (side,) * 3, at, rng, motion="fixed"))
    target = int(rng.integers(count)) if how == "pass" else 0
    if how == "pass":
        return _passing(stage, things, target, end == "taken", rng)
    return _orbiting(stage, things, target, end == "taken", rng)


def _depth(how: str, index: int, rng: np.random.Generator) -> float:
    """How far behind the middle a thing stands, metres; in an orbit only the first is behind the screen."""
    if how == "pass":
        return float(rng.uniform(0.05, 0.12))
    return float(rng.uniform(0.14, 0.18)) if index == 0 else -0.16


def _orbit_spots(count: int, rng: np.random.Generator) -> np.ndarray:
    """Places along x: the first thing behind the screen, the others in front of it and to its sides."""
    return np.array([0.0, *rng.permutation([-0.3, 0.3])[: count - 1]])


def _taker(target: int, screen: int, view_of: dict[int, View], taken: bool) -> tuple[dict[str, bool], object]:
    """A callback that takes the target away as soon as the screen hides all of it."""
    done = {"taken": not taken}

    def at_frame(world: World, frame: int, seconds: float) -> None:
        # The picture of this frame is taken right after: hidden now means hidden in it.
        if not done["taken"] and world.hidden_behind(target, screen, view_of[frame]):
            world.remove(target)
            done["taken"] = True

    return done, at_frame


def _passing(stage: Stage, things: list[Thing], target: int, taken: bool, rng: np.random.Generator) -> Script:
    """A screen slides across between camera and things."""
    near = stage.nearer_y()
    tall, wide = float(rng.uniform(0.15, 0.18)), float(rng.uniform(0.15, 0.18))
    start = -0.66
    screen = stage.prop(
        "screen",
        (wide, 0.01, tall),
        (start, near * 0.12, tall),
        rng,
        motion="slide",
        axis=(1.0, 0.0, 0.0),
        mass=5.0,
    )
    screen = replace(screen, ghost=True)
    view = replace(
        stage.view, elevation=float(rng.uniform(-20.0, -12.0)), distance=float(rng.uniform(1.15, 1.3))
    )
    frame_s = 0.05
    seconds_in_all = 15 * frame_s
    speed = 1.32 / seconds_in_all

    def control(world: World, frame: int, seconds: float) -> None:
        world.drive(len(things), speed * seconds, speed)

    _, at_frame = _taker(target, len(things), dict.fromkeys(range(64), view), taken)
    return Script((*things, screen), lambda _: view, frame_s, control, at_frame)  # type: ignore[arg-type]


def _orbiting(
    stage: Stage, things: list[Thing], target: int, taken: bool, rng: np.random.Generator
) -> Script:
    """The camera swings past a standing screen: in sight, behind it, in sight again."""
    near = stage.nearer_y()
    tall = float(rng.uniform(0.15, 0.17))
    screen = stage.prop(
        "screen", (float(rng.uniform(0.115, 0.13)), 0.01, tall), (0.0, near * 0.03, tall), rng
    )
    swing = float(rng.uniform(74.0, 86.0)) * float(rng.choice((-1.0, 1.0)))
    elevation = float(rng.uniform(-20.0, -14.0))

    def view(moment: float) -> View:
        azimuth = stage.view.azimuth + swing * (1.0 - 2.0 * moment)
        return replace(stage.view, azimuth=azimuth, elevation=elevation)

    views = {frame: view(frame / 15) for frame in range(16)}
    _, at_frame = _taker(target, len(things), views, taken)
    return Script((*things, screen), view, 0.05, at_frame=at_frame)  # type: ignore[arg-type]
