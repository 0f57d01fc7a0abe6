# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

pytest.importorskip("metaworld", reason="the simulator is only needed for training: requirements/train.txt")

from cosmos_reason_node.prompt import check_query
from cosmos_reason_node.types import QueryKind
from training.data.sim.episode import Episode
from training.data.sim.phase import Phase
from training.data.sim.questions import MOVE_AWAY, next_action, questions
from training.data.sim.sample import Span
from training.data.sim.scenes import BY_NAME


def still(openness, gap, scene="drawer", frames=8):
    """An episode in which nothing moves; ``gap`` metres from every contact point."""
    skills = len(BY_NAME[scene].skills)
    return Episode(
        seed=1,
        split="train",
        scene=scene,
        plan="wander",
        task="",
        frames=np.zeros((frames, 2, 2, 3), np.uint8),
        openness=np.full(frames, openness, np.float32),
        gap_m=np.full((frames, skills, 3), gap, np.float32),
        points=np.zeros((frames, 2, 2), np.float32),
    )


def ask(openness, gap, seed=0, scene="drawer"):
    return questions(still(openness, gap, scene), Span(0, 8), np.random.default_rng(seed))


def answers(samples, kind, *, options=False):
    return {
        (s.query.task or s.query.action): s.answer
        for s in samples
        if s.query.kind is kind and bool(s.query.options) == options and "There is no" not in s.reasoning
    }


def affordances(openness, gap):
    """Of many draws: most of those that are not possible are left out of each."""
    return {
        action: answer
        for seed in range(20)
        for action, answer in answers(ask(openness, gap, seed), QueryKind.AFFORDANCE).items()
    }


@pytest.mark.parametrize(
    ("openness", "opened", "closed"), [(1.0, "yes", "no"), (0.0, "no", "yes"), (0.5, "no", "no")]
)
def test_completion_is_the_state_at_the_end(openness, opened, closed):
    assert answers(ask(openness, 0.4), QueryKind.COMPLETION) == {
        "open the drawer": opened,
        "close the drawer": closed,
    }


def test_nothing_is_asked_where_one_could_argue():
    assert "open the drawer" not in answers(ask(0.65, 0.4), QueryKind.COMPLETION)
    assert affordances(0.0, 0.06) == {"push the drawer shut": "no"}


def test_an_action_is_possible_at_the_handle_until_it_is_done():
    assert affordances(0.0, 0.0)["pull the drawer open"] == "yes"
    assert affordances(0.0, 0.4)["pull the drawer open"] == "no"
    assert affordances(1.0, 0.0)["pull the drawer open"] == "no"


@pytest.mark.parametrize(
    ("openness", "gap", "action"),
    [(0.0, 0.4, "reach for the drawer handle"), (0.0, 0.0, "pull the drawer open"), (1.0, 0.4, MOVE_AWAY)],
)
def test_next_action_free_and_multiple_choice_agree(openness, gap, action):
    for seed in range(10):
        samples = ask(openness, gap, seed)
        assert answers(samples, QueryKind.NEXT_ACTION)["open the drawer"] == action
        (choice,) = (s for s in samples if s.query.options and s.query.task == "open the drawer")
        assert choice.query.options["ABCD".index(choice.answer)] == action
        assert len(set(choice.query.options)) == 4


def test_options_are_shuffled():
    letters = {
        s.answer
        for seed in range(40)
        for s in ask(1.0, 0.4, seed)
        if s.query.options and "open" in s.query.task
    }
    assert letters == set("ABCD")


@pytest.mark.parametrize("scene", sorted(BY_NAME))
def test_every_question_is_one_the_node_accepts(scene):
    for openness in (0.0, 1.0):
        for gap in (0.0, 0.4):
            for sample in ask(openness, gap, 3, scene):
                check_query(sample.query)
                assert sample.provenance.scene == scene
                assert len(sample.reasoning.split()) <= 16


def test_next_action_names_every_phase():
    scene = BY_NAME["door"]
    named = {next_action(scene, scene.skills[0], now) for now in Phase}
    assert named == {"reach for the door handle", "pull the door open", MOVE_AWAY}


@pytest.mark.parametrize(("first", "length"), [(1, 8), (0, 7), (-2, 8), (0, 0)])
def test_a_window_off_the_grid_is_refused(first, length):
    with pytest.raises(ValueError, match="even"):
        Span(first, length)


def test_an_action_to_avoid_is_no_wrong_option_and_the_question_is_still_asked():
    """So no lettered question is lost to tasks that training must not know."""
    avoided = {"slide the window shut", "pull the door open"}
    offered = set()
    for seed in range(40):
        made = still(0.0, 0.4, "window"), Span(0, 8), np.random.default_rng(seed)
        lettered = [s for s in questions(*made, avoided) if s.query.options]
        assert {s.query.task for s in lettered} == {"open the window", "close the window"}
        (sample,) = [s for s in lettered if s.query.task == "open the window"]
        assert avoided.isdisjoint(sample.query.options)
        assert len(set(sample.query.options)) == 4
        assert sample.query.options["ABCD".index(sample.answer)] == "reach for the window handle"
        usual = questions(still(0.0, 0.4, "window"), Span(0, 8), np.random.default_rng(seed))
        offered |= {option for s in usual if s.query.task == "open the window" for option in s.query.options}
    assert avoided & offered
