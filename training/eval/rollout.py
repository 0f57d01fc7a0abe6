# SPDX-License-Identifier: Apache-2.0
"""Asks an engine all that a plan wants to know, and logs what it says.

    stimulus -> windows (once) -> requests of up to ``max_branches`` questions behind one prefix -> log

What is in the log already is not asked again. Every branch has a seed of its own, made from what is asked, so
an interrupted evaluation ends with the same predictions as one that ran through.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from cosmos_reason_node import prompt
from cosmos_reason_node.engine.base import Done, Engine, Failed, Request
from cosmos_reason_node.types import Answer, Query, Window
from training.data.media import MediaError

from .item import Benchmark, Item, Stimulus
from .prediction import Key, Prediction, PredictionLog
from .protocol import Protocol

_FREE_FORM_TOKENS = 48


@dataclass(frozen=True)
class Plan:
    """How to ask.

    Attributes:
        protocol: how answers are sampled.
        seeds: runs of a sampling protocol; a greedy one has one.
        permutations: orders in which an item's options are shown, at most as many as it has options. All but
            the first are asked with one seed.
        blind: ask everything without video too.
        think_tokens: budget of reasoning (greedy), or of the whole output (sampled; 0 = of an answer whose
            empty thought is given).
        max_branches: questions of one request; each holds a cache of its own.
        way: how windows come into view where they are not shown at once, "slide 3"; answers may differ by it.
    """

    protocol: Protocol
    seeds: int = 5
    permutations: int = 4
    blind: bool = True
    think_tokens: int = 0
    max_branches: int = 32
    way: str = ""

    @property
    def runs(self) -> int:
        """Seeds that make a difference."""
        return 1 if self.protocol.greedy else self.seeds

    @property
    def at_once(self) -> bool:
        """Whether the empty thought is given to outputs without the grammar."""
        return self.protocol.free and not self.think_tokens

    @property
    def decoding(self) -> str:
        """Name under which predictions are kept."""
        named = self.protocol.decoding(self.think_tokens)
        return f"{named}, {self.way}" if self.way else named

    def rotations(self, item: Item) -> range:
        """Orders of the options to ask, the first as it is."""
        return range(max(1, min(self.permutations, len(item.query.options))))

    def asks(self, item: Item, *, video: bool) -> Iterator[tuple[int, int]]:
        """(seed, rotation) pairs."""
        yield from ((seed, 0) for seed in range(self.runs))
        if video:
            yield from ((0, rotation) for rotation in self.rotations(item) if rotation)


@dataclass(frozen=True)
class _Ask:
    key: Key
    query: Query


def collect(
    engine: Engine,
    benchmark: Benchmark,
    plan: Plan,
    log: PredictionLog,
    *,
    shown: Callable[[Stimulus, Sequence[Window]], None] = lambda stimulus, windows: None,
    progress: Callable[[int], None] = lambda done: None,
) -> None:
    """Ask what is not in the log yet.

    Args:
        engine: drives the model.
        benchmark: what to ask.
        plan: how.
        log: gets the answers.
        shown: called with the windows of each stimulus that was loaded.
        progress: called with the number of stimuli done.
    """
    said: dict[Query, Answer] = {}  # greedily and without video the same question has the same answer
    for number, stimulus in enumerate(benchmark.stimuli, 1):
        seeing = _missing(engine, stimulus, plan, log, video=True)
        if seeing:
            _ask_seeing(engine, stimulus, seeing, plan, log, shown)
        if plan.blind:
            _ask_blind(engine, _missing(engine, stimulus, plan, log, video=False), plan, log, said)
        progress(number)


def decoding(engine: Engine, plan: Plan) -> str:
    """Name under which predictions are kept: another precision may answer otherwise."""
    return plan.decoding if engine.info.dtype == "float32" else f"{plan.decoding}, {engine.info.dtype}"


def keys(engine: Engine, item: Item, plan: Plan, *, video: bool) -> Iterator[tuple[Key, int]]:
    """(key, rotation) of all that is asked about an item."""
    info, named = engine.info, decoding(engine, plan)
    for seed, rotation in plan.asks(item, video=video):
        yield (
            Key(item.item_id, item.digest, info.digest, info.prompt_id, named, seed, rotation, video),
            rotation,
        )


def _missing(
    engine: Engine, stimulus: Stimulus, plan: Plan, log: PredictionLog, *, video: bool
) -> list[_Ask]:
    return [
        _Ask(key, dataclasses.replace(item.rotated(rotation), think_tokens=_think(plan)))
        for item in stimulus.items
        for key, rotation in keys(engine, item, plan, video=video)
        if not log.has(key)
    ]


def _think(plan: Plan) -> int:
    return max(0, plan.think_tokens - _FREE_FORM_TOKENS) if plan.protocol.free else plan.think_tokens


def _ask_seeing(
    engine: Engine,
    stimulus: Stimulus,
    asks: list[_Ask],
    plan: Plan,
    log: PredictionLog,
    shown: Callable[[Stimulus, Sequence[Window]], None],
) -> None:
    try:
        windows = stimulus.load()
    except MediaError as error:
        log.append(Prediction(ask.key, "", error=str(error)) for ask in asks)
        return
    shown(stimulus, windows)
    for chunk in _chunks(asks, plan.max_branches):
        log.append(_predictions(chunk, _answers(engine, windows, chunk, plan), plan))


def _ask_blind(
    engine: Engine, asks: list[_Ask], plan: Plan, log: PredictionLog, said: dict[Query, Answer]
) -> None:
    if plan.protocol.greedy:
        new = list({ask.query: ask for ask in asks if ask.query not in said}.values())
        for chunk in _chunks(new, plan.max_branches):
            answers = _answers(engine, (), chunk, plan)
            said |= {
                ask.query: got for ask, got in zip(chunk, answers, strict=True) if isinstance(got, Answer)
            }
            failed = {ask.query: got for ask, got in zip(chunk, answers, strict=True) if isinstance(got, str)}
            log.append(
                Prediction(ask.key, "", error=failed[ask.query]) for ask in asks if ask.query in failed
            )
        known = [ask for ask in asks if ask.query in said]
        if known:
            log.append(_predictions(known, [said[ask.query] for ask in known], plan))
        return
    for chunk in _chunks(asks, plan.max_branches):
        log.append(_predictions(chunk, _answers(engine, (), chunk, plan), plan))


def _answers(
    engine: Engine, windows: tuple[Window, ...], asks: Sequence[_Ask], plan: Plan
) -> list[Answer | str]:
    """Answers in the order asked; a text says why there is none."""
    got: list[Answer | str] = ["the engine gave no answer"] * len(asks)
    request = Request(
        "evaluation",
        windows,
        tuple(ask.query for ask in asks),
        max_answer_tokens=min(_FREE_FORM_TOKENS, plan.think_tokens)
        if plan.protocol.free and not plan.at_once
        else _FREE_FORM_TOKENS,
        sampling=plan.protocol.sampling,
        free=plan.protocol.free,
        branch_seeds=tuple(_seed(ask.key) for ask in asks),
        at_once=plan.at_once,
    )
    ended: set[int] = set()
    for event in engine.answer(request):
        if isinstance(event, Done):
            got[event.branch] = event.answer
            ended.add(event.branch)
        elif isinstance(event, Failed):
            for branch in range(len(asks)) if event.branch < 0 else (event.branch,):
                if branch not in ended:
                    got[branch] = f"{event.error_code.name}: {event.error_msg}"
    return got


def _predictions(asks: Sequence[_Ask], answers: Sequence[Answer | str], plan: Plan) -> Iterator[Prediction]:
    for ask, got in zip(asks, answers, strict=True):
        if isinstance(got, str):
            yield Prediction(ask.key, "", error=got)
            continue
        output = got.answer if plan.protocol.free else prompt.target(got.reasoning, got.answer)
        yield Prediction(
            ask.key,
            output,
            got.confidence,
            got.output_tokens,
            cut=got.think_closed_by_budget,
            shares=tuple(round(share, 6) for share in got.shares),
        )


def _seed(key: Key) -> int:
    """The same for the same question, seed and order, whatever else is asked, of whatever model."""
    what = f"{key.item}\0{key.seed}\0{key.rotation}\0{key.video}"
    return int.from_bytes(hashlib.sha256(what.encode()).digest()[:6], "big")


def _chunks(asks: Sequence[_Ask], size: int) -> Iterator[list[_Ask]]:
    rest = iter(asks)
    while chunk := list(islice(rest, size)):
        yield chunk
