# SPDX-License-Identifier: Apache-2.0
"""Taking a reply apart, and whether two answers say the same."""

from __future__ import annotations

import re
from collections import Counter

from cosmos_reason_node.decision import ParseError, parse_output
from cosmos_reason_node.prompt import is_yes_no, letter
from cosmos_reason_node.types import Query

from .message import Answer
from .outcome import Rejected

_THINK = re.compile(r"\A\s*(?:<think>)?(?P<reasoning>.*?)</think>(?P<rest>.*)\Z", re.DOTALL)
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_TAG = re.compile(r"</?(?:think|answer)>")
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)?")

_ARTICLES = {"a", "an", "the"}
_NEGATIONS = {"not", "no", "never", "nothing", "none", "neither", "cannot", "without"}
_NUMBERS = {"zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "twelve"}
# Answers that differ in one of these do not say the same, however alike the rest is.
_OPPOSITES = """yes left right up down above below over under before after first last open opens opened close
closes closed in out on off front behind inside outside more less increase increases decrease decreases
clockwise counterclockwise forward backward push pushes pull pulls full empty"""
_TELLING = _NEGATIONS | _NUMBERS | set(re.findall(r"\w+", _OPPOSITES))


def words(text: str) -> list[str]:
    """Words of a text, folded, without articles; ``n't`` counts as the word not."""
    folded = text.casefold().replace("’", "'").replace("can't", "cannot").replace("n't", " not")
    return [word for word in _WORD.findall(folded) if word not in _ARTICLES]


def same_words(key: str, answer: str, min_overlap: float) -> bool:
    """Whether a free answer says what the key says, judged by words.

    Args:
        key: the right answer.
        answer: the other one.
        min_overlap: F1 of their words from which on they agree, unless a telling word (a negation, a number,
            a direction) is in one of them only.
    """
    first, second = words(key), words(answer)
    if first == second:
        return bool(first)
    differ = set(first) ^ set(second)
    if any(word in _TELLING or word.isdecimal() for word in differ):
        return False
    common = (Counter(first) & Counter(second)).total()
    return bool(common) and 2 * common / (len(first) + len(second)) >= min_overlap


def spoken(text: str) -> str:
    """What a reply says behind its thoughts, which reasoning models give inline where nothing parts them."""
    return text.rpartition("</think>")[2]


def take_apart(reply: Answer, query: Query) -> tuple[str, str]:
    """Reasoning and answer of a reply to ``query``.

    Reasoning stands in <think></think> (the opening tag may be missing: some chat templates put it into the
    prompt) or apart from the text, the answer in <answer></answer>; what stands before it without tags is
    reasoning too. Without answer tags the text after the reasoning is the answer where it can only be an
    option, yes or no.

    Raises:
        Rejected: "truncated" or "wrong_format".
    """
    if reply.finish == "length":
        raise Rejected("truncated", f"cut off after {reply.output_tokens} tokens")
    match = _THINK.match(reply.text)
    inline, rest = (match["reasoning"], match["rest"]) if match else ("", reply.text)
    answers = _ANSWER.findall(rest)
    if answers and not match:
        inline = rest[: rest.index("<answer>")]
    reasoning = (reply.reasoning or inline).strip()
    left = _TAG.findall(_ANSWER.sub("", rest)) + _TAG.findall(inline)
    bounded = bool(query.options) or is_yes_no(query)
    if left or len(answers) > 1 or not (answers or bounded):
        raise Rejected("wrong_format", f"no single <answer></answer> in {' '.join(rest.split())[:80]!r}")
    answer = (answers[0] if answers else rest).strip()
    if not answer or _TAG.search(answer):
        raise Rejected("wrong_format", "the answer is empty or holds tags")
    return reasoning, answer


def plain_answer(reply: Answer, query: Query) -> str:
    """The answer of a reply as ``take_apart`` finds it; of a reply in another format, all that is said."""
    try:
        return take_apart(reply, query)[1]
    except Rejected:
        return _TAG.sub(" ", spoken(reply.text)).strip()


def decided(answer: str, query: Query) -> str:
    """The option's letter, "yes" or "no" in an answer; "" = none. By the parser of node and evaluation."""
    try:
        parsed = parse_output(f"<think></think><answer>{answer}</answer>", query)
    except ParseError:
        return ""
    return letter(parsed.option_index) if query.options else parsed.verdict.name.lower()
