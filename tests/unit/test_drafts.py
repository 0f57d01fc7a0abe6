# SPDX-License-Identifier: Apache-2.0
from cosmos_reason_node.engine.drafts import FEWEST, MAX_ANSWERS, MOST, Drafts


def test_the_earlier_answer_is_guessed_and_more_of_it_when_it_comes_true():
    drafts = Drafts()
    drafts.keep("q", range(100))
    draft = drafts.of("q")
    assert draft.guess(99) == list(range(FEWEST))
    draft.said += range(FEWEST + 1)
    draft.learn(FEWEST, FEWEST)
    assert draft.guess(99) == list(range(FEWEST + 1, 3 * FEWEST + 1))
    assert draft.guess(3) == [5, 6, 7]
    for _ in range(9):
        draft.learn(1, 1)
    assert len(draft.guess(99)) == MOST
    draft.learn(MOST, MOST - 1)
    assert len(draft.guess(99)) == FEWEST


def test_after_a_difference_the_place_is_found_again_by_its_context():
    drafts = Drafts()
    drafts.keep("q", [1, 2, 3, 4, 5, 6, 7, 8, 9])
    draft = drafts.of("q")
    draft.said += [1, 2, 99, 4]
    assert draft.guess(9) == []
    draft.said += [5, 6]
    assert draft.guess(9)[:3] == [7, 8, 9]


def test_repetition_within_an_answer_is_guessed_and_nothing_else():
    draft = Drafts().of("new")
    assert draft.guess(9) == []
    draft.said += [7, 8, 9, 1, 7, 8, 9]
    assert draft.guess(9) == [1, 7, 8, 9]
    assert draft.guess(0) == []


def test_answers_are_bounded():
    drafts = Drafts()
    for question in range(MAX_ANSWERS + 5):
        drafts.keep(question, [question] * 9)
    assert drafts.of(4).guess(9) == []
    assert drafts.of(5).guess(1) == [5]
    drafts.forget()
    assert drafts.of(5).guess(1) == []
