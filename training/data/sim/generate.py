# SPDX-License-Identifier: Apache-2.0
"""Makes many episodes in parallel; what exists is kept, so an interrupted run goes on where it stopped."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterable
from pathlib import Path

from .episode import HELD_OUT_SEED, episode_path, run_episode, save_episode


def _make(job: tuple[str, int]) -> int:
    root, seed = job
    save_episode(Path(root), run_episode(seed))
    return seed


def _quiet_worker() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["LP_NUM_THREADS"] = "1"  # the software rasteriser's own threads


def generate(root: Path, train: int, held_out: int, processes: int) -> int:
    """Make episodes of seeds 0..train-1 and HELD_OUT_SEED..+held_out-1.

    Args:
        root: data directory.
        train: how many training episodes there shall be.
        held_out: how many held-out ones.
        processes: worker processes.

    Returns:
        Number of episodes made now.
    """
    seeds: Iterable[int] = (*range(train), *range(HELD_OUT_SEED, HELD_OUT_SEED + held_out))
    # A tenth of held-out episodes early on, so that an unfinished data set can be evaluated too.
    jobs = [(str(root), seed) for seed in _mixed(list(seeds)) if not episode_path(root, seed).exists()]
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


def _mixed(seeds: list[int]) -> list[int]:
    """Both splits evenly spread over the run."""
    train = [seed for seed in seeds if seed < HELD_OUT_SEED]
    held_out = [seed for seed in seeds if seed >= HELD_OUT_SEED]
    keyed = [((i + 0.5) / len(train), seed) for i, seed in enumerate(train)]
    keyed += [((i + 0.5) / len(held_out), seed) for i, seed in enumerate(held_out)]
    return [seed for _, seed in sorted(keyed)]
