# SPDX-License-Identifier: Apache-2.0
"""Samples with their decoded, patchified windows, made ahead by worker processes. PyTorch's DataLoader.

::

    order --> workers: load_window, patchify --> at most ``prefetch`` batches a worker --> you

A sample whose media cannot be read comes back with ``error`` set, in its place: nothing is dropped.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import torch
from torch.utils.data import DataLoader, Dataset

from cosmos_reason_node.parent_death import die_with
from cosmos_reason_node.vision.patchify import patchify

from .media import MediaError, WindowSpec, load_window
from .schema import Sample


@dataclass(frozen=True)
class Loaded:
    """A sample as a model takes it.

    Attributes:
        sample: the sample.
        patches: of all its windows, in order, (sum of t * h * w, patch_dim) float32 (vision.patchify); None
            without media or with an error.
        grids: (t, h, w) of each window.
        period_ns: length of a tick of each window.
        error: why its media could not be read; "" = they were.
    """

    sample: Sample
    patches: torch.Tensor | None
    grids: tuple[tuple[int, int, int], ...]
    period_ns: tuple[int, ...]
    error: str = ""


def load(root: Path, sample: Sample, spec: WindowSpec) -> Loaded:
    """Decode and patchify all media of a sample."""
    try:
        windows = [load_window(root, media, spec) for media in sample.media]
    except MediaError as error:
        return Loaded(sample, None, (), (), error.message)
    cut = [patchify(window.pixels(), spec.patches) for window in windows]
    patches = torch.cat([torch.from_numpy(patches) for patches, _ in cut]) if cut else None
    return Loaded(sample, patches, tuple(grid for _, grid in cut), tuple(w.period_ns for w in windows))


class Windows(Dataset[Loaded]):
    """Map-style data set of a list of samples.

    Args:
        root: folder that media paths start in.
        samples: what to load.
        spec: the window that the model wants.
    """

    def __init__(self, root: Path, samples: Sequence[Sample], spec: WindowSpec) -> None:
        self.root, self.samples, self.spec = root, samples, spec

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Loaded:
        return load(self.root, self.samples[index], self.spec)


def loader(
    windows: Windows,
    *,
    batch: int = 1,
    workers: int = 0,
    prefetch: int = 2,
    order: Iterable[int] | None = None,
    timeout_s: float = 600.0,
) -> DataLoader[Loaded]:
    """Iterable of lists of ``batch`` loaded samples.

    With workers, OpenCV works with one thread in this process from now on: those that it has started are not
    there in a forked worker, which would wait for them for ever.

    Args:
        windows: the data set.
        batch: samples a list.
        workers: processes; 0 loads in this one.
        prefetch: lists that each worker makes ahead: bounds memory.
        order: indices into the data set, as wanted; None = as they are. To resume, give those that are left.
        timeout_s: longest wait for one list; then RuntimeError, as a worker hangs.
    """
    if workers:
        cv2.setNumThreads(1)
    return DataLoader(
        windows,
        batch_size=batch,
        sampler=order,
        num_workers=workers,
        prefetch_factor=prefetch if workers else None,
        collate_fn=list,
        timeout=timeout_s if workers else 0,
        worker_init_fn=_Start() if workers else None,
    )


class _Start:
    """Start of a worker process: one thread each, and never longer than its parent."""

    def __init__(self) -> None:
        self._parent = os.getpid()

    def __call__(self, number: int) -> None:
        die_with(self._parent)
        torch.set_num_threads(1)
