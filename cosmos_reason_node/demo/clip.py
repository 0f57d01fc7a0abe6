# SPDX-License-Identifier: Apache-2.0
"""What the demo shows the node, and what it asks: the bundled clip, the user's video, or a camera."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..deployment import share_path
from ..video import CameraDevice, VideoFile

BUNDLED_CLIP = "tests/assets/drawer_open.mp4"
# For a video of which nothing is known.
DEFAULT_TASK = "finish the movement that is under way"
# Length of a camera session that does not say, seconds.
CAMERA_SECONDS = 30.0


@dataclass(frozen=True)
class Clip:
    """A source of images and the questions about it.

    Attributes:
        source: video file or camera device.
        description: one line for people.
        duration_s: how long it will be watched, seconds.
        task, action, options: for the monitors; see the set_task service.
        truth: what really happens, see session.Session.
        note: what the user should know about the choices made here; may be empty.
    """

    source: Path
    description: str
    duration_s: float
    task: str
    action: str = ""
    options: tuple[str, ...] = ()
    truth: Mapping[str, tuple[tuple[float, float, str], ...]] = field(default_factory=dict)
    note: str = ""


def choose(
    video: str = "",
    camera: str = "",
    task: str = "",
    action: str = "",
    options: Sequence[str] = (),
    seconds: float = 0.0,
) -> Clip:
    """The clip for the user's wishes; empty values are not wishes.

    A video's questions come from the JSON beside it (``clip.json`` beside ``clip.mp4``: task, action,
    options) where there is one and the user gives no task.

    Raises:
        ValueError: the wishes contradict each other, or the JSON is damaged.
        VideoError: the video or the camera cannot be read.
        FileNotFoundError: the bundled clip is missing.
    """
    if video and camera:
        raise ValueError("give VIDEO or CAMERA, not both")
    if seconds < 0:
        raise ValueError(f"SECONDS_LIMIT must not be negative, not {seconds:g}")
    if camera:
        CameraDevice(camera).close()  # it says what is wrong better than a log does
        return Clip(
            source=Path(camera),
            description=f"camera {camera}",
            duration_s=seconds or CAMERA_SECONDS,
            task=task or DEFAULT_TASK,
            action=action,
            options=tuple(options),
            note="" if task else _default_note(),
        )
    path = Path(video).expanduser() if video else _bundled()
    info = _probe(path)
    beside: Mapping[str, Any] = {} if task else _read_beside(path.with_suffix(".json"))
    whole_s = info.duration_s or seconds
    return Clip(
        source=path,
        description=f"{path.name}, {info.width}x{info.height}, {info.fps:g} fps, {whole_s:.1f} s"
        + (f", simulated episode {beside['seed']} (held out)" if "seed" in beside else ""),
        duration_s=min(whole_s, seconds) if seconds else whole_s,
        task=task or str(beside.get("task", DEFAULT_TASK)),
        action=action or str(beside.get("action", "")),
        options=tuple(options) or tuple(str(option) for option in beside.get("options", ())),
        truth=_truth(beside.get("truth", {})),
        note="" if task or "task" in beside else _default_note(),
    )


def _default_note() -> str:
    return f'no TASK given, so the node is told "{DEFAULT_TASK}"; TASK="..." asks about yours'


def _bundled() -> Path:
    path = share_path(BUNDLED_CLIP)
    if path is None:
        raise FileNotFoundError(f"the bundled clip {BUNDLED_CLIP} is missing; run from a full checkout")
    return path


def _probe(path: Path) -> Any:
    video = VideoFile(path)
    try:
        return video.info
    finally:
        video.close()


def _read_beside(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} beside the video is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path} beside the video must hold an object with task, action and options")
    return data


def _truth(spans: Mapping[str, Any]) -> dict[str, tuple[tuple[float, float, str], ...]]:
    return {
        str(kind): tuple((float(start), float(end), str(label)) for start, end, label in entries)
        for kind, entries in spans.items()
    }
