# SPDX-License-Identifier: Apache-2.0
"""Episodes in memory, and balanced draws of windows from them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.data.sample import Span
from training.data.sim.episode import Episode, load_episode
from training.data.sim.phase import Phase, phase
from training.data.sim.questions import draw_span
from training.data.sim.scenes import BY_NAME

Key = tuple[str, int, Phase]  # scene, index of the skill, phase at the window's last frame


@dataclass(frozen=True)
class Drawn:
    """A window of an episode."""

    episode: Episode
    span: Span

    def frames(self) -> np.ndarray:
        """(T, H, W, 3) uint8."""
        return self.episode.frames[self.span.first : self.span.last + 1]


class EpisodeStore:
    """All episodes of one split, indexed by what is true at each possible last frame.

    Draws are uniform over (scene, skill, phase): no answer is favoured by how often it occurs.

    Args:
        directory: holds one .npz per episode.
        limit: most episodes to load; 0 for all.
    """

    def __init__(self, directory: Path, limit: int = 0) -> None:
        self._directory = directory
        self._limit = limit
        self._seen: set[Path] = set()
        self.episodes: list[Episode] = []
        self._index: dict[Key, list[tuple[int, int]]] = {}
        self.refresh()
        if not self.episodes:
            raise FileNotFoundError(
                f"there are no episodes in {directory}: run `python -m training.nano generate` first"
            )

    def refresh(self) -> int:
        """Load episodes that appeared since; returns how many."""
        new = sorted(path for path in self._directory.glob("*.npz") if path not in self._seen)
        if self._limit:
            new = new[: max(0, self._limit - len(self.episodes))]
        for path in new:
            self._seen.add(path)
            self._add(load_episode(path))
        return len(new)

    def _add(self, episode: Episode) -> None:
        number = len(self.episodes)
        self.episodes.append(episode)
        for last in range(1, len(episode.frames), 2):
            for index, skill in enumerate(BY_NAME[episode.scene].skills):
                now = phase(skill, float(episode.openness[last]), episode.gap_m[last, index])
                if now is not None:
                    self._index.setdefault((episode.scene, index, now), []).append((number, last))

    def draw(self, length: int, rng: np.random.Generator) -> Drawn:
        """A window of ``length`` frames."""
        keys = sorted(self._index)
        for _ in range(1000):
            entries = self._index[keys[rng.integers(len(keys))]]
            number, last = entries[rng.integers(len(entries))]
            episode = self.episodes[number]
            span = draw_span(len(episode.frames), last, rng, length)
            if span is not None:
                return Drawn(episode, span)
        raise ValueError(f"no episode is long enough for windows of {length} frames")


def augment(frames: np.ndarray, rng: np.random.Generator, shift_px: int = 5) -> np.ndarray:
    """One brightness, contrast, tint and small shift for a whole window.

    Args:
        frames: (T, H, W, 3) uint8.
        rng: source of the change.
        shift_px: largest shift in each direction; edges are repeated.
    """
    gain = rng.uniform(0.75, 1.3) * rng.uniform(0.88, 1.12, 3)
    table = np.clip(np.arange(256)[:, None] * gain + rng.uniform(-25.0, 25.0), 0.0, 255.0).astype(np.uint8)
    dy, dx = rng.integers(-shift_px, shift_px + 1, 2)
    rows = np.clip(np.arange(frames.shape[1]) + dy, 0, frames.shape[1] - 1)
    columns = np.clip(np.arange(frames.shape[2]) + dx, 0, frames.shape[2] - 1)
    moved = frames[:, rows][:, :, columns]
    return np.stack([table[moved[..., c], c] for c in range(3)], axis=-1)
