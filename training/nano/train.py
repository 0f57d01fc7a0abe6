# SPDX-License-Identifier: Apache-2.0
"""Trains nano on all cores with ``training.sft.loop``, stage by stage.

The vision tower; the whole model; the tower on what it sees worst; the whole model again; the language model.
The world is loaded once; the processes, one thread each, are forked off it and share it.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.multiprocessing as multiprocessing
from torch import nn

from cosmos_reason_node.models.checkpoint import digest
from cosmos_reason_node.models.qwen2_5_vl import load
from cosmos_reason_node.parent_death import die_with
from training.data.sim.generate import CLIPS, EPISODES
from training.data.sim.windows import ClipStore, EpisodeStore
from training.sft.config import OptimizerConfig, RunConfig
from training.sft.loop import BatchSource, Interrupted, Job, TrainingError
from training.sft.loop import train as run_loop
from training.sft.parallel import Context, join, replicate
from training.sft.store import SnapshotStore, StoreError

from .architecture import create, save_weights
from .objective import AnswerObjective, PairObjective, Probes
from .source import HELD_OUT_TASKS, SCENE_SHARES, DrawSettings, PairSource, WindowSource, World

VISION_RECIPE = OptimizerConfig(steps=2000, peak_rate=2e-3, final_rate=1e-5, warm_up=100)
VISION_DRAWS = DrawSettings(pairs=144)
ANSWER_RECIPE = OptimizerConfig(steps=2000, peak_rate=1.5e-3, final_rate=1e-5, vision_rate=0.3, warm_up=60)
# The tower is what limits answers about the robot: most pairs are of it.
ANSWER_DRAWS = DrawSettings(pairs=56, robot_share=0.75, one_sided=400)
# By then the tower sees what a drawer does and, however long it goes on, hardly what a window does: its pane
# is small, moves little, and is one moment of five. It takes steps that show little else.
SHARPEN_RECIPE = OptimizerConfig(steps=800, peak_rate=1.5e-3, final_rate=2e-4, warm_up=50)
SHARPEN_DRAWS = DrawSettings(
    pairs=192, robot_share=0.9, scene_shares={"window": 4.0, "handle": 1.3, "door": 1.0, "drawer": 0.35}
)
FINISH_RECIPE = OptimizerConfig(steps=800, peak_rate=8e-4, final_rate=1e-5, warm_up=50)
FINISH_DRAWS = DrawSettings(
    episodes=12,
    clips=12,
    pairs=176,
    robot_share=0.75,
    scene_shares={"window": 1.5, "handle": 1.25, "door": 1.25, "drawer": 0.5},
)
# Letters, and names of things, are learned late and hardly in the stages before: the language model alone
# makes many more steps. Kinds are learned one after the other, each within a few hundred steps.
OPTIONS_RECIPE = OptimizerConfig(steps=3000, peak_rate=1e-3, final_rate=1e-5, warm_up=40)
OPTIONS_DRAWS = DrawSettings(
    episodes=10,
    clips=18,
    lookups=6,
    pairs=0,
    scene_shares=FINISH_DRAWS.scene_shares,
    clip_branches=8,
    asked=3,
    think_share=0.5,
)
STAGES = ("vision", "answers", "sharpen", "finish", "options")
_SAVE_EVERY, _LOG_EVERY = 50, 10  # steps
_STOPPED = 130  # exit code of a process that a signal ended, as shells have it


@dataclass(frozen=True)
class TrainJob:
    """What to train, where.

    Attributes:
        data: directory with episodes/ and clips/, each with train/.
        work: directory of checkpoints and logs.
        output: directory of the finished model; holds what ``architecture.describe`` writes.
        vision, answers, sharpen, finish, options: recipes of the stages.
        vision_draws, answer_draws, sharpen_draws, finish_draws, options_draws: what they are shown.
        processes: one per core.
        stages: names of those to run, in their order.
        start: directory of the checkpoint to begin with; None: random weights.
    """

    data: Path
    work: Path
    output: Path
    vision: OptimizerConfig = VISION_RECIPE
    answers: OptimizerConfig = ANSWER_RECIPE
    sharpen: OptimizerConfig = SHARPEN_RECIPE
    finish: OptimizerConfig = FINISH_RECIPE
    options: OptimizerConfig = OPTIONS_RECIPE
    vision_draws: DrawSettings = VISION_DRAWS
    answer_draws: DrawSettings = ANSWER_DRAWS
    sharpen_draws: DrawSettings = SHARPEN_DRAWS
    finish_draws: DrawSettings = FINISH_DRAWS
    options_draws: DrawSettings = OPTIONS_DRAWS
    processes: int = 2
    stages: tuple[str, ...] = STAGES
    start: Path | None = None


def with_steps(recipe: OptimizerConfig, steps: int) -> OptimizerConfig:
    """The recipe with as many steps (0: its own), a quarter of them at most to warm up."""
    return replace(recipe, steps=steps, warm_up=min(recipe.warm_up, steps // 4)) if steps else recipe


def check(job: TrainJob) -> None:
    """Refuse what cannot be trained, before anything is written.

    Raises:
        TrainingError: there is no such stage, or what it would go on with began with other weights.
        StoreError: that is damaged.
        CosmosReasonError: ``job.start`` is no checkpoint.
    """
    unknown = set(job.stages) - set(STAGES)
    if unknown:
        raise TrainingError(f"there is no stage {sorted(unknown)[0]!r}: choose from {', '.join(STAGES)}")
    start = digest(job.start) if job.start is not None else ""
    for name in job.stages:
        saved = SnapshotStore(job.work / name / "checkpoints", 1).newest()
        if saved is not None and saved.facts["run"].get("start", "") != start:
            raise TrainingError(
                f"{job.work / name} did not begin with {job.start or 'random weights'}: to go on give the "
                f"--start-from that it began with, to begin anew move {job.work} away"
            )


def train(job: TrainJob) -> None:
    """Run all stages, going on with what is there, and write the weights to ``job.output``.

    Raises:
        FileNotFoundError: there is nothing to train on; says what to run.
        TrainingError, StoreError, CosmosReasonError: see ``check``.
        TrainingError, StoreError, Interrupted: see training.sft.loop.
    """
    check(job)
    torch.set_num_threads(1)
    episodes = EpisodeStore(job.data / EPISODES / "train", without=HELD_OUT_TASKS)
    clips = ClipStore(job.data / CLIPS / "train", SCENE_SHARES)
    print(f"{len(episodes.episodes)} episodes and {len(clips)} clips to train on", flush=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    if job.processes == 1:
        work(0, job, episodes, clips)
        return
    arguments = (job, episodes, clips, port, os.getpid())
    workers = multiprocessing.start_processes(
        _forked, arguments, nprocs=job.processes, join=False, start_method="fork"
    )
    assert workers is not None  # only with join
    _wait(workers)


def _wait(workers: multiprocessing.ProcessContext) -> None:
    """Until all have ended. Signals are for the workers, which save and end; this process ends after them."""

    def forward(number: int, frame: FrameType | None) -> None:
        for process in workers.processes:
            process.terminate()  # a terminal sends its own SIGINT to the group: this is another signal
        signal.signal(number, before[number])  # the second one is fatal

    before: dict[int, Any] = {n: signal.signal(n, forward) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        while not workers.join():
            pass
    except multiprocessing.ProcessExitedException as error:
        if error.exit_code in (_STOPPED, -signal.SIGTERM):
            raise Interrupted("stopped by a signal; what is saved is kept: start again to go on") from None
        killed = error.exit_code == -signal.SIGKILL
        cause = "was killed, most likely for memory" if killed else f"ended with code {error.exit_code}"
        raise TrainingError(
            f"a worker {cause}: see what is printed above; start again to go on from the last checkpoint"
        ) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _forked(
    rank: int, job: TrainJob, episodes: EpisodeStore, clips: ClipStore, port: int, parent: int
) -> None:
    die_with(parent)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": job.processes, "LOCAL_WORLD_SIZE": job.processes}
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in (place | address).items()})
    try:
        work(rank, job, episodes, clips)
    except (Interrupted, KeyboardInterrupt):
        sys.exit(_STOPPED)
    except (TrainingError, StoreError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(1)


def work(rank: int, job: TrainJob, episodes: EpisodeStore, clips: ClipStore) -> None:
    """What each process does."""
    model = create(job.output)
    facts = {}
    if job.start is not None:
        started = load(job.start, device="cpu", dtype="float32")
        model.network.load_state_dict(started.network.state_dict())
        facts["start"] = started.digest
    torch.manual_seed(1)
    probes = Probes(model.network.lm_head.weight.shape[1])
    world = World(episodes, clips, model)
    seeing, answering = PairObjective(model, probes), AnswerObjective(model, probes)
    stages: tuple[tuple[str, nn.Module, BatchSource, OptimizerConfig], ...] = (
        ("vision", seeing, PairSource(world, job.vision_draws), job.vision),
        ("answers", answering, WindowSource(world, job.answer_draws), job.answers),
        ("sharpen", seeing, PairSource(world, job.sharpen_draws), job.sharpen),
        ("finish", answering, WindowSource(world, job.finish_draws), job.finish),
        ("options", answering, WindowSource(world, job.options_draws), job.options),
    )
    with join(RunConfig(output=str(job.work), device="cpu", threads=1)) as context:
        for name, objective, source, recipe in stages:
            if name not in job.stages:
                continue
            answering.freeze_tower(name == "options")
            _stage(name, objective, source, recipe, job, context, facts)
    if rank == 0:
        save_weights(model, job.output)
        print(f"wrote {job.output}", flush=True)


def _stage(
    name: str,
    objective: nn.Module,
    source: BatchSource,
    recipe: OptimizerConfig,
    job: TrainJob,
    context: Context,
    facts: Mapping[str, str],
) -> None:
    directory = job.work / name
    directory.mkdir(parents=True, exist_ok=True)
    if context.rank == 0:
        print(f"{name}: {recipe.steps} steps, log and checkpoints in {directory}", flush=True)
    run_loop(
        Job(
            replicate(objective, context),
            source,
            recipe,
            directory,
            save_every=_SAVE_EVERY,
            log_every=_LOG_EVERY,
            facts=facts,
        ),
        context,
    )
