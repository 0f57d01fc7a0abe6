# SPDX-License-Identifier: Apache-2.0
"""What the robot is to do next, read from the simulator's state: the source of every label."""

from __future__ import annotations

import enum

import numpy as np

from .scenes import Skill

DONE_PROGRESS = 0.75
NOT_DONE_PROGRESS = 0.55  # between the two a person would argue: no question is asked there
_NEAR = 1.6  # tolerances times this: certainly in place
_FAR = 2.4  # beyond tolerances times this: certainly not


class Phase(enum.IntEnum):
    """Of a skill at one moment."""

    REACH = 0  # the hand is not in place
    ACT = 1  # the hand is in place, the goal is not reached
    DONE = 2  # the goal is reached


def in_place(skill: Skill, gap: np.ndarray, scale: float = 1.0) -> bool:
    """Whether the hand is where it can act.

    Args:
        skill: which one.
        gap: (3,) metres from its contact point to the hand.
        scale: multiplies its tolerances.
    """
    return bool(
        np.linalg.norm(gap[:2]) <= skill.xy_tolerance_m * scale and abs(gap[2]) <= skill.z_tolerance_m * scale
    )


def completed(skill: Skill, openness: float) -> bool | None:
    """Whether the skill's goal is reached; None where one could argue."""
    progress = skill.progress(openness)
    if progress >= DONE_PROGRESS:
        return True
    return False if progress <= NOT_DONE_PROGRESS else None


def phase(skill: Skill, openness: float, gap: np.ndarray) -> Phase | None:
    """Phase of the skill; None where one could argue."""
    done = completed(skill, openness)
    if done is None:
        return None
    if done:
        return Phase.DONE
    if in_place(skill, gap, _NEAR):
        return Phase.ACT
    return None if in_place(skill, gap, _FAR) else Phase.REACH
