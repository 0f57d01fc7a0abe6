# SPDX-License-Identifier: Apache-2.0
"""M-RoPE: the (time, height, width) position of every token of a prompt with videos. numpy only.

The convention, which is that of the code Cosmos-Reason1 was trained with (transformers 4.5x) except for one
bug of it:

- text counts up by one in all three rows;
- a video that starts at position s gives the token in (time i, row j, column k) of its merged grid the
position
  s + (floor(i * tokens_per_second * seconds_per_patch), j, k);
- text after a video goes on at the largest position in the video plus one.

Two traps in other implementations. (1) transformers 4.5x casts seconds_per_patch to an integer, so at 4
frames per second (0.5 s per temporal patch) every time position is 0; ``mrope_time="legacy_zero"`` reproduces
that. (2) transformers 5.x goes on after a video at s + max(height, width) of its merged grid, which is inside
the video's own time span when it is long; the two agree where the grid's larger side is the span (448x448
pixels, 32 frames at 4 fps). A test holds both statements against the installed transformers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

MropeTime = Literal["float", "legacy_zero"]
MROPE_TIMES: tuple[MropeTime, ...] = ("float", "legacy_zero")


@dataclass(frozen=True)
class VideoGrid:
    """Where a video's tokens lie.

    Attributes:
        grid: patches along (time, height, width), before merging.
        seconds_per_patch: time from one temporal patch to the next: temporal_patch / fps.
    """

    grid: tuple[int, int, int]
    seconds_per_patch: float


def video_positions(
    video: VideoGrid, start: int, *, merge: int, tokens_per_second: float, mrope_time: MropeTime = "float"
) -> np.ndarray:
    """Positions of one video's tokens.

    Args:
        video: its grid and pace.
        start: position of the first token.
        merge: spatial merge size.
        tokens_per_second: of the checkpoint's vision config.
        mrope_time: see the module's text.

    Returns:
        (3, tokens) int64 rows of time, height and width.
    """
    if mrope_time not in MROPE_TIMES:
        raise ValueError(f"mrope_time must be one of {', '.join(MROPE_TIMES)}, not {mrope_time!r}")
    t, h, w = video.grid[0], video.grid[1] // merge, video.grid[2] // merge
    pace = video.seconds_per_patch
    if mrope_time == "legacy_zero":
        pace = math.trunc(pace)
    # float32 like the reference, so that the floor falls on the same side.
    times = np.floor(np.arange(t, dtype=np.float32) * np.float32(tokens_per_second * pace)).astype(np.int64)
    positions = np.empty((3, t, h, w), np.int64)
    positions[0] = times[:, None, None]
    positions[1] = np.arange(h)[None, :, None]
    positions[2] = np.arange(w)[None, None, :]
    return positions.reshape(3, -1) + start


def text_positions(start: int, length: int) -> np.ndarray:
    """Positions of ``length`` text tokens from ``start``, (3, length) int64."""
    return np.broadcast_to(np.arange(start, start + length), (3, length)).astype(np.int64)


def prompt_positions(
    tokens: Sequence[int],
    videos: Sequence[VideoGrid],
    *,
    video_token: int,
    merge: int,
    tokens_per_second: float,
    mrope_time: MropeTime = "float",
) -> tuple[np.ndarray, int]:
    """Positions of a prompt, of its prefix, or of a whole training example.

    Args:
        tokens: L token ids; each video is one run of ``video_token`` as long as its grid has visual tokens.
        videos: one per run, in order.
        video_token: id of the placeholder.
        merge: spatial merge size.
        tokens_per_second: of the checkpoint's vision config.
        mrope_time: see the module's text.

    Returns:
        positions: (3, L) int64.
        following: position of the token after the last one.

    Raises:
        ValueError: when runs of placeholders and ``videos`` do not match.
    """
    ids = np.asarray(tokens, dtype=np.int64)
    is_video = ids == video_token
    edges = np.flatnonzero(np.diff(is_video.astype(np.int8), prepend=0, append=0))
    runs = edges.reshape(-1, 2)
    if len(runs) != len(videos):
        raise ValueError(f"the prompt has {len(runs)} runs of video placeholders for {len(videos)} videos")
    pieces, following, end = [], 0, 0
    for (first, last), video in zip(runs, videos, strict=True):
        pieces.append(text_positions(following, first - end))
        following += first - end
        positions = video_positions(
            video, following, merge=merge, tokens_per_second=tokens_per_second, mrope_time=mrope_time
        )
        if positions.shape[1] != last - first:
            raise ValueError(
                f"a video of grid {video.grid} has {positions.shape[1]} tokens, its run {last - first}"
            )
        pieces.append(positions)
        following, end = int(positions.max()) + 1, last
    pieces.append(text_positions(following, len(ids) - end))
    return np.concatenate(pieces, axis=1), following + len(ids) - int(end)
