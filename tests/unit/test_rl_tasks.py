# SPDX-License-Identifier: Apache-2.0
"""Questions as they are drawn: sources, orders of options, and rejecting all of them."""

import dataclasses
import json

import numpy as np
import pytest

from cosmos_reason_node.models.spec import read_model_spec
from tests.unit.rl_files import short
from training.data.problems import DataError
from training.data.readers import open_data_set
from training.data.readers.jsonl import write_samples
from training.data.schema import QuestionKind
from training.rl import toy
from training.rl.groups import Ticket
from training.rl.rewards import NONE_OPTION
from training.rl.tasks import TaskSampler, with_none


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A checkpoint, of which only its description is read, and 24 questions."""
    root = tmp_path_factory.mktemp("rl")
    return toy.write_model(root / "base", 0), toy.write_data(root / "data", 24, 1)


def test_options_are_shuffled_and_none_is_right_half_of_the_time(base, tmp_path):
    config = short(*base, tmp_path / "run")
    sampler = TaskSampler(config.data, read_model_spec(base[0]), 0)
    tasks = [sampler.draw(Ticket(0, place, 0)) for place in range(60)]
    assert {task.query.options for task in tasks} == {toy.OPTIONS, toy.OPTIONS[::-1]}
    assert sampler.draw(Ticket(0, 7, 0)) == tasks[7]
    said = {json.loads(line)["sample_id"]: json.loads(line) for line in (base[1] / "samples.jsonl").open()}
    for task in tasks:
        stored = said[task.name]
        truth = stored["options"]["AB".index(stored["answer"])]
        assert task.query.options["AB".index(task.answer)] == truth
    rng = np.random.default_rng(0)
    drawn = [with_none(tasks[0].sample, rng) for _ in range(100)]
    truth = tasks[0].query.options["AB".index(tasks[0].answer)]
    for sample, none in drawn:
        assert sample.options[-1] == "none of the options"
        assert (truth in sample.options) is not none
        assert sample.options["AB".index(sample.answer)] == ("none of the options" if none else truth)
    assert 30 < sum(none for _, none in drawn) < 70


def test_some_questions_are_answered_at_once_and_the_questions_stay_the_same(base, tmp_path):
    spec = read_model_spec(base[0])
    always, half, never = (
        TaskSampler(short(*base, tmp_path / "run", data={"at_once_share": share}).data, spec, 0)
        for share in (1.0, 0.5, 0.0)
    )
    tickets = [Ticket(0, place, 0) for place in range(60)]
    for sampler, low, high in ((always, 60, 60), (half, 18, 42), (never, 0, 0)):
        drawn = [sampler.draw(ticket) for ticket in tickets]
        assert low <= sum(task.at_once for task in drawn) <= high
        for task, ticket in zip(drawn, tickets, strict=True):
            assert dataclasses.replace(task, at_once=False) == never.draw(ticket)


def test_options_keep_their_order_where_they_are_not_shuffled(base, tmp_path):
    """Also in questions that get "none of the options"."""
    data = toy.write_data(tmp_path / "data", 4, 1)
    lines = [json.loads(line) for line in (data / "samples.jsonl").read_text().splitlines()]
    shown = ["one", "two", "three", "four", "five"]
    text = "".join(json.dumps(entry | {"options": shown}) + "\n" for entry in lines)
    (data / "samples.jsonl").write_text(text)
    changes = {"shuffle_options": False, "none_share": 0.5}
    config = short(base[0], data, tmp_path / "run", data=changes)
    sampler = TaskSampler(config.data, read_model_spec(base[0]), 0)
    drawn = [sampler.draw(Ticket(0, place, 0)).query.options for place in range(60)]
    with_a_new_one = [options for options in drawn if NONE_OPTION in options]
    assert 15 < len(with_a_new_one) < 45
    for options in drawn:
        kept = [option for option in options if option != NONE_OPTION]
        assert kept == [option for option in shown if option in kept]


def test_a_question_that_offers_to_reject_all_options_gets_no_second_such_option(base, tmp_path):
    data = toy.write_data(tmp_path / "data", 4, 1)
    text = (data / "samples.jsonl").read_text().replace(toy.OPTIONS[1], "None of the options")
    (data / "samples.jsonl").write_text(text)
    config = short(base[0], data, tmp_path / "run", data={"none_share": 1.0})
    sampler = TaskSampler(config.data, read_model_spec(base[0]), 0)
    for place in range(10):
        task = sampler.draw(Ticket(0, place, 0))
        assert set(task.query.options) == {toy.OPTIONS[0], "None of the options"}
        assert not task.none


def test_sources_are_drawn_equally_whatever_their_size(base, tmp_path):
    large = toy.write_data(tmp_path / "large", 90, 2)
    config = short(*base, tmp_path / "run", data={"sources": [{"path": str(base[1])}, {"path": str(large)}]})
    sampler = TaskSampler(config.data, read_model_spec(base[0]), 0)
    names = [sampler.draw(Ticket(n, p, 0)).source for n in range(50) for p in range(4)]
    assert 75 < names.count("large") < 125


def test_data_sets_of_one_name_are_told_apart(base, tmp_path):
    for folder in ("kitchen", "office"):
        toy.write_data(tmp_path / folder / "data", 8, 1)
    paths = [tmp_path / "kitchen" / "data", tmp_path / "office" / "data", tmp_path / "office" / "data"]
    sources = [
        {"path": str(path), "split": split} for path, split in zip(paths, ("", "", "train"), strict=True)
    ]
    config = short(*base, tmp_path / "run", data={"sources": sources})
    names = TaskSampler(config.data, read_model_spec(base[0]), 0).names
    assert names == ["kitchen/data", "office/data:1", "office/data:train"]


def test_kinds_of_one_data_set_are_drawn_equally(base, tmp_path):
    data = toy.write_data(tmp_path / "data", 40, 1)
    rare, *most = open_data_set(data).samples
    write_samples(data, [dataclasses.replace(rare, kind=QuestionKind.AFFORDANCE), *most])
    sources = [{"path": str(data), "kind": kind} for kind in ("affordance", "other")]
    config = short(*base, tmp_path / "run", data={"sources": sources})
    sampler = TaskSampler(config.data, read_model_spec(base[0]), 0)
    assert sampler.names == ["data:affordance", "data:other"]
    drawn = [sampler.draw(Ticket(n, p, 0)) for n in range(50) for p in range(4)]
    assert 75 < sum(task.name == rare.sample_id for task in drawn) < 125
    assert {task.sample.kind for task in drawn if task.source == "data:affordance"} == {
        QuestionKind.AFFORDANCE
    }


def of_options(base, tmp_path, options, **data):
    """A sampler of questions that all have these options."""
    made = toy.write_data(tmp_path / "data", 4, 1)
    samples = [dataclasses.replace(s, options=options) for s in open_data_set(made).samples]
    write_samples(made, samples)
    config = short(base[0], made, tmp_path / "run", data=data)
    return TaskSampler(config.data, read_model_spec(base[0]), 0)


@pytest.mark.parametrize("rejecting", ["None of the above.", "none of these", "None of the options"])
def test_other_words_that_reject_all_options_count_as_that_option(base, tmp_path, rejecting):
    sampler = of_options(base, tmp_path, ("one", "two", rejecting), none_share=1.0)
    for place in range(10):
        assert NONE_OPTION not in sampler.draw(Ticket(0, place, 0)).query.options


def test_what_speaks_of_the_options_above_stays_below_them(base, tmp_path):
    shown = ("above", "below", "beside", "None of the above")
    drawn = {of_options(base, tmp_path, shown).draw(Ticket(0, place, 0)).query.options for place in range(60)}
    assert {options[-1] for options in drawn} == {"None of the above"}
    assert {options[0] for options in drawn} == {"above", "below", "beside"}


@pytest.mark.parametrize("naming", ["both (A) and (B)", "neither A nor B.", "A or C", "as option B says"])
def test_options_that_others_name_by_letter_keep_their_letters(base, tmp_path, naming):
    shown = ("a knife", "a cup", naming, "a plate")
    sampler = of_options(base, tmp_path, shown, none_share=0.5)
    assert {sampler.draw(Ticket(0, place, 0)).query.options for place in range(30)} == {shown}


@pytest.mark.parametrize("more", ["all of the above", "Both of these", "two of the above"])
def test_where_an_option_says_that_others_are_right_rejecting_them_is_never_right(base, tmp_path, more):
    sampler = of_options(base, tmp_path, ("a knife", "a cup", more), none_share=1.0)
    drawn = [sampler.draw(Ticket(0, place, 0)) for place in range(30)]
    assert {NONE_OPTION in task.query.options for task in drawn} == {False}
    assert len({task.query.options for task in drawn}) > 1


def test_words_that_look_like_letters_are_no_letters(base, tmp_path):
    shown = ("grasp a cup or push it", "put both cups away", "an option to stop")
    sampler = of_options(base, tmp_path, shown, none_share=0.5)
    drawn = [sampler.draw(Ticket(0, place, 0)).query.options for place in range(30)]
    assert {NONE_OPTION in options for options in drawn} == {True, False}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"extra": {"reward": "best"}}, "'best' is none of temporal_iou"),
        ({"extra": {"reward": "box_iou"}}, "reads no options"),
        ({"extra": {"reward": "temporal_iou"}, "options": (), "answer": "soon"}, "of the form 2.5 to 4.0"),
    ],
)
def test_a_sample_that_cannot_be_judged_is_said_with_its_row(base, tmp_path, changes, message):
    data = toy.write_data(tmp_path / "data", 4, 1)
    samples = list(open_data_set(data).samples)
    samples[2] = dataclasses.replace(samples[2], **changes)
    write_samples(data, samples)
    config = short(base[0], data, tmp_path / "run")
    with pytest.raises(DataError, match=message) as found:
        TaskSampler(config.data, read_model_spec(base[0]), 0)
    assert "made.json" in str(found.value)
    assert "3" in str(found.value)
