# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of a run: each a directory of safetensors and JSON that appears whole or not at all.

    checkpoints/step-00000500/  model.safetensors  optimizer.safetensors  state.json (digests, step, facts)

A checkpoint whose files do not have the digests that state.json names is passed over for the one before it.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

_STATE = "state.json"
# What a full disk raises, by who writes: safetensors has an error of its own.
NOT_WRITTEN = (OSError, SafetensorError)


class StoreError(Exception):
    """Checkpoints cannot be written or used; the message says what to do."""


@dataclass(frozen=True)
class Snapshot:
    """A whole checkpoint.

    Attributes:
        directory: of its files.
        step: steps done.
        facts: what the run stored with it.
    """

    directory: Path
    step: int
    facts: Mapping[str, Any]

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Tensors of file ``name``.safetensors, tied ones under all of their names."""
        loaded = load_file(self.directory / f"{name}.safetensors")
        aliases = self.facts["aliases"][name]
        return loaded | {alias: loaded[kept] for alias, kept in aliases.items()}


class SnapshotStore:
    """The newest checkpoints of a run.

    Args:
        directory: made when something is written.
        keep: so many are kept.
    """

    def __init__(self, directory: Path, keep: int) -> None:
        self._directory, self._keep = directory, keep
        self.bad: list[str] = []  # why checkpoints were passed over

    def write(self, step: int, files: Mapping[str, Mapping[str, Tensor]], facts: Mapping[str, Any]) -> Path:
        """Write the checkpoint of ``step``, then delete the oldest.

        Args:
            step: steps done.
            files: tensors by file name without suffix.
            facts: JSON to keep with it.

        Raises:
            StoreError: it cannot be written; nothing of it is left behind, earlier ones are untouched.
        """
        target = self._directory / f"step-{step:08d}"
        partial = self._directory / f"partial-{os.getpid()}"
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            for left in self._directory.glob("partial-*"):  # of a run that was killed
                shutil.rmtree(left)
            partial.mkdir()
            aliases, digests = {}, {}
            for name, tensors in files.items():
                kept, aliases[name] = _unshared(tensors)
                path = partial / f"{name}.safetensors"
                save_file(kept, path)
                digests[path.name] = _digest(path)
            state = {"step": step, "digests": digests, "facts": {**facts, "aliases": aliases}}
            (partial / _STATE).write_text(json.dumps(state, indent=1), encoding="utf-8")
            for path in [*partial.iterdir(), partial]:
                _sync(path)
            if target.exists():  # a damaged one of the same step
                shutil.rmtree(target)
            partial.rename(target)
            _sync(self._directory)
        except NOT_WRITTEN as error:
            shutil.rmtree(partial, ignore_errors=True)
            size = sum(t.numel() * t.element_size() for tensors in files.values() for t in tensors.values())
            raise StoreError(
                f"the checkpoint of step {step} ({size / 1e9:.2f} GB) cannot be written to {self._directory} "
                f"({error}): make room there or lower run.keep, then start again; earlier checkpoints are "
                "intact"
            ) from error
        # Later ones were passed over as damaged; were they counted, this one could be taken for an old one.
        for old in [path for path in self._names() if path.name <= target.name][: -self._keep]:
            shutil.rmtree(old, ignore_errors=True)
        return target

    def newest(self) -> Snapshot | None:
        """The newest checkpoint that is whole; None where there is none at all.

        Raises:
            StoreError: there are some, but all of them are damaged.
        """
        self.bad = []
        names = self._names()
        for directory in reversed(names):
            try:
                return _open(directory)
            except (OSError, ValueError, KeyError, TypeError) as error:
                self.bad.append(f"{directory} is damaged ({error}) and passed over")
        if names:
            raise StoreError(
                f"all checkpoints in {self._directory} are damaged: {'; '.join(self.bad)}. Delete the folder "
                "to start from the beginning"
            )
        return None

    def _names(self) -> list[Path]:
        return sorted(path for path in self._directory.glob("step-*") if path.is_dir())


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A folder to write into that takes the place of ``target`` once it is whole; else nothing of it is left.

    Nobody else may be writing ``target``: what runs that were killed left beside it is removed.
    """
    of_any_run = f".{glob.escape(target.name)}.[0-9]*"
    for left in target.parent.glob(f"{of_any_run}.partial"):
        shutil.rmtree(left, ignore_errors=True)
    partial, old = (target.with_name(f".{target.name}.{os.getpid()}.{kind}") for kind in ("partial", "old"))
    try:
        partial.mkdir(parents=True)
        yield partial
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
            target.rename(old)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    for left in target.parent.glob(f"{of_any_run}.old"):
        shutil.rmtree(left, ignore_errors=True)


def _open(directory: Path) -> Snapshot:
    state = json.loads((directory / _STATE).read_text(encoding="utf-8"))
    names = sorted(state["digests"])
    with ThreadPoolExecutor(4) as pool:  # hashing releases the interpreter lock
        found = list(pool.map(lambda name: _digest(directory / name), names))
    for name, digest in zip(names, found, strict=True):
        if digest != state["digests"][name]:
            raise ValueError(f"{name} has changed since it was written")
    return Snapshot(directory, int(state["step"]), state["facts"])


def _unshared(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors without second names of tied ones, which safetensors refuses; and those names."""
    first: dict[tuple[int, int], str] = {}
    kept: dict[str, Tensor] = {}
    aliases = {}
    for name, tensor in tensors.items():
        known = first.setdefault((tensor.data_ptr(), tensor.numel()), name) if tensor.numel() else name
        if known == name:
            kept[name] = tensor.contiguous()
        else:
            aliases[name] = known
    return kept, aliases


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Have the kernel write a file or a folder's names to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
