# SPDX-License-Identifier: Apache-2.0
"""Whatever a file holds, readers report it and go on; what they accept can be written and asked."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from cosmos_reason_node.prompt import suffix
from training.data.problems import FieldErrors, Report
from training.data.readers import cosmos_reason, jsonl, llava
from training.data.readers.conversation import parse_answer, parse_question

FEW = settings(max_examples=40, deadline=None, derandomize=True)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
TEXTS = st.sampled_from(
    ["", "a", "B", "yes", "x.mp4", "../x", "<video>\n?", "<think>", "(A) x\n(B) y", "é\ud800"]
)


def mutated(row: dict[str, Any]) -> st.SearchStrategy[Any]:
    """``row`` with something else in one or two places."""
    return st.dictionaries(st.sampled_from(list(row)), VALUES | TEXTS, max_size=2).map(lambda new: row | new)


SAMPLE = {
    "version": 1,
    "sample_id": "a",
    "media": [{"type": "video", "path": "x.mp4"}],
    "kind": "other",
    "question": "?",
    "options": ["x", "y"],
    "answer": "A",
    "provenance": {"source": "s"},
    "extra": {"a": 1},
    "split": "train",
}
QA = {"question": "?", "index2ans": {"A": "x", "B": "y"}, "answer": "A"}
TURNS = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "x"}]
SAID = [{"from": "human", "value": "?"}, {"from": "gpt", "value": "x"}]
ROWS = {
    "qa_pairs": mutated(QA).map(lambda qa: {"video": "x.mp4", "qa_pairs": qa})
    | mutated({"video": "x.mp4", "qa_pairs": [QA, QA]}),
    "conversations": mutated({"video": "x.mp4", "conversations": TURNS, "id": 1})
    | mutated(TURNS[1]).map(lambda turn: {"video": "x.mp4", "conversations": [TURNS[0], turn]}),
    "from": mutated({"video": "x.mp4", "conversations": SAID, "id": "i"})
    | mutated(SAID[1]).map(lambda turn: {"conversations": [SAID[0], turn]}),
}


@FEW
@given(mutated(SAMPLE) | VALUES)
def test_samples(value: Any):
    try:
        sample = jsonl.sample_from_json(value)
    except FieldErrors:
        return
    suffix(sample.to_query()).encode()
    assert jsonl.sample_from_json(json.loads(jsonl.json_line(sample))) == sample


def read_all(reader: Any, name: str, rows: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        (root / name).write_text(json.dumps(rows))
        report = Report()
        samples = list(reader.read(root, report))
        for sample in samples:
            assert jsonl.sample_from_json(json.loads(jsonl.json_line(sample))) == sample
            suffix(sample.to_query()).encode()
        assert report.rows == len(rows)
        given = {sample.provenance.row for sample in samples} | {problem.row for problem in report.problems}
        assert given == set(range(1, len(rows) + 1))


@FEW
@given(st.lists(ROWS["qa_pairs"] | ROWS["conversations"] | VALUES, min_size=1, max_size=3))
def test_released_rows(rows: list[Any]):
    read_all(cosmos_reason, "x_benchmark_qa_pairs.json", rows)


@FEW
@given(st.lists(ROWS["from"] | VALUES, min_size=1, max_size=3))
def test_llava_rows(rows: list[Any]):
    read_all(llava, "x.json", [{"conversations": SAID}, *rows])


@FEW
@given(st.text(alphabet="AB().<>/think answer\nvideo:", max_size=80))
def test_texts(text: str):
    question, options = parse_question(text)
    assert len(options) != 1
    assert question == question.strip()
    try:
        reasoning, answer = parse_answer(text)
    except FieldErrors:
        return
    assert "<think>" not in reasoning + answer
