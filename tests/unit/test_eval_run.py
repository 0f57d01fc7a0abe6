# SPDX-License-Identifier: Apache-2.0
"""A small random model evaluated for real: asked, killed, asked on, scored again."""

import dataclasses
import errno
import json

import pytest
import torch

from cosmos_reason_node.engine.torch import TorchEngine
from cosmos_reason_node.models import qwen2_5_vl
from cosmos_reason_node.types import Query, QueryKind
from tests import tiny_model
from training.data.media import MediaError
from training.eval import run
from training.eval.__main__ import main
from training.eval.item import Benchmark, Item, Stimulus
from training.eval.prediction import PredictionLog, read_predictions
from training.eval.protocol import PROTOCOLS
from training.eval.rollout import Plan

QUERIES = (
    (Query(QueryKind.COMPLETION, task="open the drawer"), "yes"),
    (Query(QueryKind.NEXT_ACTION, task="open the drawer", options=("reach", "pull", "lift")), "B"),
    (Query(QueryKind.NEXT_ACTION, task="open the drawer"), "reach"),
)
SAMPLED = Plan(PROTOCOLS["strict"], seeds=2, permutations=3, think_tokens=12)
GREEDY = Plan(PROTOCOLS["letter"], permutations=3)


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    torch.set_num_threads(1)
    directory = tiny_model.write(tmp_path_factory.mktemp("model") / "tiny")
    return TorchEngine(qwen2_5_vl.load(directory, device="cpu"), min_confidence=0.0)


def stimulus(number, load=None):
    items = tuple(
        Item(f"{number}/{i}", f"w{number}", query, answer, query.kind.name.lower(), "noise", f"r{number}")
        for i, (query, answer) in enumerate(QUERIES)
    )
    return Stimulus(f"w{number}", items, load or (lambda: (tiny_model.window(seed=number),)))


class Killed(Exception):
    pass


def killed():
    raise Killed


def predictions(directory):
    return read_predictions(directory / run.PREDICTIONS)


@pytest.mark.parametrize("plan", [SAMPLED, GREEDY], ids=["sampled", "greedy"])
def test_a_killed_evaluation_ends_with_the_same_predictions(engine, tmp_path, plan):
    through, cut = tmp_path / "through", tmp_path / "cut"
    run.ask(engine, Benchmark("b", (stimulus(0), stimulus(1))), plan, run.Labels(), through)
    with pytest.raises(Killed):
        run.ask(engine, Benchmark("b", (stimulus(0), stimulus(1, killed))), plan, run.Labels(), cut)
    before = (cut / run.PREDICTIONS).read_bytes()
    # Killed in the middle of a line; other branches share the next request than would have.
    (cut / run.PREDICTIONS).write_bytes(before[: len(before) * 2 // 3])
    smaller = dataclasses.replace(plan, max_branches=2)
    run.ask(engine, Benchmark("b", (stimulus(0), stimulus(1))), smaller, run.Labels(), cut)
    # Rows beside a row change the last bits of its probabilities, and nothing else.
    ours, theirs = predictions(cut), predictions(through)
    assert ours.keys() == theirs.keys()
    for key, said in ours.items():
        assert said.confidence == pytest.approx(theirs[key].confidence, abs=1e-4)
        assert said.shares == pytest.approx(theirs[key].shares, abs=1e-4)
        assert dataclasses.replace(said, confidence=0, shares=()) == dataclasses.replace(
            theirs[key], confidence=0, shares=()
        )
    # yes/no and free form with the runs' seeds, options in three orders; all with and without video.
    assert len(predictions(through)) == 2 * ((3 * plan.runs + 2) + 3 * plan.runs)


def test_sampled_answers_at_once_have_the_empty_thought_and_a_name_of_their_own(engine, tmp_path):
    plan = dataclasses.replace(SAMPLED, think_tokens=0)
    assert plan.decoding != SAMPLED.decoding
    run.ask(engine, Benchmark("b", (stimulus(0),)), plan, run.Labels(), tmp_path)
    said = list(predictions(tmp_path).values())
    assert said
    assert all(one.output.startswith("<think>\n\n</think>\n\n<answer>\n") for one in said)


def test_another_precision_is_another_evaluation(engine, tmp_path):
    one = Benchmark("b", (stimulus(0),))
    run.ask(engine, one, GREEDY, run.Labels(), tmp_path, replace=False)
    before = len(predictions(tmp_path))
    half = TorchEngine(
        qwen2_5_vl.load(tiny_model.write(tmp_path / "m"), "cpu", "bfloat16"), min_confidence=0.0
    )
    assert half.info.digest == engine.info.digest
    with pytest.raises(
        ValueError, match=r"another engine or precision \(torch float32, not torch bfloat16\)"
    ):
        run.ask(half, one, GREEDY, run.Labels(), tmp_path, replace=False)
    run.ask(half, one, GREEDY, run.Labels(), tmp_path)
    assert len(predictions(tmp_path)) == 2 * before
    assert run.score(tmp_path)["letter"]["overall"]["n"] == 3


def test_what_was_asked_is_not_asked_again(engine, tmp_path):
    run.ask(engine, Benchmark("b", (stimulus(0),)), GREEDY, run.Labels(), tmp_path)
    before = (tmp_path / run.PREDICTIONS).read_bytes()
    run.ask(engine, Benchmark("b", (stimulus(0, killed),)), GREEDY, run.Labels(), tmp_path)
    assert (tmp_path / run.PREDICTIONS).read_bytes() == before


def test_more_windows_go_on_and_fewer_may_not_shrink_the_report(engine, tmp_path):
    two = Benchmark("b", (stimulus(0), stimulus(1)))
    run.ask(engine, Benchmark("b", (stimulus(0),)), GREEDY, run.Labels(), tmp_path, replace=False)
    run.ask(engine, two, GREEDY, run.Labels(), tmp_path, replace=False)
    with pytest.raises(ValueError, match=r"another number of windows \(2, not 1\): choose another --out"):
        run.ask(engine, Benchmark("b", (stimulus(0),)), GREEDY, run.Labels(), tmp_path, replace=False)
    assert run.read_run(tmp_path)["benchmark"]["windows"] == 2
    run.ask(engine, Benchmark("b", (stimulus(0),)), GREEDY, run.Labels(), tmp_path)
    assert run.read_run(tmp_path)["benchmark"]["windows"] == 1


def test_reports_are_made_again_without_the_model(engine, tmp_path, capsys):
    run.ask(engine, Benchmark("b", (stimulus(0),)), GREEDY, run.Labels("base"), tmp_path)
    run.ask(engine, Benchmark("b", (stimulus(0),)), SAMPLED, run.Labels("base"), tmp_path)
    reports = run.score(tmp_path)
    assert list(reports) == ["letter", "strict", "released"]  # the last two from the same predictions
    assert reports["letter"]["overall"]["unparsed"] == 0  # the grammar
    assert reports["strict"]["overall"]["unparsed"] == 6  # noise does not keep to the format
    assert reports["letter"]["stage"] == "base"
    written = {path.name: path.read_bytes() for path in tmp_path.glob("letter.*")}
    assert len(written) == 3
    for name in written:
        (tmp_path / name).unlink()
    assert main(["score", str(tmp_path), "--protocol", "letter"]) == 0
    assert {path.name: path.read_bytes() for path in tmp_path.glob("letter.*")} == written
    assert b"data:image/jpeg" in written["letter.html"]
    assert "| completion | 1 |" in capsys.readouterr().out


def test_an_unreadable_clip_counts_as_wrong_and_is_tried_again(engine, tmp_path):
    def missing():
        raise MediaError("clip.mp4 is missing")

    run.ask(engine, Benchmark("b", (stimulus(0, missing), stimulus(1))), GREEDY, run.Labels(), tmp_path)
    overall = run.score(tmp_path)["letter"]["overall"]
    assert (overall["n"], overall["errors"]) == (6, 3)
    run.ask(engine, Benchmark("b", (stimulus(0), stimulus(1))), GREEDY, run.Labels(), tmp_path)
    assert run.score(tmp_path)["letter"]["overall"]["errors"] == 0


def test_what_the_engine_refuses_counts_as_wrong(engine, tmp_path):
    plan = dataclasses.replace(GREEDY, think_tokens=8000)  # more than the model's positions
    run.ask(engine, Benchmark("b", (stimulus(0),)), plan, run.Labels(), tmp_path)
    assert run.score(tmp_path)["letter"]["overall"]["errors"] == 3
    assert all("QUESTION_TOO_LONG" in found.error for found in predictions(tmp_path).values())


def test_a_question_that_is_asked_twice_fails_twice(engine, tmp_path):
    """Without video equal questions are one; both of their items are counted all the same."""
    plan = dataclasses.replace(GREEDY, think_tokens=8000)
    one = stimulus(0)
    twice = tuple(dataclasses.replace(item, item_id=f"{item.item_id}'") for item in one.items)
    run.ask(
        engine,
        Benchmark("b", (dataclasses.replace(one, items=one.items + twice),)),
        plan,
        run.Labels(),
        tmp_path,
    )
    report = run.score(tmp_path)["letter"]
    assert (report["unasked"], report["overall"]["n"]) == (0, 6)


def test_questions_may_hold_any_character(engine, tmp_path):
    query = Query(QueryKind.QUESTION, question="Is it\u2028open\x85or\x0bnot?", yes_no=True)
    one = stimulus(0)
    items = (Item("ü\u2029", one.key, query, "yes", "order", "noise", "r"),)
    run.ask(engine, Benchmark("b", (dataclasses.replace(one, items=items),)), GREEDY, run.Labels(), tmp_path)
    assert run.score(tmp_path)["letter"]["overall"]["n"] == 1


def test_an_unfinished_evaluation_says_so(engine, tmp_path):
    with pytest.raises(Killed):
        run.ask(engine, Benchmark("b", (stimulus(0), stimulus(1, killed))), GREEDY, run.Labels(), tmp_path)
    report = run.score(tmp_path)["letter"]
    assert (report["unasked"], report["overall"]["n"]) == (3, 3)
    assert "not the final result" in (tmp_path / "letter.md").read_text()


def test_a_protocol_by_which_nothing_of_it_was_asked_has_no_report(engine, tmp_path):
    """The clips have changed since it was: all of them are new items."""
    run.ask(engine, Benchmark("b", (stimulus(0),)), GREEDY, run.Labels(), tmp_path)
    run.ask(engine, Benchmark("b", (stimulus(1),)), SAMPLED, run.Labels(), tmp_path)
    assert list(run.score(tmp_path)) == ["strict", "released"]
    with pytest.raises(ValueError, match="no item was asked in full"):
        run.score(tmp_path, ["letter"])


def test_command_line_says_what_is_wrong(tmp_path, capsys):
    assert main(["score", str(tmp_path)]) == 1
    assert "holds no evaluation" in capsys.readouterr().err
    model = ["--model", "models/nano"]
    assert main([*model, "--bench", "embodied"]) == 1
    assert "nvidia/Cosmos-Reason1-Benchmark" in capsys.readouterr().err
    assert main([*model, "--bench", "nonsense"]) == 1
    assert "there is no nonsense" in capsys.readouterr().err
    assert main([*model, "--bench", "sim", "--data", str(tmp_path)]) == 1
    assert "no episodes or clips" in capsys.readouterr().err
    assert main(["--model", str(tmp_path / "none"), "--bench", "sim"]) == 1
    assert "no checkpoint directory" in capsys.readouterr().err


def test_a_full_disk_is_named_and_the_next_run_goes_on(engine, tmp_path, monkeypatch, capsys):
    full = OSError(errno.ENOSPC, "No space left on device")  # as write() raises it: without a file
    append = PredictionLog.append
    calls = []

    def fails(log, predictions):
        calls.append(1)
        if len(calls) == 2:
            raise full
        append(log, predictions)

    bench = Benchmark("b", (stimulus(0), stimulus(1)))
    monkeypatch.setattr(PredictionLog, "append", fails)
    with pytest.raises(OSError, match=str(tmp_path)):
        run.ask(engine, bench, GREEDY, run.Labels(), tmp_path)
    kept = predictions(tmp_path)
    assert kept
    run.ask(engine, bench, GREEDY, run.Labels(), tmp_path)
    assert predictions(tmp_path).items() > kept.items()
    assert run.score(tmp_path)["letter"]["unasked"] == 0

    monkeypatch.setattr(run, "write_text", lambda *_: (_ for _ in ()).throw(full))
    assert main(["score", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert str(tmp_path) in said
    assert "make room there and start it again" in said


def test_a_damaged_run_file_is_named(tmp_path):
    (tmp_path / run.RUN).write_text(json.dumps({"model": {}}))
    with pytest.raises(ValueError, match=r"run\.json is damaged"):
        run.score(tmp_path)
