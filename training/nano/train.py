# SPDX-License-Identifier: Apache-2.0
"""Trains nano on all cores: one single-threaded process each, gradients averaged once a step."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from cosmos_reason_node.models.qwen2_5_vl import load
from cosmos_reason_node.parent_death import die_with
from training.sft.trainer import TrainSettings, make_probes, train_answers, train_vision
from training.sft.windows import EpisodeStore

from .architecture import create, describe, save_weights

VISION = TrainSettings(steps=2800, batch=48, peak_rate=2e-3, warm_up=100, save_s=120.0)
ANSWERS = TrainSettings(
    steps=2000,
    batch=8,
    peak_rate=1.5e-3,
    tower_rate=0.3,
    warm_up=60,
    branches=4,
    one_sided=1350,
    think_share=0.3,
    probe_patches=10,
    save_s=60.0,
)
_STEP_LIMIT = timedelta(minutes=10)  # no process waits longer than this for another


@dataclass(frozen=True)
class TrainJob:
    """What to train, where.

    Attributes:
        episodes: directory with train/ and held_out/.
        work: directory of checkpoints.
        output: directory of the finished model.
        vision, answers: settings of the two stages.
        processes: one per core.
        start: directory of a checkpoint whose weights to start from instead of random ones.
    """

    episodes: Path
    work: Path
    output: Path
    vision: TrainSettings = VISION
    answers: TrainSettings = ANSWERS
    processes: int = 2
    start: Path | None = None


def train(job: TrainJob) -> None:
    """Run both stages, resuming what is there, and write the model to ``job.output``."""
    describe(job.output)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    multiprocessing.spawn(_worker, args=(job, port, os.getpid()), nprocs=job.processes)


def _worker(rank: int, job: TrainJob, port: int, parent: int) -> None:
    die_with(parent)
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    if job.processes > 1:
        dist.init_process_group(
            "gloo",
            init_method=f"tcp://127.0.0.1:{port}",
            rank=rank,
            world_size=job.processes,
            timeout=_STEP_LIMIT,
        )
    model = create(job.output)
    probes = make_probes(model)
    if job.start is not None:
        model.network.load_state_dict(load(job.start, device="cpu").network.state_dict())
    store = EpisodeStore(job.episodes / "train")
    if rank == 0:
        print(f"{len(store.episodes)} training episodes", flush=True)
    train_vision(model, probes, store, job.vision, job.work / "vision")
    store.refresh()
    train_answers(model, probes, store, job.answers, job.work / "answers")
    if rank == 0:
        save_weights(model, job.output)
        print(f"wrote {job.output}", flush=True)
    if job.processes > 1:
        dist.destroy_process_group()
