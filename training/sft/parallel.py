# SPDX-License-Identifier: Apache-2.0
"""One process or many: joining them, sharding a network over them (FSDP2), and gathering its state.

A training loop gets a ``Context`` and never asks who started it. Sharded and plain training share one format
of state: whole tensors on process 0, so the number of processes may change between runs.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from .config import ConfigError, RunConfig


@dataclass(frozen=True)
class Context:
    """Who this process is.

    Attributes:
        rank: 0 writes files and prints.
        world: number of processes.
        per_host: processes on this machine.
        device: of this process.
    """

    rank: int
    world: int
    per_host: int
    device: torch.device

    def sum(self, values: Sequence[float]) -> list[float]:
        """Sums over all processes, in double precision."""
        if self.world == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.tolist()

    def share(self, value: int) -> int:
        """Process 0's value."""
        return round(self.sum([value if self.rank == 0 else 0])[0])


@contextlib.contextmanager
def join(run: RunConfig) -> Iterator[Context]:
    """Take part in the run: as torchrun's or Ray's worker, or alone.

    Raises:
        ConfigError: the device is not there.
    """
    cuda = torch.cuda.is_available() if run.device == "auto" else run.device == "cuda"
    if cuda and not torch.cuda.is_available():
        raise ConfigError("run.device: cuda, but torch sees no CUDA device; take auto or cpu")
    if run.threads and not cuda:
        torch.set_num_threads(run.threads)
    started_here = False
    if not dist.is_initialized() and "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        dist.init_process_group(backend, timeout=timedelta(seconds=run.timeout_s))
        started_here = True
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    local = int(os.environ.get("LOCAL_RANK", 0))
    device = torch.device("cuda", local % torch.cuda.device_count()) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    try:
        yield Context(rank, world, int(os.environ.get("LOCAL_WORLD_SIZE", world)), device)
    except Exception as error:
        from .loop import Interrupted  # which imports this module

        if started_here and isinstance(error, Interrupted):  # as all processes are, at the same step
            dist.destroy_process_group()
        raise
    # After an error of this process alone the others may be in a collective, for which NCCL's destroy would
    # wait: the process ends without, its error is seen, and torchrun ends the others.
    if started_here:
        dist.destroy_process_group()


def shard(root: nn.Module, blocks: Sequence[nn.Module], context: Context, compute: torch.dtype) -> None:
    """Share parameters, gradients and optimizer moments among all processes (FSDP2).

    Each block is a unit that is gathered when it is computed; what lies outside of them is one unit with
    ``root``, whose forward has to be the only way in.
    """
    mesh = init_device_mesh(context.device.type, (context.world,))
    # Inputs have the right types already; casting them would round the vision tower's float32 rotations.
    policy = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(root, mesh=mesh, mp_policy=policy)


def replicate(root: nn.Module, context: Context) -> nn.Module:
    """A module that averages gradients over all processes, each of which holds all parameters.

    For networks so small that a shard is not worth gathering. Every parameter has to be used in every pass.
    """
    if context.world == 1:
        return root
    devices = [context.device] if context.device.type == "cuda" else None
    return DistributedDataParallel(root, device_ids=devices)


def _inner(root: nn.Module) -> nn.Module:
    return root.module if isinstance(root, DistributedDataParallel) else root


def gather_model(root: nn.Module, *, trained_only: bool) -> dict[str, Tensor]:
    """Whole tensors on the CPU of process 0, nothing elsewhere; all processes have to call."""
    root = _inner(root)
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=trained_only)
    state: Any = get_model_state_dict(root, options=options)
    kept = (
        _not_frozen(root) if trained_only else set(state)
    )  # a tied frozen tensor slips through torch's filter
    return {name: tensor for name, tensor in state.items() if name in kept}


def gather_optimizer(root: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's tensors as "parameter/moment"; as ``gather_model``."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state: Any = get_optimizer_state_dict(_inner(root), optimizer, options=options)
    moments = state.get("state", {}).items()
    return {f"{name}/{key}": tensor for name, entry in moments for key, tensor in entry.items()}


def restore(
    root: nn.Module,
    optimizer: torch.optim.Optimizer,
    model_state: dict[str, Tensor],
    optimizer_state: dict[str, Tensor],
    context: Context,
) -> None:
    """The reverse of the two gathers. Process 0 gives the tensors, the others give empty dicts.

    Raises:
        ValueError: the state is of another network.
    """
    root, many = _inner(root), context.world > 1
    # Frozen parameters are in no checkpoint, so the names are compared by hand and loading is not strict.
    if context.rank == 0:
        strange = sorted(_not_frozen(root) ^ set(model_state))
        if strange:
            raise ValueError(f"{len(strange)} tensors differ, {', '.join(strange[:3])} among them")
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=many, strict=False)
    state: Any = model_state
    set_model_state_dict(root, state, options=options)
    entries: dict[str, dict[str, Tensor]] = {}
    for key, tensor in optimizer_state.items():
        name, moment = key.rsplit("/", 1)
        entries.setdefault(name, {})[moment] = tensor
    plain = StateDictOptions(full_state_dict=True, cpu_offload=True)
    groups: Any = get_optimizer_state_dict(root, optimizer, options=plain).get("param_groups", [])
    whole: Any = {"state": entries, "param_groups": groups} if context.rank == 0 else {}
    set_optimizer_state_dict(root, optimizer, whole, options=options)


def _not_frozen(root: nn.Module) -> set[str]:
    """Names of state that training changes."""
    parameters = root.named_parameters(remove_duplicate=False)
    return set(root.state_dict()) - {name for name, parameter in parameters if not parameter.requires_grad}
