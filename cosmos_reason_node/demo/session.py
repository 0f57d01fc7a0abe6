# SPDX-License-Identifier: Apache-2.0
"""What a watched session leaves behind: decisions, pictures, and where they came from.

Files in a session's directory: ``decisions.jsonl`` (one decision a line, all fields of the message),
``session.json`` (the rest, see ``Session``) and ``frames/<capture stamp in ns>.jpg``.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LATENCY_PARTS = ("window", "queue", "vision", "prefill", "decode")
MONITORED_KINDS = ("completion", "affordance", "next_action")

DECISIONS_FILE = "decisions.jsonl"
SESSION_FILE = "session.json"
FRAMES_DIR = "frames"


@dataclass(frozen=True)
class Record:
    """One decision, as far as the report and the console show it. Times in integer nanoseconds or seconds.

    Attributes:
        kind: "question", "completion", "affordance" or "next_action".
        source: who asked: "monitor", "service" or "action".
        verdict: "UNKNOWN", "YES", "NO" or "CHOICE".
        stamp_ns: capture time of the newest frame seen; 0 when there was none.
        frame_stamps_ns: capture times of all frames seen, oldest first, all cameras.
        num_frames, num_asked, num_held: frames seen, frames of a full window, frames that repeat another.
        latency_s: seconds by part, keys LATENCY_PARTS.
        model: fields of ModelInfo.
        error: name of the error code; empty without an error.
    """

    decision_id: str
    kind: str
    source: str
    question: str
    options: tuple[str, ...]
    verdict: str
    answer: str
    option_index: int
    confidence: float
    reasoning: str
    stamp_ns: int
    published_ns: int
    valid_until_ns: int
    age_s: float
    cameras: tuple[str, ...]
    frame_stamps_ns: tuple[int, ...]
    num_frames: int
    num_asked: int
    num_held: int
    fps: float
    latency_s: Mapping[str, float]
    model: Mapping[str, str]
    prompt_tokens: int
    output_tokens: int
    error: str
    error_msg: str

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Record:
        """From one line of ``decisions.jsonl`` (ros/messages.decision_json).

        Raises:
            KeyError, TypeError, ValueError: it is not such a line.
        """
        windows = data["windows"]
        return cls(
            decision_id=str(data["decision_id"]),
            kind=str(data["kind"]).lower(),
            source=str(data["source"]).lower(),
            question=str(data["question"]),
            options=tuple(str(option) for option in data["options"]),
            verdict=str(data["verdict"]),
            answer=str(data["answer"]),
            option_index=int(data["option_index"]),
            confidence=_finite(data["confidence"]),
            reasoning=str(data["reasoning"]),
            stamp_ns=int(data["stamp_ns"]),
            published_ns=int(data["published_ns"]),
            valid_until_ns=int(data["valid_until_ns"]),
            age_s=_finite(data["age_s"]),
            cameras=tuple(str(window["camera"]) for window in windows),
            frame_stamps_ns=tuple(int(s) for window in windows for s in window["frame_stamps_ns"]),
            num_frames=sum(int(window["num_frames"]) for window in windows),
            num_asked=sum(int(window["num_asked"]) for window in windows),
            num_held=sum(int(window["num_held"]) for window in windows),
            fps=_finite(windows[0]["fps"]) if windows else 0.0,
            latency_s={part: _finite(data["latency"][f"{part}_s"]) for part in LATENCY_PARTS},
            model={key: str(value) for key, value in data["model"].items()},
            prompt_tokens=int(data["prompt_tokens"]),
            output_tokens=int(data["output_tokens"]),
            error="" if data["error"] == "NONE" else str(data["error"]),
            error_msg=str(data["error_msg"]),
        )

    @property
    def failed(self) -> bool:
        """Whether it is an error instead of an answer."""
        return bool(self.error)

    @property
    def headline(self) -> str:
        """The answer in a few words: YES, NO, UNKNOWN, the chosen option, or the error's name."""
        if self.failed:
            return self.error.replace("_", " ").lower()
        if self.verdict == "CHOICE" and 0 <= self.option_index < len(self.options):
            return self.options[self.option_index]
        # With or without a full stop it is one answer: one colour, and right where it is.
        return self.answer.removesuffix(".") if self.verdict == "CHOICE" else self.verdict


@dataclass(frozen=True)
class Session:
    """Everything about a session but its decisions and frames.

    Attributes:
        started: local time of the start, ISO 8601.
        source: name of the video or device.
        source_note: one line on what it shows and where it comes from.
        duration_s: length of the video, seconds; 0 = unknown.
        first_stamp_ns: capture stamp of the first image; the zero of the report's time axis.
        task, action, options: what the monitors were told.
        machine: one line on the computer.
        truth: what really happened, where the recording knows it: kind -> [(from, until, label)], seconds of
            the video; labels are "yes", "no" or the text of an option.
        cameras: fields of the last CameraStatus of each camera.
        counters: further counts of the node's last status, by name.
    """

    started: str
    source: str
    source_note: str = ""
    duration_s: float = 0.0
    first_stamp_ns: int = 0
    task: str = ""
    action: str = ""
    options: tuple[str, ...] = ()
    machine: str = ""
    truth: Mapping[str, tuple[tuple[float, float, str], ...]] = field(default_factory=dict)
    cameras: tuple[Mapping[str, Any], ...] = ()
    counters: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Session:
        """The inverse of ``dataclasses.asdict``."""
        values = dict(data)
        values["options"] = tuple(values.get("options", ()))
        values["cameras"] = tuple(values.get("cameras", ()))
        values["truth"] = {
            kind: tuple((float(a), float(b), str(label)) for a, b, label in spans)
            for kind, spans in values.get("truth", {}).items()
        }
        return cls(**values)


def _finite(value: Any) -> float:
    number = float(value)
    return number if math.isfinite(number) else 0.0


def save(directory: Path, session: Session, frames: Mapping[int, bytes]) -> None:
    """Write ``session.json`` and ``frames/``; decisions are written as they come.

    Args:
        directory: of the session.
        session: what to write.
        frames: JPEG files by capture stamp, ns.
    """
    (directory / FRAMES_DIR).mkdir(parents=True, exist_ok=True)
    for stamp_ns, jpeg in frames.items():
        (directory / FRAMES_DIR / f"{stamp_ns}.jpg").write_bytes(jpeg)
    text = json.dumps(dataclasses.asdict(session), indent=1, ensure_ascii=False)
    (directory / SESSION_FILE).write_text(text + "\n", encoding="utf-8")


def load(directory: str | os.PathLike[str]) -> tuple[Session, list[Record], dict[int, bytes]]:
    """Session, decisions and frames (JPEG by capture stamp, ns) of a directory.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged; the message names it (and the line).
    """
    directory = Path(directory)
    try:
        session = Session.from_json(json.loads((directory / SESSION_FILE).read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{directory / SESSION_FILE} is damaged: {error}") from error
    with open(directory / DECISIONS_FILE, encoding="utf-8") as lines:
        records = parse_decisions(lines, str(directory / DECISIONS_FILE))
    frames = {
        int(path.stem): path.read_bytes()
        for path in sorted((directory / FRAMES_DIR).glob("*.jpg"))
        if path.stem.isdigit()
    }
    return session, records, frames


def parse_decisions(lines: Iterable[str], name: str = DECISIONS_FILE) -> list[Record]:
    """Records of the lines of ``decisions.jsonl``; empty lines are passed over.

    Raises:
        ValueError: a line is not a decision; the message names it.
    """
    records = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            records.append(Record.from_json(json.loads(line)))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{name}, line {number}: {type(error).__name__}: {error}") from error
    return records
