# SPDX-License-Identifier: Apache-2.0
"""Balls in the air: they fly up or fall, land one after the other, and bounce high or low.

Height and upward speed at the start are drawn apart, so the lowest ball is not always the first to land. In
plan "bounce" two balls fall together and differ in how they bounce. In "roof" one ball bounces for long.
"""

from __future__ import annotations

import numpy as np

from ...look import Split
from ..palette import colours
from ..script import Script
from ..stage import draw_stage, size

PLANS = {"land": 2.0, "bounce": 2.0, "long_bounce": 2.0}
_G = 9.81


def script(plan: str, split: Split, rng: np.random.Generator) -> Script:
    """The script of a plan."""
    stage = draw_stage(split, rng, distance=(1.1, 1.25), look_z=0.2, tilt_deg=12.0)
    count = 1 if plan == "long_bounce" else 2 if plan == "bounce" else 3
    names = colours(count, rng)
    xs = (np.arange(count) - (count - 1) / 2) * 0.24 + rng.uniform(-0.03, 0.03, count)
    if plan == "long_bounce":
        xs = np.array([rng.uniform(-0.30, -0.22)])
    times = _landing_times(count, rng) if plan == "land" else np.full(count, rng.uniform(0.22, 0.26))
    livelier = int(rng.integers(count))
    things = []
    for i in range(count):
        half = size((0.056, 0.066), rng)
        height, speed = _flight(float(times[i]), rng) if plan == "land" else (0.5 * _G * times[i] ** 2, 0.0)
        if plan == "long_bounce":
            height, speed = float(rng.uniform(0.28, 0.36)), 0.0
        keeps = 0.82 if plan != "land" and i == livelier else 0.32
        bounce = float(rng.uniform(keeps - 0.05, keeps + 0.05))
        if plan == "long_bounce":
            bounce = float(rng.uniform(0.66, 0.74))
        across = float(rng.uniform(0.35, 0.5)) if plan == "long_bounce" else 0.0
        things.append(
            stage.thing(
                "ball",
                names[i],
                half,
                (float(xs[i]), float(rng.uniform(-0.05, 0.05)), half[2] + float(height)),
                rng,
                velocity=(across, 0.0, float(speed)),
                bounce=bounce,
                rolls=False,
            )
        )
    frame_s = {"land": 0.032, "bounce": 0.036, "long_bounce": 0.072}[plan] * float(rng.uniform(0.94, 1.06))
    return Script(tuple(things), lambda _: stage.view, frame_s)


def _landing_times(count: int, rng: np.random.Generator) -> np.ndarray:
    """Times of landing, well apart, in random order."""
    gaps = rng.uniform(0.10, 0.13, count - 1)
    times = rng.uniform(0.12, 0.16) + np.concatenate([[0.0], np.cumsum(gaps)])
    return rng.permutation(times)


def _flight(seconds: float, rng: np.random.Generator) -> tuple[float, float]:
    """A start height and upward speed that land after ``seconds``."""
    height = float(rng.uniform(0.12, 0.30))
    speed = (0.5 * _G * seconds**2 - height) / seconds
    return height, float(speed)
