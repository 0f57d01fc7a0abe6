# SPDX-License-Identifier: Apache-2.0
"""Rewards: what earns one, and above all what does not."""

import pytest

from cosmos_reason_node.types import Query, QueryKind
from training.rl import rewards

MCQ = Query(QueryKind.QUESTION, question="Which?", options=("the red ball", "the blue ball", "a cat"))
YES_NO = Query(QueryKind.COMPLETION, task="open the drawer")
FREE = Query(QueryKind.NEXT_ACTION, task="open the drawer")


def said(answer, reasoning="because"):
    return f"<think>\n{reasoning}\n</think>\n\n<answer>\n{answer}\n</answer>"


@pytest.mark.parametrize(
    "text",
    [
        said("B"),
        said("B", ""),
        "<think> short </think> <answer> B </answer>",
        said("B") + "<|im_end|>",
    ],
)
def test_the_asked_format(text):
    assert rewards.format_reward(text) == 1.0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "B",
        "<answer>B</answer>",
        "<think>x</think>",
        said(""),
        said("B") + " and more",
        "I say: " + said("B"),
        said("B") + said("C"),
        "<think>a<think>b</think></think><answer>B</answer>",
        "<think>x</think><answer>B",
    ],
)
def test_anything_else_is_not_the_format_and_earns_nothing(text):
    assert rewards.format_reward(text) == 0.0
    assert rewards.accuracy(text, MCQ, "B") == 0.0


@pytest.mark.parametrize(
    "answer", ["B", "b", "(B)", "B.", "the blue ball", "The blue ball.", "B. the blue ball"]
)
def test_an_option_by_letter_or_text(answer):
    assert rewards.accuracy(said(answer), MCQ, "B") == 1.0


@pytest.mark.parametrize(
    "answer", ["A", "D", "B or C", "not B", "the answer is B", "B. the red ball", "blue", "A B", "BB"]
)
def test_letters_inside_of_words_and_hedges_earn_nothing(answer):
    assert rewards.accuracy(said(answer), MCQ, "B") == 0.0


def test_yes_no_and_words():
    assert rewards.accuracy(said("Yes"), YES_NO, "yes") == 1.0
    assert rewards.accuracy(said("no"), YES_NO, "yes") == 0.0
    assert rewards.accuracy(said("maybe"), YES_NO, "yes") == 0.0
    assert rewards.accuracy(said("unknown"), YES_NO, "no") == 0.0
    assert rewards.accuracy(said("Pull the  drawer open."), FREE, "pull the drawer open") == 1.0
    assert rewards.accuracy(said("pull the drawer"), FREE, "pull the drawer open") == 0.0


def test_the_simulators_outcome_and_phase():
    assert rewards.completion(said("yes"), "open the drawer", True) == 1.0
    assert rewards.completion(said("yes"), "open the drawer", False) == 0.0
    actions = ("reach for the handle", "pull the drawer open", "move away")
    assert rewards.next_action(said("pull the drawer open"), "open the drawer", actions, 1) == 1.0
    assert rewards.next_action(said("pull the drawer open"), "open the drawer", actions, 2) == 0.0


@pytest.mark.parametrize(
    ("answer", "iou"),
    [
        ("2.0 to 4.0", 1.0),
        ("from 2 s to 4 s", 1.0),
        ("3 - 5", 1 / 3),
        ("3,5", 1 / 3),
        ("5 to 6", 0.0),
        ("4 to 2", 0.0),
        ("2 to 2", 0.0),
        ("about 2 to 4", 0.0),
        ("2 to 4 to 6", 0.0),
    ],
)
def test_temporal_overlap(answer, iou):
    assert rewards.temporal_iou(said(answer), 2.0, 4.0) == pytest.approx(iou)


def test_points_and_boxes():
    box = (10.0, 10.0, 20.0, 30.0)
    assert rewards.point_in_box(said("(15, 20)"), box) == 1.0
    assert rewards.point_in_box(said("(25, 20)"), box) == 0.0
    assert rewards.point_in_box(said("15, 20"), box) == 0.0
    assert rewards.box_iou(said("[10, 10, 20, 30]"), box) == 1.0
    assert rewards.box_iou(said("[10, 10, 20, 20]"), box) == pytest.approx(0.5)
    assert rewards.box_iou(said("[20, 30, 10, 10]"), box) == 0.0
    assert rewards.box_iou(said("[40, 40, 50, 50]"), box) == 0.0


def test_a_sample_names_its_reward():
    judge = rewards.judge_for("temporal_iou")
    assert judge(said("3 to 5"), FREE, "2 to 4") == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="is not of the form"):
        judge(said("3 to 5"), FREE, "early")
    with pytest.raises(ValueError, match=r"extra.reward"):
        rewards.judge_for("best")
