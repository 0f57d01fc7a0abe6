# SPDX-License-Identifier: Apache-2.0
"""Predictions written by hand, and what is made of them."""

import json
import re

import pytest

from cosmos_reason_node.types import Query, QueryKind
from training.data.schema import Provenance, QuestionKind, Sample
from training.eval.export import export, rows
from training.eval.failures import choose
from training.eval.item import Item
from training.eval.markdown import markdown
from training.eval.page import page
from training.eval.prediction import Key, Prediction, PredictionLog, read_predictions
from training.eval.protocol import PROTOCOLS
from training.eval.report import build
from training.eval.scoring import Run, cell, read_outcomes

RUN = Run("m", "p", "d", seeds=2, permutations=3, blind=True)
STRICT = PROTOCOLS["strict"]
OPTIONS = ("cup", "fork", "plate")
EVIL = "<script>alert(1)</script>"


def item(number, group="order", answer="B", options=OPTIONS, **more):
    query = Query(QueryKind.QUESTION, question=f"Which? {EVIL}", options=options, yes_no=not options)
    more = {"source": "sim", "cluster": f"r{number}", **more}
    return Item(f"i{number}", f"w{number}", query, answer, group, **more)


def said(answer, confidence=0.9, error=""):
    text = f"<think>{EVIL}</think><answer>{answer}</answer>"
    return text, confidence, error


def log_of(entries):
    """{(item, seed, rotation, video): (output, confidence, error)} as predictions."""
    found = {}
    for (one, seed, rotation, video), (output, confidence, error) in entries.items():
        key = Key(one.item_id, one.digest, "m", "p", "d", seed, rotation, video)
        found[key] = Prediction(key, output, confidence, error=error)
    return found


def full(one, seeing, blind="C", rotated=()):
    """All that RUN asks of a multiple-choice item: letters by seed, and by rotation from 1 on."""
    entries = {(one, seed, 0, True): said(letter) for seed, letter in enumerate(seeing)}
    entries |= {(one, seed, 0, False): said(blind) for seed in range(2)}
    return entries | {(one, 0, 1 + i, True): said(letter) for i, letter in enumerate(rotated)}


def test_what_does_not_parse_or_failed_is_wrong_and_counted():
    one, two = item(1), item(2)
    entries = full(one, ["B", "no idea"], rotated=["A", "C"])
    entries |= full(two, ["B", "B"], rotated=["A", "C"]) | {(two, 1, 0, True): said("B", error="no clip")}
    outcomes, unasked = read_outcomes([one, two], log_of(entries), RUN, STRICT)
    scores = cell(outcomes)
    assert unasked == 0
    assert scores["mean"] == 0.5  # two of four, none left out
    assert (scores["unparsed"], scores["errors"]) == (1, 1)
    assert scores["said"] == {"B": 2, "(unparsed)": 1, "(error)": 1}
    assert scores["blind"]["mean"] == 0.0
    assert scores["above_blind"]["mean"] == 0.5
    assert scores["ece"] == pytest.approx(0.1)  # of the two that say something


def test_items_not_asked_in_full_are_told_apart_from_wrong_ones():
    one, two = item(1), item(2)
    entries = full(one, ["B", "B"], rotated=["A", "C"]) | full(two, ["B"], rotated=["A", "C"])
    outcomes, unasked = read_outcomes([one, two], log_of(entries), RUN, STRICT)
    assert ([o.item for o in outcomes], unasked) == ([one], 1)


def test_a_prediction_about_another_version_of_the_item_does_not_count():
    old = log_of(full(item(1), ["B", "B"], rotated=["A", "C"]))
    changed = item(1, answer="C")
    assert read_outcomes([changed], old, RUN, STRICT) == ([], 1)


def test_permutations_tell_a_letter_lover_from_one_who_looks():
    looks, loves = item(1), item(2)
    # Rotated by one, "fork" moves from B to A; by two, to C.
    entries = full(looks, ["B", "B"], rotated=["A", "C"]) | full(loves, ["B", "B"], rotated=["B", "B"])
    outcomes, _ = read_outcomes([looks, loves], log_of(entries), RUN, STRICT)
    orders = cell(outcomes)["permutations"]
    assert cell(outcomes)["mean"] == 1.0  # which plain accuracy cannot tell
    assert orders["consistent"]["mean"] == 0.5
    assert orders["mean"] == pytest.approx((1 + 1 / 3) / 2, abs=1e-4)
    assert orders["circular"]["mean"] == 0.5


def report_of(items, letters, **more):
    entries = {}
    for one, letter in zip(items, letters, strict=True):
        rotated = ["A", "C"] if one.query.options else []
        entries |= full(one, [letter, letter], blind="A" if one.query.options else "no", rotated=rotated)
    outcomes, unasked = read_outcomes(items, log_of(entries), RUN, STRICT)
    facts = {
        "model": {
            "model_id": f"nano {EVIL}",
            "digest": "abc",
            "prompt_id": "p",
            "engine": "torch",
            "device": "cpu",
            "dtype": "float32",
        },
        "stage": "sft",
        "benchmark": {"name": "sim", "notes": [], "windows": 3, "items": 3, "official": False},
        "protocol": {"name": "strict", "about": "sampled"},
        "settings": {"seeds": 2, "decoding": "d"},
    }
    return build(outcomes, unasked, facts, **more), outcomes


def test_held_out_tasks_are_reported_apart():
    items = [item(1), item(2, tasks=("Open the Drawer",)), item(3, tasks=("drawer",))]
    report, _ = report_of(items, "BCB", held_out_tasks=["open the drawer"])
    assert report["overall"]["n"] == 2
    assert report["overall"]["mean"] == 1.0
    assert report["new_tasks"]["order"]["n"] == 1
    assert report["new_tasks"]["order"]["mean"] == 0.0


def test_the_papers_layout():
    items = [
        item(1, category="order"),
        item(2, group="arrow_of_time"),
        item(3, group="spatial_puzzle"),
        item(4, group="object_permanence"),
        item(5, group="embodied", source="bridgev2"),
    ]
    report, _ = report_of(items, "BBCBB")
    physics = report["paper"]["intuitive_physics"]
    assert physics["rows"][0]["values"] == [100.0, 0.0, 100.0, pytest.approx(66.7)]
    assert [row["published"] for row in physics["rows"]].count(True) == 7
    sense = report["paper"]["common_sense"]
    assert sense["rows"][0]["values"] == [None, 100.0, None, None]  # no average of a part
    assert report["paper"]["embodied"]["rows"][0]["values"][0] == 100.0
    text = markdown(report)
    assert "*published:* OpenAI o1 | 51.0 | 64.0 | 49.0 | 54.7" in text
    assert "cannot be compared" in text


def test_common_sense_about_object_permanence_is_physics_and_not_the_simulated_kind():
    sample = Sample(
        "s",
        (),
        QuestionKind.COMMON_SENSE,
        "yes",
        Provenance("web"),
        question="Is it still there?",
        yes_no=True,
        category="object_permanence",
    )
    items = [
        item(1, group=sample.group, category=sample.category),
        item(2, category="order"),
        item(3, category="relationship"),
    ]
    paper = report_of(items, "BBB")[0]["paper"]
    assert paper["common_sense"]["rows"][0]["values"][:3] == [100.0, 100.0, 100.0]
    assert "intuitive_physics" not in paper


def test_the_page_is_whole_and_escapes_what_it_shows(tmp_path):
    items = [item(1), item(2, group="states", options=(), answer="yes"), item(3, group="camera")]
    report, outcomes = report_of(items, ["C", "maybe", "B"])
    text = page(report, outcomes, tmp_path)
    assert EVIL not in text
    assert "alert(1)" in text
    assert not re.search(r"(src|href)=|url\((?!data:)|https?://", text)
    assert "default-src &#x27;none&#x27;" in text
    assert text.count("<article") == 2  # the wrong ones
    assert "<generator" not in text


def test_failures_take_turns_by_kind_the_surest_first():
    items = [item(i, group="order" if i < 8 else "states") for i in range(10)]
    _, outcomes = report_of(items, "C" * 10)
    shown = choose(outcomes, most=4)
    assert [failure.tags[0] for failure in shown] == ["order", "states", "order", "states"]
    assert shown[0].wrong == 2


def test_export_has_a_row_for_the_model_for_blindness_and_for_chance(tmp_path):
    items = [item(1), item(2, group="states", options=(), answer="yes", tasks=("drawer",))]
    report, _ = report_of(items, ["B", "yes"], held_out_tasks=["drawer"])
    path = tmp_path / "strict.json"
    path.write_text(json.dumps(report))
    made = export([path], tmp_path / "eval.json")
    assert json.loads((tmp_path / "eval.json").read_text()) == made
    assert [row["stage"] for row in made] == ["sft", "blind", "random"]
    assert {row["decoding"] for row in made} == {"d"}
    assert made[0]["scores"]["order"] == {"mean": 1.0, "ci95": report["by_kind"]["order"]["ci95"], "n": 1}
    assert made[1]["scores"]["order"]["mean"] == 0.0
    assert made[2]["scores"]["order"]["ci95"] == [0.3333, 0.3333]
    assert made[2]["new_tasks"]["states"]["mean"] == 0.5
    assert len(rows([report, report])) == 3


def test_export_refuses_what_is_not_finished(tmp_path):
    report, _ = report_of([item(1)], "B")
    (tmp_path / "a.json").write_text(json.dumps({**report, "unasked": 3}))
    with pytest.raises(ValueError, match="3 items have not been asked"):
        export([tmp_path / "a.json"], tmp_path / "eval.json")
    (tmp_path / "b.json").write_text("{}")
    with pytest.raises(ValueError, match="is no report"):
        export([tmp_path / "b.json"], tmp_path / "eval.json")
    assert not (tmp_path / "eval.json").exists()


def key(number, **more):
    return Key(**{"item": f"ü{number}", "digest": "x", "model": "m", "prompt": "p", "decoding": "d"} | more)


def test_a_torn_line_is_dropped_and_asked_again(tmp_path):
    path = tmp_path / "predictions.jsonl"
    kept, torn = (key(n, seed=0, rotation=0, video=True) for n in (1, 2))
    log = PredictionLog(path)
    log.append([Prediction(kept, "a\nb", 0.5), Prediction(torn, "b")])
    path.write_bytes(path.read_bytes()[:-9])  # killed while writing
    log = PredictionLog(path)
    assert log.has(kept)
    assert not log.has(torn)
    log.append([Prediction(torn, "c")])
    assert {k: p.output for k, p in read_predictions(path).items()} == {kept: "a\nb", torn: "c"}


def test_errors_are_asked_again_and_the_last_word_counts(tmp_path):
    one = key(1, seed=0, rotation=0, video=True)
    log = PredictionLog(tmp_path / "p.jsonl")
    log.append([Prediction(one, "", error="no clip")])
    assert not PredictionLog(log.path).has(one)
    log.append([Prediction(one, "here")])
    assert PredictionLog(log.path).found[one].output == "here"


def test_a_damaged_line_is_named(tmp_path):
    path = tmp_path / "p.jsonl"
    PredictionLog(path).append([Prediction(key(1, seed=0, rotation=0, video=True), "x")])
    path.write_text('{"item": 3}\n' + path.read_text())
    with pytest.raises(ValueError, match=r"p\.jsonl, row 1"):
        PredictionLog(path)
