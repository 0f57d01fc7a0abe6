# SPDX-License-Identifier: Apache-2.0
"""Rows to train on, from data sets, and the order in which they are drawn.

Order is a function of (seed, step) alone, and its split over processes of (seed, step, rank): nothing has
to be stored for a resumed run to go on with the same rows, on any number of devices.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from cosmos_reason_node import prompt
from cosmos_reason_node.models.spec import ModelSpec
from cosmos_reason_node.models.tokenizer import TextTokenizer
from training.data.media import MediaError, WindowSpec, check_file, choose_frames
from training.data.problems import DataError, Problem
from training.data.readers import DataSet, open_data_sets
from training.data.schema import Frames, Media, Sample, Style

from .config import DataConfig, SourceConfig
from .rows import Branch, encode_answer

_MEDIA = "media"  # field of the problems of files that are not there


@dataclass(frozen=True)
class Row:
    """One window and the questions about it.

    Attributes:
        root: folder that media paths start in.
        media: what is looked at.
        whole: at all of it, see DataSet.whole.
        branches: questions with answers.
        names: of the samples, for messages: file, row, id.
        length: bound on its tokens (a video may turn out shorter).
        visual: bound on its visual tokens.
        answers: answer tokens.
    """

    root: Path
    media: tuple[Media, ...]
    whole: bool
    branches: tuple[Branch, ...]
    names: tuple[str, ...]
    length: int
    visual: int
    answers: int


@dataclass(frozen=True)
class Source:
    """A data set's rows.

    Attributes:
        name: its folder.
        weight: share of draws, relative.
        rows: at least one.
        samples: questions in them.
    """

    name: str
    weight: float
    rows: tuple[Row, ...]
    samples: int


@dataclass
class Rejections:
    """Samples that are left out, each with the reason."""

    problems: list[Problem] = field(default_factory=list)

    def write(self, path: Path) -> None:
        """One JSON line each; replaces the file before it."""
        partial = path.with_suffix(".partial")
        partial.write_text(self._lines(), encoding="utf-8")
        os.replace(partial, path)

    def append(self, path: Path) -> None:
        """The same lines behind those that the file holds."""
        with path.open("a", encoding="utf-8") as file:
            file.write(self._lines())

    def _lines(self) -> str:
        return "".join(json.dumps(vars(problem), ensure_ascii=False) + "\n" for problem in self.problems)


def adapt_spec(spec: ModelSpec, data: DataConfig) -> ModelSpec:
    """The checkpoint's description with the run's own window; the trained model is written with it.

    Raises:
        ValueError: the checkpoint cannot take it.
    """
    if data.max_pixels and spec.frame_size:
        raise ValueError(
            f"data.max_pixels: {data.max_pixels}, but {spec.model_id} has frames of fixed size "
            f"{spec.frame_size}; take 0"
        )
    if data.max_pixels and data.max_pixels < spec.patches.factor**2:
        raise ValueError(
            f"data.max_pixels: {data.max_pixels} is below one visual token; take at least "
            f"{spec.patches.factor**2}"
        )
    return replace(
        spec,
        window_frames=data.frames or spec.window_frames,
        fps=data.fps or spec.fps,
        max_pixels=data.max_pixels or spec.max_pixels,
    )


def load_sources(
    configs: Sequence[SourceConfig],
    data: DataConfig,
    tokenizer: TextTokenizer,
    spec: ModelSpec,
    seed: int,
    rejections: Rejections,
) -> list[Source]:
    """Read data sets and pack their samples into rows; media are not opened, but have to be there.

    Raises:
        DataError: a data set is missing, has bad rows or media that are not there (``data.strict``), or
            leaves nothing to train on.
    """
    sets = open_data_sets([(config.path, config.layout) for config in configs], strict=data.strict)
    for opened in {id(opened): opened for opened in sets}.values():
        rejections.problems += opened.report.problems
    sources: list[Source] = []
    lost: list[Problem] = []
    useless: list[Problem] = []
    for config, opened in zip(configs, sets, strict=True):
        known = len(rejections.problems)
        sources.append(_load_source(config, opened, data, tokenizer, spec, seed, rejections))
        rejected = rejections.problems[known:]
        lost += [problem for problem in rejected if data.strict and problem.field == _MEDIA]
        useless += [] if sources[-1].rows else rejected
    if lost or useless:
        raise DataError(lost or useless)
    return sources


def chosen(samples: Sequence[Sample], config: SourceConfig) -> list[Sample]:
    """Those of a source's split and kind; its limit is not applied.

    Raises:
        DataError: there are none.
    """
    of_split = [s for s in samples if not config.split or s.split == config.split]
    if not of_split:
        splits = ", ".join(sorted({s.split for s in samples}))
        what = f"has no sample of split {config.split!r}; it has: {splits}. Change the source's split"
        raise DataError([Problem(config.path, 0, "split", what)])
    of_kind = [s for s in of_split if not config.kind or config.kind in (s.kind.value, s.category)]
    if not of_kind:
        kinds = ", ".join(sorted({s.category or s.kind.value for s in of_split}))
        what = f"has no sample of kind {config.kind!r}; it has: {kinds}. Change the source's kind"
        raise DataError([Problem(config.path, 0, "kind", what)])
    return of_kind


def _load_source(
    config: SourceConfig,
    opened: DataSet,
    data: DataConfig,
    tokenizer: TextTokenizer,
    spec: ModelSpec,
    seed: int,
    rejections: Rejections,
) -> Source:
    samples = chosen(opened.samples, config)[: config.limit or None]
    windows: dict[tuple[tuple[Media, ...], bool], list[Sample]] = {}
    for sample in samples:
        windows.setdefault((sample.media, opened.whole(sample)), []).append(sample)
    packer = _RowPacker(opened, data, tokenizer, spec)
    rng = np.random.default_rng([seed, 0x524F57])
    rows: list[Row] = []
    for (media, whole), asked in windows.items():
        order = rng.permutation(len(asked))
        rows += packer.rows(media, whole, [asked[i] for i in order], rejections)
    return Source(config.path, config.weight, tuple(rows), sum(len(row.branches) for row in rows))


class _RowPacker:
    def __init__(self, opened: DataSet, data: DataConfig, tokenizer: TextTokenizer, spec: ModelSpec) -> None:
        self._opened, self._data, self._tokenizer, self._spec = opened, data, tokenizer, spec
        self._head = len(prompt.encode_prefix(tokenizer, []))
        self._there: set[str] = set()  # files that were looked at: windows share them

    def rows(
        self, media: tuple[Media, ...], whole: bool, samples: list[Sample], rejections: Rejections
    ) -> list[Row]:
        """Rows of all samples about one window, filled one after the other."""
        try:
            self._look_for(media)
        except MediaError as error:
            for sample in samples:
                what = f"{sample.sample_id}: {error.message}; or remove the sample"
                rejections.problems.append(Problem(*self._opened.place(sample), _MEDIA, what))
            return []
        window = WindowSpec.of(self._spec, whole=whole)
        visual = sum(self._visual_tokens(m, window) for m in media)
        shared = self._head + visual + 2 * len(media)  # each video stands between two tokens
        rows: list[Row] = []
        branches: list[Branch] = []
        names: list[str] = []

        def close() -> None:
            if branches:
                total = shared + sum(map(_length, branches))
                answers = sum(len(b.target) for b in branches)
                held = tuple(branches), tuple(names)
                rows.append(Row(self._opened.root, media, whole, *held, total, visual, answers))
            branches.clear()
            names.clear()

        for sample in samples:
            branch = self._encode(sample)
            problem = self._problem(sample, branch, visual, shared)
            if problem:
                rejections.problems.append(problem)
                continue
            length = shared + sum(map(_length, branches)) + _length(branch)
            if len(branches) == self._data.branches or length > self._limit:
                close()
            branches.append(branch)
            names.append(self._opened.label(sample))
        close()
        return rows

    def _look_for(self, media: tuple[Media, ...]) -> None:
        """Look whether the files of a window are there and not empty; what else is wrong takes decoding.

        Raises:
            MediaError: one is not.
        """
        for path in (path for one in media for path in one.paths):
            if path not in self._there:
                check_file(self._opened.root / path)
                self._there.add(path)

    @property
    def _limit(self) -> int:
        return self._data.max_tokens

    def _encode(self, sample: Sample) -> Branch:
        reasoning = sample.reasoning if sample.style is Style.REASONING else ""
        return encode_answer(
            self._tokenizer, sample.to_query(), reasoning, sample.answer, self._data.verdict_weight
        ).compact()

    def _problem(self, sample: Sample, branch: Branch, visual: int, shared: int) -> Problem | None:
        where = self._opened.place(sample)
        if sample.history:
            what = f"{sample.sample_id}: has turns before its question, which the node's prompt has not"
            return Problem(*where, "history", what + "; make it a question that stands alone")
        length = shared + _length(branch)
        bounds = {"data.max_tokens": self._data.max_tokens, "the model's positions": self._spec.max_position}
        name, bound = min(bounds.items(), key=lambda item: item[1])
        if length <= bound:
            return None
        what = (
            f"{sample.sample_id}: needs {length} tokens ({visual} visual, {len(branch.question)} question, "
            f"{len(branch.target)} answer), over {name} = {bound}: shorten its answer, lower data.frames or "
            "data.max_pixels, or raise data.max_tokens"
        )
        return Problem(*where, "answer", what)

    def _visual_tokens(self, media: Media, window: WindowSpec) -> int:
        """Bound on the visual tokens of a video, without opening it."""
        spec = self._spec
        frames = window.num_frames
        if isinstance(media, Frames):
            frames = len(choose_frames(media, window).indices)
        elif media.end_s is not None:
            ticks = math.ceil((media.end_s - media.start_s) * 1e9 / window.period_ns)
            frames = min(frames, ticks + 2 + ticks % 2)
        height, width = spec.frame_size or (spec.patches.factor, spec.max_pixels // spec.patches.factor)
        return frames // spec.patches.temporal_patch * (height * width) // spec.patches.factor**2


def spread(sources: Sequence[Source], most: int) -> list[Row]:
    """At most ``most`` rows: as many of each source as of the others, from all over it."""
    rows: list[Row] = []
    for number, source in enumerate(sorted(sources, key=lambda source: len(source.rows))):
        count = min(len(source.rows), (most - len(rows)) // (len(sources) - number))
        rows += [source.rows[i * len(source.rows) // count] for i in range(count)]
    return rows


def _length(branch: Branch) -> int:
    return len(branch.question) + len(branch.target)


class RowSampler:
    """Which rows a step takes. Each source is gone through in an order of its own, anew in every epoch.

    How many rows a step takes of each source is drawn by the sources' weights from (seed, step).

    Args:
        sources: at least one.
        batch: rows of a step.
        seed: of the run.
    """

    def __init__(self, sources: Sequence[Source], batch: int, seed: int) -> None:
        self._sources, self._batch, self._seed = sources, batch, seed
        weights = np.array([source.weight for source in sources])
        self._shares = weights / weights.sum()
        self._step = 0
        self._drawn = np.zeros(len(sources), np.int64)  # of each source before ``_step``
        self._orders: dict[int, tuple[int, np.ndarray]] = {}

    def rows(self, step: int) -> list[Row]:
        """The rows of a step, all processes together."""
        if step < self._step:
            self._step, self._drawn = 0, np.zeros(len(self._sources), np.int64)
        while self._step < step:
            self._drawn += self._counts(self._step)
            self._step += 1
        return [
            self._row(number, int(self._drawn[number]) + i)
            for number, count in enumerate(self._counts(step))
            for i in range(count)
        ]

    def _counts(self, step: int) -> np.ndarray:
        return np.random.default_rng([self._seed, step, 1]).multinomial(self._batch, self._shares)

    def _row(self, number: int, draw: int) -> Row:
        rows = self._sources[number].rows
        epoch, place = divmod(draw, len(rows))
        cached = self._orders.get(number)
        if cached is None or cached[0] != epoch:
            order = np.random.default_rng([self._seed, number, epoch, 2]).permutation(len(rows))
            cached = self._orders[number] = (epoch, order)
        return rows[cached[1][place]]


def plan(rows: Iterable[Row], max_tokens: int, world: int) -> list[list[Row]]:
    """Rows as forward passes: of similar length together, rows x longest row within ``max_tokens``.

    The number of passes is a multiple of ``world``, as sharded processes have to run the same number;
    pass ``i`` belongs to process ``i % world``.

    Raises:
        ValueError: there are fewer rows than processes, or no multiple.
    """
    ordered = sorted(rows, key=lambda row: -row.length)  # stable: equal lengths stay in drawn order
    if len(ordered) % world:
        raise ValueError(f"{len(ordered)} rows cannot be shared by {world} processes: take a multiple")
    passes: list[list[Row]] = []
    for row in ordered:
        if passes and (len(passes[-1]) + 1) * passes[-1][0].length <= max_tokens:
            passes[-1].append(row)
        else:
            passes.append([row])
    while len(passes) % world:
        largest = max(range(len(passes)), key=lambda i: len(passes[i]))
        half = len(passes[largest]) // 2
        passes[largest : largest + 1] = [passes[largest][:half], passes[largest][half:]]
    return passes
