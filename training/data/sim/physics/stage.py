# SPDX-License-Identifier: Apache-2.0
"""Where a clip is seen from, and the things that scenes share.

Held-out azimuths are disjoint from those of training. Scenes are written in stage coordinates: x along the
action, mostly across the picture, to the right or to the left by chance; y across the action; z up.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..look import Split
from .palette import Rgb, dull, from_ranges, shade
from .script import Part, Thing, View

AZIMUTHS: dict[Split, tuple[tuple[float, float], ...]] = {
    "train": ((0.0, 75.0), (100.0, 190.0), (215.0, 300.0), (320.0, 360.0)),
    "held_out": ((78.0, 97.0), (193.0, 212.0), (303.0, 317.0)),
}
ELEVATION = (-36.0, -16.0)
_TILT_DEG = 22.0  # the action's direction off the picture's horizontal
BALL_M = (0.06, 0.072)  # radius
BLOCK_M = (0.056, 0.066)  # half side


@dataclass(frozen=True)
class Stage:
    """A camera, and the direction of the action.

    Attributes:
        view: the camera.
        yaw: of the stage's x axis, degrees.
        split: where looks are drawn from.
    """

    view: View
    yaw: float
    split: Split

    def turn(self, x: float, y: float, z: float) -> tuple[float, float, float]:
        """A vector in stage coordinates, as world coordinates."""
        c, s = np.cos(np.radians(self.yaw)), np.sin(np.radians(self.yaw))
        return (float(c * x - s * y), float(s * x + c * y), float(z))

    def nearer_y(self) -> float:
        """Sign of y that points to the camera."""
        return 1.0 if np.dot(self.turn(0.0, 1.0, 0.0), self.view.axes()[0]) < 0 else -1.0

    def thing(
        self,
        kind: str,
        colour: str,
        half: tuple[float, float, float],
        at: tuple[float, float, float],
        rng: np.random.Generator,
        *,
        velocity: tuple[float, float, float] = (0.0, 0.0, 0.0),
        yaw: float = 0.0,
        **more: object,
    ) -> Thing:
        """A coloured thing, placed in stage coordinates and named after colour and kind."""
        made = Thing(
            name=f"{colour} {kind}",
            kind=kind,
            colour=colour,
            rgb=shade(colour, self.split, rng),
            half=half,
            at=self.turn(*at),
            velocity=self.turn(*velocity),
            yaw=self.yaw + yaw,
        )
        return replace(made, **more)  # type: ignore[arg-type]

    def prop(
        self,
        name: str,
        half: tuple[float, float, float],
        at: tuple[float, float, float],
        rng: np.random.Generator,
        *,
        rgb: Rgb | None = None,
        **more: object,
    ) -> Thing:
        """A thing without a named colour (stick, screen, gate), named by its noun."""
        made = Thing(
            name=name,
            kind=name,
            colour="",
            rgb=rgb or dull(self.split, rng, 0.3, 0.9),
            half=half,
            at=self.turn(*at),
            yaw=self.yaw,
            motion="fixed",
        )
        return replace(made, **more)  # type: ignore[arg-type]


def draw_stage(
    split: Split,
    rng: np.random.Generator,
    *,
    distance: tuple[float, float] = (0.95, 1.15),
    look_z: float = 0.08,
    tilt_deg: float = _TILT_DEG,
) -> Stage:
    """A camera of this split and an action across its picture."""
    azimuth = from_ranges(AZIMUTHS[split], rng)
    jitter = rng.uniform(-0.03, 0.03, 3)
    view = View(
        azimuth=azimuth,
        elevation=float(rng.uniform(*ELEVATION)),
        distance=float(rng.uniform(*distance)),
        look_at=(float(jitter[0]), float(jitter[1]), float(look_z + jitter[2])),
    )
    yaw = azimuth - 90.0 + rng.uniform(-tilt_deg, tilt_deg) + (180.0 if rng.random() < 0.5 else 0.0)
    return Stage(view, float(yaw), split)


def cube(side: float) -> tuple[float, float, float]:
    """Half extents of a cube or ball."""
    return (side, side, side)


def size(bounds: tuple[float, float], rng: np.random.Generator) -> tuple[float, float, float]:
    """Half extents of a random cube or ball."""
    return cube(float(rng.uniform(*bounds)))


def octagon_cup(radius: float, height: float, wall: float = 0.008) -> tuple[Part, ...]:
    """Geoms of an open cup about its centre."""
    width = radius * np.tan(np.pi / 8) + wall
    sides = tuple(
        Part(
            "box",
            (wall, float(width), height),
            (float(radius * np.cos(a)), float(radius * np.sin(a)), 0.0),
            (0.0, 0.0, float(np.degrees(a))),
        )
        for a in np.arange(8) * np.pi / 4
    )
    return (*sides, Part("cylinder", (radius, wall), (0.0, 0.0, -height + wall)))
