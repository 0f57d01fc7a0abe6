# SPDX-License-Identifier: Apache-2.0
"""The roles of a run as Ray processes, and who looks after them.

    driver (this process)   starts all; replaces rollout and reward workers that die; tells the books
    books                   one actor; Ray restarts it, and its journal tells it what it knew
    rollout-N, reward-N     actors anywhere in the cluster, each in its loop (loop.py)
    trainer                 an actor; with several processes Ray Train, which restarts them together: from the
                            last checkpoint

Any of them may be killed at any time. Workers join late: the driver starts as many as the configuration says
whenever the cluster has room for them. One of each role is placed before the others, so that a cluster that
is too small for all of them is slow, not stuck.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from training.sft.folder import enter
from training.sft.lock import only_run

from .books import Books, BooksError, arguments
from .config import ConfigError, RlConfig
from .loop import asked_digest, make_sampler
from .tasks import TaskSampler

_CALL_S = 120.0  # longest wait for an answer of the books: they may have to be restarted
_WATCH_S = 0.5
_PAUSE_S = (1.0, 30.0)  # before a worker that dies at once is started again: first, longest
_FIRST = (("rollout", 0), ("reward", 0))  # without which there is no run
_CPUS = {"rollout": 1.0, "reward": 0.5}  # that Ray keeps free for a worker
_MENDED_BY_A_RESTART = ("Interrupted", "WeightsError")  # of a trainer; it begins at its last checkpoint
_FATAL = ("BooksError", "TrainingError", "StoreError", "ConfigError", "DataError")


class RemoteBooks:
    """The books as the other processes see them: every call is answered within a bound, or raises.

    Args:
        actor: handle of the books.
    """

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._actor, name)

        def call(*arguments: Any) -> Any:
            import ray

            try:
                return ray.get(method.remote(*arguments), timeout=_CALL_S)
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, BooksError):
                    raise BooksError(str(error.cause)) from None
                raise
            except ray.exceptions.RayError as error:  # dead, killed for memory, or silent
                raise BooksError(
                    f"the books do not answer ({error}): see Ray's logs, then start again"
                ) from error

        return call

    def __reduce__(self) -> tuple[Any, tuple[Any]]:
        return RemoteBooks, (self._actor,)


def run_ray(config: RlConfig) -> None:
    """Run all roles in the cluster of RAY_ADDRESS, or in one started on this machine.

    Raises:
        ConfigError: it does not fit into the cluster or its memory, or another run writes to ``run.output``.
        TrainingError: the trainer failed for good; the message says why.
    """
    with only_run(Path(config.run.output).expanduser()):
        _run_roles(config)


def _run_roles(config: RlConfig) -> None:
    import ray

    sampler = make_sampler(config)  # first: what is wrong with the questions is said at once
    started = not ray.is_initialized()
    if started:
        _start_ray(config)
    short = missing(config, ray.cluster_resources(), cuda=_wants_gpu(config))
    if short and started and "RAY_ADDRESS" not in os.environ:
        raise ConfigError(
            f"{short}: take smaller shares (run.gpus, rollout.gpus), or a cluster (RAY_ADDRESS)"
        )
    if short:
        print(f"{short}: waits for nodes to join", flush=True)
    _check_memory(config, sampler)
    asked = asked_digest(config, sampler)
    role: Any = ray.remote(_BooksActor)
    folder = os.getcwd()
    actor = role.options(num_cpus=0, max_restarts=-1, max_task_retries=-1).remote(config, asked, folder)
    books = RemoteBooks(actor)
    keeper = _Keeper(config, books)
    try:
        books.report()  # a journal that cannot be read is said before anything is started
        keeper.start()
        _train(config, books)
    finally:
        keeper.stop()
        ray.kill(actor)
        if started:
            ray.shutdown()


class _BooksActor(Books):
    """The books in a process of their own."""

    def __init__(self, config: RlConfig, questions: str, folder: str) -> None:
        enter(folder)
        super().__init__(**arguments(config, questions))


def missing(config: RlConfig, there: Mapping[str, float], *, cuda: bool) -> str:
    """What the trainer with one worker of each role lacks to be placed, in words; "": nothing.

    Args:
        config: of the run.
        there: Ray's resources of the whole cluster, by name.
        cuda: the trainer takes GPUs.
    """
    wanted = _needed(config, _FIRST, cuda=cuda)
    return ", ".join(
        f"the cluster has {there.get(name, 0.0):g} {name} for a trainer and a worker of each role, which "
        f"take {amount:g}"
        for name, amount in wanted.items()
        if amount > there.get(name, 0.0) + 1e-6
    )


def _needed(config: RlConfig, workers: Iterable[tuple[str, int]], *, cuda: bool) -> dict[str, float]:
    """Ray's resources of the trainer and these workers, (role, number) each."""
    trainers = config.run.processes
    gpus: float = (trainers if trainers > 1 else config.run.gpus) if cuda else 0
    cpus: float = trainers
    for role, _ in workers:
        cpus += _CPUS[role]
        gpus += config.rollout.gpus if role == "rollout" else 0
    return {"GPU": gpus, "CPU": cpus}


def _check_memory(config: RlConfig, sampler: TaskSampler) -> None:
    """Print what the run needs, or refuse; measured where a trainer process would be, before anything is."""
    import ray

    from .memory import longest_question

    nodes = sum(node["Alive"] for node in ray.nodes())
    probe: Any = ray.remote(_measure).options(**_trainer_place(config))
    try:
        lines = ray.get(probe.remote(config, longest_question(config, sampler), nodes, os.getcwd()))
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, ConfigError):
            raise ConfigError(str(error.cause)) from None
        raise
    print(*lines, sep="\n", flush=True)


def _measure(config: RlConfig, longest: Any, nodes: int, folder: str) -> list[str]:
    from .memory import check_memory

    enter(folder)
    return check_memory(config, longest, nodes)


def _trainer_place(config: RlConfig) -> dict[str, Any]:
    """What Ray is to keep free for a trainer process."""
    gpus = config.run.gpus if config.run.processes == 1 else 1
    return {"num_cpus": 1, "num_gpus": gpus if _wants_gpu(config) else 0}


def _train(config: RlConfig, books: RemoteBooks) -> None:
    from training.sft.loop import TrainingError

    if config.run.processes == 1:
        _train_alone(config, books)
    else:
        _train_sharded(config, books)
    said = books.failure()
    if said:
        raise TrainingError(said)


def _train_alone(config: RlConfig, books: RemoteBooks) -> None:
    """A single process is an actor, which is back in seconds; Ray Train would take ten processes for it."""
    import ray

    from training.sft.loop import TrainingError

    for life in range(config.run.restarts + 1):
        actor: Any = ray.remote(_Trainer).options(**_trainer_place(config)).remote()
        try:
            ray.get(actor.run.remote(_trainer_arguments(config, books)))
            return
        except ray.exceptions.RayTaskError as error:
            # A signal to the process of the trainer alone: this one, which a user stops, has had none.
            if type(error.cause).__name__ not in _MENDED_BY_A_RESTART:
                raise TrainingError(f"the trainer failed: {error}") from error
            _lost_trainer(f"{error.cause}", config, life)
        except ray.exceptions.RayError as error:  # it died, or was killed for memory
            _lost_trainer(type(error).__name__, config, life)
        finally:
            ray.kill(actor)
    raise TrainingError(f"the trainer died {config.run.restarts + 1} times: see above, or raise run.restarts")


def _lost_trainer(reason: str, config: RlConfig, life: int) -> None:
    print(f"the trainer is lost ({reason}): {config.run.restarts - life} more restarts", flush=True)


def _trainer_arguments(config: RlConfig, books: RemoteBooks) -> dict[str, Any]:
    return {"config": config, "books": books, "folder": os.getcwd()}


class _Trainer:
    """The trainer as one process."""

    def run(self, arguments: dict[str, Any]) -> None:
        """Train to the end."""
        _trainer_process(arguments)


def _train_sharded(config: RlConfig, books: RemoteBooks) -> None:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from training.sft.loop import TrainingError

    cuda = _wants_gpu(config)
    seconds = max(10, round(config.run.timeout_s))
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(max(60, seconds)))
    trainer = TorchTrainer(
        _trainer_process,
        train_loop_config=_trainer_arguments(config, books),
        scaling_config=ScalingConfig(num_workers=config.run.processes, use_gpu=cuda),
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if cuda else "gloo", timeout_s=seconds),
        run_config=RunConfig(
            name="rl",
            storage_path=str(Path(config.run.output).expanduser().resolve() / "ray"),
            failure_config=FailureConfig(max_failures=config.run.restarts),
        ),
    )
    try:
        trainer.fit()
    except Exception as error:  # Ray wraps the workers' errors in its own
        raise TrainingError(books.failure() or f"the trainer failed: {error}") from error


def _trainer_process(arguments: dict[str, Any]) -> None:
    """A trainer process. An error that a restart does not mend is told to the books, not to Ray."""
    from .run import train_role

    enter(arguments["folder"])
    config, books = arguments["config"], arguments["books"]
    if books.failure():  # said by a life before: nothing has to be loaded to hear it again
        return
    try:
        train_role(config, books)
    except Exception as error:
        fatal = type(error).__name__ in _FATAL
        if fatal:
            print(f"{type(error).__name__}: {error}", flush=True)
            books.fail(f"{type(error).__name__}: {error}")
        if not fatal or config.run.processes > 1:  # Ray ends the others, which may wait for this one
            raise


class _Keeper:
    """Keeps rollout and reward workers alive, in a thread of the driver."""

    def __init__(self, config: RlConfig, books: RemoteBooks) -> None:
        self._config, self._books = config, books
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="keeper", daemon=True)
        rollout = config.rollout
        self._wanted = [*_FIRST]
        self._others = [("rollout", i) for i in range(1, rollout.workers)]
        self._others += [("reward", i) for i in range(1, rollout.reward_workers)]
        self._running: dict[tuple[str, int], tuple[Any, Any, str, float]] = {}
        self._lives: dict[tuple[str, int], int] = {}
        self._not_before: dict[tuple[str, int], float] = {}

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End all workers: politely, then by force."""
        import ray

        self._ended.set()
        if self._thread.ident is None:
            return
        try:
            self._books.stop()
            self._thread.join(timeout=_CALL_S)
            ray.wait(
                [run for _, run, _, _ in self._running.values()], num_returns=len(self._running), timeout=3
            )
        except (BooksError, ValueError):
            pass
        for actor, _, _, _ in self._running.values():
            ray.kill(actor)

    def _watch(self) -> None:
        while not self._ended.wait(_WATCH_S):
            try:
                for key in self._wanted:
                    due = key not in self._running and time.monotonic() >= self._not_before.get(key, 0.0)
                    if due and (key in _FIRST or self._has_room_for(key)):
                        self._begin(key)
                if self._others and self._books.report()["version"] >= 0:  # the trainer has its place
                    self._wanted += self._others
                    self._others = []
                self._bury()
                self._end_hanging()
            except Exception as error:  # without a keeper the run would wait until its time is out
                print(f"keeper: {type(error).__name__}: {error}; tried again", flush=True)

    def _has_room_for(self, key: tuple[str, int]) -> bool:
        """Whether the cluster holds it beside the trainer and those that run.

        What waited in Ray's queue would take the trainer's place when that has to start again.
        """
        import ray

        needed = _needed(self._config, {*_FIRST, *self._running, key}, cuda=_wants_gpu(self._config))
        there = ray.cluster_resources()
        return all(amount <= there.get(name, 0.0) + 1e-6 for name, amount in needed.items())

    def _begin(self, key: tuple[str, int]) -> None:
        import ray

        role, number = key
        life = self._lives[key] = self._lives.get(key, 0) + 1
        name = f"{role}-{number}.{life}"
        options: dict[str, Any] = {"num_cpus": _CPUS[role]}
        if role == "rollout" and self._config.rollout.gpus:
            options["num_gpus"] = self._config.rollout.gpus
        worker: Any = ray.remote(_WORKERS[role]).options(**options)
        actor = worker.remote(self._config, self._books, name, os.getcwd())
        self._running[key] = (actor, actor.run.remote(), name, time.monotonic())

    def _bury(self) -> None:
        """Notice the dead; what they had is free again."""
        import ray

        runs = {run: key for key, (_, run, _, _) in self._running.items()}
        ended, _ = ray.wait(list(runs), num_returns=len(runs), timeout=0) if runs else ([], [])
        for run in ended:
            key = runs[run]
            actor, _, name, since = self._running[key]
            reason = _reason(run)
            if self._ended.is_set() or self._books.stopped():  # workers end when the run does
                return
            freed = self._books.lost(name)
            del self._running[key]
            short = time.monotonic() - since < _PAUSE_S[1]
            pause = min(_PAUSE_S[1], _PAUSE_S[0] * 2 ** min(5, self._lives[key] - 1)) if short else 0.0
            self._not_before[key] = time.monotonic() + pause
            print(f"{name} is lost ({reason}): {freed} of its tickets are free again", flush=True)
            ray.kill(actor)

    def _end_hanging(self) -> None:
        """End workers that are not heard of; then they are dead like others."""
        import ray

        hanging = self._books.hanging()
        for actor, _, name, _ in self._running.values():
            if name in hanging:
                print(f"{name} hangs: it is ended, and what it had is free again", flush=True)
                ray.kill(actor)


class _Rollout:
    """A rollout worker."""

    def __init__(self, config: RlConfig, books: RemoteBooks, name: str, folder: str) -> None:
        enter(folder)
        self._config, self._books, self._name = config, books, name

    def run(self) -> None:
        """Its loop."""
        import torch

        from .loop import rollout_loop

        if self._config.run.threads and not _wants_gpu(self._config):
            torch.set_num_threads(self._config.run.threads)
        rollout_loop(self._books, self._config, self._name)


class _Reward:
    """A reward worker."""

    def __init__(self, config: RlConfig, books: RemoteBooks, name: str, folder: str) -> None:
        enter(folder)
        self._config, self._books, self._name = config, books, name

    def run(self) -> None:
        """Its loop."""
        from .loop import reward_loop

        reward_loop(self._books, self._config, self._name)


_WORKERS: dict[str, Any] = {"rollout": _Rollout, "reward": _Reward}


def _reason(run: Any) -> str:
    import ray

    try:
        ray.get(run)
    except ray.exceptions.RayTaskError as error:
        return f"{type(error.cause).__name__}: {error.cause}"
    except ray.exceptions.RayError as error:
        return type(error).__name__
    return "it ended"


def _start_ray(config: RlConfig) -> None:
    from training.sft.launch import start_ray

    rollout = config.rollout
    start_ray(config.run.processes + rollout.workers + rollout.reward_workers)


def _wants_gpu(config: RlConfig) -> bool:
    import ray
    import torch

    return config.run.device == "cuda" or (
        config.run.device == "auto"
        and takes_gpu(torch.cuda.is_available(), len(ray.nodes()), ray.cluster_resources())
    )


def takes_gpu(here: bool, nodes: int, there: Mapping[str, float]) -> bool:
    """Whether ``run.device: auto`` is CUDA.

    Args:
        here: PyTorch sees a GPU on this machine.
        nodes: in the cluster; a head node often has no GPU.
        there: the cluster's resources. Of one node, what PyTorch sees counts: a GPU without a driver is none.
    """
    return here or (nodes > 1 and there.get("GPU", 0.0) >= 1)
