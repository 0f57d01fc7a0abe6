# SPDX-License-Identifier: Apache-2.0
"""Starts the workers of a run: in this process, by torchrun, or by Ray Train."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from .config import SftConfig, load_config
from .folder import enter
from .loop import Interrupted, TrainingError
from .run import check_paths, run

_RAY_STARTS = 3
_RAY_STORE_BYTES = 256 << 20  # data and checkpoints go through files, not through Ray


def launch(path: Path) -> None:
    """Run the configuration at ``path`` with its launcher. torchrun's and Ray's own workers just run.

    Raises:
        TrainingError: workers failed.
    """
    config = load_config(path)
    if "RANK" not in os.environ:
        check_paths(config)  # once, in words, before many processes say it and their launchers explain it
    if config.run.launcher == "inline" or "RANK" in os.environ:
        run(config)
    elif config.run.launcher == "torchrun":
        _torchrun(config, path)
    else:
        _ray(config)


def _torchrun(config: SftConfig, path: Path) -> None:
    """All processes on this machine; for several machines, call torchrun by hand on each."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(config.run.processes)]
    # After a signal a worker finishes its step and writes a checkpoint: torchrun's 30 s may not do.
    command += ["--shutdown-timeout", str(math.ceil(config.run.timeout_s))]
    command += ["-m", "training.sft", "--config", str(path)]
    code, stopped = _call(command)
    if stopped and code:
        raise Interrupted("stopped by a signal; what is saved is kept: start again to go on")
    if code:
        raise TrainingError(
            f"the workers ended with code {code}: the first error above is the cause; start again to go on "
            "from the last checkpoint"
        )


def _call(command: list[str]) -> tuple[int, bool]:
    """Run torchrun; its exit status, and whether a signal ended it.

    SIGINT and SIGTERM are handed on, and it is waited for: its workers are in sessions of their own and would
    live on without it. The second signal kills all of them.
    """
    agent = subprocess.Popen(command, start_new_session=True)  # a terminal's Ctrl-C comes through here alone
    stopped = False

    def forward(number: int, _: FrameType | None) -> None:
        nonlocal stopped
        if stopped:
            _kill(agent.pid)
        else:
            stopped = True
            agent.terminate()

    before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        return agent.wait(), stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _kill(pid: int) -> None:
    try:
        agent = psutil.Process(pid)
        family = [*agent.children(recursive=True), agent]
    except psutil.NoSuchProcess:
        return
    for process in family:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _ray(config: SftConfig) -> None:
    """Ray Train: workers anywhere in the cluster, restarted together from the last checkpoint on a failure.

    ``run.output`` and all data have to be on a file system that all nodes share.
    """
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    seconds = str(round(config.run.timeout_s))
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")  # or each line is shown twice
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", seconds)  # Ray's 60 s may not do
    own = not ray.is_initialized() and "RAY_ADDRESS" not in os.environ
    if not ray.is_initialized():
        start_ray(config.run.processes)
    cuda = _wants_gpu(config, own=own)
    # The workers' machines may see devices of their own: what is decided here holds for all of them.
    config = replace(config, run=replace(config.run, device="cuda" if cuda else "cpu"))
    output = Path(config.run.output).expanduser().resolve()
    trainer = TorchTrainer(
        _ray_worker,
        train_loop_config={"config": config, "folder": os.getcwd()},
        scaling_config=ScalingConfig(num_workers=config.run.processes, use_gpu=cuda),
        torch_config=TorchConfig(
            backend="cpu:gloo,cuda:nccl" if cuda else "gloo", timeout_s=round(config.run.timeout_s)
        ),
        run_config=RunConfig(
            name="sft",
            storage_path=str(output / "ray"),
            failure_config=FailureConfig(max_failures=config.run.restarts),
        ),
    )
    try:
        trainer.fit()
    except Exception as error:  # Ray wraps the workers' errors in its own
        raise TrainingError(f"Ray's workers failed: {error}") from error


def start_ray(cpus: int) -> None:
    """Join the cluster of RAY_ADDRESS, or start one on this machine for workers that ask for ``cpus``.

    Raises:
        TrainingError: neither works.
    """
    import ray

    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's workers do the work here: they are no guests
    # Without "local" Ray would join what was once started on this machine, and refuse num_cpus.
    local: dict[str, Any] = {
        "address": "local",
        "num_cpus": cpus,
        "object_store_memory": _RAY_STORE_BYTES,
    }
    for attempt in range(_RAY_STARTS):
        try:
            ray.init(
                include_dashboard=False,
                logging_config=ray.LoggingConfig(
                    log_level="ERROR"
                ),  # its actors warn of the missing dashboard
                **({} if "RAY_ADDRESS" in os.environ else local),
            )
            return
        except Exception as error:  # Ray waits 30 s for its own processes, too little on a busy machine
            ray.shutdown()
            if attempt + 1 == _RAY_STARTS:
                raise TrainingError(
                    f"Ray does not start ({error}): start it with `ray start --head` and set RAY_ADDRESS, or "
                    "take another run.launcher"
                ) from error


def _ray_worker(arguments: dict[str, Any]) -> None:
    enter(arguments["folder"])
    run(arguments["config"])


def _wants_gpu(config: SftConfig, *, own: bool) -> bool:
    """Whether workers ask Ray for a GPU each.

    Args:
        config: of the run; "auto" takes what there is where the workers will be.
        own: they will be on this machine, in a cluster that was started for them.
    """
    import ray
    import torch

    if config.run.device != "auto":
        return config.run.device == "cuda"
    return torch.cuda.is_available() if own else ray.cluster_resources().get("GPU", 0) >= 1
