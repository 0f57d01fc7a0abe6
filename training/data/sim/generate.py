# SPDX-License-Identifier: Apache-2.0
"""Makes episodes and clips in parallel. What exists is kept: an interrupted run goes on where it stopped."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from .episode import (
    GALLERY_SEED,
    HELD_OUT_SEED,
    VALIDATION_SEED,
    episode_path,
    run_episode,
    save_episode,
    split_of,
    task_of,
)
from .physics.clip import clip_path, save_clip
from .physics.run import run_clip

EPISODES, CLIPS = "episodes", "clips"  # folders of the two simulators


@dataclass(frozen=True)
class Counts:
    """How many there shall be.

    Attributes:
        episodes, held_out_episodes: seeds for the robot arm.
        galleries: seeds of training episodes of many looks (see episode.py).
        clips, held_out_clips: of table-top physics.
        validation_episodes, validation_clips: like the held-out ones, for choices between checkpoints.
    """

    episodes: int
    galleries: int
    held_out_episodes: int
    clips: int
    held_out_clips: int
    validation_episodes: int = 0
    validation_clips: int = 0

    def seeds(self) -> list[tuple[str, int]]:
        """(folder, seed) of all, each sort evenly spread: unfinished data can be trained on and evaluated."""
        sorts = (
            (EPISODES, 0, self.episodes),
            (EPISODES, GALLERY_SEED, self.galleries),
            (EPISODES, HELD_OUT_SEED, self.held_out_episodes),
            (CLIPS, 0, self.clips),
            (CLIPS, HELD_OUT_SEED, self.held_out_clips),
            (EPISODES, VALIDATION_SEED, self.validation_episodes),
            (CLIPS, VALIDATION_SEED, self.validation_clips),
        )
        keyed = [
            ((i + 0.5) / count, folder, first + i) for folder, first, count in sorts for i in range(count)
        ]
        return [(folder, seed) for _, folder, seed in sorted(keyed)]


def path_of(root: Path, folder: str, seed: int) -> Path:
    """File of a seed under the data directory ``root``."""
    if folder == EPISODES:
        return episode_path(root / EPISODES, seed)
    return clip_path(root / CLIPS, seed)


def make(job: tuple[Path, str, int]) -> None:
    """Make and save one; ``job`` is (data directory, folder, seed)."""
    root, folder, seed = job
    if folder == EPISODES:
        save_episode(root / EPISODES, run_episode(seed))
    else:
        save_clip(root / CLIPS, run_clip(seed))


def _passed_over(folder: str, seed: int, without: Collection[str]) -> bool:
    return folder == EPISODES and split_of(seed) == "train" and task_of(seed) in without


def _quiet_worker() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["LP_NUM_THREADS"] = "1"  # the software rasteriser's own threads


def generate(root: Path, counts: Counts, processes: int, without: Collection[str] = ()) -> int:
    """Make what is missing.

    Args:
        root: data directory; gets episodes/ and clips/, each with train/, held_out/ and
            validation/.
        counts: how many of each sort.
        processes: worker processes.
        without: tasks of which no training episode is made; their seeds are passed over.

    Returns:
        Number of files made now.
    """
    jobs = [
        (root, folder, seed)
        for folder, seed in counts.seeds()
        if not path_of(root, folder, seed).exists() and not _passed_over(folder, seed, without)
    ]
    started, done = time.monotonic(), 0
    _quiet_worker()
    with multiprocessing.get_context("spawn").Pool(processes, _quiet_worker) as pool:
        for _ in pool.imap_unordered(make, jobs, chunksize=4):
            done += 1
            if done % 20 == 0 or done == len(jobs):
                rate = done / (time.monotonic() - started)
                print(
                    f"made {done}/{len(jobs)}  {rate * 3600:.0f} an hour  "
                    f"{(len(jobs) - done) / rate / 60:.1f} min left",
                    flush=True,
                )
    return done
