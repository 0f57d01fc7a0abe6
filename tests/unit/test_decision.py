# SPDX-License-Identifier: Apache-2.0
import pytest

from cosmos_reason_node.decision import ParseError, parse_output, settle
from cosmos_reason_node.types import Query, QueryKind, Verdict

COMPLETION = Query(QueryKind.COMPLETION, task="open the drawer")
NEXT = Query(
    QueryKind.NEXT_ACTION, task="open the drawer", options=("Reach the handle", "Pull", "Third option")
)
FREE = Query(QueryKind.QUESTION, question="What moves?")


def output(answer, reasoning="because"):
    return f"<think>\n{reasoning}\n</think>\n\n<answer>\n{answer}\n</answer><|im_end|>"


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("yes", Verdict.YES),
        ("Yes.", Verdict.YES),
        ("YES, it is", Verdict.YES),
        ("no", Verdict.NO),
        ("No, not yet", Verdict.NO),
        ("unknown", Verdict.UNKNOWN),
    ],
)
def test_yes_and_no(answer, verdict):
    assert parse_output(output(answer), COMPLETION).verdict is verdict


@pytest.mark.parametrize("answer", ["nothing", "maybe", "the answer is yes", "42", "yesterday"])
def test_neither_yes_nor_no_is_not_guessed(answer):
    with pytest.raises(ParseError):
        parse_output(output(answer), COMPLETION)


@pytest.mark.parametrize(
    ("answer", "index"),
    [
        ("B", 1),
        ("b", 1),
        ("(B)", 1),
        ("B.", 1),
        ("B) Pull", 1),
        ("(A) reach the handle.", 0),
        ("Pull", 1),
        ("third option", 2),
    ],
)
def test_options(answer, index):
    parsed = parse_output(output(answer), NEXT)
    assert (parsed.option_index, parsed.verdict) == (index, Verdict.CHOICE)


@pytest.mark.parametrize("answer", ["D", "The answer is B", "A Pull", "AB", "None", "?"])
def test_no_letter_is_searched_for(answer):
    with pytest.raises(ParseError):
        parse_output(output(answer), NEXT)


def test_free_text_and_one_line_form():
    parsed = parse_output("<think> a <b> </think> <answer> the left arm </answer>", FREE)
    assert (parsed.reasoning, parsed.answer) == ("a <b>", "the left arm")
    assert (parsed.verdict, parsed.option_index) == (Verdict.CHOICE, -1)
    assert parse_output(output("x", reasoning=""), FREE).reasoning == ""


@pytest.mark.parametrize(
    "text",
    ["", "yes", "<think>a</think>yes", "<think>a<answer>b</answer>", output(" "), output("a") + " and more"],
)
def test_format_violations(text):
    with pytest.raises(ParseError):
        parse_output(text, FREE)


def test_tags_by_the_thousand_are_no_answer_and_take_no_time():
    """Each pair could be the right one: a pattern that tries them all would take minutes."""
    text = "<think>" * 20_000 + "</think><answer>" * 20_000
    with pytest.raises(ParseError):
        parse_output(text, FREE)
    assert parse_output(f"{text}x</answer>", FREE).answer.endswith("x")


def test_settle():
    assert settle(Verdict.YES, 0.55, 0.55) is Verdict.YES
    assert settle(Verdict.NO, 0.549, 0.55) is Verdict.UNKNOWN


def test_settle_asks_the_same_share_above_chance_of_any_number_of_choices():
    assert settle(Verdict.CHOICE, 0.33, 0.55, choices=4) is Verdict.CHOICE
    assert settle(Verdict.CHOICE, 0.32, 0.55, choices=4) is Verdict.UNKNOWN
    assert settle(Verdict.CHOICE, 0.04, 0.5, choices=26) is Verdict.CHOICE
    assert settle(Verdict.CHOICE, 0.99, 1.0, choices=4) is Verdict.UNKNOWN


def test_a_letter_is_a_letter_where_options_are_letters_too():
    query = Query(QueryKind.QUESTION, question="Which drawer is open?", options=("B", "A", "C"))
    assert [parse_output(output(answer), query).option_index for answer in "ABC"] == [0, 1, 2]
