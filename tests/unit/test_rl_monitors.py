# SPDX-License-Identifier: Apache-2.0
"""Warnings, the page, and the simulation of a cluster."""

import dataclasses

import numpy as np
import pytest

from training.rl.monitors import flat, warnings
from training.rl.page import page
from training.rl.simulate import Cluster, Phases, asynchronous, compare, synchronous


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
