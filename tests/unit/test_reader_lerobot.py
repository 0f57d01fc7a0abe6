# SPDX-License-Identifier: Apache-2.0
"""LeRobot data sets of both versions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from tests.unit.reader_files import SPEC, problems, write
from tests.unit.video_files import steady, write_video
from training.data.media import load_window
from training.data.readers import lerobot, open_data_set
from training.data.schema import QuestionKind


class TestLeRobot:
    def info(self, root: Path, version: str, **changes: Any) -> None:
        three = version.startswith("v3")
        chunk = "chunk-{chunk_index:03d}/file-{file_index:03d}"
        value = {
            "codebase_version": version,
            "robot_type": "so100",
            "fps": 4,
            "chunks_size": 1000,
            "splits": {"train": "0:1", "test": "1:2"},
            "data_path": f"data/{chunk}.parquet"
            if three
            else "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
            "video_path": f"videos/{{video_key}}/{chunk}.mp4"
            if three
            else "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
            "features": {"observation.images.front": {"dtype": "video"}, "action": {"dtype": "float32"}},
        }
        write(root / "meta" / "info.json", value | changes)

    def rows(self, episodes: range, success: bool) -> dict[str, list[Any]]:
        table: dict[str, list[Any]] = {
            name: [] for name in ("episode_index", "timestamp", "next.success", "subtask_index", "action")
        }
        for episode in episodes:
            for i in range(12):
                for name, value in zip(
                    table,
                    (episode, i / 4, success and episode == 0 and i == 11, i // 6, [0.0, 1.0]),
                    strict=True,
                ):
                    table[name].append(value)
        return table

    def save(self, path: Path, table: dict[str, list[Any]]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(pyarrow.table(table), path)

    def version_2(self, root: Path) -> None:
        self.info(root, "v2.1")
        lines = [{"episode_index": i, "tasks": ["lift the cup"], "length": 12} for i in range(2)]
        (root / "meta" / "episodes.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
        subtasks = [{"subtask_index": 0, "subtask": "reach"}, {"subtask_index": 1, "subtask": "lift"}]
        (root / "meta" / "subtasks.jsonl").write_text("\n".join(map(json.dumps, subtasks)) + "\n")
        for i in range(2):
            self.save(root / f"data/chunk-000/episode_{i:06d}.parquet", self.rows(range(i, i + 1), True))
            clip = root / f"videos/chunk-000/observation.images.front/episode_{i:06d}.mp4"
            clip.parent.mkdir(parents=True, exist_ok=True)
            write_video(clip, steady(12, 4))
        (root / "README.md").write_text("---\nlicense: apache-2.0\n---\n# x\n")

    def version_3(self, root: Path) -> None:
        self.info(root, "v3.0")
        key = "videos/observation.images.front"
        episodes = {
            "episode_index": [0, 1],
            "tasks": [["lift the cup"]] * 2,
            "length": [12, 12],
            "data/chunk_index": [0, 0],
            "data/file_index": [0, 0],
            f"{key}/chunk_index": [0, 0],
            f"{key}/file_index": [0, 0],
            f"{key}/from_timestamp": [0.0, 3.0],
            f"{key}/to_timestamp": [3.0, 6.0],
            "stats/action/min": [[0.0], [0.0]],
        }
        self.save(root / "meta/episodes/chunk-000/file-000.parquet", episodes)
        texts = {"subtask_index": [0, 1], "__index_level_0__": ["reach", "lift"]}
        self.save(root / "meta/subtasks.parquet", texts)
        self.save(root / "data/chunk-000/file-000.parquet", self.rows(range(2), True))
        clip = root / "videos/observation.images.front/chunk-000/file-000.mp4"
        clip.parent.mkdir(parents=True, exist_ok=True)
        write_video(clip, steady(24, 4))

    @pytest.mark.parametrize("version", ["version_2", "version_3"])
    def test_an_episode_of_several_tasks(self, tmp_path: Path, version: str):
        """Each is about its own frames; which is in what order only the frames say."""
        getattr(self, version)(tmp_path)
        lines = [{"task_index": 0, "task": "close it"}, {"task_index": 1, "task": "open it"}]
        tasks, rows = ["close it", "open it"], {**self.rows(range(2), True), "task_index": [1] * 6 + [0] * 18}
        if version == "version_3":
            texts = {"task_index": [0, 1], "__index_level_0__": tasks}
            self.save(tmp_path / "meta/tasks.parquet", texts)
            path = tmp_path / "meta/episodes/chunk-000/file-000.parquet"
            table = pyarrow.parquet.read_table(path).to_pydict()
            self.save(path, {**table, "tasks": [tasks, ["close it"]]})
            self.save(tmp_path / "data/chunk-000/file-000.parquet", rows)
        else:
            (tmp_path / "meta" / "tasks.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
            episodes = [{"episode_index": i, "tasks": tasks[: 2 - i], "length": 12} for i in range(2)]
            (tmp_path / "meta" / "episodes.jsonl").write_text("\n".join(map(json.dumps, episodes)) + "\n")
            for i in range(2):
                own = {name: values[12 * i : 12 * i + 12] for name, values in rows.items()}
                self.save(tmp_path / f"data/chunk-000/episode_{i:06d}.parquet", own)
        front = "0/observation.images.front"
        found = {
            sample.sample_id: (sample.task, sample.answer, sample.media[0].start_s, sample.media[0].end_s)
            for sample in open_data_set(tmp_path).samples
            if sample.sample_id.startswith(front)
        }
        assert found == {
            f"{front}/caption": ("", "open it", 0.0, 1.375),
            f"{front}/caption/1": ("", "close it", 1.5, 2.875),
            f"{front}/task_completion/11": ("close it", "yes", 1.5, 2.875),
            f"{front}/task_completion/8": ("close it", "no", 1.5, 2.125),
        }

    def test_several_tasks_of_frames_that_do_not_say_whose_they_are(self, tmp_path: Path):
        self.version_2(tmp_path)
        episodes = [{"episode_index": i, "tasks": ["a", "b"][: 2 - i], "length": 12} for i in range(2)]
        (tmp_path / "meta" / "episodes.jsonl").write_text("\n".join(map(json.dumps, episodes)) + "\n")
        data = open_data_set(tmp_path, strict=False)
        assert {sample.provenance.episode for sample in data.samples} == {"1"}
        assert "its frames have no task_index" in str(data.report.problems[0])

    @pytest.mark.parametrize("version", ["version_2", "version_3"])
    def test_both_layouts_give_the_same_questions_about_the_same_frames(self, tmp_path: Path, version: str):
        getattr(self, version)(tmp_path)
        samples = {sample.sample_id: sample for sample in open_data_set(tmp_path).samples}
        front = "observation.images.front"
        assert list(samples) == [
            f"{episode}/{front}/{name}"
            for episode in (0, 1)
            for name in ("caption", "task_completion/11", "task_completion/5", "next_action/5")
        ]
        answers = [sample.answer for sample in samples.values()]
        assert answers == ["lift the cup", "yes", "no", "lift", "lift the cup", "no", "no", "lift"]
        assert [sample.split for sample in samples.values()] == ["train"] * 4 + ["test"] * 4
        assert {sample.embodiment for sample in samples.values()} == {"robot_arm"}
        offset = 12 if version == "version_3" else 0
        for episode in (0, 1):
            window = load_window(tmp_path, samples[f"{episode}/{front}/task_completion/5"].media[0], SPEC)
            shown = [round(float(frame.image.mean()) / 8) for frame in window.frames]
            assert shown == [episode * offset + i for i in range(6)]
        if version == "version_2":
            assert {sample.licence for sample in samples.values()} == {"apache-2.0"}

    @pytest.mark.parametrize("unknown", [None, float("nan")])
    def test_an_outcome_that_was_not_recorded_is_not_asked_about(self, tmp_path: Path, unknown: float | None):
        self.version_2(tmp_path)
        for i, success in enumerate(([unknown] * 12, [0.0] * 3 + [unknown] * 9)):
            table = self.rows(range(i, i + 1), True) | {"next.success": success}
            self.save(tmp_path / f"data/chunk-000/episode_{i:06d}.parquet", table)
        samples = open_data_set(tmp_path).samples
        asked = [sample for sample in samples if sample.kind is QuestionKind.TASK_COMPLETION]
        names = [(sample.sample_id, sample.answer) for sample in asked]
        assert names == [("1/observation.images.front/task_completion/2", "no")]
        assert len(samples) == 2 * 2 + 1

    def test_a_file_of_many_episodes_is_gone_through_once(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        """Not once an episode: files of a million rows hold thousands of episodes."""
        self.version_3(tmp_path)
        walks = 0

        class Column(list[Any]):
            def __iter__(self) -> Iterator[Any]:
                nonlocal walks
                walks += 1
                return super().__iter__()

        class Table:
            def __init__(self, inner: Any) -> None:
                self.inner = inner

            def to_pydict(self) -> dict[str, Any]:
                return {name: Column(values) for name, values in self.inner.to_pydict().items()}

            def to_pylist(self) -> Any:
                return self.inner.to_pylist()

        parquet = lerobot._parquet
        monkeypatch.setattr(lerobot, "_parquet", lambda *given: Table(parquet(*given)))
        assert len(open_data_set(tmp_path).samples) == 8
        assert walks == 1

    def test_broken_episodes_are_named(self, tmp_path: Path):
        self.version_2(tmp_path)
        (tmp_path / "data/chunk-000/episode_000000.parquet").write_bytes(b"PAR1 torn")
        with open(tmp_path / "meta/episodes.jsonl", "a") as stream:
            stream.write('{"episode_index": 2, "tasks": [], "length": 12}\n{"episode_index": 3\n')
        data = open_data_set(tmp_path, strict=False)
        assert {sample.provenance.episode for sample in data.samples} == {"1"}
        assert [(problem.row, problem.field) for problem in data.report.problems] == [
            (1, ""),
            (3, "tasks"),
            (4, ""),
        ]
        assert data.report.bad_rows == 3

    @pytest.mark.parametrize(
        ("changes", "field"),
        [
            ({"codebase_version": "v1.6"}, "codebase_version"),
            ({"fps": 0}, "fps"),
            ({"features": {"observation.image": {"dtype": "image"}}}, "features"),
            ({"video_path": None}, "video_path"),
            ({"splits": ["train"]}, "splits"),
            ({"robot_type": ["so100"]}, "robot_type"),
        ],
    )
    def test_unusable_infos(self, tmp_path: Path, changes: dict[str, Any], field: str):
        self.info(tmp_path, "v2.1", **changes)
        assert field in [name for _, name, _ in problems(tmp_path)]

    def test_an_info_file_that_holds_no_object(self, tmp_path: Path):
        write(tmp_path / "meta" / "info.json", [])
        assert (0, "", "must be a JSON object, not a list ([])") in problems(tmp_path)

    def test_subtasks_that_are_no_objects(self, tmp_path: Path):
        self.version_2(tmp_path)
        (tmp_path / "meta" / "subtasks.jsonl").write_text("[1]\n")
        assert any("cannot be read" in message for _, _, message in problems(tmp_path))

    def test_paths_of_the_info_file_stay_inside(self, tmp_path: Path):
        self.version_2(tmp_path)
        self.info(tmp_path, "v2.1", video_path="../../{video_key}.mp4")
        assert {name for _, name, _ in problems(tmp_path)} == {"path", ""}
