# SPDX-License-Identifier: Apache-2.0
"""A script as MuJoCo's XML: table, room, light, distractors and the script's things."""

from __future__ import annotations

import numpy as np

from ..look import Split
from .clip import FRAME_SIDE
from .palette import DISTRACTOR_SHAPES, Surroundings, dull
from .script import FOV_DEG, Part, Script, Thing

STEP_S = 0.002
RENDER_SIDE = 2 * FRAME_SIDE  # averaged down: antialiasing without a multisample buffer
_GROUND_M = -0.45  # floor below the table top
_HARD = "0.005 1"  # of a hard contact: time constant (s) and damping ratio
_SPRING = 40000.0  # 1/s^2: stiffness of bouncing contacts, which then last about 16 ms


def _numbers(*values: float) -> str:
    return " ".join(f"{value:.6g}" for value in values)


def _geom(part: Part, thing: Thing) -> str:
    bounce = ""
    if thing.bounce is not None:
        # Restitution of a damped spring: e = exp(-pi z / sqrt(1 - z^2)) with damping ratio z.
        log = -np.log(thing.bounce)
        damping = 2.0 * np.sqrt(_SPRING) * log / np.hypot(np.pi, log)
        bounce = f' priority="1" solref="{_numbers(-_SPRING, -damping)}"'
    mass = thing.mass / len(thing.geoms())
    touches = ' contype="0" conaffinity="0"' if thing.ghost else ""
    if thing.slick:
        bounce = ' priority="2"'
    friction = 0.001 if thing.slick else thing.friction
    rolling = 0.002 if part.shape == "sphere" else 0.0005
    return (
        f'<geom type="{part.shape}" size="{_numbers(*part.size)}" pos="{_numbers(*part.at)}" '
        f'euler="{_numbers(*part.turn)}" rgba="{_numbers(*thing.rgb, 1.0)}" mass="{_numbers(mass)}" '
        f'condim="6" friction="{_numbers(friction, 0.003, rolling)}"{bounce}{touches}/>'
    )


def _body(index: int, thing: Thing) -> str:
    joint = ""
    if thing.motion == "free":
        joint = "<freejoint/>"
    elif thing.motion in ("slide", "hinge"):
        joint = f'<joint type="{thing.motion}" axis="{_numbers(*thing.axis)}"/>'
    geoms = "".join(_geom(part, thing) for part in thing.geoms())
    weightless = ' gravcomp="1"' if thing.motion in ("slide", "hinge") else ""
    return (
        f'<body name="thing{index}" pos="{_numbers(*thing.at)}" euler="0 0 {_numbers(thing.yaw)}"'
        f"{weightless}>{joint}{geoms}</body>"
    )


def _distractors(script: Script, look: Surroundings, split: Split, rng: np.random.Generator) -> str:
    """Up to two dull things near the table's rim that nothing happens to."""
    text = ""
    for _ in range(int(rng.integers(0, 3))):
        angle = rng.uniform(0.0, 2.0 * np.pi)
        distance = rng.uniform(min(script.clear_m, look.table_half_m - 0.05), look.table_half_m - 0.04)
        size = rng.uniform(0.02, 0.035, 3)
        place = _numbers(distance * np.cos(angle), distance * np.sin(angle), float(size[2]))
        shape = str(rng.choice(DISTRACTOR_SHAPES[split]))
        text += (
            f'<geom type="{shape}" pos="{place}" size="{_numbers(*size)}" contype="0" conaffinity="0" '
            f'rgba="{_numbers(*dull(split, rng, 0.25, 0.8), 1.0)}"/>'
        )
    return text


def xml(script: Script, look: Surroundings, split: Split, rng: np.random.Generator) -> str:
    """The model, as text."""
    half = look.table_half_m
    top = ("cylinder", _numbers(half, 0.02)) if look.round_table else ("box", _numbers(half, half, 0.02))
    bodies = "".join(_body(i, thing) for i, thing in enumerate(script.things))
    return f"""
<mujoco>
  <compiler angle="degree" eulerseq="xyz"/>
  <option timestep="{STEP_S}" integrator="implicitfast" cone="elliptic" impratio="3"/>
  <visual>
    <global fovy="{FOV_DEG}" offwidth="{RENDER_SIDE}" offheight="{RENDER_SIDE}"/>
    <quality shadowsize="0" offsamples="0" numslices="20" numstacks="12"/>
    <headlight ambient="{_numbers(*[look.ambient] * 3)}" diffuse="{_numbers(*[0.8 - look.lamp] * 3)}"
      specular="0 0 0"/>
    <map znear="0.02" zfar="20"/>
  </visual>
  <default><geom solref="{_HARD}"/></default>
  <asset>
    <texture type="skybox" builtin="gradient" rgb1="{_numbers(*look.wall)}"
      rgb2="{_numbers(*[0.6 * c for c in look.wall])}" width="32" height="192"/>
    <texture name="floor" type="2d" builtin="checker" rgb1="{_numbers(*look.floor)}"
      rgb2="{_numbers(*look.floor_marks)}" width="64" height="64"/>
    <material name="floor" texture="floor" texrepeat="6 6"/>
  </asset>
  <worldbody>
    <light pos="0 0 2" dir="{_numbers(*look.light)}" directional="true" castshadow="false"
      diffuse="{_numbers(*[look.lamp] * 3)}" specular="0.1 0.1 0.1"/>
    <geom type="plane" size="3 3 0.1" pos="0 0 {_GROUND_M}" material="floor"/>
    <geom type="{top[0]}" size="{top[1]}" pos="0 0 -0.02" rgba="{_numbers(*look.table, 1.0)}"
      contype="0" conaffinity="0"/>
    <geom name="table" type="plane" size="2 2 0.1" friction="0.1 0.003 0.0005" rgba="0 0 0 0"/>
    {_distractors(script, look, split, rng)}
    {bodies}
  </worldbody>
</mujoco>"""
