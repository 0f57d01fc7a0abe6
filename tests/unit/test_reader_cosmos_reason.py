# SPDX-License-Identifier: Apache-2.0
"""The released Cosmos-Reason1 layouts, with rows that the released code loses, overwrites or mistakes."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import pytest

from cosmos_reason_node.prompt import OPTIONS_LINE, suffix, user_text
from tests.unit.reader_files import SPEC, problems, write
from tests.unit.video_files import steady, write_video
from training.data.media import load_window
from training.data.problems import DataError
from training.data.readers import open_data_set
from training.data.schema import QuestionKind, Style, Video

CHOICES = {"A": "lift the cup", "B": "push the cup", "C": "wait"}


def qa(answer: str = "B", **more: Any) -> dict[str, Any]:
    return {"question": "What is next?", "index2ans": CHOICES, "answer": answer} | more


def benchmark(root: Path, rows: object, subset: str = "bridgev2") -> Path:
    return write(root / subset / f"{subset}_benchmark_qa_pairs.json", rows)


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

    @pytest.mark.parametrize("member", ["clips/x.mp4", "x.mp4"])
    def test_archives_in_the_clips_folder(self, tmp_path: Path, member: str):
        benchmark(tmp_path, [{"video": "clips/x.mp4", "qa_pairs": qa()}], "robovqa")
        clip = write_video(tmp_path / "x.mp4", steady(4, 4))
        (tmp_path / "robovqa" / "clips").mkdir()
        with tarfile.open(tmp_path / "robovqa" / "clips" / "clips_0.tar.gz", "w:gz") as out:
            out.add(clip, member)
        clip.unlink()
        (sample,) = open_data_set(tmp_path).samples
        assert sample.media == (Video("robovqa/clips/clips_0.tar.gz", member),)

    def test_a_clip_of_the_same_name_in_another_folder_is_another_clip(self, tmp_path: Path):
        rows = [{"video": f"{camera}/1.mp4", "qa_pairs": qa()} for camera in ("cam_a", "cam_b")]
        benchmark(tmp_path, rows)
        for camera in ("cam_a", "cam_b"):
            (tmp_path / "bridgev2" / camera).mkdir()
        write_video(tmp_path / "bridgev2" / "cam_b" / "1.mp4", steady(4, 4))
        paths = [sample.media[0].paths[0] for sample in open_data_set(tmp_path).samples]
        assert paths == ["bridgev2/cam_a/1.mp4", "bridgev2/cam_b/1.mp4"], "the first is missing"

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

    @pytest.mark.parametrize("name", ["b" * 300 + ".mp4", "folder/" * 700 + "x.mp4"], ids=["name", "path"])
    def test_a_name_too_long_for_any_file_is_a_problem_of_its_row(self, tmp_path: Path, name: str):
        benchmark(tmp_path, [{"video": name, "qa_pairs": qa()}, {"video": "x.mp4", "qa_pairs": qa("A")}])
        data = open_data_set(tmp_path, strict=False)
        assert [(sample.answer, sample.provenance.row) for sample in data.samples] == [("A", 2)]
        ((row, field, message),) = problems(tmp_path)
        assert (row, field) == (1, "video")
        assert "File name too long): give the path of the file" in message
        assert len(message) < 200
        with pytest.raises(DataError, match="row 1, video"):
            open_data_set(tmp_path)

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
