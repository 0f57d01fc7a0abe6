# SPDX-License-Identifier: Apache-2.0
"""What the demo shows the node, and what it asks: the bundled clip, the user's video, or a camera."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..deployment import share_path
from ..video import CameraDevice, VideoFile, VideoInfo

BUNDLED_CLIP = "tests/assets/drawer_open.mp4"
# For a video of which nothing is known.
DEFAULT_TASK = "finish the movement that is under way"
# Length of a camera session that does not say, seconds.
CAMERA_SECONDS = 30.0
# What replay takes for its bound, seconds.
LONGEST_S = 86400.0


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
    if not 0 <= seconds <= LONGEST_S:  # also NaN
        raise ValueError(f"SECONDS_LIMIT must be between 0 and {LONGEST_S:g}, not {seconds:g}")
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
    info, whole_s = _probe(path, seconds)
    beside = _Beside() if task else _read_beside(path.with_suffix(".json"))
    return Clip(
        source=path,
        description=f"{path.name}, {info.width}x{info.height}, {info.fps:g} fps, {whole_s:.1f} s"
        + (f", simulated episode {beside.seed} (held out)" if beside.seed is not None else ""),
        duration_s=min(whole_s, seconds or LONGEST_S),
        task=task or beside.task or DEFAULT_TASK,
        action=action or beside.action,
        options=tuple(options) or beside.options,
        truth=beside.truth,
        note="" if task or beside.task else _default_note(),
    )


@dataclass(frozen=True)
class _Beside:
    """What the JSON beside a video says; its fields are those of ``Clip``."""

    task: str = ""
    action: str = ""
    options: tuple[str, ...] = ()
    truth: Mapping[str, tuple[tuple[float, float, str], ...]] = field(default_factory=dict)
    seed: int | None = None


def _default_note() -> str:
    return f'no TASK given, so the node is told "{DEFAULT_TASK}"; TASK="..." asks about yours'


def _bundled() -> Path:
    path = share_path(BUNDLED_CLIP)
    if path is None:
        raise FileNotFoundError(f"the bundled clip {BUNDLED_CLIP} is missing; run from a full checkout")
    return path


def _probe(path: Path, seconds: float) -> tuple[VideoInfo, float]:
    """What a video says, and its length; found by going through it where its header has none."""
    video = VideoFile(path)
    try:
        length_s = video.info.duration_s
        if not length_s:  # written as a stream: nobody went back to the header
            while (time_s := video.advance()) is not None and not 0 < seconds <= length_s:
                length_s = time_s + 1 / video.info.fps
        return video.info, length_s
    finally:
        video.close()


def _read_beside(path: Path) -> _Beside:
    if not path.is_file():
        return _Beside()
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} beside the video is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path} beside the video must hold an object with task, action and options")
    try:
        return _Beside(
            _text(data, "task"),
            _text(data, "action"),
            _options(data.get("options", [])),
            _truth(data.get("truth", {})),
            data.get("seed"),
        )
    except ValueError as error:
        raise ValueError(f"{path} beside the video: {error}") from error


def _text(data: Mapping[str, Any], name: str) -> str:
    text = data.get(name, "")
    if not isinstance(text, str):
        raise ValueError(f"{name} must be a text, not {text!r}")
    return text


def _options(options: Any) -> tuple[str, ...]:
    if not isinstance(options, list) or not all(isinstance(option, str) for option in options):
        raise ValueError(f"options must be a list of texts, not {options!r}")
    return tuple(options)


def _truth(spans: Any) -> dict[str, tuple[tuple[float, float, str], ...]]:
    try:
        return {
            str(kind): tuple((float(start), float(end), str(label)) for start, end, label in entries)
            for kind, entries in spans.items()
        }
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"truth must be lists of [start, end, label] by kind, seconds, not {spans!r}"
        ) from error
