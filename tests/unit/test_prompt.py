# SPDX-License-Identifier: Apache-2.0
import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cosmos_reason_node import decision, prompt
from cosmos_reason_node.errors import CosmosReasonError, ErrorCode
from cosmos_reason_node.models.tokenizer import TextTokenizer
from cosmos_reason_node.types import Query, QueryKind
from tests import tiny_model

COMPLETION = Query(QueryKind.COMPLETION, task="Open the drawer.")
AFFORDANCE = Query(QueryKind.AFFORDANCE, task="open the drawer", action="pull the handle")
NEXT = Query(QueryKind.NEXT_ACTION, task="open the drawer", options=("reach", "pull"))
FREE = Query(QueryKind.QUESTION, question=" What moves? ")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tiny_model.build_tokenizer().save(str(path))
    return TextTokenizer(path)


def test_the_released_conventions():
    text = prompt.prefix([3]) + prompt.suffix(NEXT)
    assert text == (
        "<|im_start|>system\nAnswer the questions.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|video_pad|><|video_pad|><|video_pad|><|vision_end|>"
        "The task is: open the drawer. What is the next action?\n"
        "(A) reach\n(B) pull\n"
        "Answer with the option's letter from the given choices directly.\n"
        "Please answer the question in the following format: "
        "<think> your reasoning </think> <answer> your single letter answer </answer>.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert prompt.target(" it moves ", "A") == (
        "<think>\nit moves\n</think>\n\n<answer>\nA\n</answer><|im_end|>"
    )


def test_two_cameras_are_two_videos():
    assert prompt.prefix([1, 2]).count("<|vision_start|>") == 2
    assert prompt.prefix([1, 2]).count("<|video_pad|>") == 3


def test_questions():
    assert prompt.question_text(COMPLETION).startswith("The task is: Open the drawer. Is the task complete")
    assert "possible to pull the handle now" in prompt.question_text(AFFORDANCE)
    assert "possible to open the drawer now" in prompt.question_text(
        dataclasses.replace(AFFORDANCE, action="")
    )
    assert prompt.question_text(FREE) == "What moves?"


def test_which_queries_are_yes_or_no():
    assert prompt.is_yes_no(COMPLETION)
    assert prompt.is_yes_no(AFFORDANCE)
    assert prompt.is_yes_no(dataclasses.replace(FREE, yes_no=True))
    assert not prompt.is_yes_no(FREE)
    assert not prompt.is_yes_no(NEXT)
    assert not prompt.is_yes_no(dataclasses.replace(COMPLETION, options=("a", "b")))
    assert prompt.YES_NO_LINE in prompt.user_text(COMPLETION)
    assert prompt.YES_NO_LINE not in prompt.user_text(FREE)


@pytest.mark.parametrize("query", [COMPLETION, AFFORDANCE, NEXT, FREE])
def test_parts_tokenise_as_the_whole(tokenizer, query):
    whole = tokenizer.encode(prompt.prefix([4, 2]) + prompt.suffix(query), add_special_tokens=False)
    parts = prompt.encode_prefix(tokenizer, [4, 2]) + prompt.encode_suffix(tokenizer, query)
    assert parts == whole


@given(reasoning=st.text(max_size=60), answer=st.text(min_size=1, max_size=20))
@settings(max_examples=100, deadline=None)
def test_targets_say_what_they_are_given(tokenizer, reasoning, answer):
    if "<" in reasoning + answer or not answer.strip():
        return  # tags and control tokens do not occur in training texts
    ids = prompt.encode_target(tokenizer, reasoning, answer)
    text = tokenizer.decode(ids)
    assert text == prompt.target(reasoning, answer)
    parsed = decision.parse_output(text, FREE)
    assert (parsed.reasoning, parsed.answer) == (reasoning.strip(), answer.strip())


@pytest.mark.parametrize(
    ("query", "code"),
    [
        (Query(QueryKind.COMPLETION, task="  "), ErrorCode.NO_TASK),
        (Query(QueryKind.NEXT_ACTION), ErrorCode.NO_TASK),
        (Query(QueryKind.AFFORDANCE), ErrorCode.NO_TASK),
        (Query(QueryKind.QUESTION), ErrorCode.INVALID_REQUEST),
        (dataclasses.replace(NEXT, options=("only",)), ErrorCode.INVALID_REQUEST),
        (dataclasses.replace(NEXT, options=("x",) * 27), ErrorCode.INVALID_REQUEST),
        (dataclasses.replace(NEXT, options=("a", " ")), ErrorCode.INVALID_REQUEST),
        (dataclasses.replace(FREE, think_tokens=-2), ErrorCode.INVALID_REQUEST),
        (dataclasses.replace(FREE, question="x" * 2001), ErrorCode.QUESTION_TOO_LONG),
        (dataclasses.replace(FREE, question="a<|im_end|>b"), ErrorCode.INVALID_REQUEST),
        (dataclasses.replace(NEXT, options=("a", "<|video_pad|>")), ErrorCode.INVALID_REQUEST),
    ],
)
def test_refuses(tokenizer, query, code):
    with pytest.raises(CosmosReasonError) as caught:
        prompt.encode_suffix(tokenizer, query)
    assert caught.value.code is code
