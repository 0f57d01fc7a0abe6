# SPDX-License-Identifier: Apache-2.0
"""How those wait who ask the books again and again."""

from __future__ import annotations

import time

_SHORTEST_PAUSE_S, _LONGEST_PAUSE_S = 0.02, 0.25


class Patience:
    """Pauses that grow the longer nothing comes, to a bound.

    With hundreds of workers the books are asked by all of them, and a reward worker has little to do.
    """

    def __init__(self) -> None:
        self._pause_s = 0.0

    def wait(self) -> float:
        """Sleep; returns for how many seconds."""
        self._pause_s = min(_LONGEST_PAUSE_S, max(_SHORTEST_PAUSE_S, 2.0 * self._pause_s))
        time.sleep(self._pause_s)
        return self._pause_s

    def renew(self) -> None:
        """Something came."""
        self._pause_s = 0.0
