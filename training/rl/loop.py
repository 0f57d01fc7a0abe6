# SPDX-License-Identifier: Apache-2.0
"""The loops of a run. They know the books and each other's files, not who started them.

      ┌────────────────────────── books: tickets, answers, rewards ──────────────────────────┐
      │  open tickets ──> rollout loop (n) ──> to judge ──> reward loop (m) ──> done          │
      │       ▲  throttled: iteration <= version + max_staleness                │            │
      └───────┼──────────────────────────────────────────────────────────────────┼────────────┘
              │ version                                                          │ batch, in the order
      weights/ (files, newest two) <──publish── trainer: loss, step, checkpoint <─┘ of its places
              └──load──> rollout loop, between two rounds; each token carries the version it came from

Queues are bounded by the tickets on their way: (max_staleness + 1) batches. Nothing is dropped for being
stale, since too early a ticket is not given out. With max_staleness 0 every answer comes from the weights
that are trained next: the synchronous algorithm, bit for bit, however many workers there are or die.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from cosmos_reason_node.models.checkpoint import digest
from cosmos_reason_node.models.spec import read_model_spec
from training.sft.lock import only_run

from .books import Books, arguments
from .config import RlConfig
from .groups import Group, Ticket
from .patience import Patience
from .rewards import judge
from .tasks import TaskSampler

if TYPE_CHECKING:  # importing torch takes seconds, and a reward worker needs none
    from .publish import WeightStore
    from .rollout import Roller


class WorkerBooks(Protocol):
    """The books' side that faces workers."""

    def began(self, worker: str) -> None:
        """See Books."""
        ...

    def next_round(self, worker: str, version: int) -> tuple[Ticket, ...] | int | None:
        """See Books."""
        ...

    def answered(self, groups: Sequence[Group], failures: Sequence[tuple[Ticket, str]]) -> int:
        """See Books."""
        ...

    def failed(self, ticket: Ticket, reason: str) -> None:
        """See Books."""
        ...

    def next_to_judge(self, worker: str) -> Group | None:
        """See Books."""
        ...

    def judged(self, group: Group) -> bool:
        """See Books."""
        ...

    def stopped(self) -> bool:
        """See Books."""
        ...

    def note(self, worker: str, role: str, busy_s: float, idle_s: float) -> None:
        """See Books."""
        ...


def roll_one(books: WorkerBooks, store: WeightStore, roller: Roller, name: str) -> bool:
    """One piece of a rollout worker's work; False where there is none."""
    order = books.next_round(name, roller.version)
    if order is None:
        return False
    if isinstance(order, int):
        before = roller.version
        roller.load(store)
        return roller.version != before
    books.answered(*roller.roll_round(order))
    return True


def judge_one(books: WorkerBooks, sampler: TaskSampler, config: RlConfig, name: str) -> bool:
    """One piece of a reward worker's work; False where there is none."""
    group = books.next_to_judge(name)
    if group is None:
        return False
    task = sampler.draw(group.ticket)
    try:
        judged = judge(group, task, config)
    except Exception as error:  # rewards are anybody's code: one that raises must not end the run
        books.failed(group.ticket, f"{task.name}: its reward raised {type(error).__name__}: {error}")
    else:
        books.judged(judged)
    return True


def rollout_loop(books: WorkerBooks, config: RlConfig, name: str) -> None:
    """A rollout worker, until the books say stop."""
    from .publish import weight_store

    books.began(name)
    roller, store = make_roller(config), weight_store(config)
    _loop(books, name, "rollout", lambda: roll_one(books, store, roller, name))


def reward_loop(books: WorkerBooks, config: RlConfig, name: str) -> None:
    """A reward worker, until the books say stop."""
    books.began(name)
    sampler = make_sampler(config)
    _loop(books, name, "reward", lambda: judge_one(books, sampler, config, name))


def run_inline(config: RlConfig) -> None:
    """Everything in turn in this process: the synchronous algorithm.

    Raises:
        ConfigError, DataError, TrainingError, BooksError, StoreError, Interrupted, CosmosReasonError.
    """
    from .memory import check_memory, longest_question
    from .publish import weight_store
    from .run import train_role

    with only_run(Path(config.run.output).expanduser()):
        sampler = make_sampler(config)
        print(*check_memory(config, longest_question(config, sampler)), sep="\n", flush=True)
        store, roller = weight_store(config), make_roller(config, sampler)
        books = Books(**arguments(config, asked_digest(config, sampler)))

        def work() -> bool:
            return judge_one(books, sampler, config, "inline") or roll_one(books, store, roller, "inline")

        train_role(config, books, work)


def make_books(config: RlConfig) -> Books:
    """The run's books; groups that its journal holds are taken back."""
    return Books(**arguments(config, asked_digest(config, make_sampler(config))))


def asked_digest(config: RlConfig, sampler: TaskSampler) -> str:
    """Of the checkpoint and of all that may be asked of it: what answers depend on besides the settings.

    Reads the whole checkpoint: seconds for a large one.
    """
    return f"{digest(Path(config.model.path).expanduser())} {sampler.digest}"


def make_sampler(config: RlConfig) -> TaskSampler:
    """The run's questions."""
    return TaskSampler(config.data, read_model_spec(config.model.path), config.run.seed)


def make_roller(config: RlConfig, sampler: TaskSampler | None = None) -> Roller:
    """A rollout worker's model and questions, which are read where they are not given."""
    from cosmos_reason_node.models.load import load
    from cosmos_reason_node.models.qwen2_5_vl import DTYPES

    from .publish import rollout_dtype
    from .rollout import Roller

    dtype = next(name for name, kind in DTYPES.items() if kind is rollout_dtype(config))
    model = load(config.model.path, device=config.run.device, dtype=dtype)
    return Roller(config, sampler or make_sampler(config), model)


def _loop(books: WorkerBooks, name: str, role: str, work: Callable[[], bool]) -> None:
    busy_s = idle_s = 0.0
    noted, patience = time.monotonic(), Patience()
    while not books.stopped():
        started = time.monotonic()
        if work():
            patience.renew()
            busy_s += time.monotonic() - started
        else:
            patience.wait()
            idle_s += time.monotonic() - started
        if time.monotonic() - noted > 1.0:
            books.note(name, role, busy_s, idle_s)
            busy_s = idle_s = 0.0
            noted = time.monotonic()
    books.note(name, role, busy_s, idle_s)
