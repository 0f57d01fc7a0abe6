# SPDX-License-Identifier: Apache-2.0
"""Questions to practise on: drawn from data sets with equal probability, options shuffled as they are drawn.

What is drawn is a function of the ticket alone, (seed, iteration, place, attempt), so rollout workers, the
trainer and a resumed run all see the same question without telling each other.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cosmos_reason_node.models.spec import ModelSpec
from cosmos_reason_node.prompt import letter
from cosmos_reason_node.types import Query, Window
from training.data.media import WindowSpec, load_window
from training.data.problems import DataError, Problem
from training.data.readers import DataSet, open_data_sets
from training.data.schema import Sample
from training.sft.data import chosen

from .config import DataConfig
from .groups import Ticket
from .rewards import NONE_OPTION, check_truth

_DRAW = 0x544B  # keeps these random numbers apart from others of the same ticket
_NONE = re.compile(r"none of (?:the|these)(?: (?:above|options|choices|answers))?\.?")
# Keeps its place: moved, it would mean less.
_ABOVE = re.compile(r"(?:none|all|any|both|either|neither|two|three) of .*\babove\.?")
# Names other options by their letters: "both (A) and (C)", "option B", "A or C".
_NAMES_OTHERS = re.compile(
    r"\b(?:(?:both|neither|either) \(?[a-h]\)?,? (?:and|or|nor) \(?[a-h]\b|options? \(?[a-h]\b"
    r"|\(?[a-h]\)? (?:and|or|nor) \(?[a-h]\)?(?: only)?\.?\Z)"
)
# Says that others are right: "all of these".
_MORE_THAN_ONE = re.compile(r"\b(?:all|both|two|either|any) of (?:the|these|those|them)\b")


@dataclass(frozen=True)
class Task:
    """One question to practise on.

    Attributes:
        name: of the sample, for messages.
        source: data set that it comes from.
        sample: as it is asked: options in the order shown.
        root: folder that media paths start in.
        none: the right option was taken away: rejecting all of them is right.
        whole: it asks about all of its clip, see DataSet.whole.
        at_once: it is answered without reasoning.
    """

    name: str
    source: str
    sample: Sample
    root: Path
    none: bool = False
    whole: bool = False
    at_once: bool = False

    @property
    def query(self) -> Query:
        """The question; the budget of tokens is the request's."""
        return self.sample.to_query(think_tokens=0)

    @property
    def answer(self) -> str:
        """An option's letter, "yes" or "no", or words."""
        return self.sample.answer

    @property
    def reward(self) -> str:
        """Name of the reward, see rewards.JUDGES."""
        return str(self.sample.extra.get("reward", ""))

    def windows(self, spec: WindowSpec) -> tuple[Window, ...]:
        """What is looked at; MediaError where a file is missing or damaged."""
        wanted = dataclasses.replace(spec, whole=self.whole)
        return tuple(load_window(self.root, media, wanted) for media in self.sample.media)


class TaskSampler:
    """Draws tasks.

    Args:
        config: data sets, and how questions are changed.
        spec: of the model; says what windows look like.
        seed: of the run.

    Raises:
        DataError: a data set is missing, empty, or has bad rows.
    """

    def __init__(self, config: DataConfig, spec: ModelSpec, seed: int) -> None:
        self._config, self._seed = config, seed
        self.window = WindowSpec.of(spec)
        self._sets: list[tuple[str, DataSet, list[Sample]]] = []
        sets = open_data_sets([(s.path, s.layout) for s in config.sources], strict=config.strict)
        for name, source, opened in zip(_names(config), config.sources, sets, strict=True):
            samples = [s for s in chosen(opened.samples, source) if not s.history][: source.limit or None]
            if not samples:
                what = "all samples go on with a conversation, which is not rolled out: take another data set"
                raise DataError([Problem(source.path, 0, "history", what)])
            for sample in samples:
                _check_reward(sample, source.path)
            self._sets.append((name, opened, samples))
        weights = np.array([source.weight for source in config.sources])
        self._shares = weights / weights.sum()

    @property
    def digest(self) -> str:
        """Of all samples: what a ticket's question depends on besides the settings."""
        found = hashlib.sha256()
        for name, _, samples in self._sets:
            found.update(name.encode())
            for sample in samples:
                found.update(repr(sample).encode())
        return found.hexdigest()

    @property
    def names(self) -> list[str]:
        """Of the data sets."""
        return [name for name, _, _ in self._sets]

    @property
    def samples(self) -> Iterator[Sample]:
        """All that may be drawn, as it is stored."""
        for _, _, samples in self._sets:
            yield from samples

    def draw(self, ticket: Ticket) -> Task:
        """The question of a ticket."""
        rng = np.random.default_rng([self._seed, ticket.iteration, ticket.place, ticket.attempt, _DRAW])
        source, opened, samples = self._sets[int(rng.choice(len(self._sets), p=self._shares))]
        sample = samples[int(rng.integers(len(samples)))]
        none = False
        if sample.options:
            drawn, shuffle = rng.random(), self._config.shuffle_options and not _names_others(sample)
            if drawn < self._config.none_share and not _has_none(sample) and not _says_more(sample):
                sample, none = with_none(sample, rng, shuffle=shuffle)
            elif shuffle:
                sample = sample.reordered(_order(sample, rng))
        at_once = bool(rng.random() < self._config.at_once_share)
        return Task(sample.sample_id, source, sample, opened.root, none, opened.whole(sample), at_once)


def with_none(sample: Sample, rng: np.random.Generator, *, shuffle: bool = True) -> tuple[Sample, bool]:
    """The question with "none of the options" as its last option, in place of another one.

    In half of the draws the right option makes room, so that rejecting all others is right; in the other half
    a wrong one does, so that the last option is no giveaway.

    Args:
        sample: with options, none of which says that already.
        rng: decides.
        shuffle: show the options that stay in another order.

    Returns:
        The changed question, and whether "none of the options" is right.
    """
    right = sample.answer_index
    wrong = [i for i in range(len(sample.options)) if i != right]
    none = bool(rng.random() < 0.5)
    gone = right if none else int(rng.choice(wrong))
    order = _order(sample, rng) if shuffle else range(len(sample.options))
    kept = [i for i in order if i != gone]
    options = (*(sample.options[i] for i in kept), NONE_OPTION)
    answer = letter(len(options) - 1 if none else kept.index(right))
    return dataclasses.replace(sample, options=options, answer=answer), none


def _has_none(sample: Sample) -> bool:
    """Whether it offers to reject all options already: a second such option would be the same again."""
    return any(_NONE.fullmatch(option.strip().casefold()) for option in sample.options)


def _names_others(sample: Sample) -> bool:
    """Whether an option means others by their letters, which are theirs in the stored order alone."""
    return any(_NAMES_OTHERS.search(option.strip().casefold()) for option in sample.options)


def _says_more(sample: Sample) -> bool:
    """Whether an option says that others are right: were it taken away, rejecting them would be wrong."""
    return _names_others(sample) or any(_MORE_THAN_ONE.search(o.casefold()) for o in sample.options)


def _order(sample: Sample, rng: np.random.Generator) -> list[int]:
    """Its options in another order; those that speak of what is above them keep their places."""
    fixed = [bool(_ABOVE.fullmatch(option.strip().casefold())) for option in sample.options]
    drawn = iter(i for i in rng.permutation(len(fixed)).tolist() if not fixed[i])
    return [i if stays else next(drawn) for i, stays in enumerate(fixed)]


def _names(config: DataConfig) -> list[str]:
    """What the sources are called in reports: of their paths, as many last parts as tell them apart."""
    paths = [Path(source.path).expanduser().resolve().parts for source in config.sources]
    kept = next(
        (n for n in range(1, max(map(len, paths))) if len({p[-n:] for p in paths}) == len(set(paths))), 1
    )
    names = ["/".join(path[-kept:]) for path in paths]
    # One folder may be named more than once, for several kinds or splits of it.
    numbers = [str(number) for number in range(len(names))]
    splits = [source.split or number for source, number in zip(config.sources, numbers, strict=True)]
    for tails in ([source.kind for source in config.sources], splits, numbers):
        told = [n if names.count(n) == 1 else f"{n}:{tail}" for n, tail in zip(names, tails, strict=True)]
        if len(set(told)) == len(told):
            break
    return told


def _check_reward(sample: Sample, path: str) -> None:
    try:
        name = str(sample.extra.get("reward", ""))
        check_truth(name, sample.answer, options=bool(sample.options))
    except ValueError as error:
        where = sample.provenance
        raise DataError([Problem(where.file or path, where.row, "extra", str(error))]) from error
