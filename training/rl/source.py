# SPDX-License-Identifier: Apache-2.0
"""The trainer's view of the run: a training.sft.loop.BatchSource whose batches are groups of answers.

batches(step)   first step of an iteration:  publish the weights ──> rollout workers take them
wait for the iteration's groups (bounded)
pack them; with minibatches, note their log probabilities
each step:                   its minibatch, as forward passes of this process
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from training.data.media import MediaError
from training.sft.data import plan
from training.sft.loop import TrainingError

from .config import RlConfig
from .groups import Group
from .policy import AnswerRow, GrpoLoss, RlBatch, RowPacker
from .tasks import TaskSampler


class GroupSource:
    """Batches of an RL run.

    Args:
        config: of the run.
        sampler: knows the tickets' questions.
        packer: makes batches.
        objective: that is trained; asked for log probabilities.
        device: of this process.
        begin: called with the iteration by all processes at its start: publishes the weights.
        collect: waits for the groups of an iteration.
        arrived: called with the iteration and its groups.
    """

    def __init__(
        self,
        config: RlConfig,
        sampler: TaskSampler,
        packer: RowPacker,
        objective: GrpoLoss,
        device: torch.device,
        begin: Callable[[int], None],
        collect: Callable[[int], list[Group]],
        arrived: Callable[[int, list[Group]], None],
    ) -> None:
        self._config, self._sampler, self._packer, self._objective = config, sampler, packer, objective
        self._device, self._begin, self._collect, self._arrived = device, begin, collect, arrived
        self._iteration = -1
        self._parts: list[list[tuple[list[AnswerRow], bool]]] = []
        self._proximal: dict[tuple[int, int], Tensor] = {}

    def batches(self, step: int, rank: int, world: int) -> Iterator[RlBatch]:
        """Forward passes of process ``rank`` of ``world`` in optimizer step ``step``."""
        iteration, part = divmod(step, self._config.grpo.minibatches)
        if iteration != self._iteration:
            self._start(iteration, rank, world)
        for number, batch in enumerate(self._decoded(self._parts[part])):
            yield dataclasses.replace(batch, proximal=self._proximal.get((part, number)))

    def close(self) -> None:
        """Nothing to stop."""

    def _start(self, iteration: int, rank: int, world: int) -> None:
        self._begin(iteration)
        groups = self._collect(iteration)
        self._arrived(iteration, groups)
        count = self._config.grpo.minibatches
        self._parts = [self._passes(groups[part::count], rank, world) for part in range(count)]
        self._proximal = {}
        if count > 1 and self._config.grpo.importance_cap:
            for part, passes in enumerate(self._parts):
                for number, batch in enumerate(self._decoded(passes)):
                    log_probs = self._objective.log_probs(batch.to(self._device))
                    self._proximal[part, number] = log_probs.cpu()
        self._iteration = iteration

    def _passes(self, groups: list[Group], rank: int, world: int) -> list[tuple[list[AnswerRow], bool]]:
        """Rows of this process's forward passes, and whether they count.

        Sharded processes have to run the same number: the last pass is repeated without weight.
        """
        rows = [row for group in groups for row in self._packer.rows(group, self._sampler.draw(group.ticket))]
        passes = [(made, True) for made in plan(rows, self._config.data.max_tokens, 1)]  # type: ignore[arg-type]
        passes += [(passes[-1][0], False)] * (-len(passes) % world)
        return passes[rank::world]  # type: ignore[return-value]

    def _decoded(self, passes: list[tuple[list[AnswerRow], bool]]) -> Iterator[RlBatch]:
        """Batches; the videos of the next are decoded while one is computed."""
        with ThreadPoolExecutor(1, thread_name_prefix="decode") as pool:
            coming = deque(pool.submit(self._batch, *one) for one in passes[:1])
            for following in [*passes[1:], None]:
                batch = coming.popleft().result()
                if following:
                    coming.append(pool.submit(self._batch, *following))
                yield batch

    def _batch(self, rows: list[AnswerRow], counts: bool) -> RlBatch:
        try:
            batch = self._packer.batch(rows)
        except MediaError as error:
            raise TrainingError(
                f"{error.message}: a rollout worker could read it; the trainer needs the same data"
            ) from error
        return batch if counts else batch.without_weight()
