# SPDX-License-Identifier: Apache-2.0
"""The trainer: what each of its processes does, whoever started it."""

from __future__ import annotations

import dataclasses
import errno
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from cosmos_reason_node.models import parts
from cosmos_reason_node.models.load import load
from cosmos_reason_node.models.qwen2_5_vl import DTYPES, LoadedModel
from cosmos_reason_node.models.spec import read_model_spec
from training.sft.export import export
from training.sft.loop import Job, TrainingError, train
from training.sft.parallel import Context, gather_model, join, shard

from .config import RlConfig
from .groups import Group
from .monitors import Monitor
from .patience import Patience
from .policy import GrpoLoss, Policy, RowPacker
from .publish import weight_store
from .source import GroupSource
from .tasks import TaskSampler

_PREFIX = "policy.network."
_LOOK_S = 5.0  # how often the trainer looks whether workers can load its weights


class WeightsError(TrainingError):
    """No worker can load the weights; a trainer that starts again writes them anew."""


class TrainerBooks(Protocol):
    """The books' side that faces the trainer."""

    def published(self, version: int) -> None:
        """See Books."""
        ...

    def batch(self, iteration: int) -> list[Group] | None:
        """See Books."""
        ...

    def unloadable(self) -> bool:
        """See Books."""
        ...

    def checkpointed(self, iteration: int) -> None:
        """See Books."""
        ...

    def note(self, worker: str, role: str, busy_s: float, idle_s: float) -> None:
        """See Books."""
        ...

    def report(self) -> dict[str, Any]:
        """See Books."""
        ...


def train_role(config: RlConfig, books: TrainerBooks, work: Callable[[], bool] = lambda: False) -> None:
    """Train and write the model; what is there already is gone on with.

    Args:
        config: of the run.
        books: where groups come from.
        work: called while groups are waited for; does some of it and returns True, or returns False.

    Raises:
        ConfigError, DataError, TrainingError, BooksError, StoreError, Interrupted, CosmosReasonError.
    """
    with join(config.run.for_training()) as context, room_on(Path(config.run.output).expanduser()):
        base, directory = Path(config.model.path).expanduser(), Path(config.run.output).expanduser()
        spec = read_model_spec(base)
        sampler = TaskSampler(config.data, spec, config.run.seed)
        model, objective = prepare(config, base, context)
        store = weight_store(config)
        monitor = Monitor(config, directory) if context.rank == 0 else None
        clock = _Clock(books)

        def begin(iteration: int) -> None:
            """All processes: the state after ``iteration`` iterations is in memory."""
            started = time.monotonic()
            state = gather_model(objective, trained_only=True)

            def publish() -> None:
                if iteration % config.run.save_every == 0:
                    books.checkpointed(iteration)
                store.publish(iteration, {n.removeprefix(_PREFIX): tensor for n, tensor in state.items()})
                books.published(iteration)
                if monitor:
                    monitor.published(iteration, time.monotonic() - started)

            # Nobody asks the books for answers of weights that are still being written.
            by_the_first(context, publish)

        def collect(iteration: int) -> list[Group]:
            clock.busy()
            groups = wait_for_groups(books, iteration, config.run.timeout_s, work)
            clock.idle()
            return groups

        def arrived(iteration: int, groups: list[Group]) -> None:
            def show() -> None:
                if monitor:
                    tasks = [sampler.draw(group.ticket) for group in groups]
                    monitor.arrived(iteration, groups, tasks, books.report())

            by_the_first(context, show)

        source = GroupSource(
            config,
            sampler,
            RowPacker(model, config, sampler.window),
            objective,
            context.device,
            begin,
            collect,
            arrived,
        )
        if context.rank == 0:
            _forget_broken_iterations(directory / "checkpoints", config.grpo.minibatches)
        train(_job(config, directory, objective, source, model.digest), context)
        begin(config.iterations)
        if monitor:
            monitor.close()
        state = gather_model(objective, trained_only=False)
        if context.rank == 0:
            network = {
                n.removeprefix(_PREFIX): tensor for n, tensor in state.items() if n.startswith(_PREFIX)
            }
            export(network, base, spec, directory / "model")
            print(f"wrote {directory / 'model'}", flush=True)


def by_the_first(context: Context, work: Callable[[], None]) -> None:
    """Have process 0 do something that the others wait for; if it fails, all fail, so that none waits on.

    Raises:
        Exception: what ``work`` raised, in process 0.
        RuntimeError: in the others. What a restart does not mend, process 0 tells the books.
    """
    failure: Exception | None = None
    if context.rank == 0:
        try:
            work()
        except Exception as error:
            failure = error
    if context.share(int(failure is not None)):
        raise failure or RuntimeError("process 0 of the trainer has failed: see what it says")


@contextmanager
def room_on(directory: Path) -> Iterator[None]:
    """A disk that is full while logs are written ends the run with what to do, as for all other files.

    Raises:
        TrainingError: it is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise TrainingError(
            f"{error.filename or directory} cannot be written ({error.strerror}): make room there, then "
            "start again; it goes on from the last checkpoint"
        ) from error


def wait_for_groups(
    books: TrainerBooks, iteration: int, timeout_s: float, work: Callable[[], bool] = lambda: False
) -> list[Group]:
    """The groups of an iteration; ``work`` as above.

    Raises:
        TrainingError: for so many seconds nothing was judged, and no worker ended over what it had: that ends
            some day too, by another question or none being left.
        WeightsError: workers cannot load the weights.
        BooksError: they will never be there.
    """
    patience, moved = Patience(), _moved(books.report())
    end = time.monotonic() + timeout_s
    looked = time.monotonic()
    while (groups := books.batch(iteration)) is None:
        if work():
            patience.renew()
            end = time.monotonic() + timeout_s
        elif time.monotonic() > end:
            report = books.report()
            if _moved(report) == moved:
                raise TrainingError(
                    f"iteration {iteration}: nothing was answered and judged for {timeout_s:g} s: {report}; "
                    "raise run.timeout_s or see what the workers say"
                )
            moved, end = _moved(report), time.monotonic() + timeout_s
        else:
            patience.wait()
        if time.monotonic() - looked > _LOOK_S:
            looked = time.monotonic()
            if books.unloadable():
                raise WeightsError(
                    f"the workers cannot load the weights of version {iteration}, see what they say: a "
                    "trainer that starts again writes them anew; if that does not help, see whether all "
                    "nodes share run.output"
                )
    return groups


def _moved(report: Mapping[str, Any]) -> tuple[int, ...]:
    return tuple(report["counts"][name] for name in ("judged", "taken_back", "failed"))


def _forget_broken_iterations(checkpoints: Path, steps: int) -> None:
    """Remove checkpoints that a signal left amid the ``steps`` of an iteration, which is then done anew.

    Its groups are in the books, but the weights of its start, which its ratios are taken against and which
    its version stands for, are in the checkpoint before.
    """
    for path in checkpoints.glob("step-*"):
        if int(path.name.split("-")[1]) % steps:
            shutil.rmtree(path, ignore_errors=True)


def prepare(config: RlConfig, base: Path, context: Context) -> tuple[LoadedModel, GrpoLoss]:
    """The network and the objective, with the policy and its reference on the device or in shards."""
    model = load(base, device="cpu", dtype="float32")
    settings = config.model
    if not settings.train_vision:
        for part in parts.tower(model.network):
            part.requires_grad_(False)
    if settings.checkpointing:
        enable = getattr(model.network, "activation_checkpointing_enable", None)
        (enable or model.network.gradient_checkpointing_enable)({"use_reentrant": False})
    policy = _placed(model, config, context, frozen_vision=not settings.train_vision)
    reference = None
    if config.grpo.kl_coefficient:
        frozen = load(base, device="cpu", dtype="float32")
        frozen.network.requires_grad_(False)
        if not settings.train_vision:
            parts.without_tower(frozen.network)  # it is given what the policy's sees
        reference = _placed(frozen, config, context, frozen_vision=True).eval()
    return model, GrpoLoss(policy, reference, config.grpo)


def _placed(model: LoadedModel, config: RlConfig, context: Context, *, frozen_vision: bool) -> Policy:
    compute = DTYPES[config.model.compute]
    policy = Policy(model, compute, frozen_vision=frozen_vision)
    if context.world > 1:
        shard(policy, parts.blocks(model.network), context, compute)
        policy.everywhere = True
    return policy.to(context.device)


def _job(config: RlConfig, directory: Path, objective: GrpoLoss, source: GroupSource, digest: str) -> Job:
    steps = config.grpo.minibatches
    return Job(
        objective=objective,
        source=source,
        optimizer=config.optimizer,
        directory=directory,
        save_every=config.run.save_every * steps,
        log_every=config.run.log_every * steps,
        keep=max(config.run.keep, 2 if steps > 1 else 1),  # the newest may be amid an iteration
        seed=config.run.seed,
        facts={
            "model.path digest": digest,
            "model.train_vision": config.model.train_vision,
            "data": dataclasses.asdict(config.data)
            | {"sources": [dataclasses.asdict(source) for source in config.data.sources]},
            "grpo": dataclasses.asdict(config.grpo),
            "optimizer": dataclasses.asdict(config.optimizer),
            "run.seed": config.run.seed,
        },
    )


class _Clock:
    """Tells the books how long the trainer worked and waited."""

    def __init__(self, books: TrainerBooks) -> None:
        self._books, self._since, self._busy = books, time.monotonic(), 0.0

    def busy(self) -> None:
        now = time.monotonic()
        self._busy, self._since = now - self._since, now

    def idle(self) -> None:
        now = time.monotonic()
        self._books.note("trainer", "trainer", self._busy, now - self._since)
        self._since = now
