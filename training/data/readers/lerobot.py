# SPDX-License-Identifier: Apache-2.0
"""LeRobot data sets, v2.x (a file an episode) and v3.x (episodes behind each other in larger files).

They hold no questions. Those made here follow from what was recorded, and from nothing else:

- caption: which task is it? (every episode and camera)
- task_completion: where the column ``next.success`` was recorded: at the last frame, and at the last moment
  of the first half at which it was still false. A null or NaN there says nothing and is not asked about.
- next_action: where subtasks were annotated (``subtask_index``): at the end of one, the one after it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cosmos_reason_node.types import Query, QueryKind

from ..problems import FieldErrors, Report
from ..schema import Provenance, QuestionKind, Sample, Video, query_fields
from .fields import Fields, json_rows

INFO = "meta/info.json"
_SUCCESS, _SUBTASK, _TASK = "next.success", "subtask_index", "task_index"
_QUESTION = "Which task is the robot doing?"
_PLACE = re.compile(r"\{(\w+)(?::0?(\d{1,2})d?)?\}")
_ROBOTS = {
    "robot_arm": r"so-?10\d|koch|lekiwi|aloha|widowx|franka|panda|xarm|ur\d|kuka|openarm|piper|trossen",
    "humanoid": r"g1|h1|gr1|humanoid|reachy|hope",
}
# pyarrow's own errors are subclasses of these; the last one is of values that are not what they should be.
_ERRORS = (OSError, ValueError, KeyError, NotImplementedError, TypeError)


@dataclass(frozen=True)
class _Info:
    """meta/info.json, as far as it is used."""

    version: int
    fps: float
    cameras: tuple[str, ...]
    data_path: str
    video_path: str
    chunk_size: int
    splits: Mapping[str, str]
    robot: str


@dataclass(frozen=True)
class _Episode:
    """An episode and where its files are.

    ``videos``: by camera, file and begin in it in seconds.
    """

    index: int
    length: int
    tasks: tuple[str, ...]
    data_file: str
    videos: Mapping[str, tuple[str, float]]


def read(root: Path, report: Report) -> Iterator[Sample]:
    """Samples of a data set.

    Args:
        root: folder that holds meta/.
        report: gets what is wrong.
    """
    try:
        info = _read_info(root)
        subtasks, tasks = _names(root, "subtask"), _names(root, "task")
    except (FieldErrors, *_ERRORS) as error:
        _note(report, root / INFO, 0, error)
        return
    licence = _licence(root)
    table: tuple[str, dict[int, dict[str, list[Any]]]] = ("", {})
    for row, value in _episode_rows(root, info, report):
        try:
            episode = _episode(value, info)
            if table[0] != episode.data_file:
                table = episode.data_file, _read_table(root / episode.data_file)
            recorded = table[1].get(episode.index, {})
            runs = _runs(episode, recorded, tasks)
            samples = list(_samples(episode, recorded, runs, subtasks, info, root, licence))
        except (FieldErrors, *_ERRORS) as error:
            _note(report, root / "meta" / "episodes", row, error)
            continue
        yield from samples


def _note(report: Report, file: Path, row: int, error: Exception) -> None:
    if isinstance(error, FieldErrors):
        report.bad_row(file, row, error)
    else:
        report.bad_row(file, row, f"cannot be read ({error}): download the data set again")


def _read_info(root: Path) -> _Info:
    value = json.loads((root / INFO).read_text("utf-8"))
    fields = Fields(value)
    if fields.errors:
        raise FieldErrors(fields.errors)
    version = re.match(r"v?(\d+)\.", fields.text("codebase_version"))
    number = int(version[1]) if version else 0
    if number not in (2, 3):
        fields.error("codebase_version", "must be v2.x or v3.x: convert the data set with lerobot")
    fps = fields.number("fps")
    if not fps > 0:
        fields.error("fps", f"must be positive, not {fps}")
    features = value.get("features")
    features = features if isinstance(features, dict) else {}
    kinds = {key: feature.get("dtype") for key, feature in features.items() if isinstance(feature, dict)}
    cameras = tuple(sorted(key for key, kind in kinds.items() if kind == "video"))
    if not cameras:
        inside = any(kind == "image" for kind in kinds.values())
        what = (
            "cameras are stored as pictures inside parquet, which is not read: " if inside else "no camera: "
        )
        fields.error("features", what + "convert the data set to videos with lerobot")
    splits, robot = value.get("splits") or {}, value.get("robot_type") or ""  # null where it is not known
    if not isinstance(splits, dict):
        fields.error("splits", 'must be an object of the form {"train": "0:50"}')
    if not isinstance(robot, str):
        fields.error("robot_type", "must be a string")
    info = fields.make(
        lambda: _Info(
            version=number,
            fps=fps,
            cameras=cameras,
            data_path=fields.text("data_path"),
            video_path=fields.text("video_path"),
            chunk_size=fields.whole("chunks_size", 1000),
            splits={k: v for k, v in splits.items() if isinstance(v, str)},
            robot=robot,
        )
    )
    if info is None or fields.errors:
        raise FieldErrors(fields.errors)
    return info


def _episode_rows(root: Path, info: _Info, report: Report) -> Iterator[tuple[int, dict[str, Any]]]:
    if info.version == 2:
        yield from json_rows(root / "meta" / "episodes.jsonl", str(root / "meta" / "episodes.jsonl"), report)
        return
    row = 0
    paths = sorted((root / "meta" / "episodes").glob("*/*.parquet"))
    if not paths:
        report.add(root / "meta" / "episodes", 0, "", "holds no parquet files: download the data set again")
    for path in paths:
        try:
            rows = _parquet(path, lambda name: not name.startswith("stats/")).to_pylist()
        except _ERRORS as error:
            report.add(path, 0, "", f"cannot be read ({error}): download it again")
            continue
        for value in rows:
            row += 1
            report.rows += 1
            report.place = str(path), row
            yield row, value


def _episode(value: Any, info: _Info) -> _Episode:
    fields = Fields(value)
    index, length, tasks = fields.whole("episode_index"), fields.whole("length"), fields.texts("tasks")
    if not fields.errors and not (tasks and tasks[0].strip()):
        fields.error("tasks", "is empty: name the episode's task")
    if not fields.errors and length < 1:
        fields.error("length", f"must be at least one frame, not {length}")
    common = {"episode_index": index, "episode_chunk": index // max(1, info.chunk_size)}
    videos: dict[str, tuple[str, float]] = {}
    for camera in info.cameras:
        place: dict[str, Any] = {**common, "video_key": camera}
        begin = 0.0
        if info.version == 3:
            for name in ("chunk_index", "file_index"):
                place[name] = fields.whole(f"videos/{camera}/{name}")
            begin = fields.number(f"videos/{camera}/from_timestamp")
        videos[camera] = _fill(info.video_path, place), begin
    if info.version == 3:
        common |= {name: fields.whole(f"data/{name}") for name in ("chunk_index", "file_index")}
    if fields.errors:
        raise FieldErrors(fields.errors)
    return _Episode(index, length, tasks, _fill(info.data_path, common), videos)


def _fill(template: str, values: Mapping[str, Any]) -> str:
    """A path template, of the few forms that LeRobot uses; str.format would do whatever a file says."""

    def value(match: re.Match[str]) -> str:
        if match[1] not in values:
            raise FieldErrors([("video_path", f"{template!r} has an unknown place {match[0]}")])
        return str(values[match[1]]).zfill(int(match[2] or 0))

    return _PLACE.sub(value, template)


def _parquet(path: Path, wanted: Callable[[str], bool]) -> Any:
    """The columns of a parquet file whose names are wanted, a pyarrow.Table."""
    import pyarrow.parquet  # here: 170 MB that only this layout needs

    names = [name for name in pyarrow.parquet.read_schema(path).names if wanted(name)]
    return pyarrow.parquet.read_table(path, columns=names)


def _read_table(path: Path) -> dict[int, dict[str, list[Any]]]:
    """The columns of a data file that say something about time and outcome, by episode."""
    table = _parquet(path, ("episode_index", "timestamp", _SUCCESS, _SUBTASK, _TASK).__contains__).to_pydict()
    rows: dict[int, list[int]] = {}
    for row, index in enumerate(table["episode_index"]):  # once: a file may hold thousands of episodes
        rows.setdefault(index, []).append(row)
    return {
        index: {name: [_scalar(values[row]) for row in own] for name, values in table.items()}
        for index, own in rows.items()
    }


def _scalar(value: Any) -> Any:
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _names(root: Path, what: str) -> dict[int, str]:
    """Texts by index of meta/{what}s.parquet (v3) or .jsonl; {} where there is no such file."""
    path = root / "meta" / f"{what}s.parquet"
    if path.is_file():
        rows = _parquet(path, lambda _: True).to_pylist()
    elif path.with_suffix(".jsonl").is_file():
        rows = [
            json.loads(line) for line in path.with_suffix(".jsonl").read_bytes().splitlines() if line.strip()
        ]
    else:
        return {}
    # pandas writes the texts as the table's index.
    return {row[f"{what}_index"]: row.get(what) or row["__index_level_0__"] for row in rows}


def _runs(
    episode: _Episode, recorded: dict[str, list[Any]], tasks: dict[int, str]
) -> list[tuple[int, int, str]]:
    """(first frame, last frame, task) of each task that the episode is about, in order.

    Raises:
        FieldErrors: it has several, and its frames do not say which is whose.
    """
    if len(episode.tasks) == 1:
        return [(0, -1, episode.tasks[0].strip())]
    of_frame = recorded.get(_TASK, [])
    unknown = sorted({index for index in of_frame if not str(tasks.get(index) or "").strip()}, key=str)
    if not of_frame or unknown:
        what = f"meta/tasks lacks {unknown}" if unknown else f"its frames have no {_TASK}"
        raise FieldErrors([("tasks", f"there are {len(episode.tasks)} and {what}: download it again")])
    firsts = [i for i in range(len(of_frame)) if i == 0 or of_frame[i] != of_frame[i - 1]]
    lasts = [i - 1 for i in firsts[1:]] + [len(of_frame) - 1]
    return [(a, b, tasks[of_frame[a]].strip()) for a, b in zip(firsts, lasts, strict=True)]


def _samples(
    episode: _Episode,
    recorded: dict[str, list[Any]],
    runs: list[tuple[int, int, str]],
    subtasks: dict[int, str],
    info: _Info,
    root: Path,
    licence: str,
) -> Iterator[Sample]:
    origin = Provenance(root.resolve().name, INFO, 0, str(episode.index))
    robots = (name for name, words in _ROBOTS.items() if re.search(words, info.robot, re.I))
    common: dict[str, Any] = {
        "provenance": origin,
        "split": _split(info.splits, episode.index),
        "embodiment": next(robots, ""),
        "licence": licence,
        "extra": {"robot_type": info.robot} if info.robot else {},
    }
    times = [float(t) for t in recorded.get("timestamp", [])] or [i / info.fps for i in range(episode.length)]
    for camera, (path, begin) in episode.videos.items():

        def part(
            first: int, last: int, path: str = path, begin: float = begin, camera: str = camera
        ) -> Video:
            end_s = begin + times[last] + 0.5 / info.fps
            return Video(path, "", begin + times[first] if first else begin, end_s, camera)

        name = f"{episode.index}/{camera}"
        for number, (first, last, task) in enumerate(runs):
            last = last % len(times)
            suffix = f"/{number}" if number else ""
            caption = {"kind": QuestionKind.CAPTION, "question": _QUESTION, "answer": task}
            media = (part(first, last),)
            yield Sample(sample_id=f"{name}/caption{suffix}", media=media, **caption, **common)  # type: ignore[arg-type]
            ends = number == len(runs) - 1
            for moment, query, answer in _moments(task, recorded, subtasks, first, last, ends):
                kind = query_fields(query)
                media = (part(first, moment),)
                yield Sample(f"{name}/{kind['kind'].value}/{moment}", media, answer=answer, **kind, **common)


def _moments(
    task: str, recorded: dict[str, list[Any]], subtasks: dict[int, str], first: int, last: int, ends: bool
) -> Iterator[tuple[int, Query, str]]:
    """(last frame, question, answer) of what was recorded of a task from frame ``first`` to ``last``.

    ``ends``: it is the episode's last, which is what its success is about.
    """
    success = [_truth(value) for value in recorded.get(_SUCCESS, [])]
    if success and ends:
        query = Query(QueryKind.COMPLETION, task=task)
        if success[-1] is not None:
            yield last, query, "yes" if success[-1] else "no"
        before = [i for i in range(first, first + (last + 1 - first) // 2) if success[i : i + 1] == [False]]
        if before:
            yield before[-1], query, "no"
    steps = recorded.get(_SUBTASK, [])
    for i in range(first + 1, min(last + 1, len(steps))):
        if steps[i] != steps[i - 1] and steps[i] in subtasks:
            yield i - 1, Query(QueryKind.NEXT_ACTION, task=task), subtasks[steps[i]]


def _truth(value: Any) -> bool | None:
    """A flag, also one recorded as a number; None where none was recorded: null, NaN, or no flag at all."""
    if not isinstance(value, bool | int | float) or math.isnan(value):
        return None
    return bool(value)


def _split(splits: Mapping[str, str], index: int) -> str:
    for name, bounds in splits.items():
        match = re.fullmatch(r"(\d+):(\d+)", bounds)
        if match and int(match[1]) <= index < int(match[2]):
            return name.lower()
    return "train"


def _licence(root: Path) -> str:
    """The licence that the data set's card states."""
    try:
        card = (root / "README.md").read_text("utf-8", "replace")
    except OSError:
        return ""
    match = re.search(r"^licen[sc]e:\s*(\S+)", card.split("\n---", 1)[0], re.M)
    return match[1] if match else ""
