# SPDX-License-Identifier: Apache-2.0
"""From rows to tensors, decoded ahead of the training step by a few threads."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from cosmos_reason_node.models.mrope import VideoGrid
from cosmos_reason_node.models.spec import ModelSpec
from cosmos_reason_node.models.tokenizer import TextTokenizer
from cosmos_reason_node.vision.patchify import patchify
from training.data.media import MediaError, WindowSpec, load_window
from training.data.problems import DataError, Problem

from .augment import Augmentation
from .data import Rejections, Row, RowSampler, plan
from .rows import Branch, RowBatch, pack_rows


class Damage:
    """Rows whose media turn out not to decode while they are trained on; each is told of once.

    Args:
        path: file that they are appended to, a JSON line each.

    Attributes:
        most: share of the rows read, and ``few`` of them, beyond which the run ends: a disk or a download is
            broken then, and not a clip.
    """

    most = 0.1
    few = 8

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._read: set[Row] = set()
        self._damaged: set[Row] = set()

    def count(self, row: Row, problem: Problem | None) -> None:
        """A row was read, with or without a problem.

        Raises:
            DataError: too many have one.
        """
        with self._lock:
            self._read.add(row)
            if problem is None or row in self._damaged:
                return
            self._damaged.add(row)
            with suppress(OSError):  # a full disk; it is printed too
                Rejections([problem]).append(self._path)
            print(f"left out: {problem}", flush=True)
            if len(self._damaged) > max(self.few, self.most * len(self._read)):
                what = (
                    f"{len(self._damaged)} of the {len(self._read)} rows that were read cannot be decoded, "
                    f"see {self._path}: run `python -m training.data check` on the data sets"
                )
                raise DataError([Problem(problem.file, problem.row, "media", what)])


class RowLoader:
    """Decodes windows by the node's rule and with its preprocessor.

    Args:
        tokenizer, spec: of the model.
        augment: change windows at random.
        seed: of those changes.
        damage: told of rows that cannot be decoded, which are left out then; None: they are errors.
    """

    def __init__(
        self,
        tokenizer: TextTokenizer,
        spec: ModelSpec,
        *,
        augment: bool,
        seed: int,
        damage: Damage | None = None,
    ) -> None:
        self._tokenizer, self._spec, self._augment, self._seed = tokenizer, spec, augment, seed
        self._damage = damage

    def load(self, rows: Sequence[Row], key: tuple[int, ...]) -> RowBatch:
        """One forward pass.

        A row that is left out keeps its place, as other processes count on it, without video and weight.

        Args:
            rows: of it.
            key: what the random changes depend on besides the seed: (step, pass).

        Raises:
            DataError: media cannot be read; names the sample's file and row.
        """
        patches: list[np.ndarray] = []
        videos: list[list[VideoGrid]] = []
        branches: list[Sequence[Branch]] = []
        lost = 0
        for number, row in enumerate(rows):
            problem = None
            try:
                read = self._videos(row, [self._seed, *key, number, 3])
            except MediaError as error:
                what = f"{error.message}; or remove sample {row.names[0]}"
                problem = Problem(str(row.root), 0, "media", what)
                if self._damage is None:
                    raise DataError([problem]) from error
                read = []
            if self._damage is not None:
                self._damage.count(row, problem)
            patches += [cut for cut, _ in read]
            videos.append([grid for _, grid in read])
            branches.append(row.branches if problem is None else [_weightless(b) for b in row.branches])
            lost += len(row.branches) if problem else 0
        batch = pack_rows(branches, videos, patches, self._tokenizer, self._spec)
        return replace(batch, samples=batch.samples - lost) if lost else batch

    def _videos(self, row: Row, seed: list[int]) -> list[tuple[np.ndarray, VideoGrid]]:
        videos = []
        wanted = WindowSpec.of(self._spec, whole=row.whole)
        for media in row.media:
            window = load_window(row.root, media, wanted)
            frames = window.pixels()
            if self._augment:
                rng = np.random.default_rng(seed)  # the cameras of a window are changed alike
                frames = Augmentation((frames.shape[1], frames.shape[2]), rng).frames(frames)
            cut, _ = patchify(frames, self._spec.patches)
            count, height, width, _ = frames.shape
            videos.append((cut, self._spec.video_grid(count, height, width, window.fps)))
        return videos


def _weightless(branch: Branch) -> Branch:
    return replace(branch, weights=[0.0] * len(branch.target))


class RowSource:
    """Batches of every step for one process. Satisfies ``loop.BatchSource``.

    Args:
        sampler: says which rows a step takes.
        loader: decodes them.
        max_tokens: bound of a forward pass.
        steps: of the run; nothing beyond is decoded.
        workers: threads; 0 = decode when asked.
    """

    def __init__(
        self, sampler: RowSampler, loader: RowLoader, max_tokens: int, steps: int, workers: int
    ) -> None:
        self._sampler, self._loader, self._max_tokens = sampler, loader, max_tokens
        self._steps, self._workers = steps, workers
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="decode") if workers else None
        self._ahead: deque[tuple[int, Future[RowBatch]]] = deque()
        self._jobs: Iterator[tuple[int, list[Row], tuple[int, int]]] = iter(())
        self._next = -1

    def batches(self, step: int, rank: int, world: int) -> Iterator[RowBatch]:
        """Batches of ``step`` for process ``rank`` of ``world``."""
        if self._pool is None:
            for _, rows, key in self._jobs_from(step, rank, world, step + 1):
                yield self._loader.load(rows, key)
            return
        if step != self._next:  # the first step, or a jump
            self._ahead.clear()
            self._jobs = self._jobs_from(step, rank, world, self._steps)
        self._next = step + 1
        self._fill(self._pool)
        while self._ahead and self._ahead[0][0] == step:
            batch = self._ahead.popleft()[1].result()
            self._fill(self._pool)
            yield batch

    def close(self) -> None:
        """Stop decoding."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def _fill(self, pool: ThreadPoolExecutor) -> None:
        while len(self._ahead) < 2 * self._workers:
            job = next(self._jobs, None)
            if job is None:
                return
            step, rows, key = job
            self._ahead.append((step, pool.submit(self._loader.load, rows, key)))

    def _jobs_from(
        self, step: int, rank: int, world: int, end: int
    ) -> Iterator[tuple[int, list[Row], tuple[int, int]]]:
        for current in range(step, end):
            passes = plan(self._sampler.rows(current), self._max_tokens, world)
            for number in range(rank, len(passes), world):
                yield current, passes[number], (current, number)


class RowList:
    """The same rows at every step: validation. Satisfies ``loop.BatchSource``."""

    def __init__(self, rows: Sequence[Row], loader: RowLoader, max_tokens: int) -> None:
        self._rows, self._loader, self._max_tokens = rows, loader, max_tokens

    def batches(self, step: int, rank: int, world: int) -> Iterator[RowBatch]:
        """All batches of process ``rank``; ``step`` plays no part."""
        rows = self._rows[: len(self._rows) // world * world]
        passes = plan(rows, self._max_tokens, world)
        for number in range(rank, len(passes), world):
            yield self._loader.load(passes[number], (0, number))

    def close(self) -> None:
        """Nothing to stop."""
