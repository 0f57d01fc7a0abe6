# SPDX-License-Identifier: Apache-2.0
"""A clip: frames on the 4 fps grid with the state that is true at each of them, kept as one file.

Axes: F frames, N named things of the scene.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..episode import folder_of
from ..look import Split

FRAME_SIDE = 112  # nano's, pixels


@dataclass(frozen=True)
class Clip:
    """One recorded clip.

    Attributes:
        seed: it was made from.
        split: "train" or "held_out".
        scene: name of the scene.
        plan: name of the plan; labels never depend on it.
        variant: "recorded"; or "forward" and "reversed", of which the direction is asked; or "puzzle".
        release: the first frame at which what is held back may move (a gate, a prop); -1 where nothing is.
        tiles: (4,) of a puzzle: place of the tile shown first, second, ... (0 top left, 1 top right, 2 bottom
            left, 3 bottom right); -1 else.
        frames: (F, 112, 112, 3) uint8 RGB; (0, ...) when made without rendering.
        names: (N,) in words, unique in the clip ("red ball").
        kinds: (N,) the noun alone ("ball").
        colours: (N,) the colour alone; "" for things without a named one.
        heavy: (N,) mass, kilograms.
        position: (F, N, 3) of centres, metres; z is 0 on the table's top.
        up: (F, N) cosine between a thing's own upward axis and the vertical.
        half: (N, 3) half extents at rest, metres.
        present: (F, N) bool; false once a thing has been taken away.
        seen: (F, N) share of a thing's corners and centre in the picture and not behind another thing; of
            its place, once it has been taken away.
        pixel: (F, N, 2) image position (x right, y down) of the centres, pixels of the frame.
        depth: (F, N) distance of the centres along the camera's axis, metres.
        touch: (F, N, N) bool: the two touched since the frame before.
        landed: (F, N) bool: it touched the table since the frame before.
        camera: (F, 6) azimuth and elevation (degrees), distance (metres), point looked at (metres).
    """

    seed: int
    split: Split
    scene: str
    plan: str
    variant: str
    release: int
    tiles: np.ndarray
    frames: np.ndarray
    names: np.ndarray
    kinds: np.ndarray
    colours: np.ndarray
    heavy: np.ndarray
    position: np.ndarray
    up: np.ndarray
    half: np.ndarray
    present: np.ndarray
    seen: np.ndarray
    pixel: np.ndarray
    depth: np.ndarray
    touch: np.ndarray
    landed: np.ndarray
    camera: np.ndarray

    @property
    def length(self) -> int:
        """Number of frames, rendered or not."""
        return len(self.position)

    def index(self, name: str) -> int:
        """Index of a thing by its name."""
        return self.names.tolist().index(name)

    def of_kind(self, *kinds: str) -> list[int]:
        """Indices of the things whose noun is one of ``kinds``."""
        return [i for i, kind in enumerate(self.kinds.tolist()) if kind in kinds]


def clip_path(root: Path, seed: int) -> Path:
    """File of the clip of ``seed`` under the data directory ``root``."""
    return root / folder_of(seed) / f"clip{seed:07d}.npz"


def save_clip(root: Path, clip: Clip) -> Path:
    """Write a clip atomically."""
    path = clip_path(root, clip.seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    arrays: dict[str, Any] = {name: np.asarray(value) for name, value in vars(clip).items()}
    try:
        with partial.open("wb") as file:
            np.savez_compressed(file, **arrays)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def load_clip(path: Path) -> Clip:
    """Read a clip; no pickle is opened.

    Raises:
        ValueError: the file is no clip; the message names it and says what to do.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            values = {name: archive[name] for name in archive.files}
        for name, value in values.items():
            if value.ndim == 0:
                values[name] = value.item()
        return Clip(**values)
    except FileNotFoundError:
        raise
    except Exception as error:  # a truncated zip fails in many ways
        raise ValueError(f"{path} is not a readable clip ({error}): delete it and generate again") from error
