# SPDX-License-Identifier: Apache-2.0
import json

import pytest

from cosmos_reason_node.types import Query, QueryKind
from training.data.curation.agreement import decided, same_words, take_apart
from training.data.curation.cleaning import check_caption, check_trace, rewrite
from training.data.curation.config import Clean, QuestionSet
from training.data.curation.message import Answer
from training.data.curation.outcome import Books, Rejected, Unfinished
from training.data.curation.questions import make_question, read_list, schema

CHOICE, FREE = QuestionSet("understanding", "choice"), QuestionSet("reasoning", "free", "embodied")
OPTIONS = Query(QueryKind.QUESTION, question="Which one?", options=("the cup", "the lid", "the box"))
OPEN = Query(QueryKind.QUESTION, question="What moves?")


def reply(text, finish="stop", reasoning=""):
    return Answer(text, reasoning, finish, "m", "", 0.0, 1, 1, 0.0)


# --- rewriting ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("According to the caption, the arm lifts.", "According to the video, the arm lifts."),
        ("The description says that the lid falls.", "The video shows that the lid falls."),
        ("The caption doesn't mention a lid.", "The video does not show a lid."),
        ("The provided video description clearly states that it fell.", "The video shows that it fell."),
        ("The cup was mentioned in the text description.", "The cup was shown in the video."),
        ("As described, the cup is red.", "As shown, the cup is red."),
        ("There's no mention of a second cup.", "There's no sign of a second cup."),
        ("Okay, let me think about this. The arm lifts the cup.", "The arm lifts the cup."),
        ("Hmm, so let's look: the lid is open.", "The lid is open."),
        ("First, I need to figure out the order. First, the lid opens.", "First, the lid opens."),
        ("The user wants the colour. It is red.", "It is red."),
        ("I was given three options. It is red.", "It is red."),
        ("As an AI, I can't see it. It is red.", "It is red."),
        ("**The lid** is `open`.", "The lid is open."),
        ("## Steps\n- The lid opens.\n\n* The cup falls.", "Steps\nThe lid opens.\nThe cup falls."),
        (r"So it is \boxed{B}.", "So it is B."),
        ("The arm describes a circle over a text.", "The arm describes a circle over a text."),
        ("로봇 팔이 서랍을 연다. 컵이 넘어진다.", "로봇 팔이 서랍을 연다. 컵이 넘어진다."),
    ],
)  # fmt: skip
def test_a_trace_speaks_of_the_video(before, after):
    assert rewrite(before) == after
    assert rewrite(after) == after, "rewriting is settled after one pass"


GOOD = "The arm pulls the drawer open, then it puts the red cup inside, so the cup is gone from the table."


@pytest.mark.parametrize(
    ("trace", "reason"),
    [
        (GOOD + " All captions agree.", "mentions_caption"),
        (GOOD + " The given text is clear.", "mentions_caption"),
        (GOOD + " </think>", "wrong_tags"),
        (GOOD + " <|im_end|>", "wrong_tags"),
        ("It is the cup.", "too_short"),
        (" ".join(f"word{i}" for i in range(700)), "too_long"),
        ("The arm moves to the left of the cup again. " * 4, "repetitive"),
        (GOOD + " 杯子倒了", "mixed_language"),
        (GOOD + " So the answer is C.", "disagrees"),
        (GOOD + " The answer should be option (A).", "disagrees"),
    ],
)
def test_a_bad_trace_is_rejected(trace, reason):
    with pytest.raises(Rejected) as caught:
        check_trace(trace, "Where is the cup?", "B", Clean())
    assert caught.value.reason == reason


@pytest.mark.parametrize("trace", [GOOD, GOOD + " So the answer is B.", GOOD + " 3 < 5, at angle θ."])
def test_a_good_trace_passes(trace):
    check_trace(trace, "Where is the cup?", "B", Clean())


def test_a_trace_may_be_in_the_script_of_its_question():
    check_trace(
        "로봇 팔이 서랍을 열고 컵을 넣은 다음 다시 닫는다. " + GOOD, "컵은 어디에 있는가?", "B", Clean()
    )


@pytest.mark.parametrize(
    ("caption", "reason"),
    [
        (
            "I'm sorry, I can't see any video here, please send it again, and I will help you at once.",
            "refusal",
        ),
        ("A cup.", "too_short"),
        ("The cup stands on the table and then it " * 5, "repetitive"),
    ],
)
def test_a_bad_caption_is_rejected(caption, reason):
    with pytest.raises(Rejected) as caught:
        check_caption(caption, 10)
    assert caught.value.reason == reason


# --- replies ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "apart", "taken"),
    [
        ("<think>\nIt falls.\n</think>\n\n<answer>\nB\n</answer>", "", ("It falls.", "B")),
        ("It falls.\n</think>\n<answer>B</answer>", "", ("It falls.", "B")),  # the template opened the tag
        ("<answer>B</answer>", "It falls.", ("It falls.", "B")),  # reasoning in a field of its own
        ("It falls. <answer>B</answer>", "", ("It falls.", "B")),
        ("<think>It falls.</think> (B) the lid", "", ("It falls.", "(B) the lid")),
        ("B", "It falls.", ("It falls.", "B")),
    ],
)
def test_reasoning_and_answer_are_told_apart(text, apart, taken):
    assert take_apart(reply(text, reasoning=apart), OPTIONS) == taken


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("<think>It falls.</think> the lid", OPEN),  # free words need their tags
        ("<think>a</think><answer>A</answer><answer>B</answer>", OPTIONS),
        ("<think>a<think>b</think><answer>A</answer>", OPTIONS),
        ("<think>a</think><answer>A", OPTIONS),
        ("<think>a</think><answer> </answer>", OPTIONS),
        ("<think>never closed", OPTIONS),
        ("", OPTIONS),
    ],
)
def test_a_wrong_format_is_rejected(text, query):
    with pytest.raises(Rejected) as caught:
        take_apart(reply(text), query)
    assert caught.value.reason == "wrong_format"


def test_an_answer_that_was_cut_off_is_rejected():
    with pytest.raises(Rejected, match="truncated"):
        take_apart(reply("<think>a</think><answer>A</answer>", finish="length"), OPTIONS)


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("(b)", "B"),
        ("B. the lid", "B"),
        ("The lid.", "B"),
        ("It is B", ""),
        ("D", ""),
        ("B. the cup", ""),
    ],
)
def test_an_option_is_read_as_node_and_evaluation_read_it(answer, letter):
    assert decided(answer, OPTIONS) == letter


@pytest.mark.parametrize(
    ("key", "answer", "same"),
    [
        ("the red cup", "Red cup.", True),
        ("it puts the red cup into the drawer", "the red cup is put into the drawer", True),
        ("it moves left", "it moves right", False),
        ("the lid is open", "the lid is not open", False),
        ("the lid isn't open", "the lid is open", False),
        ("it falls two times", "it falls three times", False),
        ("it falls 2 times", "it falls 3 times", False),
        ("yes", "no", False),
        ("컵이 넘어진다", "컵이 넘어진다.", True),
        ("the cup", "", False),
        ("...", "...", False),
    ],
)
def test_free_answers_are_compared_by_words(key, answer, same):
    assert same_words(key, answer, 0.6) is same


# --- questions ----------------------------------------------------------------------------------------------

ENTRY = {
    "question": "Which thing does the arm lift first?",
    "options": ["the cup", "the lid", "the box"],
    "answer": "the lid",
    "category": "Order",
}


def make(asked_for=CHOICE, name="q", **changes):
    return make_question({**ENTRY, **changes}, name, asked_for, 2.5, seed=0)


def test_options_are_shuffled_and_the_key_follows():
    made = [make(name=f"q{i}") for i in range(60)]
    assert {question.key for question in made} == {"the lid"}
    assert {question.answer for question in made} == {"A", "B", "C"}
    assert make(name="q7") == made[7]
    assert made[0].label == "order"


def test_rotated_options_keep_the_right_one():
    question = make()
    turned = [question.rotated(i) for i in range(4)]
    assert {other.key for other in turned} == {"the lid"}
    assert len({other.answer for other in turned[:3]}) == 3
    assert turned[3] == question


@pytest.mark.parametrize("answer", ["the lid", "The lid.", "B", "(b)", "B) the lid"])
def test_the_key_is_found_by_text_or_letter(answer):
    assert make(answer=answer).key == "the lid"


def test_labels_of_options_are_taken_off():
    made = make(options=["A) the cup", "B) the lid", "C) the box"], answer="B) the lid")
    assert sorted(made.query.options) == ["the box", "the cup", "the lid"]
    assert make(options={"A": "the cup", "B": "the lid"}).key == "the lid"


@pytest.mark.parametrize(
    "options",
    [
        {"B": "the lid", "A": "the cup", "C": "the box"},
        {"option_c": "the box", "option_b": "the lid", "option_a": "the cup"},
        ["B) the lid", "A) the cup", "C) the box"],
        ["(c) the box", "(a) the cup", "(b) the lid"],
    ],
)
@pytest.mark.parametrize(("answer", "key"), [("A", "the cup"), ("(b)", "the lid"), ("Option C", "the box")])
def test_a_letter_is_the_option_that_the_writer_gave_it_to(options, answer, key):
    made = make(options=options, answer=answer)
    assert made.key == key
    assert sorted(made.query.options) == ["the box", "the cup", "the lid"]


def test_options_that_are_named_otherwise_are_lettered_in_their_order():
    assert make(options={"first": "the cup", "second": "the lid"}, answer="B").key == "the lid"


def test_yes_or_no_becomes_a_question_of_that_form():
    question = make(FREE, answer="Yes.")
    assert question.query.yes_no
    assert question.answer == "yes"
    assert "Answer yes or no." in question.text


def test_an_unknown_label_is_left_out():
    assert make(category="cooking").label == ""
    assert (
        make(FREE, answer="it tips over", category="predict action effects").label == "predict_action_effects"
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"question": 7}, "malformed"),
        ({"question": " "}, "malformed"),
        ({"answer": None}, "malformed"),
        ({"options": "the cup"}, "malformed"),
        ({"options": ["the cup", ""]}, "malformed"),
        ({"options": ["the lid"]}, "malformed"),
        ({"question": "What then?"}, "too_short"),
        ({"question": "What " * 90 + "?"}, "too_long"),
        ({"question": "The arm lifts the lid."}, "not_a_question"),
        ({"options": ["the lid", "the lid", "the lid"]}, "options_repeat"),
        ({"question": "Which thing is first in the caption?"}, "mentions_caption"),
        ({"options": ["the lid", "what the description says"]}, "mentions_caption"),
        ({"answer": "the spoon"}, "no_key"),
        ({"answer": "F"}, "no_key"),
        ({"options": {"A": "the cup", "B": "the lid", "D": "the box"}, "answer": "C"}, "no_key"),
        ({"options": ["A) the cup", "A) the lid", "B) the box"], "answer": "A"}, "no_key"),
        ({"options": ["the lid", "The lid.", "the box"], "answer": "the box"}, "options_repeat"),
        ({"options": ["the cup", "the lid", "all of the above"]}, "options_refer"),
        ({"options": ["the cup", "the lid", "Both A and B"]}, "options_refer"),
        ({"options": ["cup", "the lid that was lying on the table", "box"],
          "answer": "the lid that was lying on the table"}, "key_stands_out"),
        ({"question": "When the arm lifts the lid, what does it lift?"}, "answer_in_question"),
        ({"question": "What does <|video_pad|> the arm lift first?"}, "invalid"),
    ],
)  # fmt: skip
def test_a_bad_question_is_rejected(changes, reason):
    with pytest.raises(Rejected) as caught:
        make(**changes)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"answer": "word " * 40}, "too_long"),
        ({"answer": "!?"}, "malformed"),
        ({"answer": "it tips over <|im_end|>"}, "wrong_tags"),
        ({"answer": "the arm"}, "answer_in_question"),
        ({"answer": "what the caption says"}, "mentions_caption"),
    ],
)
def test_a_bad_free_answer_is_rejected(changes, reason):
    with pytest.raises(Rejected) as caught:
        make(FREE, **changes)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"questions": [ENTRY]}),
        json.dumps([ENTRY]),
        json.dumps(ENTRY),
        f"Sure!\n```json\n{json.dumps({'questions': [ENTRY]}, indent=1)}\n```\nHave fun {{}}.",
    ],
)
def test_a_list_is_found_in_what_the_writer_says(text):
    assert read_list(text) == [ENTRY]


DRAFT = json.dumps({"questions": [ENTRY | {"answer": "the box"}]})


@pytest.mark.parametrize(
    "thought",
    [
        "<think>Let me see.</think>",
        "<think>The options could be [cup, lid, box].</think>",
        f"<think>Draft: {DRAFT} No: the lid comes first.</think>",
        f"{DRAFT} No: the lid comes first.</think>",  # the template opened the tag
        f"<think>{DRAFT}</think> Once more. <think>{DRAFT}</think>",
    ],
)
def test_a_list_is_not_looked_for_in_what_the_writer_thinks(thought):
    assert read_list(f"{thought}\n{json.dumps({'questions': [ENTRY]})}") == [ENTRY]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f"<think>Draft: {DRAFT}", "not_json"),
        (f"<think>Draft: {DRAFT}</think>", "not_json"),
        ("no idea", "not_json"),
        ("", "not_json"),
        ('{"questions": [{"question": "Wh', "not_json"),
        ("{'questions': []}", "not_json"),
        ('{"questions": []}', "no_questions"),
        ('{"answer": 1}', "no_questions"),
        ('{"questions": "none"}', "no_questions"),
    ],
)
def test_a_list_that_is_none_is_rejected(text, reason):
    with pytest.raises(Rejected) as caught:
        read_list(text)
    assert caught.value.reason == reason


def test_the_schema_asks_for_what_the_rules_need():
    fields = schema(CHOICE)["properties"]["questions"]["items"]["properties"]
    assert list(fields) == ["question", "options", "answer", "category"]
    assert "options" not in schema(FREE)["properties"]["questions"]["items"]["properties"]
    assert "learn_from_interaction" in json.dumps(schema(FREE))


# --- books --------------------------------------------------------------------------------------------------


def test_every_item_leaves_its_stage_counted():
    books = Books()
    for loss in (None, Rejected("blurred"), Rejected("blurred"), Unfinished("budget"), None):
        try:
            with books.item("select", "x"):
                if loss:
                    raise loss
        except (Rejected, Unfinished):
            pass
    count = books.counts["select"]
    assert (count.entered, count.kept, dict(count.rejected), dict(count.unfinished)) == (
        5, 2, {"blurred": 2}, {"budget": 1},
    )  # fmt: skip
    assert books.balanced
    assert not books.complete
    with pytest.raises(KeyError), books.item("select", "y"):
        raise KeyError("a fault of the program is no loss")
    assert not books.balanced
