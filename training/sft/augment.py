# SPDX-License-Identifier: Apache-2.0
"""Random changes of what a window looks like, the same for all of its frames."""

from __future__ import annotations

import cv2
import numpy as np

_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_RGB = np.linalg.inv(_YIQ)


class Augmentation:
    """One change of colours and of view for a whole window, so that motion stays what it was.

    Hue is turned, contrast and brightness scaled; the view is turned, scaled, sheared and shifted a little.

    Args:
        size: (height, width) of the frames.
        rng: source of the change.
        hue: turn the hue; False where colours are asked about: then brightness alone changes, a little.
    """

    def __init__(self, size: tuple[int, int], rng: np.random.Generator, *, hue: bool = True) -> None:
        self._size = np.array([size[1], size[0]])  # x, y
        self._colours = _colour_change(rng) if hue else _brightness_change(rng)
        self._view = _view_change(size, rng)

    def frames(self, frames: np.ndarray) -> np.ndarray:
        """Change (T, H, W, 3) uint8 frames; returns new ones."""
        width, height = self._size.tolist()
        out = np.empty_like(frames)
        for i, frame in enumerate(frames):
            moved = cv2.warpAffine(
                frame, self._view, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
            )
            out[i] = cv2.transform(moved, self._colours)
        return out

    def points(self, points: np.ndarray) -> np.ndarray:
        """Where (N, 2) points, as shares of width and height, are after the change."""
        return (points * self._size @ self._view[:, :2].T + self._view[:, 2]) / self._size


def _colour_change(rng: np.random.Generator) -> np.ndarray:
    """(3, 4) matrix from RGB to RGB."""
    turn = rng.uniform(-np.pi, np.pi) if rng.random() < 0.6 else rng.uniform(-0.2, 0.2)
    c, s = np.cos(turn), np.sin(turn)
    chroma = rng.uniform(0.6, 1.3)
    hue = np.array([[1.0, 0.0, 0.0], [0.0, c * chroma, -s * chroma], [0.0, s * chroma, c * chroma]])
    matrix = _RGB @ hue @ _YIQ * rng.uniform(0.75, 1.35)
    return np.hstack([matrix, np.full((3, 1), rng.uniform(-25.0, 25.0))])


def _brightness_change(rng: np.random.Generator) -> np.ndarray:
    """(3, 4) matrix from RGB to RGB."""
    return np.hstack([np.eye(3) * rng.uniform(0.92, 1.08), np.full((3, 1), rng.uniform(-6.0, 6.0))])


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
