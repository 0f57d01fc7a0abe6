# SPDX-License-Identifier: Apache-2.0
"""Colours and shapes that have names, drawn per split.

Every colour name covers a range of hues (or of brightness, for black and white) in training and another one,
disjoint from it, in the held-out split: a held-out "red" is a red that was never seen.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import numpy as np

from ..look import HUES, Split

Range = tuple[float, float]
Rgb = tuple[float, float, float]

# Hues on the colour circle; a little below 0 is purplish red.
NAMED_HUES: dict[str, dict[Split, tuple[Range, ...]]] = {
    "red": {"train": ((-0.015, 0.0), (0.010, 0.020)), "held_out": ((0.001, 0.009),)},
    "yellow": {"train": ((0.140, 0.152), (0.165, 0.175)), "held_out": ((0.153, 0.164),)},
    "green": {"train": ((0.290, 0.320), (0.355, 0.380)), "held_out": ((0.325, 0.350),)},
    "blue": {"train": ((0.590, 0.615), (0.645, 0.660)), "held_out": ((0.618, 0.642),)},
    "purple": {"train": ((0.770, 0.790), (0.815, 0.830)), "held_out": ((0.793, 0.812),)},
}
# Brightness of the two names without a hue.
NAMED_VALUES: dict[str, dict[Split, tuple[Range, ...]]] = {
    "white": {"train": ((0.94, 1.00),), "held_out": ((0.88, 0.93),)},
    "black": {"train": ((0.03, 0.08),), "held_out": ((0.09, 0.13),)},
}
COLOURS = (*NAMED_HUES, *NAMED_VALUES)
SHAPES = ("ball", "block", "can")
# Distractors have no nameable colour, and shapes of their own per split (MuJoCo geom types).
DISTRACTOR_SHAPES: dict[Split, tuple[str, ...]] = {
    "train": ("box", "cylinder", "sphere"),
    "held_out": ("capsule", "ellipsoid"),
}


@dataclass(frozen=True)
class Surroundings:
    """Colours and light of table and room, all with little saturation so that named colours stand out.

    Attributes:
        table, floor, floor_marks, wall: RGB in [0, 1].
        round_table: a round table top instead of a square one.
        table_half_m: its radius or half side.
        light: (3,) direction of the lamp.
        lamp, ambient: brightness of lamp and headlight.
    """

    table: Rgb
    floor: Rgb
    floor_marks: Rgb
    wall: Rgb
    round_table: bool
    table_half_m: float
    light: tuple[float, float, float]
    lamp: float
    ambient: float


def from_ranges(ranges: tuple[Range, ...], rng: np.random.Generator) -> float:
    """Uniform over a union of ranges."""
    widths = np.array([high - low for low, high in ranges])
    low, high = ranges[int(rng.choice(len(ranges), p=widths / widths.sum()))]
    return float(rng.uniform(low, high))


def shade(colour: str, split: Split, rng: np.random.Generator) -> Rgb:
    """An RGB value in [0, 1] that goes by this colour's name."""
    if colour in NAMED_VALUES:
        value = from_ranges(NAMED_VALUES[colour][split], rng)
        return (value, value, value)
    hue = from_ranges(NAMED_HUES[colour][split], rng) % 1.0
    return colorsys.hsv_to_rgb(hue, float(rng.uniform(0.8, 1.0)), float(rng.uniform(0.75, 1.0)))


def colours(count: int, rng: np.random.Generator) -> list[str]:
    """``count`` different colour names."""
    return [str(name) for name in rng.permutation(COLOURS)[:count]]


def dull(split: Split, rng: np.random.Generator, low: float, high: float) -> Rgb:
    """An RGB value without a name: little saturation, brightness between ``low`` and ``high``."""
    hue = from_ranges(HUES[split], rng)
    return colorsys.hsv_to_rgb(hue, float(rng.uniform(0.05, 0.28)), float(rng.uniform(low, high)))


def surroundings(split: Split, rng: np.random.Generator) -> Surroundings:
    """Table, room and light of a clip."""
    return Surroundings(
        table=dull(split, rng, 0.42, 0.78),
        floor=dull(split, rng, 0.2, 0.6),
        floor_marks=dull(split, rng, 0.25, 0.7),
        wall=dull(split, rng, 0.5, 0.95),
        round_table=bool(rng.random() < 0.3),
        table_half_m=float(rng.uniform(0.50, 0.62)),
        light=(float(rng.uniform(-0.6, 0.6)), float(rng.uniform(-0.6, 0.6)), -1.0),
        lamp=float(rng.uniform(0.35, 0.65)),
        ambient=float(rng.uniform(0.2, 0.35)),
    )
