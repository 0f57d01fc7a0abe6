# SPDX-License-Identifier: Apache-2.0
"""What is true of the things that a question names, and of a clip's window as a whole.

Questions compare: which is farthest to the left, which lands first, which goes farther. Where a name stands
for the numbers that are compared, comparing is one step of attention; from answers alone a small model does
not come to have them there for long. Both read-outs are used in training alone.

Axes: M names, P windows, N things of a clip, F facts of a thing, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.data.sample import Span
from training.data.sim.kinds import anti_physics, camera, mechanics, order
from training.data.sim.kinds.motion import MOVED_PX, STILL_PX, named, onset, pixel_speed, travelled
from training.data.sim.kinds.object_permanence import hidden_and_back
from training.data.sim.physics.clip import Clip

from .probe import SEEN, Points

# Of a thing, NaN where it is not decided: where it is in the newest frame (across the picture, along the
# camera's axis), how upright, whether it moves; whether it vanished; how far it went, when it first left its
# place, when that happened of which order is asked, how high it bounced.
FACTS = ("across", "depth", "upright", "moves", "gone", "way", "starts", "when", "bounce")
_DEPTH_M, _WAY_M, _BOUNCE_M = 0.2, 0.3, 0.2  # units
_MOVES = (*camera.MOVES, camera.STILL)
_ODD = (anti_physics.THROUGH, anti_physics.JUMP, anti_physics.UPWARD, anti_physics.NOTHING)
_CAMERA_MOVES = ("tabletop", "hide", "room", "spill", "odd")  # scenes in which pixels tell no motion
_SHARP = 0.25  # errors below it count squared


@dataclass(frozen=True)
class Facts:
    """What is to be read.

    Attributes:
        things: (M, F) float32, of each name; NaN where open.
        camera: (P,) how the camera moves, index; -1 where open.
        odd: (P,) what cannot be in a clip of which that is asked, index; -1.
        goes: (P,) 1 for a thing held back that will leave its place, 0 for one that will not; -1.
    """

    things: Tensor
    camera: Tensor
    odd: Tensor
    goes: Tensor


def facts_of(things: Sequence[np.ndarray], windows: Sequence[tuple[Clip, Span, Points]]) -> Facts:
    """Facts of (F,) rows of ``thing_facts`` and of (clip, its frames that are shown, change of the view)."""
    moves, odd, goes = [], [], []
    for clip, span, _ in windows:
        whole = clip.variant != "puzzle"
        moved = camera.movement(clip, span) if whole else ""
        moves.append(_MOVES.index(moved) if moved else -1)
        wrong = anti_physics.wrong_in(clip, span) if whole and clip.scene == "odd" else ""
        odd.append(_ODD.index(wrong) if wrong else -1)
        held = whole and clip.scene in ("ramp", "stack") and span.last < clip.release
        gives = mechanics.gives_way(clip, int(named(clip)[-1])) if held else None
        goes.append(-1 if gives is None else int(gives))
    rows = torch.from_numpy(np.stack(things)) if len(things) else torch.zeros(0, len(FACTS))
    return Facts(rows, *(torch.tensor(values, dtype=torch.long) for values in (moves, odd, goes)))


def thing_facts(clip: Clip, span: Span, points: Points) -> np.ndarray:
    """(N, F) float32 facts of a window's things; NaN where they are not decided."""
    table = np.full((len(clip.names), len(FACTS)), np.nan, np.float32)
    if clip.variant == "puzzle":
        return table
    first, last = span.first, span.last
    back = hidden_and_back(clip, span) if clip.of_kind("screen") else []
    when = order.events(clip, span)[2]
    still = clip.scene not in _CAMERA_MOVES and last >= clip.release
    speed = pixel_speed(clip, last - 1)
    for i in named(clip):
        fact = dict.fromkeys(FACTS, np.nan)
        if clip.present[last, i] and clip.seen[last, i] >= SEEN:
            fact["across"] = 4.0 * (points(clip.pixel[last, i][None] / clip.frames.shape[1])[0][0] - 0.5)
            fact["depth"] = (clip.depth[last, i] - clip.camera[last, 2]) / _DEPTH_M
            fact["upright"] = clip.up[last, i]
            if still and not STILL_PX <= speed[i] <= MOVED_PX:
                fact["moves"] = float(speed[i] > MOVED_PX)
        if i in back:
            fact["gone"] = float(not clip.present[last, i])
        if clip.scene in ("collide", "drop"):
            fact["way"] = min(travelled(clip, span, i) / _WAY_M, 2.0)
        if clip.scene in ("collide", "topple"):
            frame = onset(clip, span, i)
            fact["starts"] = _time(frame, span) if frame >= 0 else 3.0
        if i in when:
            fact["when"] = _time(when[i], span)
        landed = np.flatnonzero(clip.landed[first : last + 1, i])
        if clip.scene == "drop" and len(landed) and landed[0] <= span.length - 4:
            after = clip.position[first + landed[0] : last + 1, i, 2].max() - clip.half[i, 2]
            fact["bounce"] = min(float(after) / _BOUNCE_M, 2.0)
        table[i] = list(fact.values())
    return table


def _time(frame: float, span: Span) -> float:
    """-2 to 2 from a window's start to its end."""
    return 4.0 * ((frame - span.first) / span.length - 0.5)


class FactProbe(nn.Module):
    """Linear read-out of ``Facts``.

    Args:
        hidden: D.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.name_norm, self.window_norm = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.thing = nn.Linear(hidden, len(FACTS))
        self.camera = nn.Linear(hidden, len(_MOVES))
        self.odd = nn.Linear(hidden, len(_ODD))
        self.goes = nn.Linear(hidden, 2)

    def forward(self, names: Tensor, summary: Tensor, facts: Facts) -> tuple[Tensor, dict[str, float]]:
        """Loss and measures: mean error of the facts, shares of windows read rightly.

        Args:
            names: (M, D).
            summary: (P, D).
            facts: of both.
        """
        read = self.thing(self.name_norm(names.float()))
        known, truth = ~facts.things.isnan(), facts.things.nan_to_num()
        errors = F.smooth_l1_loss(read, truth, reduction="none", beta=_SHARP) * known
        count = known.sum().clamp(min=1)
        loss = errors.sum() / count
        measures = {
            "fact_error": ((read - facts.things.nan_to_num()).abs() * known).sum().item() / int(count)
        }
        summary = self.window_norm(summary.float())
        for name in ("camera", "odd", "goes"):
            answer = getattr(facts, name)
            logits, decided = getattr(self, name)(summary), answer >= 0
            # Sums over what there is, so that each parameter has a gradient where there is nothing.
            each = F.cross_entropy(logits[decided], answer[decided], reduction="sum")
            loss = loss + each / max(int(decided.sum()), 1)
            right = (logits.argmax(-1) == answer)[decided].float().sum().item()
            measures[f"{name}_right"] = right / max(int(decided.sum()), 1)
        return loss, measures
