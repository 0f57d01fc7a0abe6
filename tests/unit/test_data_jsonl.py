# SPDX-License-Identifier: Apache-2.0
"""The sample record and samples.jsonl."""

from __future__ import annotations

import dataclasses
import json
import re
import resource
import signal
from pathlib import Path
from typing import Any

import pytest

from cosmos_reason_node.prompt import suffix
from cosmos_reason_node.types import Query, QueryKind
from training.data.problems import DataError, FieldErrors, Report
from training.data.readers.jsonl import json_line, read_samples, sample_from_json, write_samples
from training.data.schema import (
    Frames,
    Grid,
    Provenance,
    QuestionKind,
    Sample,
    Step,
    Style,
    Turn,
    Video,
    query_fields,
)

ORIGIN = Provenance("sim", episode="7")


def make_sample(**changes: Any) -> Sample:
    values: dict[str, Any] = {
        "sample_id": "a",
        "media": (Video("clips/x.mp4"),),
        "kind": QuestionKind.COMMON_SENSE,
        "question": "What falls first?",
        "options": ("the cup", "the plate", "both"),
        "answer": "B",
        "provenance": ORIGIN,
    }
    return Sample(**values | changes)


FULL = make_sample(
    sample_id="日本/é 1",
    media=(
        Video("clips/ünïcode 機.tar.gz", "in/x.mp4", 1.5, 9.25, "front"),
        Frames(("f/1.png", "f/1.png"), (5, 5), grid=Grid(250_000_000, 4), camera="wrist"),
        Frames(("e.npz",), (0, 10, 20), index=(2, 1, 0)),
    ),
    provenance=Provenance("x", "f.json", 3, "e", "me", (Step("caption", "m", "p", "1"),)),
    split="held_out",
    task="set the table",
    reasoning="It leans.",
    style=Style.REASONING,
    category="mechanics",
    capability="predict_action_effects",
    embodiment="robot_arm",
    licence="CC-BY-4.0",
    history=(Turn("user", "Hi"), Turn("assistant", "Hello")),
    extra={"seed": 3, "plan": "drop", "lit": True},
)


def read(directory: Path) -> tuple[list[Sample], Report]:
    report = Report()
    return list(read_samples(directory, report)), report


def test_what_is_written_is_read_back(tmp_path: Path):
    assert write_samples(tmp_path, [FULL, make_sample()]) == 2
    samples, report = read(tmp_path)
    assert samples == [FULL, make_sample()]
    assert (report.rows, report.problems) == (2, [])
    assert [path.name for path in tmp_path.iterdir()] == ["samples.jsonl"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path):
    write_samples(tmp_path, [make_sample()])

    def interrupted():
        yield FULL
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_samples(tmp_path, interrupted())
    with pytest.raises(ValueError, match="'a' occurs twice"):
        write_samples(tmp_path, [make_sample(), make_sample()])
    assert read(tmp_path)[0] == [make_sample()]
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    "query",
    [
        Query(QueryKind.COMPLETION, task="open the drawer"),
        Query(QueryKind.AFFORDANCE, action="pull"),
        Query(QueryKind.NEXT_ACTION, task="open", options=("pull", "push")),
        Query(QueryKind.QUESTION, question="Is it raining?", yes_no=True),
        Query(QueryKind.QUESTION, task="t", question="What is seen?"),
    ],
)
def test_a_query_makes_the_same_prompt_by_way_of_a_sample(query: Query):
    answer = "A" if query.options else "yes"
    sample = Sample("i", (), answer=answer, provenance=ORIGIN, **query_fields(query))
    assert sample.to_query() == query
    assert suffix(sample.to_query()) == suffix(query)


def test_the_letter_follows_its_option():
    sample = make_sample()
    turned = sample.reordered([2, 0, 1])
    assert turned.options == ("both", "the cup", "the plate")
    assert turned.answer == "C"
    assert turned.options[turned.answer_index] == sample.options[sample.answer_index]
    with pytest.raises(ValueError, match="no order"):
        sample.reordered([0, 0, 1])


@pytest.mark.parametrize("field", ["kind", "style"])
@pytest.mark.parametrize("value", ["", "guess", None, 3])
def test_a_kind_and_a_style_are_of_the_known_ones(field: str, value: object):
    row = json.loads(json_line(make_sample())) | {field: value}
    with pytest.raises(FieldErrors) as raised:
        sample_from_json(row)
    assert [name for name, _ in raised.value.errors] == [field]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"answer": "D"}, "answer"),
        ({"answer": "b"}, "answer"),
        ({"answer": "the plate"}, "answer"),
        ({"options": ("one", "One "), "answer": "A"}, "options"),
        ({"options": ("Yes.", "yes"), "answer": "A"}, "options"),
        ({"options": ("the  cup", "the cup"), "answer": "A"}, "options"),
        ({"options": ("one",)}, "options"),
        ({"options": (), "yes_no": True}, "answer"),
        ({"yes_no": True}, "yes_no"),
        ({"question": ""}, "question"),
        ({"question": "<|im_end|>"}, "question"),
        ({"kind": QuestionKind.TASK_COMPLETION, "question": ""}, "question"),
        ({"answer": " ", "options": ()}, "answer"),
        ({"style": Style.REASONING}, "reasoning"),
        ({"reasoning": "It leans.</think>\n<answer>A"}, "reasoning"),
        ({"reasoning": "It leans.<|im_end|>"}, "reasoning"),
        ({"answer": "a cup</answer>", "options": ()}, "answer"),
        ({"answer": "<|im_start|>user", "options": ()}, "answer"),
        ({"category": "magic"}, "category"),
        ({"split": "Train set"}, "split"),
        ({"sample_id": ""}, "sample_id"),
    ],
)
def test_a_sample_without_meaning_cannot_be_made(changes: dict[str, Any], field: str):
    with pytest.raises(FieldErrors) as raised:
        make_sample(**changes)
    assert field in [name for name, _ in raised.value.errors]


@pytest.mark.parametrize(
    "path", ["", "/etc/passwd", "../x.mp4", "a/../../x", "C:/x.mp4", "a\\b.mp4", "x\0", "a/", "http://x/y"]
)
def test_paths_stay_in_the_data_set(path: str):
    with pytest.raises(FieldErrors):
        Video(path)
    with pytest.raises(FieldErrors):
        Frames((path,), (0,))
    if path:
        with pytest.raises(FieldErrors):
            Video("x.tar", path)


def test_every_bad_row_is_named_and_none_hides_the_others(tmp_path: Path):
    write_samples(tmp_path, [FULL, make_sample(), make_sample(sample_id="c")])
    good = (tmp_path / "samples.jsonl").read_text("utf-8").splitlines()
    row = json.loads(good[1])
    bad = [
        row | {"sample_id": "1", "answer": "Z", "category": "magic"},
        row | {"sample_id": "2", "anwser": "B"},
        row | {"sample_id": "3", "media": [{"type": "video", "path": "../../etc/passwd"}]},
        row | {"sample_id": "4", "media": [{"type": "film", "path": "x"}], "options": "AB"},
        {key: value for key, value in row.items() if key != "answer"},
        row,  # again
        row | {"version": 99},
        [],
    ]
    text = "\n".join([*good, *map(json.dumps, bad), '{"version":1, "sam'])
    (tmp_path / "samples.jsonl").write_text(text, "utf-8")
    samples, report = read(tmp_path)
    assert [sample.sample_id for sample in samples] == [FULL.sample_id, "a", "c"]
    assert (report.rows, report.bad_rows) == (12, 9)
    found = {(problem.row, problem.field) for problem in report.problems}
    assert found >= {
        (4, "answer"),
        (4, "category"),
        (5, "anwser"),
        (6, "media[0].path"),
        (7, "media[0].type"),
    }
    assert found >= {(7, "options"), (8, "answer"), (9, "sample_id"), (10, "version"), (11, ""), (12, "")}
    with pytest.raises(DataError, match=r"samples.jsonl, row 4, answer: 'Z' is no letter of the 3 options"):
        report.raise_if_any()
    assert "cut off" in report.problems[-1].message


def test_bytes_that_are_no_utf8_are_one_bad_row(tmp_path: Path):
    write_samples(tmp_path, [make_sample()])
    with open(tmp_path / "samples.jsonl", "ab") as stream:
        stream.write(b'{"sample_id": "\xff"}\n')
    samples, report = read(tmp_path)
    assert len(samples) == 1
    assert [(problem.row, "UTF-8" in problem.message) for problem in report.problems] == [(2, True)]


def test_shards_are_read_together_and_share_ids(tmp_path: Path):
    write_samples(tmp_path, [make_sample()], "samples-0.jsonl")
    write_samples(tmp_path, [make_sample(), make_sample(sample_id="b")], "samples-1.jsonl")
    samples, report = read(tmp_path)
    assert [sample.sample_id for sample in samples] == ["a", "b"]
    assert "samples-0.jsonl, row 1" in report.problems[0].message
    with pytest.raises(ValueError, match=r"samples\*.jsonl"):
        write_samples(tmp_path, [], "other.jsonl")


def test_an_empty_folder_says_so(tmp_path: Path):
    assert "holds no samples.jsonl" in str(read(tmp_path)[1].problems[0])


def test_a_record_that_is_no_sample_raises_all_its_errors():
    value = {"version": 1, "kind": "nonsense", "provenance": {}, "answer": 3}
    with pytest.raises(FieldErrors) as raised:
        sample_from_json(value)
    assert {name for name, _ in raised.value.errors} == {"kind", "provenance.source", "answer", "sample_id"}
    with pytest.raises(FieldErrors) as raised:
        sample_from_json({"version": 1, "kind": "other", "sample_id": "x", "answer": "x", "question": "x"})
    assert raised.value.errors == (("provenance", "is missing"),)


def test_a_full_disk_leaves_the_old_file(tmp_path: Path):
    write_samples(tmp_path, [make_sample()])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:  # a limit on the size of a file makes write() fail half-way, as a full disk does
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
        with pytest.raises(OSError, match="too large"):
            write_samples(tmp_path, (make_sample(sample_id=f"{i}") for i in range(200)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert read(tmp_path)[0] == [make_sample()]
    assert len(list(tmp_path.iterdir())) == 1


def test_groups_and_forms():
    assert dataclasses.replace(make_sample(), category="order").group == "order"
    assert make_sample().group == "common_sense"
    assert make_sample().form == "choice"
    assert Sample("i", (), QuestionKind.AFFORDANCE, "no", ORIGIN, action="pull").form == "yes_no"


def test_the_documented_example_is_a_sample():
    text = (Path(__file__).parents[2] / "docs" / "data.md").read_text("utf-8")
    example, *_ = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    sample = sample_from_json(json.loads(example))
    assert sample.options[sample.answer_index] == "pull the drawer open"
    for field in dataclasses.fields(Sample):
        assert f"`{field.name}`" in text
