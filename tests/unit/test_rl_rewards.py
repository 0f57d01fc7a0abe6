# SPDX-License-Identifier: Apache-2.0
"""Rewards: what earns one, and above all what does not."""

import dataclasses
from pathlib import Path

import pytest

from cosmos_reason_node.types import Query, QueryKind
from training.data.schema import Provenance, QuestionKind, Sample
from training.rl import rewards
from training.rl.config import DataConfig, ModelConfig, RlConfig, RunConfig
from training.rl.groups import Group, Sampled, Ticket
from training.rl.tasks import Task
from training.sft.config import SourceConfig

MCQ = Query(QueryKind.QUESTION, question="Which?", options=("the red ball", "the blue ball", "a cat"))
YES_NO = Query(QueryKind.COMPLETION, task="open the drawer")
FREE = Query(QueryKind.NEXT_ACTION, task="open the drawer")


def settings():
    return RlConfig(
        model=ModelConfig(path="model"),
        data=DataConfig(sources=(SourceConfig("data"),)),
        run=RunConfig(output="out", launcher="ray"),
    )


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
    ("reasoning", "reward"),
    [
        ("The drawer is open.", 1.0),
        ("It asks: is the drawer open?", 1.0),
        ('The label says "open the drawer."', 1.0),
        ("The", 0.0),
        ("Open it.", 0.0),
        ("The drawer is open", 0.0),
        ("", 0.0),
    ],
)
def test_a_thought_of_four_words_is_a_sentence(reasoning, reward):
    assert rewards.format_reward(said("yes", reasoning), thought_words=4) == reward
    assert rewards.format_reward(said("yes", reasoning)) == 1.0


@pytest.mark.parametrize(("at_once", "wanted"), [(False, [1.5, 1.0, 0.5]), (True, [1.5, 1.5, 0.5])])
def test_who_answers_at_once_owes_no_thought(at_once, wanted):
    config = settings()
    config = dataclasses.replace(config, grpo=dataclasses.replace(config.grpo, thought_words=4))
    sample = Sample(
        sample_id="a",
        kind=QuestionKind.TASK_COMPLETION,
        task="open the drawer",
        answer="yes",
        media=(),
        provenance=Provenance("sim"),
    )
    task = Task("a", "toy", sample, Path(), at_once=at_once)
    texts = (said("yes", "The drawer is open."), said("yes", "The"), said("no", "The drawer is shut."))
    answers = tuple(Sampled(text, (1,), (-0.1,), (0,), False) for text in texts)
    judged = rewards.judge(Group(Ticket(0, 0, 0), "toy", answers), task, config)
    assert judged.rewards == wanted


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


@pytest.mark.parametrize("answer", ["yes or no", "yes, no", "Yes, it is open", "not yes", "yes yes", "y"])
def test_yes_or_no_stands_alone(answer):
    assert rewards.accuracy(said(answer), YES_NO, "yes") == 0.0


def test_yes_no_and_words():
    assert rewards.accuracy(said("Yes"), YES_NO, "yes") == 1.0
    assert rewards.accuracy(said("yes."), YES_NO, "yes") == 1.0
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


def test_rewards_of_a_run_are_those_against_the_simulators_state():
    """A question of the simulated world pays by its outcome and its phase, asked freely or with options."""
    pytest.importorskip("metaworld", reason="the simulator: requirements/train.txt")
    from tests.unit.test_sim_questions import ask
    from training.data.sim.phase import Phase, completed
    from training.data.sim.questions import MOVE_AWAY, choices
    from training.data.sim.scenes import BY_NAME

    scene = BY_NAME["drawer"]
    skills = {skill.task: skill for skill in scene.skills}
    for openness, gap, now in ((1.0, 0.4, Phase.DONE), (0.0, 0.4, Phase.REACH), (0.0, 0.0, Phase.ACT)):
        samples = [s for s in ask(openness, gap) if s.query.task in skills]
        for sample in [s for s in samples if s.query.kind is QueryKind.COMPLETION]:
            succeeded = completed(skills[sample.query.task], openness)
            for text in (said("yes"), said("no"), said("perhaps")):
                paid = rewards.accuracy(text, sample.query, sample.answer)
                assert paid == rewards.completion(text, sample.query.task, succeeded)
        opens = [s for s in samples if s.query.kind is QueryKind.NEXT_ACTION and "open" in s.query.task]
        actions = choices(scene, skills["open the drawer"])
        assert {bool(sample.query.options) for sample in opens} == {True, False}
        for sample in opens:
            for action in {*actions, MOVE_AWAY}:
                paid = rewards.accuracy(said(action), sample.query, sample.answer)
                assert paid == rewards.next_action(said(action), sample.query.task, actions, now)


@pytest.mark.parametrize(
    "text",
    [
        "<think>",
        "</answer></think>" * 10,
        "<think></think><answer></answer>" * 700 + "x",
        "<think>" + "</think> <answer>" * 2000,
        "<think>x</think>" + " " * 50_000 + "<answer>B",
        "\x00\ud800\uffff",
        "<THINK>x</THINK><ANSWER>B</ANSWER>",
        said("B" * 100_000),
        said("[" + "9" * 400 + ", 0, 1, 1]"),
        said("(nan, inf)"),
        said("1e9 to 2e9"),
        said("٣ ٤"),
    ],
    ids=range(12),
)
def test_no_output_earns_or_raises_by_its_mess(text):
    for query, answer in ((MCQ, "B"), (YES_NO, "yes"), (FREE, "pull")):
        assert rewards.accuracy(text, query, answer) == 0.0
    assert rewards.temporal_iou(text, 0.0, 1.0) == 0.0
    assert rewards.point_in_box(text, (0.0, 0.0, 1.0, 1.0)) == 0.0
    assert rewards.box_iou(text, (0.0, 0.0, 1.0, 1.0)) == 0.0


def test_numbers_of_any_size_stay_within_the_bounds_of_a_reward():
    huge = "9" * 300
    assert 0.0 <= rewards.temporal_iou(said(f"-{huge} to {huge}"), 2.0, 4.0) <= 1.0
    assert 0.0 <= rewards.box_iou(said(f"[-{huge}, -{huge}, {huge}, {huge}]"), (0, 0, 1, 1)) <= 1.0
    assert rewards.point_in_box(said(f"({huge}, 0)"), (0, 0, 1, 1)) == 0.0


def test_a_long_text_is_the_asked_format_too():
    assert rewards.accuracy(said("B", "because " * 20_000), MCQ, "B") == 1.0


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


@pytest.mark.parametrize(
    ("name", "answer", "options", "message"),
    [
        ("best", "A", False, "is none of temporal_iou, point_in_box, box_iou"),
        ("temporal_iou", "B", True, "reads no options"),
        ("temporal_iou", "early", False, r"of the form 2.5 to 4.0 \(seconds\)"),
        ("temporal_iou", "4 to 2", False, "of the form"),
        ("temporal_iou", "-2 to 2", False, "of the form"),
        ("point_in_box", "(1, 2)", False, r"of the form \[left, top, right, bottom\]"),
        ("box_iou", "[10, 10, 5, 20]", False, "of the form"),
        ("box_iou", "[0, 0, 0, 0]", False, "of the form"),
    ],
)
def test_a_truth_that_cannot_be_judged_is_refused_before_anything_is_asked(name, answer, options, message):
    with pytest.raises(ValueError, match=message):
        rewards.check_truth(name, answer, options=options)


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("", "B"),
        ("temporal_iou", "2.5 to 4.0"),
        ("point_in_box", "[0, 0, 1, 1]"),
        ("box_iou", "[1, 2, 3, 4]"),
    ],
)
def test_a_truth_that_can_be_judged(name, answer):
    rewards.check_truth(name, answer, options=not name)
