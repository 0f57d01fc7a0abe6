# SPDX-License-Identifier: Apache-2.0
"""How new weights reach the rollout workers: versioned files that appear whole or not at all.

    weights/step-00000012/model.safetensors    version 12; state.json holds its digest

A worker that dies while it reads hurts nobody; a trainer that dies while it writes leaves nothing behind; a
file that is cut off does not have its digest and is not used. Across nodes it takes a file system that all of
them share, or a directory in memory (/dev/shm) on a single one.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from cosmos_reason_node.models.qwen2_5_vl import DTYPES
from training.sft.store import Snapshot, SnapshotStore, StoreError

from .config import RlConfig

_KEPT = 2
_TRIES = 20
_PAUSE_S = 0.25


class WeightStore:
    """The newest weights of a run.

    Args:
        directory: weights/ of the run.
        dtype: type that weights are written in; None: as they are.
    """

    def __init__(self, directory: Path, dtype: torch.dtype | None = None) -> None:
        self._directory, self._dtype = directory, dtype
        self._said: set[str] = set()
        self._store = SnapshotStore(directory, _KEPT)

    def publish(self, version: int, state: Mapping[str, Tensor]) -> None:
        """Write weights; later versions, of a trainer that has gone back to a checkpoint, are removed.

        Raises:
            StoreError: they cannot be written; the version before is untouched.
        """
        for path in self._directory.glob("step-*"):
            if int(path.name.split("-")[1]) > version:
                shutil.rmtree(path, ignore_errors=True)
        cast: dict[int, Tensor] = {}  # by address, so that tied tensors stay tied
        tensors = {name: cast.setdefault(t.data_ptr(), self._cast(t)) for name, t in state.items()}
        self._store.write(version, {"model": tensors}, {})

    def load(self, network: nn.Module) -> int:
        """Copy the newest weights into a network; returns their version.

        Files may be replaced while they are read; then the next ones are taken.

        Raises:
            StoreError: there are none that are whole, even after some seconds.
        """
        reason = "there are none"
        for _ in range(_TRIES):
            try:
                snapshot = self._store.newest()
                if snapshot is not None:
                    version = _copy(snapshot, network)
                    for bad in set(self._store.bad) - self._said:  # it is asked for again and again
                        print(f"weights: {bad}; version {version} is taken", flush=True)
                    self._said = set(self._store.bad)
                    return version
            except (StoreError, OSError, ValueError) as error:
                reason = str(error)
            time.sleep(_PAUSE_S)
        raise StoreError(f"no weights can be loaded from {self._directory}: {reason}")

    def _cast(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._dtype) if self._dtype and tensor.is_floating_point() else tensor


def weight_store(config: RlConfig) -> WeightStore:
    """Where the run's weights are published."""
    return WeightStore(Path(config.run.output).expanduser() / "weights", rollout_dtype(config))


def rollout_dtype(config: RlConfig) -> torch.dtype:
    """Type of the engines' weights."""
    if config.rollout.dtype != "auto":
        return DTYPES[config.rollout.dtype]
    cuda = config.run.device != "cpu" and torch.cuda.is_available()
    return torch.bfloat16 if cuda else torch.float32


def _copy(snapshot: Snapshot, network: nn.Module) -> int:
    tensors = snapshot.tensors("model")
    report = network.load_state_dict(tensors, strict=False)
    if report.unexpected_keys:
        raise StoreError(
            f"{snapshot.directory} is of another model ({report.unexpected_keys[0]} is unknown): choose "
            "another run.output"
        )
    return snapshot.step
