# SPDX-License-Identifier: Apache-2.0
"""The one prompt builder, for node, training and evaluation.

Follows the conventions released with Cosmos-Reason1 (arXiv 2503.15558 and the public repository): media
before text, the system text of its benchmark, options as ``(A) ...`` lines, reasoning in <think></think>, the
answer in <answer></answer>.

A prompt has two parts that are tokenised apart: ``prefix`` (system text and video) is the same for every
query about a window, ``suffix`` (question and the assistant's header) is the query's own. The split falls on
a special token, so the tokens are those of the whole text, and an engine computes the prefix once per window.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Protocol

from .errors import CosmosReasonError, ErrorCode
from .types import Query, QueryKind

SYSTEM = "Answer the questions."
MAX_TEXT_CHARS = 2000
MAX_OPTIONS = 26

QUESTIONS = {
    QueryKind.COMPLETION: "The task is: {task}. Is the task complete at the end of the video?",
    QueryKind.AFFORDANCE: "At the end of the video, is it possible to {action} now?",
    QueryKind.NEXT_ACTION: "The task is: {task}. What is the next action?",
}
YES_NO_LINE = "Answer yes or no."
OPTIONS_LINE = "Answer with the option's letter from the given choices directly."
FORMAT_LINE = (
    "Please answer the question in the following format: "
    "<think> your reasoning </think> <answer> {answer} </answer>."
)

THINK_OPEN = "<think>\n"
THINK_CLOSE = "\n</think>\n\n<answer>\n"
ANSWER_CLOSE = "\n</answer>"
END_OF_TURN = "<|im_end|>"

_PREFIX_HEAD = "<|im_start|>system\n" + SYSTEM + "<|im_end|>\n<|im_start|>user\n"
_SUFFIX_TAIL = "<|im_end|>\n<|im_start|>assistant\n"
_CONTROL_TOKEN = re.compile(r"<\|[^|<>]*\|>")

# Changes whenever a word of the conventions changes: decisions, engines and data sets carry it.
PROMPT_ID = hashlib.sha256(
    "\0".join(
        [
            _PREFIX_HEAD,
            _SUFFIX_TAIL,
            *(QUESTIONS[kind] for kind in sorted(QUESTIONS)),
            YES_NO_LINE,
            OPTIONS_LINE,
            FORMAT_LINE,
            THINK_OPEN,
            THINK_CLOSE,
            ANSWER_CLOSE,
        ]
    ).encode()
).hexdigest()[:12]


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer used here."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of ``text``."""
        ...


def letter(index: int) -> str:
    """Letter of option ``index``: 0 -> "A"."""
    return chr(ord("A") + index)


def is_yes_no(query: Query) -> bool:
    """Whether the answer is constrained to yes or no."""
    if query.options:
        return False
    return query.kind in (QueryKind.COMPLETION, QueryKind.AFFORDANCE) or (
        query.kind is QueryKind.QUESTION and query.yes_no
    )


def check_query(query: Query) -> None:
    """Refuse a query that has no meaning.

    Raises:
        CosmosReasonError: NO_TASK, QUESTION_TOO_LONG or INVALID_REQUEST, with what to change.
    """
    if query.kind in (QueryKind.COMPLETION, QueryKind.NEXT_ACTION) and not query.task.strip():
        raise CosmosReasonError(
            ErrorCode.NO_TASK, "there is no task: give one in the request or call the set_task service first"
        )
    if query.kind is QueryKind.AFFORDANCE and not (query.action.strip() or query.task.strip()):
        raise CosmosReasonError(
            ErrorCode.NO_TASK, "an affordance query needs an action (or a task that stands for it)"
        )
    if query.kind is QueryKind.QUESTION and not query.question.strip():
        raise CosmosReasonError(ErrorCode.INVALID_REQUEST, "the question is empty")
    if len(query.options) == 1 or len(query.options) > MAX_OPTIONS:
        raise CosmosReasonError(
            ErrorCode.INVALID_REQUEST, f"give 2 to {MAX_OPTIONS} options or none, not {len(query.options)}"
        )
    if any(not option.strip() for option in query.options):
        raise CosmosReasonError(ErrorCode.INVALID_REQUEST, "an option is empty")
    if query.think_tokens < -1:
        raise CosmosReasonError(
            ErrorCode.INVALID_REQUEST, f"think_tokens must be -1 or more, not {query.think_tokens}"
        )
    for text in (query.task, query.action, query.question, *query.options):
        if not text.isprintable() and any("\ud800" <= character <= "\udfff" for character in text):
            raise CosmosReasonError(ErrorCode.INVALID_REQUEST, "a text holds half of a character")
        if len(text) > MAX_TEXT_CHARS:
            raise CosmosReasonError(
                ErrorCode.QUESTION_TOO_LONG,
                f"a text of {len(text)} characters is over the limit of {MAX_TEXT_CHARS}: shorten it",
            )
        if _CONTROL_TOKEN.search(text):
            raise CosmosReasonError(
                ErrorCode.INVALID_REQUEST, "texts must not hold control tokens of the form <|...|>"
            )


def question_text(query: Query) -> str:
    """The question alone, as a person would ask it; this is what a decision shows."""
    if query.kind is QueryKind.QUESTION:
        return query.question.strip()
    task = query.task.strip().rstrip(".")
    action = query.action.strip().rstrip(".") or task
    return QUESTIONS[query.kind].format(task=task, action=action)


def user_text(query: Query) -> str:
    """All text of the user's turn: question, options, how to answer."""
    lines = [question_text(query)]
    if query.options:
        lines += [f"({letter(i)}) {option.strip()}" for i, option in enumerate(query.options)]
        lines += [OPTIONS_LINE, FORMAT_LINE.format(answer="your single letter answer")]
    elif is_yes_no(query):
        lines += [YES_NO_LINE, FORMAT_LINE.format(answer="your answer")]
    else:
        lines += [FORMAT_LINE.format(answer="your answer")]
    return "\n".join(lines)


def prefix(visual_tokens: Sequence[int]) -> str:
    """System turn and the head of the user's turn with one block per video.

    Args:
        visual_tokens: number of <|video_pad|> placeholders of each video.
    """
    videos = "".join("<|vision_start|>" + "<|video_pad|>" * n + "<|vision_end|>" for n in visual_tokens)
    return _PREFIX_HEAD + videos


def suffix(query: Query) -> str:
    """The rest of the prompt for one query, up to where the model starts to speak."""
    return user_text(query) + _SUFFIX_TAIL


def target(reasoning: str, answer: str) -> str:
    """What a model is trained to say. Empty ``reasoning``: an empty think block, as with a budget of 0."""
    return THINK_OPEN + reasoning.strip() + THINK_CLOSE + answer.strip() + ANSWER_CLOSE + END_OF_TURN


def encode_prefix(tokenizer: Tokenizer, visual_tokens: Sequence[int]) -> list[int]:
    """Token ids of ``prefix``."""
    return tokenizer.encode(prefix(visual_tokens), add_special_tokens=False)


def encode_suffix(tokenizer: Tokenizer, query: Query) -> list[int]:
    """Token ids of ``suffix``; checks the query first."""
    check_query(query)
    return tokenizer.encode(suffix(query), add_special_tokens=False)


def encode_opening(tokenizer: Tokenizer) -> list[int]:
    """Token ids of what a target begins with whose reasoning is empty, up to its answer."""
    return [
        token
        for piece in (THINK_OPEN, THINK_CLOSE)
        for token in tokenizer.encode(piece, add_special_tokens=False)
    ]


def encode_target(tokenizer: Tokenizer, reasoning: str, answer: str) -> list[int]:
    """Token ids of ``target``. Pieces that an engine forces are tokenised on their own, as it does."""
    pieces = [THINK_OPEN, reasoning.strip(), THINK_CLOSE, answer.strip(), ANSWER_CLOSE + END_OF_TURN]
    return [token for piece in pieces if piece for token in tokenizer.encode(piece, add_special_tokens=False)]
