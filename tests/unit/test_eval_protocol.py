# SPDX-License-Identifier: Apache-2.0
import pytest

from cosmos_reason_node.types import Query, QueryKind
from training.eval.item import Item, read_items, write_items
from training.eval.protocol import PROTOCOLS, normal, parse_released, parse_strict

CHOICE = Query(QueryKind.QUESTION, question="Which?", options=("a cup", "The plate", "a fork"))
BINARY = Query(QueryKind.COMPLETION, task="open the drawer")
WORDS = Query(QueryKind.NEXT_ACTION, task="open the drawer")


def output(answer):
    return f"<think>\nwhy\n</think>\n\n<answer>\n{answer}\n</answer><|im_end|>"


@pytest.mark.parametrize(
    ("answer", "strict", "released"),
    [
        ("B", "The plate", "The plate"),
        ("(C) a fork", "a fork", "a fork"),
        ("a cup", "a cup", ""),
        ("The answer is B", "", "option T"),  # what the released parser is known for
        ("the plate", "The plate", ""),
        ("b", "The plate", ""),
        ("D", "", "option D"),
    ],
)
def test_parsers_differ_where_the_released_one_is_lax(answer, strict, released):
    assert parse_strict(output(answer), CHOICE).text == strict
    assert parse_released(output(answer), CHOICE).text == released


def test_without_the_format_nothing_is_parsed():
    assert parse_strict("B", CHOICE).text == ""
    assert parse_released("B", CHOICE).text == ""
    # The released parser needs the answer's tags only.
    assert parse_released("well <answer>B</answer> and more", CHOICE).text == "The plate"
    assert parse_strict("well <answer>B</answer> and more", CHOICE).text == ""


def test_questions_without_options():
    assert parse_strict(output("Yes."), BINARY).text == "yes"
    assert parse_strict(output("unknown"), BINARY).text == "unknown"
    assert parse_strict(output("perhaps"), BINARY).text == ""
    assert parse_strict(output("pull the drawer"), WORDS).text == "pull the drawer"
    assert parse_strict(output("no"), BINARY).reasoning == "why"


def test_released_and_strict_share_their_predictions():
    names = {name: protocol.decoding(100) for name, protocol in PROTOCOLS.items()}
    assert names["released"] == names["strict"] != names["letter"]
    assert PROTOCOLS["strict"].decoding(50) != names["strict"]
    assert PROTOCOLS["letter"].greedy
    assert not PROTOCOLS["strict"].greedy


def test_words_are_compared_without_case_blanks_and_full_stop():
    assert normal(" Pull  the drawer. ") == "pull the drawer"


def item(query=CHOICE, answer="B", **more):
    return Item("1", "clip ü", query, answer, "order", "somewhere", "r1", **more)


def test_items_survive_their_file(tmp_path):
    items = [item(tasks=("open",), category="order"), item(BINARY, "yes"), item(WORDS, "pull")]
    write_items(tmp_path / "items.jsonl", items)
    assert read_items(tmp_path / "items.jsonl") == items


def test_a_damaged_item_is_named(tmp_path):
    path = tmp_path / "items.jsonl"
    write_items(path, [item()])
    path.write_text(path.read_text() + '{"item_id": "2"}\n')
    with pytest.raises(ValueError, match=r"items\.jsonl, row 2"):
        read_items(path)


def test_rotations_show_every_option_in_every_place():
    shown = [item().rotated(rotation).options for rotation in range(3)]
    assert all(sorted(options) == sorted(CHOICE.options) for options in shown)
    assert all(len(set(place)) == 3 for place in zip(*shown, strict=True))
    assert shown[0] == CHOICE.options


def test_what_is_asked_decides_the_digest():
    assert item().digest == item(category="order").digest
    assert len({item().digest, item(answer="A").digest, item(BINARY, "yes").digest}) == 3


def test_form_and_chance():
    forms = [(one.form, one.chance) for one in (item(), item(BINARY, "yes"), item(WORDS, "pull"))]
    assert forms == [("choice", pytest.approx(1 / 3)), ("yes_no", 0.5), ("free", 0.0)]
    assert item().wanted == "The plate"
