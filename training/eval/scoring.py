# SPDX-License-Identifier: Apache-2.0
"""From predictions to scores: every item asked counts, whatever came back. No model is needed.

Axes: I items, S seeds.
"""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .baselines import best_without_video, random_guess
from .item import Item
from .prediction import Key, Prediction
from .protocol import Choice, Protocol, normal
from .statistics import Estimate, calibration_error, difference, estimate


@dataclass(frozen=True)
class Given:
    """One prediction, read.

    Attributes:
        prediction: as logged.
        choice: what it says; its text is "" where it does not parse or there is no output.
        right: whether that is the right answer.
    """

    prediction: Prediction
    choice: Choice
    right: bool


@dataclass(frozen=True)
class Outcome:
    """All that was said about one item.

    Attributes:
        item: what was asked.
        seeing: one a seed, options as they are.
        blind: the same without video; () when not asked.
        rotated: with one seed, one for each order of the options, the first as it is; () when not asked.
    """

    item: Item
    seeing: tuple[Given, ...]
    blind: tuple[Given, ...] = ()
    rotated: tuple[Given, ...] = ()


@dataclass(frozen=True)
class Run:
    """Which predictions of a log to score.

    Attributes:
        model: digest of the checkpoint.
        prompt: id of the prompt conventions.
        decoding: Protocol.decoding.
        seeds: number of runs.
        permutations: most orders of options.
        blind: whether everything was asked without video too.
    """

    model: str
    prompt: str
    decoding: str
    seeds: int
    permutations: int
    blind: bool


def read_outcomes(
    items: Sequence[Item], log: Mapping[Key, Prediction], run: Run, protocol: Protocol
) -> tuple[list[Outcome], int]:
    """Outcomes of the items that were asked in full, and the number of those that were not (yet)."""
    outcomes = []
    for item in items:

        def given(seed: int, rotation: int, video: bool, item: Item = item) -> Given | None:
            key = Key(item.item_id, item.digest, run.model, run.prompt, run.decoding, seed, rotation, video)
            return _read(log[key], item, protocol) if key in log else None

        seeds, orders = range(run.seeds), range(min(run.permutations, len(item.query.options)))
        seeing = [given(seed, 0, True) for seed in seeds]
        blind = [given(seed, 0, False) for seed in seeds] if run.blind else []
        rotated = [given(0, rotation, True) for rotation in orders] if len(orders) > 1 else []
        if None not in (*seeing, *blind, *rotated):
            outcomes.append(Outcome(item, *(tuple(g for g in gs if g) for gs in (seeing, blind, rotated))))
    return outcomes, len(items) - len(outcomes)


def _read(prediction: Prediction, item: Item, protocol: Protocol) -> Given:
    choice = (
        Choice("")
        if prediction.error
        else protocol.parse(prediction.output, item.rotated(prediction.key.rotation))
    )
    return Given(prediction, choice, bool(choice.text) and normal(choice.text) == normal(item.wanted))


def cell(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """All numbers of one group of items, shares of 1, as JSON has them.

    ``n`` items of ``recordings``; ``mean`` with ``ci95``; ``random``, ``best_without_video`` and (when asked)
    ``blind`` baselines; ``above_blind`` paired; ``permutations`` of multiple-choice items; ``ece``; counts of
    outputs that are wrong for their form (``unparsed``), missing (``errors``) or ``cut`` by the budget.
    """
    items = [outcome.item for outcome in outcomes]
    clusters = np.array([item.cluster for item in items])
    seeing = rights([outcome.seeing for outcome in outcomes])
    all_given = [given for outcome in outcomes for given in outcome.seeing]
    result: dict[str, Any] = {
        "n": len(items),
        "recordings": len(np.unique(clusters)),
        "seeds": seeing.shape[1],
        **_plain(estimate(seeing, clusters)),
        "random": round(random_guess(items), 4),
        "best_without_video": _plain(estimate(best_without_video(items)[:, None], clusters)),
    }
    if all(outcome.blind for outcome in outcomes):
        blind = rights([outcome.blind for outcome in outcomes])
        gain = difference(seeing, blind, clusters)
        result["blind"] = _plain(estimate(blind, clusters))
        result["above_blind"] = {**_plain(gain), "p": round(gain.p, 4)}
    rotated = [outcome for outcome in outcomes if outcome.rotated]
    if rotated:
        result["permutations"] = _permutations(rotated)
    sure = [given for given in all_given if given.choice.text]
    if sure:
        confidence = np.array([given.prediction.confidence for given in sure])
        result["ece"] = round(calibration_error(confidence, np.array([given.right for given in sure])), 4)
        result["confidence"] = round(float(confidence.mean()), 4)
    result["unparsed"] = sum(not (g.choice.text or g.prediction.error) for g in all_given)
    result["errors"] = sum(bool(g.prediction.error) for g in all_given)
    result["cut"] = sum(g.prediction.cut for g in all_given)
    said = collections.Counter(_said(outcome.item, given) for outcome in outcomes for given in outcome.seeing)
    result["said"] = dict(said.most_common(8))
    return result


def _permutations(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """How little the order of options matters.

    ``consistent``: share of items of which every order gives the same option's text (no answer is none);
    ``mean``: accuracy over all orders; ``circular``: right in every order.
    """
    clusters = np.array([outcome.item.cluster for outcome in outcomes])
    texts = [[given.choice.text for given in outcome.rotated] for outcome in outcomes]
    same = np.array([bool(text[0]) and len(set(text)) == 1 for text in texts])
    accuracy = np.array([np.mean([given.right for given in outcome.rotated]) for outcome in outcomes])
    circular = np.array([all(given.right for given in outcome.rotated) for outcome in outcomes])
    return {
        "n": len(outcomes),
        "orders": round(float(np.mean([len(text) for text in texts])), 2),
        "consistent": _plain(estimate(same[:, None], clusters)),
        **_plain(estimate(accuracy[:, None], clusters)),
        "circular": _plain(estimate(circular[:, None], clusters)),
    }


def _said(item: Item, given: Given) -> str:
    """For the histogram: the letter, "yes", "no", "(words)" or what went wrong."""
    text = given.choice.text
    if not text:
        return "(error)" if given.prediction.error else "(unparsed)"
    if item.form == "choice":
        options = item.query.options
        return chr(ord("A") + options.index(text)) if text in options else "(no option)"
    return text.lower() if normal(text) in ("yes", "no") else "(words)"


def rights(given: Sequence[Sequence[Given]]) -> np.ndarray:
    """(I, S) bool."""
    return np.array([[one.right for one in runs] for runs in given])


def _plain(value: Estimate) -> dict[str, Any]:
    return {"mean": round(value.mean, 4), "ci95": value.ci95}
