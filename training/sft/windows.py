# SPDX-License-Identifier: Apache-2.0
"""Episodes in memory, and balanced draws of windows from them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from training.data.sample import Span
from training.data.sim.episode import Episode, load_episode
from training.data.sim.phase import Phase, phase
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
        fitting = self._fitting(length)
        keys = sorted(fitting)
        entries = fitting[keys[rng.integers(len(keys))]]
        number, last = entries[rng.integers(len(entries))]
        return Drawn(self.episodes[number], Span(last + 1 - length, length))

    def _fitting(self, length: int) -> dict[Key, list[tuple[int, int]]]:
        """The index without last frames that come too early for ``length``."""
        cached = self._by_length.get(length)
        if cached is None:
            kept = {
                key: [(number, last) for number, last in entries if last + 1 >= length]
                for key, entries in self._index.items()
            }
            cached = self._by_length[length] = {key: entries for key, entries in kept.items() if entries}
        if not cached:
            raise ValueError(f"no episode is long enough for windows of {length} frames")
        return cached


_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_RGB = np.linalg.inv(_YIQ)


def augment(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One change of colours and of view for a whole window, so that motion stays what it was.

    Hue is turned, contrast and brightness scaled; the view is turned, scaled, sheared and shifted a little.

    Args:
        frames: (T, H, W, 3) uint8.
        rng: source of the change.
    """
    colours = _colour_change(rng)
    view = _view_change(frames.shape[1:3], rng)
    size = frames.shape[2], frames.shape[1]
    out = np.empty_like(frames)
    for i, frame in enumerate(frames):
        moved = cv2.warpAffine(frame, view, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        out[i] = cv2.transform(moved, colours)
    return out


def _colour_change(rng: np.random.Generator) -> np.ndarray:
    """(3, 4) matrix from RGB to RGB."""
    turn = rng.uniform(-np.pi, np.pi) if rng.random() < 0.6 else rng.uniform(-0.2, 0.2)
    c, s = np.cos(turn), np.sin(turn)
    chroma = rng.uniform(0.6, 1.3)
    hue = np.array([[1.0, 0.0, 0.0], [0.0, c * chroma, -s * chroma], [0.0, s * chroma, c * chroma]])
    matrix = _RGB @ hue @ _YIQ * rng.uniform(0.75, 1.35)
    return np.hstack([matrix, np.full((3, 1), rng.uniform(-25.0, 25.0))])


def _view_change(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """(2, 3) affine matrix about the middle of a frame of (height, width) ``size``."""
    turn, scale = rng.uniform(-0.12, 0.12), rng.uniform(0.88, 1.15)
    shear_x, shear_y = rng.uniform(-0.12, 0.12, 2)
    c, s = np.cos(turn), np.sin(turn)
    skew = np.array([[1.0, shear_x], [shear_y, rng.uniform(0.9, 1.1)]])
    linear = scale * np.array([[c, -s], [s, c]]) @ skew
    middle = np.array([size[1], size[0]]) / 2.0
    shift = middle - linear @ middle + rng.uniform(-0.07, 0.07, 2) * np.array([size[1], size[0]])
    return np.hstack([linear, shift[:, None]])
