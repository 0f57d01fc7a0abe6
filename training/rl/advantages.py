# SPDX-License-Identifier: Apache-2.0
"""From rewards of a group of answers to advantages. G = answers of one question."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Of the standard deviation, as in the field's implementations: rewards that differ by less are alike.
_EPSILON = 1e-4


def group_advantages(rewards: Sequence[float], *, normalize: bool) -> np.ndarray:
    """(G,) rewards above their group's mean, by its standard deviation where ``normalize``.

    The mean includes the answer itself, so the expected gradient is (1 - 1/G) of the true one. A group of
    fewer than two answers has nothing to compare with: zeros.
    """
    values = np.asarray(rewards, np.float64)
    if len(values) < 2:
        return np.zeros(len(values))
    centred = values - values.mean()
    return centred / (values.std(ddof=1) + _EPSILON) if normalize else centred


def zero_variance(rewards: Sequence[float]) -> bool:
    """Whether all answers have the same reward: the group teaches nothing. So does one without answers."""
    return not rewards or max(rewards) - min(rewards) < 1e-9
