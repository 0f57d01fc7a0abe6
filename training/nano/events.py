# SPDX-License-Identifier: Apache-2.0
"""What is read off a clip's window before any question is asked: order of tiles, direction of time, things.

A question of the kinds is answered by putting together what several moments show. From answers alone a small
model does not find out how for long; a read-out at <|vision_end|> has it gather the parts there.

Axes: P windows, C classes of things (colour and shape).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.data.sim.kinds.motion import named
from training.data.sim.kinds.object_permanence import hidden_and_back
from training.data.sim.physics.clip import Clip
from training.data.sim.physics.derive import PLACES
from training.data.sim.sample import Span

from .probe import CLASSES, SEEN, Points

_PER_CLASS = 5  # shown at all, seen at the end, vanished; x, y at the end
_TILES = len(PLACES)


@dataclass(frozen=True)
class Events:
    """What is to be read.

    Attributes:
        tiles: (P, 4) place of each tile of a puzzle, in the order shown; -1 for other windows.
        backward: (P,) 1 played backward, 0 forward, -1 where that is not decided.
        whole: (P,) 1 for windows with things, 0 for puzzles.
        shown: (P, C) 1 for classes that are seen at some time.
        last: (P, C) 1 for those seen in the newest frame.
        gone: (P, C) 1 for those that vanished while they were hidden.
        point: (P, C, 2) where they are in the newest frame, shares of width and height.
    """

    tiles: Tensor
    backward: Tensor
    whole: Tensor
    shown: Tensor
    last: Tensor
    gone: Tensor
    point: Tensor


def events_of(windows: Sequence[tuple[Clip, Span, Points]]) -> Events:
    """Events of (clip, its frames that are shown, change of the view)."""
    count = len(windows)
    tiles = np.full((count, _TILES), -1, np.int64)
    backward = np.full(count, -1.0, np.float32)
    whole = np.ones(count, np.float32)
    flags = np.zeros((3, count, len(CLASSES)), np.float32)
    point = np.full((count, len(CLASSES), 2), 0.5, np.float32)
    for row, (clip, span, points) in enumerate(windows):
        if clip.variant == "puzzle":
            tiles[row], whole[row] = clip.tiles, 0.0
            continue
        if clip.variant in ("forward", "reversed"):
            backward[row] = float(clip.variant == "reversed")
        back = hidden_and_back(clip, span) if clip.of_kind("screen") else []
        frames = slice(span.first, span.last + 1)
        for i in named(clip):
            if clip.names[i] not in CLASSES:
                continue
            column = CLASSES.index(str(clip.names[i]))
            seen = (clip.seen[frames, i] >= SEEN) & clip.present[frames, i]
            flags[:, row, column] = seen.any(), seen[-1], i in back and not clip.present[span.last, i]
            point[row, column] = points(clip.pixel[span.last, i][None] / clip.frames.shape[1])[0]
    return Events(*(torch.from_numpy(a) for a in (tiles, backward, whole, *flags, point)))


class EventProbe(nn.Module):
    """Linear read-out of ``Events``.

    Args:
        hidden: D.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden)
        self.tiles = nn.Linear(hidden, _TILES * _TILES)
        self.backward = nn.Linear(hidden, 1)
        self.things = nn.Linear(hidden, len(CLASSES) * _PER_CLASS)

    def forward(self, summary: Tensor, events: Events) -> tuple[Tensor, dict[str, float]]:
        """Loss and measures.

        Args:
            summary: (P, D).
            events: of the P windows.
        """
        summary = self.norm(summary.float())
        tiles = self.tiles(summary).unflatten(-1, (_TILES, _TILES))
        puzzles, decided = events.tiles[:, 0] >= 0, events.backward >= 0
        # Sums over what there is, so that each parameter has a gradient where there is nothing.
        tile_loss = F.cross_entropy(
            tiles[puzzles].flatten(0, 1), events.tiles[puzzles].flatten(), reduction="sum"
        ) / max(int(puzzles.sum()) * _TILES, 1)
        backward = self.backward(summary)[:, 0]
        time_loss = F.binary_cross_entropy_with_logits(
            backward[decided], events.backward[decided], reduction="sum"
        ) / max(int(decided.sum()), 1)
        read = self.things(summary).unflatten(-1, (len(CLASSES), _PER_CLASS))
        whole, shown = events.whole[:, None], events.shown
        count = shown.sum().clamp(min=1.0)

        def flag(index: int, truth: Tensor, where: Tensor) -> Tensor:
            each = F.binary_cross_entropy_with_logits(read[..., index], truth, reduction="none")
            return (each * where).sum() / count

        thing_loss = (
            flag(0, shown, whole.expand_as(shown)) + flag(1, events.last, shown) + flag(2, events.gone, shown)
        )
        gaps = F.smooth_l1_loss(read[..., 3:], 4.0 * (events.point - 0.5), reduction="none").mean(-1)
        place_loss = (gaps * events.last).sum() / events.last.sum().clamp(min=1.0)
        with torch.no_grad():
            tiles_right = (tiles.argmax(-1) == events.tiles)[puzzles].float().mean()
            time_right = ((backward > 0) == (events.backward > 0.5))[decided].float().mean()
            gone_right = ((read[..., 2] > 0) == (events.gone > 0.5))[events.gone > 0.5].float().mean()
        measures = {
            "tiles_right": tiles_right.item(),
            "time_right": time_right.item(),
            "gone_found": gone_right.item(),
            "place_loss": place_loss.item(),
        }
        measures = {name: 0.0 if value != value else value for name, value in measures.items()}
        return tile_loss + time_loss + thing_loss + place_loss, measures
