# SPDX-License-Identifier: Apache-2.0
"""Episodes and clips in memory, and balanced draws of windows from them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.data.sim.sample import Span

from .episode import Episode, load_episode
from .phase import Phase, phase
from .physics.clip import Clip, load_clip
from .scenes import BY_NAME

_READERS = 4  # threads; decompression does not hold the interpreter
Key = tuple[str, int, Phase]  # scene, index of the skill, phase at the window's last frame


@dataclass(frozen=True)
class Drawn:
    """A window of an episode."""

    episode: Episode
    span: Span

    def frames(self) -> np.ndarray:
        """(T, H, W, 3) uint8."""
        return self.episode.frames[self.span.first : self.span.last + 1]

    def points(self) -> np.ndarray:
        """(2, 2) where hand and handle appear in the newest frame, as shares of width and height."""
        return self.episode.points[self.span.last]


class EpisodeStore:
    """All episodes of one split, indexed by what is true at each possible last frame.

    Draws are uniform over (scene, skill, phase): no answer is favoured by how often it occurs.

    Args:
        directory: holds one .npz per episode.
        limit: most episodes to load; 0 for all.
        without: tasks of which no episode and no moment is drawn.
    """

    def __init__(self, directory: Path, limit: int = 0, without: Collection[str] = ()) -> None:
        self._directory = directory
        self._without = frozenset(without)
        self._limit = limit
        self._seen: set[Path] = set()
        self.episodes: list[Episode] = []
        self._index: dict[Key, list[tuple[int, int]]] = {}
        self._pairs: dict[Key, list[tuple[int, int]]] = {}  # of galleries: no longer window can be cut there
        self._by_length: dict[int, dict[Key, list[tuple[int, int]]]] = {}
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
        self._by_length.clear()
        self._seen.update(new)
        with ThreadPoolExecutor(_READERS) as pool:
            for episode in pool.map(load_episode, new):
                if episode.task not in self._without:
                    self._add(episode)
        return len(new)

    def _add(self, episode: Episode) -> None:
        number = len(self.episodes)
        self.episodes.append(episode)
        index = self._pairs if episode.gallery else self._index
        for last in range(1, len(episode.frames), 2):
            for skill_index, skill in enumerate(BY_NAME[episode.scene].skills):
                if skill.task in self._without:
                    continue
                now = phase(skill, float(episode.openness[last]), episode.gap_m[last, skill_index])
                if now is not None:
                    index.setdefault((episode.scene, skill_index, now), []).append((number, last))

    def draw(self, length: int, rng: np.random.Generator, shares: Mapping[str, float] | None = None) -> Drawn:
        """A window of ``length`` frames; ``shares`` weighs scenes, with 1 for those not named."""
        fitting = self._fitting(length)
        keys = sorted(fitting)
        index = int(rng.integers(len(keys)))
        if shares:
            weights = np.array([shares.get(scene, 1.0) for scene, _, _ in keys])
            index = int(rng.choice(len(keys), p=weights / weights.sum()))
        entries = fitting[keys[index]]
        number, last = entries[rng.integers(len(entries))]
        return Drawn(self.episodes[number], Span(last + 1 - length, length))

    def _fitting(self, length: int) -> dict[Key, list[tuple[int, int]]]:
        """The index without last frames that come too early for ``length``; galleries serve single pairs."""
        cached = self._by_length.get(length)
        if cached is None:
            kept = {
                key: [(number, last) for number, last in entries if last + 1 >= length]
                for key, entries in self._index.items()
            }
            for key, entries in self._pairs.items() if length == 2 else ():
                kept[key] = kept.get(key, []) + entries
            cached = self._by_length[length] = {key: entries for key, entries in kept.items() if entries}
        if not cached:
            raise ValueError(f"no episode is long enough for windows of {length} frames")
        return cached


class ClipStore:
    """All clips of one split, drawn by scene.

    Args:
        directory: holds one .npz per clip.
        shares: how often a scene is drawn, relative to 1 for those not named.
    """

    def __init__(self, directory: Path, shares: dict[str, float]) -> None:
        paths = sorted(directory.glob("clip*.npz"))
        if not paths:
            raise FileNotFoundError(
                f"there are no clips in {directory}: run `python -m training.nano generate` first"
            )
        self._scenes: dict[str, list[Clip]] = {}
        with ThreadPoolExecutor(_READERS) as pool:
            for clip in pool.map(load_clip, paths):
                self._scenes.setdefault(clip.scene, []).append(clip)
        self._names = sorted(self._scenes)
        weights = np.array([shares.get(name, 1.0) for name in self._names])
        self._shares = weights / weights.sum()

    def __len__(self) -> int:
        return sum(len(clips) for clips in self._scenes.values())

    def draw(self, rng: np.random.Generator) -> Clip:
        """A clip."""
        clips = self._scenes[str(rng.choice(self._names, p=self._shares))]
        return clips[rng.integers(len(clips))]
