# SPDX-License-Identifier: Apache-2.0
"""The simulated scenes: one articulated object each, and the tasks it affords.

Models are metaworld's (MIT licence), used as assets: the object is placed and its joint set by this
repository, so that opposite tasks run in one scene from any state of its joint. The tasks were chosen because
their outcome can be SEEN without goal markers; contact points follow metaworld's scripted policies.

Legend: positions are (x, y, z) in metres, world frame; the robot stands at y < 0.3 and looks along +y.
``openness`` is the joint's position scaled to 0 (closed, up) .. 1 (open, down).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import mujoco
import numpy as np

Vector = np.ndarray


@dataclass(frozen=True)
class Skill:
    """One task on an object, as waypoints relative to its handle.

    Attributes:
        task: what is asked of the robot ("open the drawer").
        act: the motion once in place, in words ("pull the drawer open").
        done: the goal state, in words ("the drawer is open").
        not_done: its opposite, in words.
        opens: whether the task raises ``openness`` to 1, else lowers it to 0.
        contact: offset from the handle to where the hand acts.
        hover_m: height above ``contact`` at which the hand travels there.
        xy_tolerance_m, z_tolerance_m: how close the hand must be to count as in place.
        push: offset from the handle that the hand steers to while acting.
        push_gain: controller gain while acting, centimetres of target move per step and metre of distance.
        turns: offsets turn with the object (a door's face) instead of keeping the world's axes.
    """

    task: str
    act: str
    done: str
    not_done: str
    opens: bool
    contact: tuple[float, float, float]
    hover_m: float
    xy_tolerance_m: float
    z_tolerance_m: float
    push: tuple[float, float, float]
    push_gain: float = 25.0
    turns: bool = False

    def progress(self, openness: float) -> float:
        """How far the task is: 0 at the opposite state, 1 at its goal."""
        return openness if self.opens else 1.0 - openness


@dataclass(frozen=True)
class Scene:
    """One object on the table.

    Attributes:
        name: identifier, also used in file names.
        noun: the object in words ("drawer").
        handle_noun: the part that the hand acts on, in words.
        xml: file among metaworld's assets.
        body: the body that is placed.
        low, high: box in which it is placed.
        joint_index: its joint.
        closed_qpos, open_qpos: joint positions of openness 0 and 1.
        handle: position of the handle, from the simulator's state.
        skills: its tasks.
        hinged: whether its joint turns about the vertical.
    """

    name: str
    noun: str
    handle_noun: str
    xml: str
    body: str
    low: tuple[float, float, float]
    high: tuple[float, float, float]
    joint_index: int
    closed_qpos: float
    open_qpos: float
    handle: Callable[[mujoco.MjData], Vector]
    skills: tuple[Skill, ...]
    hinged: bool = False

    def openness(self, qpos: float) -> float:
        """Joint position on the scale of 0 (closed) to 1 (open), clipped."""
        return float(np.clip((qpos - self.closed_qpos) / (self.open_qpos - self.closed_qpos), 0.0, 1.0))


def _drawer_handle(data: mujoco.MjData) -> Vector:
    return data.body("drawer_link").xpos + np.array([0.0, -0.16, 0.05])


def _door_handle(data: mujoco.MjData) -> Vector:
    return data.geom("handle").xpos.copy()


def _window_handle(data: mujoco.MjData) -> Vector:
    return 0.5 * (data.site("handleOpenStart").xpos + data.site("handleCloseStart").xpos)


def _lever_handle(data: mujoco.MjData) -> Vector:
    return data.site("handleStart").xpos.copy()


SCENES: tuple[Scene, ...] = (
    Scene(
        name="drawer",
        noun="drawer",
        handle_noun="drawer handle",
        xml="sawyer_drawer.xml",
        body="drawer",
        low=(-0.1, 0.9, 0.0),
        high=(0.1, 0.9, 0.0),
        joint_index=9,
        closed_qpos=0.0,
        open_qpos=-0.16,
        handle=_drawer_handle,
        skills=(
            Skill(
                "open the drawer",
                "pull the drawer open",
                "the drawer is open",
                "the drawer is not open",
                True,
                (0.0, 0.0, -0.07),
                0.25,
                0.05,
                0.04,
                (0.0, -0.06, -0.07),
                50.0,
            ),
            Skill(
                "close the drawer",
                "push the drawer shut",
                "the drawer is closed",
                "the drawer is not closed",
                False,
                (0.0, -0.075, -0.02),
                0.25,
                0.05,
                0.04,
                (0.0, 0.0, -0.02),
            ),
        ),
    ),
    Scene(
        name="door",
        noun="door",
        handle_noun="door handle",
        xml="sawyer_door_pull.xml",
        body="door",
        low=(0.0, 0.85, 0.15),
        high=(0.1, 0.95, 0.15),
        joint_index=9,
        closed_qpos=0.0,
        open_qpos=-1.2,
        handle=_door_handle,
        skills=(
            Skill(
                "open the door",
                "pull the door open",
                "the door is open",
                "the door is not open",
                True,
                (0.01, 0.02, 0.0),
                0.2,
                0.06,
                0.04,
                (-0.05, 0.0, 0.0),
            ),
            Skill(
                "close the door",
                "push the door shut",
                "the door is closed",
                "the door is not closed",
                False,
                (-0.10, 0.02, 0.1),
                0.2,
                0.05,
                0.04,
                (-0.06, 0.12, 0.1),
                turns=True,
            ),
        ),
        hinged=True,
    ),
    Scene(
        name="window",
        noun="window",
        handle_noun="window handle",
        xml="sawyer_window_horizontal.xml",
        body="window",
        low=(-0.1, 0.75, 0.16),
        high=(0.05, 0.9, 0.16),
        joint_index=9,
        closed_qpos=0.0,
        open_qpos=0.2,
        handle=_window_handle,
        skills=(
            Skill(
                "open the window",
                "slide the window open",
                "the window is open",
                "the window is not open",
                True,
                (-0.03, -0.03, -0.08),
                0.25,
                0.04,
                0.025,
                (0.1, -0.03, -0.08),
            ),
            Skill(
                "close the window",
                "slide the window shut",
                "the window is closed",
                "the window is not closed",
                False,
                (0.03, -0.03, -0.08),
                0.25,
                0.04,
                0.025,
                (-0.1, -0.03, -0.08),
            ),
        ),
    ),
    Scene(
        name="handle",
        noun="handle",
        handle_noun="handle",
        xml="sawyer_handle_press.xml",
        body="box",
        low=(-0.1, 0.8, 0.0),
        high=(0.1, 0.9, 0.0),
        joint_index=9,
        closed_qpos=0.0,
        open_qpos=-0.1,
        handle=_lever_handle,
        skills=(
            Skill(
                "press the handle down",
                "press down on the handle",
                "the handle is down",
                "the handle is not down",
                True,
                (0.0, -0.02, 0.06),
                0.14,
                0.03,
                0.07,
                (0.0, -0.02, -0.5),
            ),
        ),
    ),
)
BY_NAME = {scene.name: scene for scene in SCENES}
