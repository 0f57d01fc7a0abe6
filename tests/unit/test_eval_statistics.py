# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from cosmos_reason_node.types import Query, QueryKind
from training.eval.baselines import COMMON, best_without_video, random_guess
from training.eval.item import Item
from training.eval.published import LAYOUTS
from training.eval.statistics import bootstrap, calibration_error, difference, estimate, wilson


def test_interval_of_independent_items_is_the_textbook_one():
    values = np.random.default_rng(1).random((400, 1)) < 0.7
    found = estimate(values, np.arange(400))
    error = np.sqrt(found.mean * (1 - found.mean) / 400)
    assert found.mean == values.mean()
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_items_of_one_recording_count_as_one():
    each = np.random.default_rng(1).random((40, 1)) < 0.5
    values, clusters = np.repeat(each, 10, axis=0), np.repeat(np.arange(40), 10)
    together = estimate(values, clusters)
    apart = estimate(values, np.arange(400))
    assert together.mean == apart.mean
    assert (together.high - together.low) / (apart.high - apart.low) == pytest.approx(np.sqrt(10), rel=0.2)


def test_runs_that_differ_widen_the_interval():
    alike = np.tile(np.arange(100)[:, None] % 2 == 0, (1, 5))
    differing = np.tile(np.array([1, 1, 1, 0, 0]) > 0, (100, 1))
    assert np.ptp(bootstrap(differing, np.arange(100))) > 0.5  # only which runs were made
    assert np.ptp(bootstrap(alike[:, :1], np.arange(100))) == pytest.approx(
        np.ptp(bootstrap(alike, np.arange(100)))
    )


def test_perfect_scores_are_not_certain():
    found = estimate(np.ones((20, 1), bool), np.arange(20))
    assert found.mean == 1.0
    assert found.low == pytest.approx(0.839, abs=1e-3)  # Wilson, 20 of 20
    assert found.high == 1.0
    assert wilson(0.5, 100).low == pytest.approx(0.4038, abs=1e-3)


def test_a_paired_difference_sees_what_unpaired_intervals_miss():
    rng = np.random.default_rng(0)
    hard = rng.random((100, 1)) < 0.5
    better = hard | (rng.random((100, 1)) < 0.2)
    gain = difference(better, hard, np.arange(100))
    assert gain.low > 0
    assert gain.p < 0.01
    assert estimate(better, np.arange(100)).low < estimate(hard, np.arange(100)).high
    nothing = difference(hard, hard, np.arange(100))
    assert (nothing.mean, nothing.p) == (0.0, 1.0)


def test_one_recording_is_no_evidence_however_often_it_is_asked():
    runs = np.array([[1, 1, 0, 1, 1]]) > 0  # the bootstrap sees but the runs
    assert estimate(runs, np.zeros(1)).low < 0.3
    one = difference(np.ones((1, 1)), np.zeros((1, 1)), np.zeros(1))
    assert (one.mean, one.high, one.p) == (1.0, 1.0, 1.0)
    assert one.low < 0  # a coin would have done that
    assert difference(runs, ~runs, np.zeros(1)).p == 1.0


def test_equal_differences_of_many_recordings_are_evidence_but_no_certainty():
    gain = difference(np.ones((12, 1)), np.zeros((12, 1)), np.arange(12))
    assert 0.4 < gain.low < gain.high == 1.0
    assert gain.p == pytest.approx(2 * 0.5**12, abs=1e-3)
    loss = difference(np.zeros((12, 1)), np.ones((12, 1)), np.arange(12))
    assert (loss.low, loss.high) == pytest.approx((-gain.high, -gain.low))


def test_calibration_error():
    sure = np.full(100, 0.8)
    assert calibration_error(sure, np.arange(100) < 80) == pytest.approx(0.0)
    assert calibration_error(sure, np.arange(100) < 50) == pytest.approx(0.3)
    both = np.array([0.95] * 50 + [1.0] * 50)  # a confidence of 1 belongs to the last bin
    assert calibration_error(both, np.zeros(100, bool)) == pytest.approx(0.975)


def item(number, question, answer, options=(), group="order", yes_no=False):
    query = Query(QueryKind.QUESTION, question=question, options=options, yes_no=yes_no)
    return Item(str(number), str(number), query, answer, group, "s", str(number))


def test_a_repeated_question_is_worth_its_most_frequent_answer():
    items = [item(i, "Is it open?", "yes" if i < 7 else "no", yes_no=True) for i in range(10)]
    assert best_without_video(items).mean() == 0.7
    # Of options, the most frequent among those that are offered.
    items = [item(i, "Which?", "A", ("cup", "fork")) for i in range(COMMON)]
    items.append(item(99, "Which?", "B", ("fork", "spoon")))
    assert best_without_video(items)[:COMMON].all()


def test_options_that_are_offered_once_tell_nothing_of_which_is_right():
    """The words of the question may be the same all the time: only its own item knows its right option."""
    items = [
        item(i, "What is next?", "ABCD"[i % 4], tuple(f"step {i}{x}" for x in "abcd")) for i in range(20)
    ]
    assert best_without_video(items).mean() == 0.25
    again = [item(i, "What is next?", "B", (f"wrong {i}", "pull")) for i in range(20, 40)]
    assert best_without_video([*items, *again])[20:].all()


def test_questions_asked_once_are_worth_no_more_than_their_most_frequent_letter():
    letters = "AAABBC" * 5
    items = [item(i, f"Which of {i}?", right, ("x", "y", "z")) for i, right in enumerate(letters)]
    assert best_without_video(items).mean() == 0.5
    assert random_guess(items) == pytest.approx(1 / 3)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_published_averages_are_the_means_of_their_rows(layout):
    """Except where the paper averages over more; a wrong digit would show."""
    for name, values in layout.rows.items():
        assert len(values) == len(layout.columns) + 1
        if None not in values and "seven" not in name:
            assert np.mean(values[:-1]) == pytest.approx(values[-1], abs=0.08), name
    if layout.name == "embodied":
        rl = next(values for name, values in layout.rows.items() if "seven" in name)
        assert np.mean([*rl[:-1], 56.2]) == pytest.approx(rl[-1], abs=0.08)


def test_a_mean_of_kinds_does_not_hang_on_how_many_of_each_are_drawn():
    kinds = np.array(["often"] * 30 + ["seldom"] * 5)
    values = (kinds == "often").astype(float)[:, None]
    clusters = np.arange(len(kinds))
    draws = bootstrap(values, clusters, kinds=kinds)
    assert np.isin(draws, (0.5, 1.0)).all()  # 1.0 where no seldom one was drawn
    assert (draws == 0.5).mean() > 0.98
    gain = difference(values, np.zeros_like(values), clusters, kinds)
    assert gain.mean == 0.5
