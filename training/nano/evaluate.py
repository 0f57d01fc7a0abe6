# SPDX-License-Identifier: Apache-2.0
"""How well a checkpoint answers about held-out episodes, through the engine that is deployed.

Compared with the same checkpoint without video, and with the best that any answerer without eyes could do on
these very questions: always the answer that is most frequent for a question's text.
"""

from __future__ import annotations

import collections
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cosmos_reason_node.engine.base import Done, Engine, Failed, Request
from cosmos_reason_node.engine.torch import TorchEngine
from cosmos_reason_node.models.qwen2_5_vl import load
from cosmos_reason_node.prompt import question_text
from cosmos_reason_node.types import Frame, Query, QueryKind, Window
from training.data.sample import Sample
from training.data.sim.questions import questions
from training.sft.windows import Drawn, EpisodeStore

PERIOD_NS = 250_000_000  # 4 frames per second
_BOOTSTRAPS = 1000


@dataclass(frozen=True)
class Outcome:
    """One question, answered.

    Attributes:
        episode: seed; questions of one episode are not independent.
        kind: row of the table that it counts for.
        text: the question's text; equal texts cannot be told apart without video.
        wanted, got: right answer and the model's, options resolved to their text.
    """

    episode: int
    kind: str
    text: str
    wanted: str
    got: str

    @property
    def right(self) -> bool:
        """Whether the answer is right."""
        return self.wanted == self.got


@dataclass(frozen=True)
class Score:
    """Accuracy with a 95 % interval (bootstrap over episodes)."""

    n: int
    accuracy: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.accuracy:.1%} ({self.low:.1%} to {self.high:.1%})"


def make_window(drawn: Drawn) -> Window:
    """The window as the node would hand it to an engine."""
    first = drawn.span.first
    frames = tuple(
        Frame("sim", (first + i) * PERIOD_NS + 1, first + i, image) for i, image in enumerate(drawn.frames())
    )
    return Window("sim", frames, first, PERIOD_NS, 0, len(frames))


def ask(
    engine: Engine, windows: tuple[Window, ...], samples: Sequence[Sample], think_tokens: int
) -> list[str]:
    """Answers in the order of ``samples``."""
    queries = tuple(replace(sample.query, think_tokens=think_tokens) for sample in samples)
    answers = [""] * len(queries)
    for event in engine.answer(Request("evaluation", windows, queries)):
        if isinstance(event, Done):
            answer = event.answer
            index = answer.option_index
            answers[event.branch] = (
                queries[event.branch].options[index] if index >= 0 else answer.answer.lower()
            )
        elif isinstance(event, Failed):
            raise RuntimeError(f"the engine failed on {samples[max(event.branch, 0)]}: {event.error_msg}")
    return answers


def wanted(sample: Sample) -> str:
    """The right answer, an option's letter resolved to its text."""
    options = sample.query.options
    return options[ord(sample.answer) - ord("A")] if options else sample.answer


def row_of(query: Query) -> str:
    """Row of the table."""
    if query.kind is QueryKind.NEXT_ACTION:
        return "next action, multiple choice" if query.options else "next action, free form"
    return "task completion" if query.kind is QueryKind.COMPLETION else "affordance"


def blind_best(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """What always giving a text's most frequent right answer would score."""
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for outcome in outcomes:
        counts[outcome.text][outcome.wanted] += 1
    return [replace(outcome, got=counts[outcome.text].most_common(1)[0][0]) for outcome in outcomes]


def score(outcomes: Sequence[Outcome], seed: int = 0) -> Score:
    """Accuracy and its interval."""
    by_episode: dict[int, list[bool]] = collections.defaultdict(list)
    for outcome in outcomes:
        by_episode[outcome.episode].append(outcome.right)
    right = np.array([sum(values) for values in by_episode.values()])
    count = np.array([len(values) for values in by_episode.values()])
    picks = np.random.default_rng(seed).integers(len(right), size=(_BOOTSTRAPS, len(right)))
    means = right[picks].sum(1) / count[picks].sum(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return Score(len(outcomes), right.sum() / count.sum(), float(low), float(high))


def evaluate(
    model_dir: Path, episodes: Path, windows: int, frames: int, think_tokens: int = 0
) -> dict[str, object]:
    """Score a checkpoint.

    Args:
        model_dir: the checkpoint.
        episodes: directory of held-out episodes.
        windows: how many windows to draw.
        frames: length of each.
        think_tokens: thinking budget; 0 answers at once.

    Returns:
        By row of the table: n and the scores, as plain values.
    """
    engine = TorchEngine(load(model_dir, device="cpu"), min_confidence=0.0)
    store = EpisodeStore(episodes)
    rng = np.random.default_rng(12345)
    seeing: list[Outcome] = []
    blind: list[Outcome] = []
    for number in range(windows):
        drawn = store.draw(frames, rng)
        samples = questions(drawn.episode, drawn.span, rng)
        for kept, answers in (
            (seeing, ask(engine, (make_window(drawn),), samples, think_tokens)),
            (blind, ask(engine, (), samples, think_tokens)),
        ):
            for sample, got in zip(samples, answers, strict=True):
                text = question_text(sample.query)
                kept.append(Outcome(drawn.episode.seed, row_of(sample.query), text, wanted(sample), got))
        if (number + 1) % 20 == 0:
            print(f"evaluated {number + 1}/{windows} windows  {score(seeing)} right so far", flush=True)
    return {"rows": _table(seeing, blind), "windows": windows, "episodes": len({o.episode for o in seeing})}


def _table(seeing: list[Outcome], blind: list[Outcome]) -> dict[str, dict[str, object]]:
    table = {}
    for row in dict.fromkeys(outcome.kind for outcome in seeing):
        own = [outcome for outcome in seeing if outcome.kind == row]
        majority = collections.Counter(outcome.wanted for outcome in own).most_common(1)[0][1] / len(own)
        table[row] = {
            "n": len(own),
            "nano": vars(score(own)),
            "no_video": vars(score([outcome for outcome in blind if outcome.kind == row])),
            "best_without_video": vars(score(blind_best(own))),
            "majority": majority,
        }
    return table


def markdown(result: dict[str, object]) -> str:
    """The table for a README."""
    lines = [
        "| question | n | nano | same model, no video | best possible without video |",
        "|---|---|---|---|---|",
    ]
    rows = result["rows"]
    assert isinstance(rows, dict)
    for name, row in rows.items():
        scores = [str(Score(**row[key])) for key in ("nano", "no_video", "best_without_video")]
        lines.append(f"| {name} | {row['n']} | " + " | ".join(scores) + " |")
    return "\n".join(lines)


def write(result: dict[str, object], path: Path) -> None:
    """Keep a result as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
