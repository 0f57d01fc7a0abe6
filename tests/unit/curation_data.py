# SPDX-License-Identifier: Apache-2.0
"""Videos, captions and configurations for the tests of the curation pipeline."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import yaml

CAPTION = (
    "A robot arm stands at a white table. It reaches for the handle of a wooden drawer, pulls the drawer "
    "open, takes a red cup from the table and puts it into the drawer. The cup tips over inside. Then the "
    "arm pushes the drawer shut and moves back to the left. The camera does not move."
)


def scene(seed: int, frames: int = 30, size: tuple[int, int] = (160, 120)) -> np.ndarray:
    """A block that moves over a patterned ground, both the seed's own; (T, H, W, 3) uint8."""
    rng = np.random.default_rng(seed)
    width, height = size
    ground = cv2.resize(rng.integers(0, 256, (12, 16, 3), np.uint8), size, interpolation=cv2.INTER_NEAREST)
    start, end = rng.uniform(0, 0.7, (2, 2)) * (width, height)
    colour = rng.integers(0, 256, 3).tolist()
    out = np.repeat(ground[None], frames, 0)
    for i, frame in enumerate(out):
        x, y = (start + (end - start) * i / max(1, frames - 1)).astype(int).tolist()
        cv2.rectangle(frame, (x, y), (x + width // 4, y + height // 4), colour, -1)
    return out


def save(path: Path, frames: np.ndarray, fps: int = 10, crf: int = 18, caption: str = CAPTION) -> Path:
    """Write an mp4, and its caption beside it ("" = none)."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": str(crf), "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        stream.codec_context.thread_count = 1
        for i, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    if caption:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return path


def settings(folder: Path, url: str, **changes: Any) -> dict[str, Any]:
    """A configuration with captions from sidecars and one endpoint for all steps; ``a__b=c`` sets a.b to
    c."""
    call = {"endpoint": "local", "max_tokens": 300}
    made: dict[str, Any] = {
        "output": str(folder / "out"),
        "videos": [str(folder / "videos")],
        "source": "test",
        "endpoints": {
            "local": {
                "base_url": url,
                "model": "tiny",
                "concurrency": 2,
                "timeout_s": 20.0,
                "retries": 3,
                "backoff_s": 0.01,
                "input_price": 1.0,
                "output_price": 2.0,
            }
        },
        "write": {"call": dict(call), "attempts": 2},
        "blind": {"call": dict(call)},
        "trace": dict(call),
    }
    for name, value in changes.items():
        *parents, last = name.split("__")
        place = made
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return made


def write_config(folder: Path, url: str, **changes: Any) -> Path:
    """``settings`` as a file."""
    path = folder / "curation.yaml"
    path.write_text(yaml.safe_dump(settings(folder, url, **changes)), encoding="utf-8")
    return path
