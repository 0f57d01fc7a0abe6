# SPDX-License-Identifier: Apache-2.0
"""Episodes: planned and run by seed, sampled on the time grid, kept as one file each.

Time base: a control step (12.5 ms simulated) is played as 1/20 s, four times slower than simulated time, so
the camera runs at 20 Hz and 4 frames per second are every fifth step. Every episode has the same length, so
that length does not tell the outcome.

Axes: F sampled frames, S skills of the scene.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cosmos_reason_node.vision.resize import resize

from .look import Split
from .motion import PLANS, Controller, make_plan, rest_position
from .scenes import BY_NAME, SCENES, Scene, Skill
from .simulator import Simulator, State

CAMERA_FPS = 20
STEPS_PER_FRAME = 5  # 4 frames per second
EPISODE_STEPS = 240  # 12 s
CAMERA_SIZE = (240, 320)  # (height, width), as a camera would deliver
SMALL_CAMERA_SIZE = (120, 160)  # of most training episodes: renders twice as fast
_SMALL_SHARE = 0.65
FRAME_SIZE = (112, 112)  # nano's
# Held-out seeds start here; training seeds lie below, from GALLERY_SEED on those of galleries: episodes in
# which every pair of frames has a look of its own. They show the vision tower, which sees one pair at a time,
# far more cameras and colours than as many films would. From VALIDATION_SEED on lie those of validation: they
# look like held-out ones, for choices between checkpoints, so that no choice is made on the held-out set.
HELD_OUT_SEED = 1_000_000
VALIDATION_SEED = 2_000_000
GALLERY_SEED = 500_000


@dataclass(frozen=True)
class Episode:
    """One recorded episode.

    Attributes:
        seed: it was made from.
        split: "train" or "held_out": whose looks it has.
        scene: name of the scene.
        plan: name of the plan.
        task: of the skill that the plan was about.
        frames: (F, 112, 112, 3) uint8 RGB at 4 frames per second.
        openness: (F,) 0 closed to 1 open.
        gap_m: (F, S, 3) from each skill's contact point to the hand.
        points: (F, 2, 2) where hand and handle appear: x and y as shares of the frame's width and height.
        gallery: whether every pair of frames has a look of its own.
    """

    seed: int
    split: Split
    scene: str
    plan: str
    task: str
    frames: np.ndarray
    openness: np.ndarray
    gap_m: np.ndarray
    points: np.ndarray
    gallery: bool = False


def split_of(seed: int) -> Split:
    """The split whose looks the simulation of a seed has."""
    return "held_out" if seed >= HELD_OUT_SEED else "train"


def folder_of(seed: int) -> str:
    """The folder that the simulation of a seed is kept in: its split, or "validation"."""
    return "validation" if seed >= VALIDATION_SEED else split_of(seed)


def run_episode(
    seed: int,
    *,
    scene_name: str = "",
    plan_name: str = "",
    skill_index: int = -1,
    steps: int = EPISODE_STEPS,
    on_step: Callable[[int, Simulator], None] | None = None,
    sample: bool = True,
) -> Episode:
    """Plan and run the episode of ``seed``.

    Args:
        seed: determines everything that the arguments below leave open.
        scene_name: chooses the scene instead of drawing it.
        plan_name: chooses the plan.
        skill_index: chooses the skill of the scene.
        steps: control steps.
        on_step: called before each control step with its index and the simulator (the demo clip is made so).
        sample: whether to render and keep frames on the 4 fps grid.
    """
    rng = np.random.default_rng(seed)
    split = split_of(seed)
    scene, skill = _scene_and_skill(rng, scene_name, skill_index)
    drawn = str(rng.choice(list(PLANS), p=np.array(list(PLANS.values())) / sum(PLANS.values())))
    plan_name = plan_name or drawn
    start = _start_openness(rng, skill.opens, plan_name)
    small = rng.random() < _SMALL_SHARE and split == "train" and on_step is None
    camera_size = SMALL_CAMERA_SIZE if small else CAMERA_SIZE
    simulator = Simulator(
        scene, split, rng, start, np.array(rest_position(rng)), camera_size if sample or on_step else None
    )
    controller = Controller(
        make_plan(scene, skill, plan_name, rng),
        float(rng.uniform(0.7, 1.0)),
        float(rng.uniform(0.0, 0.002)),
        rng,
    )
    gallery = GALLERY_SEED <= seed < HELD_OUT_SEED
    looks = np.random.default_rng((seed, 1))
    frames: list[np.ndarray] = []
    points: list[np.ndarray] = []
    states: list[State] = []
    for step in range(steps):
        state = simulator.state()
        if on_step is not None:
            on_step(step, simulator)
        if gallery and step % (2 * STEPS_PER_FRAME) == 0:
            simulator.change_look(looks)
        if step % STEPS_PER_FRAME == 0:
            states.append(state)
            if sample:
                frames.append(resize(simulator.render(), FRAME_SIZE))
                points.append(simulator.seen_at(np.stack([state.hand, state.handle])))
        simulator.step(*controller.move(state))
    gaps = [[state.gap(skill) for skill in scene.skills] for state in states]
    return Episode(
        seed=seed,
        split=split,
        scene=scene.name,
        plan=plan_name,
        task=skill.task,
        frames=np.stack(frames) if frames else np.zeros((0, *FRAME_SIZE, 3), np.uint8),
        openness=np.array([state.openness for state in states], np.float32),
        gap_m=np.array(gaps, np.float32),
        points=np.array(points, np.float32).reshape(-1, 2, 2),
        gallery=gallery,
    )


def _scene_and_skill(
    rng: np.random.Generator, scene_name: str = "", skill_index: int = -1
) -> tuple[Scene, Skill]:
    """The first things drawn for an episode."""
    scene = BY_NAME[scene_name] if scene_name else SCENES[rng.integers(len(SCENES))]
    return scene, scene.skills[skill_index if skill_index >= 0 else rng.integers(len(scene.skills))]


def task_of(seed: int) -> str:
    """The task that the episode of ``seed`` is about, without running it."""
    return _scene_and_skill(np.random.default_rng(seed))[1].task


def _start_openness(rng: np.random.Generator, opens: bool, plan_name: str) -> float:
    """Mostly the state that the task starts from; wandering starts anywhere."""
    if plan_name in ("wander", "opposite") or rng.random() < 0.1:
        return float(rng.choice((0.0, 1.0)) if rng.random() < 0.7 else rng.uniform(0.0, 1.0))
    if rng.random() < 0.15:
        return float(rng.uniform(0.0, 0.5) if opens else rng.uniform(0.5, 1.0))
    return 0.0 if opens else 1.0


def episode_path(root: Path, seed: int) -> Path:
    """File of the episode of ``seed`` under the data directory ``root``."""
    return root / folder_of(seed) / f"{seed:07d}.npz"


def save_episode(root: Path, episode: Episode) -> Path:
    """Write an episode atomically."""
    path = episode_path(root, episode.seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    arrays: dict[str, Any] = {name: np.asarray(value) for name, value in vars(episode).items()}
    with partial.open("wb") as file:
        np.savez_compressed(file, **arrays)
    partial.replace(path)
    return path


def load_episode(path: Path) -> Episode:
    """Read an episode; no pickle is opened."""
    with np.load(path, allow_pickle=False) as archive:
        values = {name: archive[name] for name in archive.files}
    for name, value in values.items():
        if value.ndim == 0:
            values[name] = value.item()
    return Episode(**values)
