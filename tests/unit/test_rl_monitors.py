# SPDX-License-Identifier: Apache-2.0
"""Warnings, the page, and the simulation of a cluster."""

import dataclasses
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest

from cosmos_reason_node.types import Query, QueryKind
from training.rl.config import make_config
from training.rl.groups import Group, Judgement, Sampled, Ticket
from training.rl.monitors import Monitor, flat, warnings
from training.rl.page import page
from training.rl.simulate import Cluster, Phases, asynchronous, compare, main, synchronous
from training.sft.report import RunLog


def entry(step, **changes):
    return {
        "step": step,
        "reward": 1.0,
        "accuracy": 0.7,
        "format": 0.9,
        "accuracy_by_source": {"<b>robot": 0.7, "physics": 0.7},
        "none_accuracy": None,
        "length": 20.0,
        "longest": 40,
        "cut": 0.0,
        "zero_variance": 0.3,
        "staleness": {"0": 100, "1": 50},
        "said": {"A": 30, "B": 30, "yes": 40},
        "right": {"A": 30, "B": 30, "other": 40},
        "attempts": [0],
        "digest": "",
        "idle": {"trainer": 0.2},
        "counts": {"taken_back": 0, "failed": 0},
        "publish_s": 0.1,
        "seconds": 2.0,
        "answers_per_s": 50.0,
    } | changes


def trained(step, **changes):
    return {"step": step, "entropy": 1.0, "kl": 0.01, "clip_fraction": 0.0, "importance": 1.0} | changes


def test_a_healthy_run_warns_of_nothing():
    assert warnings([entry(i) for i in range(30)], [trained(i) for i in range(30)]) == []


@pytest.mark.parametrize(
    ("changes", "later", "message"),
    [
        ({"said": {"A": 99, "B": 1}}, {}, "option A is nearly always chosen"),
        ({"zero_variance": 0.95}, {}, "teach nothing"),
        ({"cut": 0.8}, {}, "do not end within rollout.max_tokens"),
        ({"format": 0.1}, {}, "format gets lost"),
        ({}, {"kl": 2.0}, "more than 1 nat"),
        ({}, {"entropy": 0.001}, "entropy has fallen"),
    ],
)
def test_collapse_is_seen_and_says_what_to_do(changes, later, message):
    entries = [entry(i) for i in range(10)] + [entry(i, **changes) for i in range(10, 20)]
    steps = [trained(i) for i in range(10)] + [trained(i, **later) for i in range(10, 20)]
    found = warnings(entries, steps)
    assert len(found) == 1
    assert message in found[0]


def test_a_letter_that_is_mostly_right_is_no_collapse():
    entries = [entry(i, said={"A": 99, "B": 1}, right={"A": 95, "B": 5}) for i in range(20)]
    assert warnings(entries, []) == []


def test_the_page_stands_alone_and_escapes_names():
    html = page("run <1>", [entry(i) for i in range(12)], [trained(i) for i in range(12)])
    assert "run &lt;1&gt;" in html
    assert "&lt;b&gt;robot" in html
    assert "<script" not in html
    assert "http" not in html
    assert html.count("<svg") >= 9
    assert "No iteration is finished" in page("x", [], [])
    assert "0.25" not in html
    long = page("x", [entry(i) for i in range(60)], [])
    assert long.count("<polyline") == 2 * long.count('stroke-opacity="0.25"')  # each with its running mean


def test_the_first_iteration_is_seen():
    assert page("x", [entry(0)], []).count("<circle") >= 9


def test_many_data_sets_are_told_apart():
    many = {f"set{i}": i / 20 for i in range(14)}
    html = page("x", [entry(i, accuracy_by_source=many) for i in range(100)], [])
    chart = html[html.index("<figcaption>Accuracy by data set") :]
    chart = chart[: chart.index("</figure>")]
    strokes = re.findall(r'stroke="(#\w+)" stroke-width="1.5" stroke-opacity="1"( stroke-dasharray)?', chart)
    assert len(strokes) == len(set(strokes)) == 15
    assert "<th>set13</th><td>65.0 %</td>" in html


def test_histograms_are_of_the_last_iterations():
    entries = [entry(i, staleness={"0": 100} if i < 10 else {"0": 30, "1": 70}) for i in range(20)]
    html = page("x", entries, [])
    bars = html[html.index("Staleness of tokens") : html.index("Answers given")]
    assert re.findall(r"[\d.]+ %", bars) == ["30.0 %", "70.0 %"]
    assert "Last 10 iterations" in html


def test_every_step_is_an_event(tmp_path, monkeypatch):
    """Also between progress lines, the several ones of an iteration, and the last."""
    shown = []
    monkeypatch.setattr(
        "training.rl.monitors.Events.add", lambda self, step, values: shown.append((step, values))
    )
    config = make_config(
        {
            "model": {"path": "m"},
            "data": {"sources": [{"path": "d"}]},
            "run": {"output": str(tmp_path), "log_every": 2},
            "grpo": {"minibatches": 2, "group_size": 2},
            "optimizer": {"steps": 6},
            "rollout": {"max_staleness": 0},
        }
    )
    options = Query(QueryKind.QUESTION, question="Which?", options=("a", "b"))
    task = SimpleNamespace(answer="A", query=options)
    answers = tuple(Sampled(said, (1, 2), (-0.1, -0.2), (0, 0), False) for said in ("x", "y"))
    log = RunLog(tmp_path, 0, 6, 1)
    for life in (0, 1):  # the second one goes on from iteration 1
        monitor = Monitor(config, tmp_path)
        monitor.published(life, 0.1)
        for iteration in range(life, 3):
            group = Group(Ticket(iteration, 0, 0), "s", answers, (Judgement(1.0, 1.0, 1.5),) * 2)
            monitor.arrived(
                iteration, [group], [task], {"idle": {}, "counts": {"taken_back": 0, "failed": 0}}
            )
            for step in (2 * iteration, 2 * iteration + 1) if not life else ():
                log.write({"step": step, "loss": 1.0, "entropy": 1.0})
        monitor.close()
        found = [(step, next(iter(values)).split("/")[0]) for step, values in shown]
        rollouts = [step for step, kind in found if kind == "rollouts"]
        trainer = [step for step, kind in found if kind == "trainer"]
        assert rollouts == list(range(life, 3))
        assert trainer == list(range(2 * life, 6))
        shown.clear()


def test_numbers_are_flat():
    assert flat({"step": 3, "a": 1, "b": {"c": 2.0}, "d": "x", "e": None}) == {"a": 1.0, "b/c": 2.0}


PHASES = Phases(
    prompt_s=1.0,
    token_s=0.1,
    train_s=0.5,
    load_s=0.0,
    publish_s=0.0,
    median_tokens=100,
    sigma=0.0,
    max_tokens=1000,
)


def test_equal_answers_take_what_arithmetic_says():
    cluster = Cluster(4, 0.5, questions=8, group_size=2, slots=1, train_efficiency=1.0)
    group = 1.0 + 0.1 * 100
    assert synchronous(PHASES, cluster) == pytest.approx(2 * group + 8 * 2 * 0.5 / 4)
    found = asynchronous(PHASES, cluster)
    # Two GPUs need 4 rounds of 11 s for 8 groups, two others train 4 s meanwhile: generation sets the pace.
    assert found["seconds"] == pytest.approx(4 * group, rel=0.05)
    assert found["rollout_idle"] < 0.1
    assert found["trainer_idle"] == pytest.approx(1 - 4 / 44, abs=0.05)


def test_staleness_hides_a_long_tail():
    tail = dataclasses.replace(PHASES, sigma=1.0, max_tokens=5000)
    times = [
        asynchronous(tail, Cluster(16, 0.25, questions=16, group_size=4, slots=1, max_staleness=s))["seconds"]
        for s in (0, 1, 4)
    ]
    assert times[0] > times[1] > times[2]
    assert compare(tail, Cluster(16, questions=16, slots=1))["speed_up"] > 1.0
    assert np.isfinite(times).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "No such file"),
        ("{", "Expecting"),
        ('{"token_s": 1}', "missing"),
        (json.dumps(dataclasses.asdict(PHASES) | {"train_s": -1}), "train_s: -1 is no number"),
        (json.dumps(dataclasses.asdict(PHASES) | {"train_s": "1"}), "train_s: '1' is no number"),
    ],
)
def test_phases_that_cannot_be_used(tmp_path, monkeypatch, capsys, text, message):
    if text is not None:
        (tmp_path / "phases.json").write_text(text)
    monkeypatch.setattr("sys.argv", ["simulate", "--phases", str(tmp_path / "phases.json")])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert message in said
    assert "give prompt_s, token_s" in said


def test_measured_phases_become_predictions_and_a_plot(tmp_path, monkeypatch):
    (tmp_path / "phases.json").write_text(json.dumps(dataclasses.asdict(PHASES)))
    monkeypatch.setattr("training.rl.simulate.GPUS", (8, 16))
    files = ["--json", str(tmp_path / "told.json"), "--plot", str(tmp_path / "told.png")]
    monkeypatch.setattr("sys.argv", ["simulate", "--phases", str(tmp_path / "phases.json"), *files])
    main()
    told = json.loads((tmp_path / "told.json").read_text())
    assert told["phases"] == dataclasses.asdict(PHASES)
    assert [row["gpus"] for row in told["predictions"]["batch of 128 questions"]] == [8, 16]
    assert (tmp_path / "told.png").read_bytes()[1:4] == b"PNG"
