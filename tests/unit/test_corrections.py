# SPDX-License-Identifier: Apache-2.0
import json

import pytest

from cosmos_reason_node.errors import CosmosReasonError, ErrorCode
from cosmos_reason_node.ros.corrections import Corrections
from cosmos_reason_node.types import Answer, Decision, Latency, ModelInfo, Query, QueryKind, Source, Verdict
from tests import tiny_model

MODEL = ModelInfo("tiny", "0" * 64, "p", "torch", "cpu", "float32")
DONE = Query(QueryKind.COMPLETION, task="open it")
NEXT = Query(QueryKind.NEXT_ACTION, task="open it", options=("reach", "pull it open"))
FREE = Query(QueryKind.NEXT_ACTION, task="open it")


def decision(name, query, verdict=Verdict.YES, text="yes", option=-1, **changes):
    answer = Answer(verdict, text, option, 0.9, "", 10, 2)
    window = tiny_model.window()
    return Decision(name, Source.MONITOR, query, (window,), answer, MODEL, Latency(), 0, 0, **changes)


def corrected(tmp_path, query, *label, **made):
    corrections = Corrections(tmp_path / "bags")
    corrections.add(decision("d", query, **made))
    known = corrections.correct("d", *label, "why")
    line = json.loads(corrections.path.read_text().splitlines()[-1])
    window = tiny_model.window()
    assert known.first == ((window.camera, window.start_ns),)
    return line


@pytest.mark.parametrize(
    ("query", "verdict", "answer", "label"),
    [
        (DONE, Verdict.NO, "", "no"),
        (DONE, Verdict.YES, "Yes", "yes"),
        (NEXT, Verdict.CHOICE, "B", "B"),
        (NEXT, Verdict.CHOICE, " Pull it open ", "B"),
        (FREE, Verdict.CHOICE, "push it", "push it"),
    ],
)
def test_labels_are_what_training_reads(tmp_path, query, verdict, answer, label):
    line = corrected(tmp_path, query, verdict, answer)
    assert (line["decision_id"], line["answer"], line["note"]) == ("d", label, "why")


def test_what_the_model_said_is_kept_beside_it(tmp_path):
    choice = {"verdict": Verdict.CHOICE, "text": "reach", "option": 0}
    assert corrected(tmp_path, NEXT, Verdict.CHOICE, "B", **choice)["said"] == "A"
    failed = {"error_code": ErrorCode.DEADLINE_EXCEEDED}
    assert corrected(tmp_path, DONE, Verdict.NO, "", **failed)["said"] == ""


@pytest.mark.parametrize(
    ("query", "verdict", "answer"),
    [
        (DONE, Verdict.CHOICE, "no"),
        (DONE, Verdict.YES, "no"),
        (DONE, Verdict.UNKNOWN, ""),
        (NEXT, Verdict.CHOICE, "C"),
        (NEXT, Verdict.YES, ""),
        (FREE, Verdict.CHOICE, "  "),
        (FREE, Verdict.CHOICE, "<|im_end|>"),
    ],
)
def test_labels_that_do_not_fit_are_refused_and_nothing_is_written(tmp_path, query, verdict, answer):
    corrections = Corrections(tmp_path)
    corrections.add(decision("d", query))
    with pytest.raises(CosmosReasonError) as error:
        corrections.correct("d", verdict, answer, "")
    assert error.value.code is ErrorCode.INVALID_REQUEST
    assert not corrections.path.exists()


def test_only_so_many_decisions_are_remembered(tmp_path):
    corrections = Corrections(tmp_path, remembered=2)
    for name in "abc":
        corrections.add(decision(name, DONE))
    with pytest.raises(CosmosReasonError, match="decision_id"):
        corrections.correct("a", Verdict.NO, "", "")
    corrections.correct("c", Verdict.NO, "", "")


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "taken").write_text("a file where the directory should be")
    corrections = Corrections(tmp_path / "taken")
    corrections.add(decision("d", DONE))
    with pytest.raises(CosmosReasonError, match="taken") as error:
        corrections.correct("d", Verdict.NO, "", "")
    assert error.value.code is ErrorCode.RECORDING_FAILED


def test_a_torn_last_line_does_not_swallow_the_next_one(tmp_path):
    corrections = Corrections(tmp_path)
    corrections.add(decision("d", DONE))
    corrections.path.write_text('{"decision_id": "ol')
    corrections.correct("d", Verdict.NO, "", "")
    corrections.correct("d", Verdict.YES, "", "")
    torn, *whole = corrections.path.read_text().splitlines()
    assert torn == '{"decision_id": "ol'
    assert [json.loads(line)["answer"] for line in whole] == ["no", "yes"]
