# SPDX-License-Identifier: Apache-2.0
"""What an episode looks like: camera, light and colours, drawn per split.

The held-out split never shares a camera angle or a colour with training: azimuths and hues are drawn from
disjoint ranges. Held-out azimuths lie both between the training ranges and beyond them.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from typing import Literal

import mujoco
import numpy as np

Split = Literal["train", "held_out"]

# Degrees around the table's vertical; 90 looks along +y over the robot's shoulder, 180 from its left.
AZIMUTHS: dict[Split, tuple[tuple[float, float], ...]] = {
    "train": ((113.0, 138.0), (152.0, 168.0)),
    "held_out": ((104.0, 112.0), (140.0, 150.0), (169.0, 175.0)),
}
# Hue of the recoloured materials, on the colour circle [0, 1].
HUES: dict[Split, tuple[tuple[float, float], ...]] = {
    "train": ((0.0, 0.22), (0.32, 0.55), (0.65, 0.80), (0.90, 1.0)),
    "held_out": ((0.23, 0.31), (0.56, 0.64), (0.81, 0.89)),
}
ELEVATION = (-40.0, -22.0)
DISTANCE_M = (0.80, 1.05)
LOOK_AT = (0.0, 0.70, 0.12)
LOOK_AT_JITTER_M = 0.03
# Materials of metaworld's table and room; the others of a scene belong to its object (and a few to both).
SURROUNDINGS = ("basic_floor", "table_wood", "wall_metal")
KEPT = ("table_col", "xyz_col")
# Things on the table that nothing asks about and nothing touches.
_DISTRACTORS = {
    "distractor_box": mujoco.mjtGeom.mjGEOM_BOX,
    "distractor_ball": mujoco.mjtGeom.mjGEOM_SPHERE,
    "distractor_can": mujoco.mjtGeom.mjGEOM_CYLINDER,
}
_DISTRACTOR_SHARE = 0.4  # how often each is there
_DISTRACTOR_M = (0.014, 0.026)  # half of its size
_CLEAR_M = 0.22  # of the object, left and right: where the hand works


@dataclass(frozen=True)
class Look:
    """Camera of an episode: degrees, degrees, metres, world position."""

    azimuth: float
    elevation: float
    distance_m: float
    look_at: tuple[float, float, float]

    def camera(self) -> mujoco.MjvCamera:
        """A free MuJoCo camera (the named corner cameras of metaworld are upside down)."""
        camera = mujoco.MjvCamera()
        camera.lookat[:] = self.look_at
        camera.azimuth, camera.elevation, camera.distance = self.azimuth, self.elevation, self.distance_m
        return camera

    def project(self, points: np.ndarray, fovy: float, aspect: float) -> np.ndarray:
        """Where points appear in the camera's image.

        Args:
            points: (N, 3) metres, world frame.
            fovy: vertical field of view, degrees.
            aspect: width by height.

        Returns:
            (N, 2) x and y as shares of width and height, from the top left; outside [0, 1] when unseen.
        """
        turn, rise = np.radians((self.azimuth, self.elevation))
        ahead = np.array([np.cos(rise) * np.cos(turn), np.cos(rise) * np.sin(turn), np.sin(rise)])
        right = np.array([np.sin(turn), -np.cos(turn), 0.0])
        down = np.cross(ahead, right)
        rays = points - (np.array(self.look_at) - self.distance_m * ahead)
        half = (rays @ ahead) * np.tan(np.radians(fovy) / 2.0)
        return np.stack([rays @ right / (half * aspect), rays @ down / half], axis=-1) / 2.0 + 0.5


def _from_ranges(ranges: tuple[tuple[float, float], ...], rng: np.random.Generator) -> float:
    widths = np.array([high - low for low, high in ranges])
    low, high = ranges[rng.choice(len(ranges), p=widths / widths.sum())]
    return float(rng.uniform(low, high))


def draw_look(split: Split, rng: np.random.Generator) -> Look:
    """A camera of this split."""
    jitter = rng.uniform(-LOOK_AT_JITTER_M, LOOK_AT_JITTER_M, 3)
    return Look(
        azimuth=_from_ranges(AZIMUTHS[split], rng),
        elevation=float(rng.uniform(*ELEVATION)),
        distance_m=float(rng.uniform(*DISTANCE_M)),
        look_at=(LOOK_AT[0] + jitter[0], LOOK_AT[1] + jitter[1], LOOK_AT[2] + jitter[2]),
    )


def recolour(model: mujoco.MjModel, split: Split, rng: np.random.Generator) -> None:
    """Draw colours of surroundings and object, and lights, in place. The robot keeps its own."""
    for index in range(model.nmat):
        name = model.mat(index).name
        if name in KEPT:
            continue
        saturation = rng.uniform(0.15, 0.5) if name in SURROUNDINGS else rng.uniform(0.3, 0.9)
        value = rng.uniform(0.55, 1.0) if name in SURROUNDINGS else rng.uniform(0.35, 1.0)
        rgb = colorsys.hsv_to_rgb(_from_ranges(HUES[split], rng), saturation, value)
        model.mat_rgba[index, :3] = rgb
    for index in range(model.nlight):
        model.light_diffuse[index] = np.clip(model.light_diffuse[index] * rng.uniform(0.5, 1.2), 0.0, 1.0)
        model.light_pos[index] += rng.uniform(-0.4, 0.4, 3)
    model.vis.headlight.diffuse[:] = rng.uniform(0.2, 0.5)
    model.vis.headlight.ambient[:] = rng.uniform(0.1, 0.3)


def add_distractors(spec: mujoco.MjSpec) -> None:
    """Add the distractors to a scene, unseen and without contacts, for ``place_distractors``."""
    for name, shape in _DISTRACTORS.items():
        spec.worldbody.add_geom(
            name=name,
            type=shape,
            pos=(0.3, 0.6, 0.02),  # one at the body's origin would be compiled as unmovable
            size=(0.02, 0.02, 0.02),
            rgba=(0, 0, 0, 0),
            contype=0,
            conaffinity=0,
        )


def place_distractors(
    model: mujoco.MjModel, split: Split, object_position: np.ndarray, rng: np.random.Generator
) -> None:
    """Draw which distractors are there, where, how large and of which colour; away from the object."""
    for name in _DISTRACTORS:
        half = float(rng.uniform(*_DISTRACTOR_M))
        side = float(rng.choice((-1.0, 1.0)))
        x = object_position[0] + side * rng.uniform(_CLEAR_M, _CLEAR_M + 0.2)
        rgb = colorsys.hsv_to_rgb(
            _from_ranges(HUES[split], rng), rng.uniform(0.3, 0.9), rng.uniform(0.35, 1.0)
        )
        geom = model.geom(name)
        geom.pos = (x, rng.uniform(0.5, 0.85), half)
        geom.size = half
        geom.rgba = (*rgb, float(rng.random() < _DISTRACTOR_SHARE))
