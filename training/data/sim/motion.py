# SPDX-License-Identifier: Apache-2.0
"""How the robot moves: a controller per skill, and plans that succeed, fail, give up or undo.

A plan is a list of segments. Injected faults make the outcome independent of the arm having moved; labels
come from the simulator's state, never from the plan.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from .phase import in_place
from .scenes import Scene, Skill
from .simulator import State

Kind = Literal["skill", "reach", "retract", "wander", "hold"]
_TRAVEL_GAIN = 0.10
_KEEP = 1.8  # once acting, the hand counts as in place within this multiple of the tolerances
EVER = 10**6  # steps: to the end of any episode
_CLEAR_M = 0.18  # height gained before moving away from an object


@dataclass(frozen=True)
class Segment:
    """A piece of a plan.

    Attributes:
        kind: what to do.
        steps: most control steps it takes.
        skill: for "skill" and "reach".
        until: "skill" ends when its progress exceeds this.
        miss: (3,) metres added to where the hand goes ("skill", "reach"); zero for a good aim.
        goal: (3,) where "retract" and "wander" go.
    """

    kind: Kind
    steps: int
    skill: Skill | None = None
    until: float = 0.97
    miss: tuple[float, float, float] = (0.0, 0.0, 0.0)
    goal: tuple[float, float, float] = (0.0, 0.5, 0.25)


def rest_position(rng: np.random.Generator) -> tuple[float, float, float]:
    """Somewhere above the table, away from objects."""
    x, y, z = rng.uniform((-0.22, 0.45, 0.2), (0.22, 0.62, 0.38))
    return float(x), float(y), float(z)


# How often each is drawn. All but the first are meant to fail, each in its own way; whether they do is read
# from the simulator's state.
PLANS = {
    "succeed": 0.34,
    "stop": 0.10,  # leaves half-way
    "slip": 0.07,  # loses the object half-way and goes on beside it
    "miss": 0.08,  # works beside the object
    "give_up": 0.08,  # gets there and leaves
    "freeze": 0.06,  # stops on the way there
    "undo": 0.15,  # succeeds, then does the opposite
    "opposite": 0.06,  # does the opposite task
    "wander": 0.06,  # does not try
}


def make_plan(scene: Scene, skill: Skill, name: str, rng: np.random.Generator) -> list[Segment]:
    """Segments of a plan; names as in ``PLANS``."""

    def rest() -> Segment:
        return Segment("retract", 70, goal=rest_position(rng))

    def hold(most: int) -> Segment:
        return Segment("hold", int(rng.integers(2, most)))

    if name == "succeed":
        return [hold(25), Segment("skill", 170, skill), hold(20), rest()]
    if name == "stop":
        part = float(rng.uniform(0.15, 0.6))
        return [hold(25), Segment("skill", 170, skill, until=part), hold(30), rest()]
    others = [other for other in scene.skills if other is not skill]
    if name in ("miss", "slip"):
        side = float(rng.choice((-1.0, 1.0)) * rng.uniform(0.10, 0.16))
        beside = Segment("skill", 110, skill, miss=(side, -0.04, 0.02))
        if name == "miss":
            return [hold(25), beside, hold(20), rest()]
        return [hold(15), Segment("skill", 150, skill, until=float(rng.uniform(0.15, 0.5))), beside, rest()]
    if name == "give_up":
        return [hold(25), Segment("reach", 90, skill), hold(50), rest()]
    if name == "freeze":
        return [hold(25), Segment("reach", int(rng.integers(8, 30)), skill), Segment("hold", EVER)]
    if name == "opposite" and others:
        return [hold(25), Segment("skill", 170, others[0]), hold(20), rest()]
    if name == "undo":
        again = Segment("skill", 150, others[0]) if others else rest()
        return [Segment("skill", 110, skill), again, rest()]
    if name in ("wander", "opposite"):  # an object with one task has no opposite
        return [Segment("wander", 60, goal=rest_position(rng)) for _ in range(4)]
    raise ValueError(f"no plan is called {name!r}; plans are {', '.join(PLANS)}")


class Controller:
    """Turns a plan into moves, one control step after the other.

    Args:
        plan: its segments; after the last one the hand stays.
        speed: scales travel speed.
        noise_m: standard deviation of the wobble added to every move.
        rng: source of the wobble.
    """

    def __init__(self, plan: list[Segment], speed: float, noise_m: float, rng: np.random.Generator) -> None:
        self._segments: Iterator[Segment] = iter(plan)
        self._segment: Segment | None = next(self._segments, None)
        self._age = 0
        self._acting = False
        self._origin: np.ndarray | None = None
        self._speed, self._noise_m, self._rng = speed, noise_m, rng

    @property
    def finished(self) -> bool:
        """Whether the plan has ended."""
        return self._segment is None

    def move(self, state: State) -> tuple[np.ndarray, float]:
        """(3,) metres and grip for ``Simulator.step``."""
        while self._segment is not None and self._ended(self._segment, state):
            self._segment = next(self._segments, None)
            self._age, self._acting, self._origin = 0, False, None
        self._age += 1
        if self._segment is None or self._segment.kind == "hold":
            return np.zeros(3), 0.0
        target, gain, grip = self._steer(self._segment, state)
        move = np.clip(gain * (target - state.hand), -0.01, 0.01) * self._speed
        return move + self._rng.normal(0.0, self._noise_m, 3), grip

    def _ended(self, segment: Segment, state: State) -> bool:
        if self._age >= segment.steps:
            return True
        if segment.kind == "skill" and segment.skill is not None:
            return segment.skill.progress(state.openness) >= segment.until
        if segment.kind == "reach" and segment.skill is not None:
            return in_place(segment.skill, state.gap(segment.skill))
        if segment.kind in ("retract", "wander"):
            return float(np.linalg.norm(state.hand - np.array(segment.goal))) < 0.02
        return False

    def _steer(self, segment: Segment, state: State) -> tuple[np.ndarray, float, float]:
        """Where to, how fast, and the grip."""
        if segment.skill is None:
            goal = np.array(segment.goal)
            if segment.kind == "retract":
                if self._origin is None:
                    self._origin = state.hand.copy()
                # Up first, then away: dragging sideways would move the object.
                if state.hand[2] < min(self._origin[2] + _CLEAR_M, 0.42) and self._age < 35:
                    goal = np.array([*self._origin[:2], self._origin[2] + _CLEAR_M + 0.05])
            return goal, _TRAVEL_GAIN, -1.0
        skill, miss = segment.skill, np.array(segment.miss)
        grip = -1.0 if skill.push_gain > 25.0 else 1.0
        contact = state.point(skill, skill.contact) + miss
        gap = state.hand - contact
        keep = _KEEP if self._acting else 1.0
        self._acting = bool(
            np.linalg.norm(gap[:2]) <= skill.xy_tolerance_m * keep
            and abs(gap[2]) <= skill.z_tolerance_m * keep
        )
        if self._acting:
            return state.point(skill, skill.push) + miss, skill.push_gain / 100.0, grip
        if np.linalg.norm(gap[:2]) <= skill.xy_tolerance_m:
            return contact, _TRAVEL_GAIN, grip
        hover = contact + np.array([0.0, 0.0, skill.hover_m])
        if state.hand[2] < hover[2] - 0.08 and np.linalg.norm(gap[:2]) > 0.03:
            hover[:2] = state.hand[:2]  # rise before travelling, or the arm sweeps the object along
        return hover, _TRAVEL_GAIN, grip
