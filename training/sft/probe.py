# SPDX-License-Identifier: Apache-2.0
"""Training-time heads that read the simulator's state off what the model has seen.

They give tower and language model a dense signal (a handful of answers a window is a thin one) and are thrown
away: the checkpoint and the engine never see them. Temporal patches are independent in the vision tower, so
the tower can be warmed up on single ones.

Axes: P moments (temporal patches or windows), D hidden size, S skills.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.data.sim.episode import Episode
from training.data.sim.phase import Phase, phase
from training.data.sim.scenes import BY_NAME, SCENES

_SKILLS = max(len(scene.skills) for scene in SCENES)
_PER_SCENE = 1 + _SKILLS * 4  # openness; per skill: in place, gap (x, y, z)
_GAP_SCALE_M = 0.15
_GLANCES = 6
_POINTS = 2  # hand, handle


@dataclass(frozen=True)
class States:
    """What is to be read.

    Attributes:
        scene: (P,) index into SCENES.
        openness: (P,) 0 to 1.
        placed: (P, S) 1 in place, 0 not, -1 arguable or no such skill.
        gap_m: (P, S, 3) hand from contact point, metres.
    """

    scene: Tensor
    openness: Tensor
    placed: Tensor
    gap_m: Tensor


def states_of(places: list[tuple[Episode, int]]) -> States:
    """States at the given (episode, frame) places."""
    scene = np.zeros(len(places), np.int64)
    openness = np.zeros(len(places), np.float32)
    placed = np.full((len(places), _SKILLS), -1.0, np.float32)
    gap_m = np.zeros((len(places), _SKILLS, 3), np.float32)
    names = [s.name for s in SCENES]
    for row, (episode, frame) in enumerate(places):
        scene[row] = names.index(episode.scene)
        openness[row] = episode.openness[frame]
        for column, skill in enumerate(BY_NAME[episode.scene].skills):
            gap_m[row, column] = episode.gap_m[frame, column]
            now = phase(
                skill, 0.0 if skill.opens else 1.0, episode.gap_m[frame, column]
            )  # as if not yet done
            if now is not None:
                placed[row, column] = float(now is Phase.ACT)
    return States(*(torch.from_numpy(a) for a in (scene, openness, placed, gap_m)))


class StateProbe(nn.Module):
    """Linear read-out of ``States``. Linear, so that what it finds lies open for the layers that come next.

    Args:
        hidden: D.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden)
        self.scene = nn.Linear(hidden, len(SCENES))
        self.state = nn.Linear(hidden, len(SCENES) * _PER_SCENE)

    def forward(self, summary: Tensor, states: States) -> tuple[Tensor, dict[str, float]]:
        """Loss and measures.

        Args:
            summary: (P, D).
            states: of the P moments.
        """
        summary = self.norm(summary.float())
        scene_logits = self.scene(summary)
        read = self.state(summary).view(len(summary), len(SCENES), _PER_SCENE)
        own = read[torch.arange(len(read)), states.scene]
        openness, rest = own[:, 0], own[:, 1:].view(-1, _SKILLS, 4)
        known = (states.placed >= 0).float()
        placed_loss = F.binary_cross_entropy_with_logits(rest[..., 0], states.placed.clamp(min=0), known)
        gap_loss = F.smooth_l1_loss(rest[..., 1:], states.gap_m / _GAP_SCALE_M)
        open_loss = F.binary_cross_entropy_with_logits(openness, states.openness)
        loss = F.cross_entropy(scene_logits, states.scene) + 2.0 * (open_loss + placed_loss) + 0.5 * gap_loss
        with torch.no_grad():
            right = ((rest[..., 0] > 0) == (states.placed > 0.5)).float()
            error = (openness.sigmoid() - states.openness).abs().mean()
            measures = {
                "probe": loss.item(),
                "openness_error": error.item(),
                "placed": ((right * known).sum() / known.sum().clamp(min=1)).item(),
            }
        return loss, measures


class PatchProbe(nn.Module):
    """What is read off the K visual tokens of one temporal patch.

    State, by way of a few learned glances (a language model looks at tokens of its choice, too), and where
    hand and handle appear: which token's cell, and where in it. Every token learns from the latter at every
    step, which is what gets the tower off the ground.

    Args:
        hidden: D.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.glance = nn.Linear(hidden, _GLANCES)
        self.look = nn.Linear(_GLANCES * hidden, hidden)
        self.state = StateProbe(hidden)
        self.norm = nn.LayerNorm(hidden)
        self.where = nn.Linear(hidden, _POINTS * 3)  # is it here; x, y within the cell

    def forward(self, tokens: Tensor, states: States, points: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Loss and measures.

        Args:
            tokens: (P, K, D), a square of cells in raster order.
            states: of the P moments.
            points: (P, 2, 2) where hand and handle appear, x and y as shares of width and height.
        """
        tokens = self.norm(tokens.float())
        glances = self.glance(tokens).softmax(1).transpose(1, 2) @ tokens
        loss, measures = self.state(self.look(glances.flatten(1)), states)
        side = math.isqrt(tokens.shape[1])
        cell = (points * side).floor()
        seen = ((cell >= 0) & (cell < side)).all(-1)  # (P, 2)
        index = (cell[..., 1] * side + cell[..., 0]).long()[seen]
        read = self.where(tokens).unflatten(-1, (_POINTS, 3)).transpose(1, 2)[seen]  # (seen, K, 3)
        offset = read[torch.arange(len(index)), index, 1:]
        wanted = (points * side - cell - 0.5)[seen]
        where_loss = F.cross_entropy(read[..., 0], index) + 2.0 * F.smooth_l1_loss(offset, wanted)
        measures["located"] = (read[..., 0].argmax(-1) == index).float().mean().item()
        return loss + where_loss, measures


class StateProbes(nn.Module):
    """The two places where state is read.

    ``patch``: a temporal patch's visual tokens. ``window``: the language model at <|vision_end|>, which
    teaches it to find the newest moment of a window before any question is asked.

    Args:
        hidden: D.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.patch = PatchProbe(hidden)
        self.window = StateProbe(hidden)
