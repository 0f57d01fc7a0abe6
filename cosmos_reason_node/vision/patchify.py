# SPDX-License-Identifier: Apache-2.0
"""Frames to patches in the order and scale of Hugging Face's Qwen2.5-VL processor, without torchvision.

Axes: T frames, t = T / temporal_patch, h x w patches of a frame, m merge, p patch side, C colour. One row of
the result is one patch, laid out (C, temporal_patch, p, p); rows run over (t, h/m, w/m, m, m), so that the m
x m patches that the merger joins into one visual token are neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# CLIP's statistics, which every Qwen2.5-VL checkpoint uses.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class PatchSpec:
    """How a checkpoint cuts and scales frames (preprocessor_config.json and vision_config).

    Attributes:
        patch: side of a patch, pixels.
        temporal_patch: frames in a patch.
        merge: patches a side that become one visual token.
        mean, std: per colour channel (RGB), of values scaled to [0, 1].
    """

    patch: int = 14
    temporal_patch: int = 2
    merge: int = 2
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD

    @property
    def factor(self) -> int:
        """Frame sides are multiples of this many pixels."""
        return self.patch * self.merge

    @property
    def patch_dim(self) -> int:
        """Values in one patch."""
        return 3 * self.temporal_patch * self.patch**2

    def grid(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Patches of a video along (time, height, width).

        Raises:
            ValueError: when the video cannot be cut into whole patches and visual tokens.
        """
        if frames < 1 or frames % self.temporal_patch:
            raise ValueError(
                f"a video needs a multiple of {self.temporal_patch} frames (one temporal patch), got {frames}"
            )
        if min(height, width) < 1 or height % self.factor or width % self.factor:
            raise ValueError(
                f"frame sides must be multiples of {self.factor} pixels, got {height}x{width}: "
                "resize to vision.resize.target_size first"
            )
        return frames // self.temporal_patch, height // self.patch, width // self.patch

    def visual_tokens(self, grid: tuple[int, int, int]) -> int:
        """Number of visual tokens of a video with this grid."""
        return grid[0] * grid[1] * grid[2] // self.merge**2


def patchify(frames: np.ndarray, spec: PatchSpec) -> tuple[np.ndarray, tuple[int, int, int]]:
    """Cut and normalise a video.

    Args:
        frames: (T, H, W, 3) uint8 RGB; T a multiple of ``temporal_patch``, H and W of ``factor``.
        spec: the checkpoint's patches.

    Returns:
        patches: (t*h*w, patch_dim) float32.
        grid: (t, h, w).

    Raises:
        ValueError: wrong dtype or shape.
    """
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8:
        raise ValueError(f"expected (T, H, W, 3) uint8 frames, got {frames.shape} {frames.dtype}")
    t, h, w = grid = spec.grid(*frames.shape[:3])
    m, p = spec.merge, spec.patch
    cells = frames.reshape(t, spec.temporal_patch, h // m, m, p, w // m, m, p, 3)
    # (t, h/m, w/m, m, m, C, temporal_patch, p, p): moved as bytes, a quarter of the traffic of moving floats.
    ordered = np.ascontiguousarray(cells.transpose(0, 2, 5, 3, 6, 8, 1, 4, 7)).reshape(t * h * w, 3, -1)
    mean, std = np.asarray(spec.mean), np.asarray(spec.std)
    patches = ordered.astype(np.float32)
    patches *= (1.0 / (255.0 * std)).astype(np.float32)[:, None]
    patches -= (mean / std).astype(np.float32)[:, None]
    return patches.reshape(t * h * w, spec.patch_dim), grid
