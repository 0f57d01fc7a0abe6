# SPDX-License-Identifier: Apache-2.0
"""What the engine's approximate mode costs: windows are asked about as the last of a slide.

    window of 16 pairs, slide 3    pairs 1-13 ─> 2-14 ─> 3-15 ─> 4-16: this one is scored

Asked exactly and approximately, the same frames are shown, so the two reports differ by the approximation
alone (and from a report without a slide by the pairs that are missing).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator

from cosmos_reason_node.engine.base import Event, Request
from cosmos_reason_node.engine.torch import TorchEngine
from cosmos_reason_node.types import ModelInfo, Query, QueryKind, Window

_GLANCE = Query(QueryKind.QUESTION, question="?", yes_no=True, think_tokens=0)


class SlidEngine:
    """An engine that sees each window slide into place.

    Args:
        engine: answers; its ``refresh_every`` decides whether that is exact.
        slides: number of pairs by which each window slides.
    """

    def __init__(self, engine: TorchEngine, slides: int) -> None:
        self._engine = engine
        self._slides = slides

    @property
    def info(self) -> ModelInfo:
        """Which model, where."""
        return self._engine.info

    @property
    def max_prompt_tokens(self) -> int:
        """Most tokens of prompt."""
        return self._engine.max_prompt_tokens

    def close(self) -> None:
        """Free memory."""
        self._engine.close()

    def answer(self, request: Request) -> Generator[Event, int | None, None]:
        """Look at the windows on the way, then answer about the last; those too short are answered whole."""
        steps = self._slides if len(request.windows) == 1 else 0
        length = min((len(window.frames) for window in request.windows), default=0) - 2 * steps
        if steps and length >= 2:
            self._engine.forget()
            (whole,) = request.windows
            for step in range(steps):
                for _ in self._engine.answer(Request("glance", (part(whole, 2 * step, length),), (_GLANCE,))):
                    pass
            request = dataclasses.replace(request, windows=(part(whole, 2 * steps, length),))
        return (yield from self._engine.answer(request))


def part(window: Window, first: int, count: int) -> Window:
    """``count`` frames of a window, from frame ``first``."""
    return dataclasses.replace(
        window,
        frames=window.frames[first : first + count],
        first_tick=window.first_tick + first,
        asked=count,
    )
