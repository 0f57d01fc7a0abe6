# SPDX-License-Identifier: Apache-2.0
"""What happens in a clip, as data: things, camera, and who moves what when.

Legend: positions are (x, y, z) in metres, z is 0 on the table's top; camera angles as in MuJoCo's free camera
(azimuth 90 looks along +y).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from .clip import FRAME_SIDE
from .palette import Rgb

if TYPE_CHECKING:
    from .world import World

CLIP_FRAMES = 16
FOV_DEG = 45.0  # vertical; pictures are square


@lru_cache(maxsize=64)  # asked for every thing of every frame
def _axes(azimuth_deg: float, elevation_deg: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    azimuth, elevation = np.radians(azimuth_deg), np.radians(elevation_deg)
    across = np.array([np.cos(azimuth), np.sin(azimuth), 0.0])
    forward = np.cos(elevation) * across + np.array([0.0, 0.0, np.sin(elevation)])
    right = np.array([np.sin(azimuth), -np.cos(azimuth), 0.0])
    return forward, right, np.cross(right, forward)


@dataclass(frozen=True)
class View:
    """Where the camera is: degrees, degrees, metres, point looked at (metres)."""

    azimuth: float
    elevation: float
    distance: float
    look_at: tuple[float, float, float]

    def axes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(3,) unit vectors: forward, right, up."""
        return _axes(self.azimuth, self.elevation)

    def eye(self) -> np.ndarray:
        """(3,) position of the camera."""
        return np.array(self.look_at) - self.distance * self.axes()[0]

    def project(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Image positions (..., 2), in pixels of a frame, and depths (...) of (..., 3) points."""
        forward, right, up = self.axes()
        rays = points - self.eye()
        depth = rays @ forward
        scale = 0.5 * FRAME_SIDE / np.tan(np.radians(FOV_DEG) / 2.0) / np.maximum(depth, 1e-6)
        pixel = 0.5 * FRAME_SIDE + np.stack([rays @ right * scale, -(rays @ up) * scale], axis=-1)
        return pixel, depth


@dataclass(frozen=True)
class Part:
    """One geom of a thing: MuJoCo type, size, place and turn (degrees about x, y, z) in the thing's frame."""

    shape: str
    size: tuple[float, ...]
    at: tuple[float, float, float] = (0.0, 0.0, 0.0)
    turn: tuple[float, float, float] = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Thing:
    """Something on the table that questions may name.

    Attributes:
        name: in words, unique.
        kind: its noun.
        colour: name of its colour; "" without.
        rgb: its colour.
        half: half extents at rest, metres.
        at: position of its centre.
        parts: its geoms; empty: one, of the shape that its kind names.
        yaw: turn about the vertical, degrees.
        motion: "free", "fixed", "slide" (driven along ``axis``) or "hinge" (driven about ``axis``).
        axis: of "slide" and "hinge", in the thing's frame.
        velocity: (m/s) at the start, of a free thing.
        rolls: a ball with ``velocity`` starts rolling rather than sliding.
        mass: kilograms.
        friction: sliding friction coefficient.
        bounce: share of speed kept by a bounce; None: it does not bounce.
        ghost: touches nothing.
        slick: slides along others without friction.
    """

    name: str
    kind: str
    colour: str
    rgb: Rgb
    half: tuple[float, float, float]
    at: tuple[float, float, float]
    parts: tuple[Part, ...] = ()
    yaw: float = 0.0
    motion: str = "free"
    axis: tuple[float, float, float] = (1.0, 0.0, 0.0)
    velocity: tuple[float, float, float] = (0.0, 0.0, 0.0)
    rolls: bool = True
    mass: float = 0.2
    friction: float = 0.6
    bounce: float | None = None
    ghost: bool = False
    slick: bool = False

    def geoms(self) -> tuple[Part, ...]:
        """Its geoms."""
        if self.parts:
            return self.parts
        if self.kind == "ball":
            return (Part("sphere", (self.half[0],)),)
        if self.kind == "can":
            return (Part("cylinder", (self.half[0], self.half[2])),)
        return (Part("box", self.half),)


Control = Callable[["World", int, float], None]


def _stay(world: World, frame: int, seconds: float) -> None:
    """No one does anything."""


@dataclass(frozen=True)
class Script:
    """What happens in a clip.

    Attributes:
        things: on the table; only these are recorded.
        view: camera at a moment in [0, 1] of the clip.
        frame_s: simulated seconds between two frames.
        control: called before every physics step with the world, the frame last taken and the time (s).
        at_frame: called before every frame is taken.
        release: see Clip.
        clear_m: distractors stay this far from the table's middle.
    """

    things: tuple[Thing, ...]
    view: Callable[[float], View]
    frame_s: float
    control: Control = _stay
    at_frame: Control = _stay
    release: int = -1
    clear_m: float = 0.40
