# SPDX-License-Identifier: Apache-2.0
"""Means with their uncertainty.

Axes: I items, S seeds, C clusters (recordings), B bootstrap draws.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

DRAWS = 2000
_Z = 1.959964  # two-sided 95 %


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval, as shares of 1."""

    mean: float
    low: float
    high: float

    @property
    def ci95(self) -> list[float]:
        """The interval as JSON has it."""
        return [round(self.low, 4), round(self.high, 4)]


@dataclass(frozen=True)
class Difference(Estimate):
    """A mean difference; ``p`` is two-sided: how often chance alone would give one as large."""

    p: float


def bootstrap(
    values: np.ndarray, clusters: np.ndarray, seed: int = 0, kinds: np.ndarray | None = None
) -> np.ndarray:
    """(B,) means of ``values`` under resampling of clusters, and of seeds.

    Args:
        values: (I, S).
        clusters: (I,) which recording an item belongs to.
        seed: of the draws.
        kinds: (I,) whose means are taken first and count the same; a draw without a kind is the mean of the
            others. All items count the same if None.
    """
    _, index = np.unique(clusters, return_inverse=True)
    count = int(index.max()) + 1
    runs = values.shape[1]
    rng = np.random.default_rng(seed)
    recordings = rng.multinomial(count, np.full(count, 1 / count), size=DRAWS)  # (B, C)
    seeds = rng.multinomial(runs, np.full(runs, 1 / runs), size=DRAWS)  # (B, S)
    means = []
    for own in _members(kinds, len(values)):
        sums = np.zeros((count, runs))
        np.add.at(sums, index[own], values[own].astype(float))
        sizes = recordings @ np.bincount(index[own], minlength=count)
        total = ((recordings @ sums) * seeds).sum(1)
        means.append(np.divide(total, sizes * runs, out=np.full(DRAWS, np.nan), where=sizes > 0))
    return np.asarray(np.nanmean(means, axis=0))


def _members(kinds: np.ndarray | None, count: int) -> list[np.ndarray]:
    """(I,) of bool for each kind."""
    if kinds is None:
        return [np.ones(count, bool)]
    return [kinds == kind for kind in np.unique(kinds)]


def estimate(values: np.ndarray, clusters: np.ndarray) -> Estimate:
    """Mean of values in [0, 1] with its interval over recordings and seeds.

    Where the draws do not differ (all right, all wrong) or seeds alone make them differ (one recording), the
    bootstrap knows nothing: then Wilson's interval for as many independent trials as there are recordings.

    Args:
        values: (I, S).
        clusters: (I,).
    """
    mean = float(values.mean())
    draws = bootstrap(values, clusters)
    low, high = (float(v) for v in np.quantile(draws, (0.025, 0.975)))
    count = len(np.unique(clusters))
    if high - low < 1e-9 or count == 1:
        return wilson(mean, count)
    return Estimate(mean, low, high)


def difference(
    first: np.ndarray, second: np.ndarray, clusters: np.ndarray, kinds: np.ndarray | None = None
) -> Difference:
    """Mean of ``first - second``, paired by item and run, both (I, S); of ``kinds``' means, see bootstrap.

    Where all recordings differ by the same, or there is but one, the bootstrap knows nothing: then Wilson's
    interval of the share of recordings that got better, and ``p`` of a sign test. Where nothing differs there
    is no doubt.
    """
    paired = first.astype(float) - second.astype(float)
    draws = bootstrap(paired, clusters, kinds=kinds)
    low, high = (float(v) for v in np.quantile(draws, (0.025, 0.975)))
    mean = float(np.mean([paired[own].mean() for own in _members(kinds, len(paired))]))
    count = len(np.unique(clusters))
    if paired.any() and (high - low < 1e-9 or count == 1):
        better = wilson(min(1.0, max(0.0, (1 + mean) / 2)), count)
        low, high = 2 * better.low - 1, 2 * better.high - 1
        return Difference(mean, low, high, max(min(1.0, 2 * 0.5**count), 1 / DRAWS))
    tail = min(float((draws <= 0).mean()), float((draws >= 0).mean()))
    return Difference(mean, low, high, min(1.0, max(2 * tail, 1 / DRAWS)))


def wilson(mean: float, n: int) -> Estimate:
    """Wilson's score interval of a share seen in ``n`` independent trials."""
    centre = (mean + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * math.sqrt(mean * (1 - mean) / n + _Z**2 / (4 * n * n))
    return Estimate(mean, max(0.0, centre - half), min(1.0, centre + half))


def calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int = 10) -> float:
    """Expected calibration error: mean distance of confidence and accuracy over equally wide bins.

    Args:
        confidence: (N,) in [0, 1].
        right: (N,) bool.
        bins: how many.
    """
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    total = 0.0
    for index in np.unique(place):
        own = place == index
        total += own.sum() * abs(confidence[own].mean() - right[own].mean())
    return float(total / len(confidence))
