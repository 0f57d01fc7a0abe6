# SPDX-License-Identifier: Apache-2.0
"""Made-up episodes of every scene, without the simulator."""

from pathlib import Path

import numpy as np

from training.data.sim.episode import Episode, save_episode
from training.data.sim.scenes import SCENES, Scene


def made_up(scene: Scene, seed: int, frames: int = 8, task: str = "", **fields: object) -> Episode:
    """An episode of noise: closed in its first half, open in the second; the hand in place in even frames."""
    rng = np.random.default_rng(seed)
    skills = len(scene.skills)
    gap = np.tile(np.array([0.0, 0.5], np.float32), frames // 2)
    values = {
        "seed": seed,
        "split": "train",
        "scene": scene.name,
        "plan": "stop",
        "task": task or scene.skills[0].task,
        "frames": rng.integers(0, 256, (frames, 112, 112, 3), np.uint8),
        "openness": np.repeat([0.0, 1.0], frames // 2).astype(np.float32),
        "gap_m": gap[:, None, None].repeat(skills, 1) * np.ones(3, np.float32),
        "points": np.full((frames, 2, 2), 0.4, np.float32),
    }
    return Episode(**(values | fields))


def write_episodes(root: Path) -> Path:
    """One of every scene under ``root``/train."""
    for seed, scene in enumerate(SCENES):
        save_episode(root, made_up(scene, seed))
    return root / "train"
