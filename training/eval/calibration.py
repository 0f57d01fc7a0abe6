# SPDX-License-Identifier: Apache-2.0
"""Confidences that mean what they say: one temperature, fitted to an evaluation and kept in the checkpoint.

Probabilities p of the choices become softmax(log p / T). T is the one under which the right answers of the
evaluation are likeliest; it changes no verdict. Fit it on other windows than those it is reported on.

Axes: I items, O choices.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cosmos_reason_node.models.checkpoint import digest
from cosmos_reason_node.models.spec import OWN, ModelSpec, read_json, read_model_spec

from .item import Item, read_items
from .prediction import Prediction, read_predictions
from .run import ITEMS, PREDICTIONS, read_run
from .statistics import calibration_error

_LOW, _HIGH, _STEPS = 0.05, 20.0, 60
_FEWEST = 30
_LEAST = 1e-6  # share of a choice, so that its logarithm exists


@dataclass(frozen=True)
class Calibration:
    """A fitted temperature and what it does.

    Attributes:
        temperature: for cosmos_reason.json's ``confidence_temperature``.
        items: number of verdicts it was fitted to.
        error_before, error_after: expected calibration error.
        loss_before, loss_after: mean negative log probability of the right answer.
    """

    temperature: float
    items: int
    error_before: float
    error_after: float
    loss_before: float
    loss_after: float


def calibrate(directory: Path, model_dir: Path) -> Calibration:
    """Fit the temperature of a checkpoint to an evaluation of it.

    Args:
        directory: of an evaluation (``--out``), protocol letter.
        model_dir: the checkpoint that was evaluated.

    Raises:
        ValueError: it is another checkpoint's, or there are too few verdicts.
        FileNotFoundError: there is no evaluation.
    """
    facts = read_run(directory)
    found, spec = digest(model_dir), read_model_spec(model_dir)
    if facts["model"]["digest"] != found:
        raise ValueError(
            f"{directory} is the evaluation of another checkpoint than {model_dir}, or it has changed since: "
            "evaluate it first (--replace, to do so in the same folder)"
        )
    logits, right = _verdicts(directory, spec, facts)
    if len(right) < _FEWEST:
        raise ValueError(
            f"{directory} has {len(right)} verdicts with probabilities, at least {_FEWEST} are needed: "
            "evaluate with --protocol letter on more windows"
        )
    return fit(logits, right, spec.confidence_temperature)


def fit(logits: Sequence[np.ndarray], right: Sequence[int], before: float = 1.0) -> Calibration:
    """Fit to choices.

    Args:
        logits: I arrays of (O,) log probabilities at temperature 1, up to a constant each.
        right: I places of the right choice.
        before: temperature to compare with.
    """

    def loss(temperature: float) -> float:
        return float(
            np.mean([-_shares(x, temperature, log=True)[i] for x, i in zip(logits, right, strict=True)])
        )

    def error(temperature: float) -> float:
        shares = [_shares(x, temperature) for x in logits]
        hits = np.array([int(s.argmax()) == i for s, i in zip(shares, right, strict=True)])
        return calibration_error(np.array([float(s.max()) for s in shares]), hits)

    low, high = math.log(_LOW), math.log(_HIGH)
    golden = (math.sqrt(5) - 1) / 2
    for _ in range(_STEPS):  # the loss has one minimum in 1 / T, hence in log T
        a, b = high - golden * (high - low), low + golden * (high - low)
        low, high = (low, b) if loss(math.exp(a)) < loss(math.exp(b)) else (a, high)
    temperature = round(math.exp((low + high) / 2), 4)
    return Calibration(
        temperature, len(right), error(before), error(temperature), loss(before), loss(temperature)
    )


def write(model_dir: Path, temperature: float) -> Path:
    """Put the temperature into a checkpoint's cosmos_reason.json; the rest of it stays.

    Raises:
        OSError: it cannot be written.
    """
    path = model_dir / OWN
    own = read_json(path) if path.exists() else {}
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps({**own, "confidence_temperature": temperature}, indent=2) + "\n")
    os.replace(partial, path)
    return path


def _verdicts(directory: Path, spec: ModelSpec, facts: dict[str, Any]) -> tuple[list[np.ndarray], list[int]]:
    """Log probabilities at temperature 1 and the right place, of every choice that the report counts.

    The log may hold more: what was said with other budgets of reasoning, or under other prompts.
    """
    model = facts["model"]
    now = (model["digest"], model["prompt_id"], facts["asked"].get("grammar", {}).get("decoding"))
    items = {item.item_id: item for item in read_items(directory / ITEMS)}
    logits, right = [], []
    for key, said in read_predictions(directory / PREDICTIONS).items():
        item = items.get(key.item)
        if item is None or item.digest != key.digest or not key.video or key.rotation:
            continue
        if (key.model, key.prompt, key.decoding) != now:
            continue
        place = _right_place(item, said)
        if place >= 0:
            shares = np.maximum(np.array(said.shares), _LEAST)
            logits.append(np.log(shares) * spec.calibration(item.query.kind))
            right.append(place)
    return logits, right


def _right_place(item: Item, said: Prediction) -> int:
    """Place of the right answer among the choices; -1 where there was no choice."""
    if not said.shares or item.form == "free":
        return -1
    return ord(item.answer) - ord("A") if item.form == "choice" else ("yes", "no").index(item.answer.lower())


def _shares(logits: np.ndarray, temperature: float, *, log: bool = False) -> np.ndarray:
    scaled = logits / temperature
    scaled = scaled - scaled.max()
    logs = scaled - math.log(float(np.exp(scaled).sum()))
    return logs if log else np.exp(logs)
