# SPDX-License-Identifier: Apache-2.0
"""LLaVA-style JSON, folders that hold no data set, and which libraries reading needs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.reader_files import problems, write
from training.data.problems import DataError, Report
from training.data.readers import READERS, open_data_set, open_data_sets
from training.data.schema import Sample


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
            (("?", "x"), {"video": "b" * 300 + ".mp4"}, "video"),
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


def test_folders_without_a_data_set(tmp_path: Path):
    with pytest.raises(DataError, match="holds no data set"):
        open_data_set(tmp_path)
    with pytest.raises(DataError, match="is no folder"):
        open_data_set(tmp_path / "none")
    (tmp_path / "x_0.mcap").write_bytes(b"")
    with pytest.raises(DataError, match=r"training\.data bag"):
        open_data_set(tmp_path)


def test_a_folder_of_several_sources_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("one", "two"):
        said = [{"from": "human", "value": "Which?"}, {"from": "gpt", "value": name}]
        (tmp_path / name).mkdir()
        write(tmp_path / name / "train.json", [{"conversations": said}])
    one, two = (str(tmp_path / name) for name in ("one", "two"))
    read: list[str] = []
    reader = READERS["llava"]

    def counted(root: Path, report: Report) -> Iterator[Sample]:
        read.append(root.name)
        return reader(root, report)

    monkeypatch.setitem(READERS, "llava", counted)
    sets = open_data_sets([(one, ""), (two, "llava"), (one, "")])
    assert [data.samples[0].answer for data in sets] == ["one", "two", "one"]
    assert read == ["one", "two"]


def test_libraries_of_single_layouts_are_not_needed_by_others(tmp_path: Path):
    write(tmp_path / "x.json", [TestLlava().row("?", "x")])
    script = f"""
import sys
from collections.abc import Iterator
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
