# SPDX-License-Identifier: Apache-2.0
"""Makes many episodes in parallel; what exists is kept, so an interrupted run goes on where it stopped."""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path

from .episode import GALLERY_SEED, HELD_OUT_SEED, episode_path, run_episode, save_episode


def _make(job: tuple[str, int]) -> int:
    root, seed = job
    save_episode(Path(root), run_episode(seed))
    return seed


def _quiet_worker() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["LP_NUM_THREADS"] = "1"  # the software rasteriser's own threads


def generate(root: Path, train: int, galleries: int, held_out: int, processes: int) -> int:
    """Make episodes of seeds 0..train-1, GALLERY_SEED.. and HELD_OUT_SEED...

    Args:
        root: data directory.
        train: how many training episodes there shall be.
        galleries: how many training episodes of many looks (see episode.py).
        held_out: how many held-out ones.
        processes: worker processes.

    Returns:
        Number of episodes made now.
    """
    splits = [
        range(first, first + count)
        for first, count in ((0, train), (GALLERY_SEED, galleries), (HELD_OUT_SEED, held_out))
    ]
    jobs = [(str(root), seed) for seed in _mixed(splits) if not episode_path(root, seed).exists()]
    started, done = time.monotonic(), 0
    _quiet_worker()
    with multiprocessing.get_context("spawn").Pool(processes, _quiet_worker) as pool:
        for _ in pool.imap_unordered(_make, jobs):
            done += 1
            if done % 20 == 0 or done == len(jobs):
                rate = done / (time.monotonic() - started)
                print(
                    f"episodes {done}/{len(jobs)}  {rate * 3600:.0f} an hour  "
                    f"{(len(jobs) - done) / rate / 60:.1f} min left",
                    flush=True,
                )
    return done


def _mixed(splits: list[range]) -> list[int]:
    """All evenly spread over the run, so that an unfinished data set can be trained on and evaluated too."""
    keyed = [((i + 0.5) / len(seeds), seed) for seeds in splits for i, seed in enumerate(seeds)]
    return [seed for _, seed in sorted(keyed)]
