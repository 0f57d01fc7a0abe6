# SPDX-License-Identifier: Apache-2.0
"""Training-time heads that read the simulator's state off what the model has seen.

They give tower and language model a dense signal (a handful of answers a window is a thin one) and are thrown
away: the checkpoint and the engine never see them. Temporal patches are independent in the vision tower, so
the tower can be warmed up on single ones.

Axes: P moments (temporal patches or windows), D hidden size, S skills.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.data.sim.episode import Episode
from training.data.sim.kinds.motion import named
from training.data.sim.phase import Phase, phase
from training.data.sim.physics.clip import Clip
from training.data.sim.physics.derive import PLACES, TILE_FRAMES
from training.data.sim.physics.palette import COLOURS, SHAPES
from training.data.sim.scenes import BY_NAME, SCENES

_SKILLS = max(len(scene.skills) for scene in SCENES)
_PER_SCENE = 1 + _SKILLS * 4  # openness; per skill: in place, gap (x, y, z)
_GAP_SCALE_M = 0.15
_GLANCES = 6
_POINTS = 2  # hand, handle
CLASSES = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]
_PER_CLASS = 6  # is it here; x, y within the cell; its motion since the frame before, x, y; its lean
_MOTION_SCALE = 0.05  # of the frame's side
SEEN = 0.5
Points = Callable[
    [np.ndarray], np.ndarray
]  # (N, 2) shares of width and height to where an augmentation puts them


@dataclass(frozen=True)
class States:
    """What is to be read.

    Attributes:
        scene: (P,) index into SCENES.
        openness: (P,) 0 to 1.
        placed: (P, S) 1 in place, 0 not, -1 arguable or no such skill.
        gap_m: (P, S, 3) hand from contact point, metres.
        asked: (P, S) 1 for a skill that the scene has and that is trained on.
    """

    scene: Tensor
    openness: Tensor
    placed: Tensor
    gap_m: Tensor
    asked: Tensor


def states_of(places: Sequence[tuple[Episode, int]], without: Collection[str] = ()) -> States:
    """States at the given (episode, frame) places; skills of tasks ``without`` are left open."""
    scene = np.zeros(len(places), np.int64)
    openness = np.zeros(len(places), np.float32)
    placed = np.full((len(places), _SKILLS), -1.0, np.float32)
    gap_m = np.zeros((len(places), _SKILLS, 3), np.float32)
    asked = np.zeros((len(places), _SKILLS), np.float32)
    names = [s.name for s in SCENES]
    for row, (episode, frame) in enumerate(places):
        scene[row] = names.index(episode.scene)
        openness[row] = episode.openness[frame]
        for column, skill in enumerate(BY_NAME[episode.scene].skills):
            if skill.task in without:
                continue
            asked[row, column] = 1.0
            gap_m[row, column] = episode.gap_m[frame, column]
            now = phase(
                skill, 0.0 if skill.opens else 1.0, episode.gap_m[frame, column]
            )  # as if not yet done
            if now is not None:
                placed[row, column] = float(now is Phase.ACT)
    return States(*(torch.from_numpy(a) for a in (scene, openness, placed, gap_m, asked)))


@dataclass(frozen=True)
class Things:
    """What is to be read off moments of clips.

    Attributes:
        moment: (N,) which of the P moments a thing is in.
        kind: (N,) index into its colours and shapes.
        point: (N, 2) where it is, shares of width and height.
        motion: (N, 2) how far it came since the frame before, in units of ``_MOTION_SCALE``.
        up: (N,) cosine between its own upward axis and the vertical.
        whole: (P,) 1 for pictures in which things were looked up, 0 for tiles.
        tile: (P,) place of a puzzle's tile; -1 for other pictures.
    """

    moment: Tensor
    kind: Tensor
    point: Tensor
    motion: Tensor
    up: Tensor
    whole: Tensor
    tile: Tensor


def things_of(moments: Sequence[tuple[Clip, int, Points | None]]) -> Things:
    """Things at (clip, first frame of the pair, change of the view; None for a puzzle's tile)."""
    rows: list[tuple[float, ...]] = []
    tile = []
    for number, (clip, first, points) in enumerate(moments):
        tile.append(int(clip.tiles[first // TILE_FRAMES]) if points is None else -1)
        if points is None:
            continue
        for i in named(clip):
            if clip.names[i] in CLASSES and clip.present[first + 1, i] and clip.seen[first + 1, i] >= SEEN:
                before, now = points(clip.pixel[first : first + 2, i] / clip.frames.shape[1])
                motion = (now - before) / _MOTION_SCALE
                kind = CLASSES.index(str(clip.names[i]))
                rows.append((number, kind, *now, *motion, float(clip.up[first + 1, i])))
    table = torch.tensor(rows, dtype=torch.float32).view(-1, 7)
    places = torch.tensor(tile)
    return Things(
        table[:, 0].long(),
        table[:, 1].long(),
        table[:, 2:4],
        table[:, 4:6],
        table[:, 6],
        (places < 0).float(),
        places,
    )


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
        openness, rest = self._of_scenes(summary, states.scene)
        known = (states.placed >= 0).float()
        placed_loss = F.binary_cross_entropy_with_logits(rest[..., 0], states.placed.clamp(min=0), known)
        gaps = F.smooth_l1_loss(rest[..., 1:], states.gap_m / _GAP_SCALE_M, reduction="none")
        gap_loss = (gaps.mean(-1) * states.asked).sum() / states.asked.sum().clamp(min=1)
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

    def read(self, summary: Tensor, scene: Tensor) -> tuple[Tensor, Tensor]:
        """Openness (P,), 0 to 1, and log odds (P, S) of being in place, of (P, D) and the scenes (P,)."""
        openness, rest = self._of_scenes(self.norm(summary.float()), scene)
        return openness.sigmoid(), rest[..., 0]

    def _of_scenes(self, summary: Tensor, scene: Tensor) -> tuple[Tensor, Tensor]:
        read = self.state(summary).view(len(summary), len(SCENES), _PER_SCENE)
        own = read[torch.arange(len(read)), scene]
        return own[:, 0], own[:, 1:].view(-1, _SKILLS, 4)


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
        loss, measures = self.state(self._glances(tokens), states)
        side = math.isqrt(tokens.shape[1])
        cell = (points * side).floor()
        seen = ((cell >= 0) & (cell < side)).all(-1)  # (P, 2)
        index = (cell[..., 1] * side + cell[..., 0]).long()[seen]
        read = self.where(tokens).unflatten(-1, (_POINTS, 3)).transpose(1, 2)[seen]  # (seen, K, 3)
        offset = read[torch.arange(len(index)), index, 1:]
        wanted = (points * side - cell - 0.5)[seen]
        count = max(len(index), 1)
        where_loss = F.cross_entropy(read[..., 0], index, reduction="sum") / count
        where_loss = where_loss + F.smooth_l1_loss(offset, wanted, reduction="sum") / count
        measures["located"] = (read[..., 0].argmax(-1) == index).float().sum().item() / count
        return loss + where_loss, measures

    def read(self, tokens: Tensor, scene: Tensor) -> tuple[Tensor, Tensor]:
        """Openness (P,) and log odds (P, S) of being in place, of (P, K, D) tokens and the scenes (P,)."""
        return self.state.read(self._glances(self.norm(tokens.float())), scene)

    def _glances(self, tokens: Tensor) -> Tensor:
        looks = self.glance(tokens).softmax(1).transpose(1, 2) @ tokens
        return self.look(looks.flatten(1))


class ThingProbe(nn.Module):
    """What is read off the K visual tokens of a moment of a clip.

    Which thing is in which cell, where in it, how it moves and leans; and of which place a puzzle's tile is.

    Args:
        hidden: D.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden)
        self.cell = nn.Linear(hidden, len(CLASSES) * _PER_CLASS)
        self.tile = nn.Linear(hidden, len(PLACES))

    def forward(self, tokens: Tensor, things: Things) -> tuple[Tensor, dict[str, float]]:
        """Loss and measures.

        Args:
            tokens: (P, K, D), a square of cells in raster order.
            things: of the P moments.
        """
        tokens = self.norm(tokens.float())
        side = math.isqrt(tokens.shape[1])
        read = self.cell(tokens).unflatten(-1, (len(CLASSES), _PER_CLASS))
        cell = (things.point * side).floor()
        seen = ((cell >= 0) & (cell < side)).all(-1)
        index = (cell[:, 1] * side + cell[:, 0]).long()[seen]
        moment, kind = things.moment[seen], things.kind[seen]
        here = torch.zeros(read.shape[:3])
        here[moment, index, kind] = 1.0
        missing = F.binary_cross_entropy_with_logits(read[..., 0], here, reduction="none").sum((1, 2))
        here_loss = (missing * things.whole).sum() / max(len(moment), 1)
        found = read[moment, index, kind, 1:]
        offset = (things.point * side - cell - 0.5)[seen]
        wanted = torch.cat([offset, things.motion[seen].clamp(-4, 4), things.up[seen, None]], dim=1)
        details = F.smooth_l1_loss(found, wanted) if len(moment) else here_loss
        placed = things.tile >= 0
        guess = self.tile(tokens.mean(1))
        tile_loss = (
            F.cross_entropy(guess, things.tile, ignore_index=-1) if placed.any() else 0.0 * guess.sum()
        )
        with torch.no_grad():
            measures = {
                "thing_found": (read[moment, :, kind, 0].argmax(-1) == index).float().mean().item(),
                "tile_placed": (guess.argmax(-1) == things.tile)[placed].float().mean().item(),
            }
        return here_loss + 2.0 * details + tile_loss, {k: v if v == v else 0.0 for k, v in measures.items()}
