# SPDX-License-Identifier: Apache-2.0
"""The training loop: any objective, any source of batches, any number of processes.

    for step:   for batch of this process:  objective(batch) -> backward        (gradients add up)
                sum losses and weights over processes; scale gradients to the mean; clip; AdamW
                log; validate; checkpoint

Everything random in a step follows from (seed, step, rank), so a run that goes on from a checkpoint does what
it would have done: bit for bit on one CPU.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from cosmos_reason_node.models.parts import TOWERS

from .config import OptimizerConfig
from .parallel import Context, gather_model, gather_optimizer, restore
from .report import RunLog, plot
from .store import Snapshot, SnapshotStore, StoreError

B = TypeVar("B", bound="Batch")
# Of the optimizer; what a run whose loss is not finite any more is told to change goes on with other values.
_MAY_CHANGE = ("peak_rate", "final_rate", "vision_rate", "warm_up", "clip_norm")


class TrainingError(Exception):
    """Training cannot go on; the message says why and what to do."""


class Interrupted(Exception):
    """A signal ended the run after a checkpoint."""


class Batch(Protocol):
    """What a forward pass computes."""

    @property
    def weight(self) -> float:
        """What the objective's sum is divided by to make a mean."""
        ...

    @property
    def samples(self) -> int:
        """Questions in it."""
        ...

    @property
    def size(self) -> int:
        """Tokens in it."""
        ...

    def to(self: B, device: torch.device) -> B:
        """The same on another device."""
        ...


class BatchSource(Protocol):
    """Batches as a function of (step, rank). All processes get the same number in a step."""

    def batches(self, step: int, rank: int, world: int) -> Iterable[Any]:
        """Batches of one step."""
        ...

    def close(self) -> None:
        """No more are needed."""
        ...


@dataclass(frozen=True)
class Job:
    """What to train.

    Attributes:
        objective: module whose forward turns a batch into (sum of weighted losses, sums of measures); its
            parameters that require gradients are trained. Already sharded where there are many processes.
        source: batches to train on.
        optimizer: recipe.
        directory: of the run.
        validation: batches whose loss is measured, or None.
        save_every, validate_every, log_every: in steps; 0 = never.
        keep: checkpoints that are kept.
        seed: of everything random.
        facts: JSON that must be equal when a checkpoint is resumed; e.g. the digest of frozen weights.
    """

    objective: nn.Module
    source: BatchSource
    optimizer: OptimizerConfig
    directory: Path
    validation: BatchSource | None = None
    save_every: int = 500
    validate_every: int = 0
    log_every: int = 10
    keep: int = 2
    seed: int = 0
    facts: Mapping[str, Any] = field(default_factory=dict)


def train(job: Job, context: Context) -> int:
    """Run to the end, from the newest checkpoint where there is one.

    Returns:
        The step at which this call began.

    Raises:
        TrainingError: the loss is not finite, or a checkpoint is of another run.
        StoreError: a checkpoint cannot be written or read.
        Interrupted: SIGINT or SIGTERM; a checkpoint was written.
    """
    optimizer = make_optimizer(job.objective, job.optimizer, context.device)
    store = SnapshotStore(job.directory / "checkpoints", job.keep)
    first = saved = resume(job, optimizer, store, context)
    log = RunLog(job.directory, first, job.optimizer.steps, job.log_every) if context.rank == 0 else None
    job.objective.train()
    try:
        with _Signals() as signals:
            for step in range(first, job.optimizer.steps):
                entry, stop = _step(job, optimizer, step, saved, context, signals)
                last = step + 1 == job.optimizer.steps
                if log:
                    log.add(entry)
                if job.validation and (last or _due(step, job.validate_every)):
                    loss = validate(job, context)
                    if log:
                        log.write({"step": step, "validation_loss": loss})
                        print(f"step {step + 1}: validation loss {loss:.4f}", flush=True)
                if stop or last or _due(step, job.save_every):
                    save(job, optimizer, store, step + 1, context)
                    saved = step + 1
                if stop and not last:
                    raise Interrupted(
                        f"stopped by a signal after step {saved}, which is saved: start again to go on"
                    )
    finally:
        job.source.close()
    job.objective.eval()
    return first


def _due(step: int, every: int) -> bool:
    return bool(every) and (step + 1) % every == 0


def make_optimizer(module: nn.Module, recipe: OptimizerConfig, device: torch.device) -> torch.optim.AdamW:
    """AdamW over what requires gradients; matrices decay, vectors do not. Fused kernels on CPU and CUDA.

    Groups carry ``share``: their learning rate by that of the schedule.
    """
    sorts: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            share = recipe.vision_rate if any(f"{tower}." in name for tower in TOWERS) else 1.0
            decay = recipe.weight_decay if parameter.ndim >= 2 else 0.0
            sorts.setdefault((share, decay), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": members, "weight_decay": decay, "share": share}
            for (share, decay), members in sorts.items()
        ],
        lr=recipe.peak_rate,
        betas=(recipe.beta1, recipe.beta2),
        fused=device.type in ("cpu", "cuda"),
    )


def _step(
    job: Job,
    optimizer: torch.optim.Optimizer,
    step: int,
    saved: int,
    context: Context,
    signals: _Signals,
) -> tuple[dict[str, Any], bool]:
    """One optimizer step; returns its log entry and whether a process was asked to stop."""
    started = time.monotonic()
    seeds = np.random.SeedSequence([job.seed, step, context.rank])
    torch.manual_seed(int(seeds.generate_state(1)[0]))
    rate = job.optimizer.rate(step)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["share"]
    optimizer.zero_grad(set_to_none=True)
    sums = _Sums()
    names: tuple[str, ...] = ()
    for batch in job.source.batches(step, context.rank, context.world):
        total, measures = job.objective(batch.to(context.device))
        total.backward()
        names = sums.add(batch, total, measures)
    totals = context.sum([*sums.values(names), float(signals.caught)])
    loss_sum, weight, samples, tokens, *measured, stop = totals
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    # Sharded gradients are means over processes of each one's sum; here they become the mean over all weight.
    torch._foreach_mul_([p.grad for p in parameters], context.world / max(weight, 1e-12))
    norm = _whole(nn.utils.clip_grad_norm_(parameters, job.optimizer.clip_norm))
    loss = loss_sum / max(weight, 1e-12)
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise TrainingError(
            f"step {step + 1}: the loss is {loss}, the gradients' norm {norm}. Lower optimizer.peak_rate, "
            "add optimizer.warm_up steps, or take model.compute float32; then start again: it goes on from "
            + (f"step {saved}" if saved else "the beginning")
        )
    optimizer.step()
    entry = {
        "step": step,
        "loss": loss,
        "rate": rate,
        "grad_norm": norm,
        **{name: value / max(weight, 1e-12) for name, value in zip(names, measured, strict=True)},
        "samples": round(samples),
        "tokens": round(tokens),
        "seconds": round(time.monotonic() - started, 3),
    }
    return entry, bool(stop)


@torch.no_grad()
def validate(job: Job, context: Context) -> float:
    """Mean loss over the validation batches."""
    assert job.validation is not None
    job.objective.eval()
    sums = _Sums()
    for batch in job.validation.batches(0, context.rank, context.world):
        loss, measures = job.objective(batch.to(context.device))
        sums.add(batch, loss, measures)
    job.objective.train()
    loss_sum, weight, *_ = context.sum(sums.values(()))
    return loss_sum / max(weight, 1e-12)


def save(
    job: Job, optimizer: torch.optim.Optimizer, store: SnapshotStore, step: int, context: Context
) -> None:
    """Write the checkpoint of ``step`` steps and refresh the plot.

    A failure of process 0 is an error of all, so that none waits for it.
    """
    files = {
        "model": gather_model(job.objective, trained_only=True),
        "optimizer": gather_optimizer(job.objective, optimizer),
    }
    failure: StoreError | None = None
    if context.rank == 0:
        try:
            store.write(step, files, {"world": context.world, "run": dict(job.facts)})
            plot(job.directory)
        except StoreError as error:
            failure = error
        except OSError as error:
            failure = StoreError(f"{job.directory} cannot be written ({error}): make room there")
    if context.share(int(failure is not None)):
        raise failure or StoreError("process 0 could not write the checkpoint")


def resume(job: Job, optimizer: torch.optim.Optimizer, store: SnapshotStore, context: Context) -> int:
    """Load the newest whole checkpoint; returns its step, 0 where there is none."""
    snapshot: Snapshot | None = None
    failure: Exception | None = None
    if context.rank == 0:
        try:
            snapshot = store.newest()
            for message in store.bad:
                print(message, flush=True)
            if snapshot is not None:
                _check_same(job, snapshot)
        except (StoreError, TrainingError) as error:
            failure = error
    if context.share(int(failure is not None)):
        raise failure or StoreError("process 0 could not read the checkpoint")
    step = context.share(snapshot.step if snapshot else 0)
    if not step:
        return 0
    model = snapshot.tensors("model") if snapshot else {}
    moments = snapshot.tensors("optimizer") if snapshot else {}
    try:
        restore(job.objective, optimizer, model, moments, context)
    except (ValueError, RuntimeError, KeyError) as error:
        raise TrainingError(
            f"the checkpoint of step {step} does not fit the model ({error}): choose another run.output"
        ) from error
    if context.rank == 0:
        print(f"goes on after step {step}", flush=True)
    return step


def _check_same(job: Job, snapshot: Snapshot) -> None:
    """Refuse a checkpoint of a run that was set up otherwise; rates and precision may change on the way."""
    stored = snapshot.facts["run"]
    for name, value in job.facts.items():
        before, now = (_fixed(name, facts) for facts in (stored.get(name), value))
        if before != now:
            raise TrainingError(
                f"{snapshot.directory} was made with {name} = {stored.get(name)}, now it is {value}: choose "
                f"another run.output, or set {name} back"
            )
        if stored.get(name) != value:
            print(f"{name} was {stored.get(name)} and is {value} from here on", flush=True)


def _fixed(name: str, value: Any) -> Any:
    """What must stay of a fact."""
    if name == "model.compute":
        return None
    if name == "optimizer" and isinstance(value, Mapping):
        return {key: kept for key, kept in value.items() if key not in _MAY_CHANGE}
    return value


class _Sums:
    """Sums over the batches of a step."""

    def __init__(self) -> None:
        self._loss, self._weight, self._samples, self._tokens = 0.0, 0.0, 0, 0
        self._measures: dict[str, float] = {}

    def add(self, batch: Batch, loss: Tensor, measures: Mapping[str, Tensor]) -> tuple[str, ...]:
        self._loss += _whole(loss.detach())
        self._weight += batch.weight
        self._samples += batch.samples
        self._tokens += batch.size
        for name, value in measures.items():
            self._measures[name] = self._measures.get(name, 0.0) + float(value)
        return tuple(self._measures)

    def values(self, names: tuple[str, ...]) -> list[float]:
        measures = [self._measures[name] for name in names]
        return [self._loss, self._weight, self._samples, self._tokens, *measures]


class _Signals:
    """Notes SIGINT and SIGTERM instead of dying of them; the second one is fatal again."""

    def __init__(self) -> None:
        self.caught = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Signals:
        if threading.current_thread() is threading.main_thread():  # Ray's workers train in another thread
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._catch)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _catch(self, number: int, _: FrameType | None) -> None:
        self.caught = True
        signal.signal(number, self._before[number])


def _whole(value: Tensor) -> float:
    """A scalar, gathered from its shards where it has any."""
    return float(value.full_tensor() if hasattr(value, "full_tensor") else value)
