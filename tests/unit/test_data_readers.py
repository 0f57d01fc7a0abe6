# SPDX-License-Identifier: Apache-2.0
"""Readers of foreign layouts, with rows that the released code loses, overwrites or mistakes."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from cosmos_reason_node.prompt import OPTIONS_LINE, suffix, user_text
from cosmos_reason_node.vision.patchify import PatchSpec
from tests.unit.video_files import steady, write_video
from training.data.media import WindowSpec, load_window
from training.data.problems import DataError
from training.data.readers import lerobot, open_data_set
from training.data.schema import QuestionKind, Style, Video

SPEC = WindowSpec(250_000_000, 8, PatchSpec(), frame_size=(28, 28))
CHOICES = {"A": "lift the cup", "B": "push the cup", "C": "wait"}


def qa(answer: str = "B", **more: Any) -> dict[str, Any]:
    return {"question": "What is next?", "index2ans": CHOICES, "answer": answer} | more


def write(path: Path, rows: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, ensure_ascii=False), "utf-8")
    return path


def benchmark(root: Path, rows: object, subset: str = "bridgev2") -> Path:
    return write(root / subset / f"{subset}_benchmark_qa_pairs.json", rows)


def problems(root: Path) -> list[tuple[int, str, str]]:
    try:
        data = open_data_set(root, strict=False)
    except DataError as error:
        return [(problem.row, problem.field, problem.message) for problem in error.problems]
    return [(problem.row, problem.field, problem.message) for problem in data.report.problems]


class TestCosmosReason:
    def test_benchmark_rows_of_both_spellings(self, tmp_path: Path):
        second = qa()
        second["correct_answer"] = second.pop("answer")
        rows = [
            {"video": "clips/a.mp4", "qa_pairs": qa("A")},
            {"video": "clips/a.mp4", "qa_pairs": second},  # the released evaluator keeps one row a video
            {"video": "b ü.mp4", "qa_pairs": [qa("C"), qa("A", question="Is it possible to lift the cup?")]},
        ]
        benchmark(tmp_path, rows)
        (tmp_path / "bridgev2" / "clips").mkdir()
        for name in ("a.mp4", "b ü.mp4"):
            write_video(tmp_path / "bridgev2" / "clips" / name, steady(8, 4))
        data = open_data_set(tmp_path)
        assert data.layout == "cosmos_reason"
        assert [sample.answer for sample in data.samples] == ["A", "B", "C", "A"]
        assert [sample.media[0].paths[0] for sample in data.samples] == [
            "bridgev2/clips/a.mp4",
            "bridgev2/clips/a.mp4",
            "bridgev2/clips/b ü.mp4",
            "bridgev2/clips/b ü.mp4",
        ]
        first = data.samples[0]
        assert (first.split, first.provenance.source, first.embodiment) == (
            "benchmark",
            "bridgev2",
            "robot_arm",
        )
        assert first.kind is QuestionKind.NEXT_ACTION
        assert user_text(first.to_query()).startswith(
            "What is next?\n(A) lift the cup\n(B) push the cup\n(C) wait\nAnswer"
        )
        for sample in data.samples:
            assert len(load_window(tmp_path, sample.media[0], SPEC).frames) == 8
        subset_alone = open_data_set(tmp_path / "bridgev2")
        assert [sample.answer for sample in subset_alone.samples] == ["A", "B", "C", "A"]
        assert subset_alone.samples[0].provenance.source == "bridgev2"

    def test_clips_in_an_archive_are_found_and_not_unpacked(self, tmp_path: Path):
        benchmark(tmp_path, [{"video": "clips/x.mp4", "qa_pairs": qa()}], "robovqa")
        clip = write_video(tmp_path / "x.mp4", steady(8, 4))
        with tarfile.open(tmp_path / "robovqa" / "clips.tar.gz", "w:gz") as out:
            out.add(clip, "./clips/x.mp4")
            out.add(clip, "../../evil/x.mp4")
        (sample,) = open_data_set(tmp_path).samples
        assert sample.media == (Video("robovqa/clips.tar.gz", "./clips/x.mp4"),)
        assert len(load_window(tmp_path, sample.media[0], SPEC).frames) == 8

    def test_the_av_clips_longer_names(self, tmp_path: Path):
        benchmark(tmp_path, [{"video": "clips/7.mp4", "qa_pairs": qa()}], "av")
        (tmp_path / "av" / "clips").mkdir()
        name = "7.camera_front_wide_120fov.mp4"
        write_video(tmp_path / "av" / "clips" / name, steady(4, 4))
        (sample,) = open_data_set(tmp_path).samples
        assert sample.media[0].paths == (f"av/clips/{name}",)

    def test_a_name_that_fits_two_clips_is_refused(self, tmp_path: Path):
        benchmark(tmp_path, [{"video": "x.mp4", "qa_pairs": qa()}, {"video": "one/x.mp4", "qa_pairs": qa()}])
        for folder in ("one", "two"):
            (tmp_path / "bridgev2" / "clips" / folder).mkdir(parents=True)
            write_video(tmp_path / "bridgev2" / "clips" / folder / "x.mp4", steady(2, 4))
        data = open_data_set(tmp_path, strict=False)
        assert [sample.media[0].paths[0] for sample in data.samples] == ["bridgev2/clips/one/x.mp4"]
        ((row, field, message),) = problems(tmp_path)
        assert (row, field) == (1, "video")
        assert "could be" in message

    def test_missing_clips_are_kept_for_the_check_to_name(self, tmp_path: Path):
        benchmark(tmp_path, [{"video": "clips/gone.mp4", "qa_pairs": qa()}])
        (sample,) = open_data_set(tmp_path).samples
        assert sample.media[0].paths == ("bridgev2/clips/gone.mp4",)

    @pytest.mark.parametrize(
        ("row", "field"),
        [
            ({"video": "x.mp4", "qa_pairs": qa("D")}, "qa_pairs.answer"),
            ({"video": "x.mp4", "qa_pairs": qa("The answer is B")}, "qa_pairs.answer"),
            ({"video": "x.mp4", "qa_pairs": qa("")}, "qa_pairs.answer"),
            ({"video": "x.mp4", "qa_pairs": qa(index2ans=["a", "b"])}, "qa_pairs.index2ans"),
            ({"video": "x.mp4", "qa_pairs": qa(index2ans={"A": "a", "B": "a"})}, "qa_pairs.options"),
            ({"video": "x.mp4", "qa_pairs": qa(index2ans={"A": 1, "B": "a"})}, "qa_pairs.index2ans.A"),
            ({"video": "x.mp4", "qa_pairs": [qa(), {"question": "?"}]}, "qa_pairs[1].answer"),
            ({"video": "x.mp4", "qa_pairs": []}, "qa_pairs"),
            ({"video": "x.mp4"}, "qa_pairs"),
            ({"qa_pairs": qa()}, "video"),
            ({"video": "../../x.mp4", "qa_pairs": qa()}, "video"),
            ({"video": "/etc/passwd", "qa_pairs": qa()}, "video"),
            ([], ""),
        ],
    )
    def test_bad_rows_are_named_and_good_ones_stay(self, tmp_path: Path, row: object, field: str):
        path = benchmark(tmp_path, [row, {"video": "x.mp4", "qa_pairs": qa()}])
        data = open_data_set(tmp_path, strict=False)
        assert "A" not in [sample.answer for sample in data.samples]
        assert data.samples[-1].provenance.row == 2
        assert (data.report.rows, data.report.bad_rows) == (2, 1)
        assert (data.report.problems[0].row, data.report.problems[0].field) == (1, field)
        with pytest.raises(DataError, match="row 1") as raised:
            open_data_set(tmp_path)
        assert str(path) in str(raised.value)

    def test_letters_in_other_forms(self, tmp_path: Path):
        odd = {"1": "one", "2": "two", "3": None}  # tables fill missing options with null
        rows = [
            {"video": "x.mp4", "qa_pairs": qa("b")},
            {"video": "x.mp4", "qa_pairs": qa("(C)")},
            {"video": "x.mp4", "qa_pairs": qa("push the cup")},
            {"video": "x.mp4", "qa_pairs": qa("2", index2ans=odd)},
        ]
        benchmark(tmp_path, rows)
        samples = open_data_set(tmp_path).samples
        assert [sample.answer for sample in samples] == ["B", "C", "B", "B"]
        assert samples[-1].options == ("one", "two")

    def test_the_mixed_subsets_are_told_apart_by_wording(self, tmp_path: Path):
        questions = {
            "Is it possible to open the drawer?": QuestionKind.AFFORDANCE,
            "Was the task completed?": QuestionKind.TASK_COMPLETION,
            "What should the robot do next?": QuestionKind.NEXT_ACTION,
            "What colour is the robot?": QuestionKind.EMBODIED,
        }
        benchmark(tmp_path, [{"video": "x.mp4", "qa_pairs": qa(question=q)} for q in questions], "robovqa")
        assert [sample.kind for sample in open_data_set(tmp_path).samples] == list(questions.values())

    def test_a_file_that_was_cut_off(self, tmp_path: Path):
        path = benchmark(tmp_path, [{"video": "x.mp4", "qa_pairs": qa()}] * 3)
        path.write_bytes(path.read_bytes()[:-20])
        benchmark(tmp_path, [{"video": "x.mp4", "qa_pairs": qa()}], "agibot")
        data = open_data_set(tmp_path, strict=False)
        assert len(data.samples) == 1
        assert "is not JSON" in data.report.problems[0].message

    def test_sft_rows(self, tmp_path: Path):
        how = (
            "Answer the question in the following format: <think>\nyour reasoning\n</think>\n\n"
            "<answer>\nyour answer\n</answer>."
        )

        def row(user: str, assistant: str, **more: Any) -> dict[str, Any]:
            turns = [("system", "You are a helpful assistant."), ("user", user), ("assistant", assistant)]
            return {
                "video": "clips/x.mp4",
                "conversations": [{"role": role, "content": content} for role, content in turns],
            } | more

        rows = [
            row("Describe the video.", "A robot lifts a cup.", difficulty=3),
            row(
                f"What is next?\n{how}",
                "<think>\nIt holds it.\n</think>\n\n<answer>\nlift\n</answer>",
                id="q7",
            ),
            row("<video>\nIs it done?", "<think>Yes it is.</think><answer>Yes.</answer>"),
            row(
                f"Which?\n(A) left\n(B) right\n{OPTIONS_LINE}",
                "<think>r</think> <answer>B</answer>",
            ),
            row("Which?\nA. left\nB. right", "C"),
            row("Broken?", "<think>never closed <answer>yes</answer>"),
            row("Empty?", ""),
            {"video": "clips/x.mp4", "conversations": [{"role": "user", "content": "?"}]},
        ]
        write(tmp_path / "agibot" / "agibot_sft.json", rows)
        data = open_data_set(tmp_path, strict=False)
        caption, step, binary, choice = data.samples
        assert (caption.question, caption.answer) == ("Describe the video.", "A robot lifts a cup.")
        assert (caption.style, caption.extra) == (Style.UNDERSTANDING, {"difficulty": 3})
        assert (step.question, step.answer, step.reasoning) == ("What is next?", "lift", "It holds it.")
        assert (step.style, step.sample_id, step.split) == (Style.REASONING, "agibot/agibot_sft:q7", "sft")
        assert (binary.question, binary.answer, binary.form) == ("Is it done?", "yes", "yes_no")
        assert (choice.options, choice.answer, choice.question) == (("left", "right"), "B", "Which?")
        assert suffix(choice.to_query()).count("Answer with the option's letter") == 1
        found = {(problem.row, problem.field) for problem in data.report.problems}
        assert found == {(5, "answer"), (6, "answer"), (7, "answer"), (8, "conversations")}

    def test_rows_out_of_tables_have_nulls(self, tmp_path: Path):
        both = qa("A") | {"answer": None, "correct_answer": "B"}
        rows = [
            {"video": "x.mp4", "image": None, "qa_pairs": both, "conversations": None},
            {"video": None, "image": "x.png", "qa_pairs": qa("A") | {"correct_answer": None}},
        ]
        benchmark(tmp_path, rows)
        first, second = open_data_set(tmp_path).samples
        assert (first.answer, first.split, second.answer) == ("B", "benchmark", "A")
        assert second.media[0].paths == ("bridgev2/x.png",)

    def test_an_archive_and_its_unpacked_copy_are_one(self, tmp_path: Path):
        """As `gunzip --keep` leaves them; the plain one is of random access."""
        benchmark(tmp_path, [{"video": "clips/x.mp4", "qa_pairs": qa()}])
        clip = tmp_path / "x.mp4"
        clip.write_bytes(b"clip")
        for name, mode in (("clips.tar", "w"), ("clips.tar.gz", "w:gz")):
            with tarfile.open(tmp_path / "bridgev2" / name, mode) as out:
                out.add(clip, "clips/x.mp4")
        clip.unlink()
        (sample,) = open_data_set(tmp_path).samples
        assert sample.media == (Video("bridgev2/clips.tar", "clips/x.mp4"),)

    def test_repeated_ids_are_bad_rows(self, tmp_path: Path):
        benchmark(tmp_path, [{"id": "same", "video": "x.mp4", "qa_pairs": qa()}] * 2)
        ((row, _, message),) = problems(tmp_path)
        assert row == 2
        assert "was used by bridgev2/bridgev2_benchmark_qa_pairs.json, row 1" in message


class TestLlava:
    def row(self, *said: str, **more: Any) -> dict[str, Any]:
        turns = [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(said)]
        return {"conversations": turns} | more

    def test_exchanges_become_samples_with_history(self, tmp_path: Path):
        rows = [
            self.row("<video>\nWhat is seen?", "A cup.", "Is it full?", "No", id=7, video="v/x.mp4"),
            self.row("Compare <image> and <image>.", "Alike.", image=["a.png", "b.png"], data_source="pairs"),
            self.row("Name the capital of France.", "Paris"),
        ]
        write(tmp_path / "train.json", rows)
        first, second, pair, text = open_data_set(tmp_path).samples
        assert (first.sample_id, first.question, first.answer, first.history) == (
            "7#0",
            "What is seen?",
            "A cup.",
            (),
        )
        assert (second.sample_id, second.answer, second.form) == ("7#1", "no", "yes_no")
        assert [turn.role for turn in second.history] == ["user", "assistant"]
        assert [media.paths for media in pair.media] == [("a.png",), ("b.png",)]
        assert pair.question == "Compare \n and \n."
        assert pair.provenance.source == "pairs"
        assert text.media == ()

    @pytest.mark.parametrize(
        ("said", "more", "field"),
        [
            (("<video> <video> ?", "x"), {"video": "x.mp4"}, "conversations"),
            (("<image> ?", "x"), {}, "conversations"),
            (("?",), {"video": "x.mp4"}, "conversations"),
            (("?", ""), {"video": "x.mp4"}, "conversations[1].value"),
            (("?", "x"), {"video": "../x.mp4"}, "video"),
            (("?", "x"), {"video": 3}, "video"),
            (("?", "x", "?"), {"video": "x.mp4"}, "conversations"),
        ],
    )
    def test_bad_rows(self, tmp_path: Path, said: tuple[str, ...], more: dict[str, Any], field: str):
        write(tmp_path / "d" / "x.json", [self.row("?", "fine"), self.row(*said, **more)])
        assert [(row, name) for row, name, _ in problems(tmp_path)] == [(2, field)]

    @pytest.mark.parametrize(
        "text",
        [
            "<image>\nWhat is it?\nA. a cup.\nB. a fork.\nPlease provide your answer by stating the letter "
            "followed by the full option.",
            "<image>\nWhat is it?\n(A) a cup.\n(B) a fork.\nPlease reply with the letter of the right one",
            "<image>\nWhat is it?\n\nA) a cup.\n\nB) a fork.\n",
        ],
    )
    def test_options_whatever_is_said_about_how_to_answer(self, tmp_path: Path, text: str):
        write(tmp_path / "train.json", [self.row(text, "B. a fork.", video="x.mp4")])
        (sample,) = open_data_set(tmp_path).samples
        assert (sample.question, sample.options) == ("What is it?", ("a cup.", "a fork."))
        assert sample.answer == "B"

    def test_a_question_that_asks_to_choose_stays_whole(self, tmp_path: Path):
        text = "<video>\nThere is a cup and a fork.\nChoose the better option to drink from."
        write(tmp_path / "train.json", [self.row(text, "The cup.", video="x.mp4")])
        (sample,) = open_data_set(tmp_path).samples
        assert sample.question == text.removeprefix("<video>\n")

    def test_a_row_a_line_in_a_file_called_json(self, tmp_path: Path):
        rows = [self.row("?", text, video="x.mp4") for text in ("one", "two")]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / "x.json").write_text("\ufeff" + lines + '{"id": 3, "conv', "utf-8")
        data = open_data_set(tmp_path, strict=False)
        assert [sample.answer for sample in data.samples] == ["one", "two"]
        assert [problem.row for problem in data.report.problems] == [3]

    def test_ids_that_name_the_video_or_begin_anew_in_each_file_lose_no_row(self, tmp_path: Path):
        first = [self.row("What is it?", "A cup.", id=0, video="x.mp4")]
        first.append(self.row("Is it full?", "No", "And now?", "Yes", id=0, video="x.mp4"))
        write(tmp_path / "a" / "train.json", first)
        write(tmp_path / "b" / "train.json", [self.row("What is it?", "A fork.", id=0, video="y.mp4")])
        write(tmp_path / "c" / "train.json", [self.row("?", "x", video="z.mp4")])
        write(tmp_path / "d" / "train.json", [self.row("?", "x", video="z.mp4")])  # without any id
        ids = [sample.sample_id for sample in open_data_set(tmp_path).samples]
        assert ids == ["0", "a/train:2#0", "a/train:2#1", "b/train:1", "train:1", "d/train:1"]

    def test_turns_out_of_order(self, tmp_path: Path):
        turns = [{"from": "gpt", "value": "x"}, {"from": "human", "value": "?"}]
        alien = [{"from": "robot", "value": "x"}]
        rows = [self.row("?", "x"), {"conversations": turns}, {"conversations": alien}]
        (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
        assert [(row, name) for row, name, _ in problems(tmp_path)] == [
            (2, "conversations[0].from"),
            (3, "conversations[0].from"),
        ]


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
        ],
    )
    def test_unusable_infos(self, tmp_path: Path, changes: dict[str, Any], field: str):
        self.info(tmp_path, "v2.1", **changes)
        assert field in [name for _, name, _ in problems(tmp_path)]

    def test_paths_of_the_info_file_stay_inside(self, tmp_path: Path):
        self.version_2(tmp_path)
        self.info(tmp_path, "v2.1", video_path="../../{video_key}.mp4")
        assert {name for _, name, _ in problems(tmp_path)} == {"path", ""}


def test_folders_without_a_data_set(tmp_path: Path):
    with pytest.raises(DataError, match="holds no data set"):
        open_data_set(tmp_path)
    with pytest.raises(DataError, match="is no folder"):
        open_data_set(tmp_path / "none")
    (tmp_path / "x_0.mcap").write_bytes(b"")
    with pytest.raises(DataError, match=r"training\.data bag"):
        open_data_set(tmp_path)


def test_libraries_of_single_layouts_are_not_needed_by_others(tmp_path: Path):
    write(tmp_path / "x.json", [TestLlava().row("?", "x")])
    script = f"""
import sys
from pathlib import Path
sys.modules |= dict.fromkeys(["av", "pyarrow", "rosbags", "mcap", "rclpy", "mujoco"])
from training.data import media
from training.data.readers import lerobot, open_data_set
print(len(open_data_set(Path({str(tmp_path)!r})).samples))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "1\n", done.stderr
