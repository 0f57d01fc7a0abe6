# SPDX-License-Identifier: Apache-2.0
"""Questions that a writer gave: out of its JSON, through the rules, with options in an order of our own."""

from __future__ import annotations

import dataclasses
import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cosmos_reason_node.errors import CosmosReasonError
from cosmos_reason_node.prompt import check_query, letter, user_text
from cosmos_reason_node.types import Query, QueryKind

from ..schema import CAPABILITIES, CATEGORIES
from .agreement import spoken, words
from .cleaning import check_no_caption, check_no_tags
from .config import QuestionSet
from .outcome import Rejected

_LABEL = re.compile(r"\A\s*\(?([A-Za-z])[).:]\s+")
_LETTER = re.compile(r"[\W_]*(?:option[\W_]*)?([a-z])[\W_]*")  # "(b)", "Option B", "option_b"
_REFERS = re.compile(
    r"\b(?:(?:all|none|any|both|either|neither) of (?:the|these|those) (?:above|options|answers|others)"
    r"|(?:all|none|both|either|neither) of (?:these|them|the above)"
    r"|(?:both|neither|either) \(?[A-F]\)? (?:and|or|nor) \(?[A-F]\)?|options? \(?[A-F]\b)",
    re.IGNORECASE,
)
_MIN_WORDS, _MAX_WORDS, _MAX_ANSWER_WORDS = 4, 80, 30
_MARK = re.compile(r"[?？؟]")  # "?" of Latin, East Asian and Arabic scripts
_LIST = re.compile(r"[{\[]")


@dataclass(frozen=True)
class Question:
    """A question that passed the rules.

    Attributes:
        name: unique; the sample's id.
        asked_for: the set that it was written for.
        query: as the node would be asked.
        answer: letter of the right option, "yes" or "no" (also written as a free question), or words.
        label: category or capability, "" where the writer named none that exists.
    """

    name: str
    asked_for: QuestionSet
    query: Query
    answer: str
    label: str

    @property
    def text(self) -> str:
        """Question, options, and how to answer: the node's own prompt."""
        return user_text(self.query)

    @property
    def key(self) -> str:
        """The right answer in words."""
        return self.query.options[ord(self.answer) - ord("A")] if self.query.options else self.answer

    @property
    def free(self) -> bool:
        """Whether the answer is in free words: neither an option nor yes or no."""
        return not self.query.options and not self.query.yes_no

    def rotated(self, by: int) -> Question:
        """The same question with its options moved on by ``by`` places."""
        options = self.query.options
        if not options:
            return self
        by %= len(options)
        index = (ord(self.answer) - ord("A") - by) % len(options)
        query = dataclasses.replace(self.query, options=options[by:] + options[:by])
        return dataclasses.replace(self, query=query, answer=letter(index))


def labels(asked_for: QuestionSet) -> tuple[str, ...]:
    """Names of the ontology that a set's questions are about."""
    return CATEGORIES if asked_for.ontology == "common_sense" else CAPABILITIES


def schema(asked_for: QuestionSet) -> dict[str, Any]:
    """JSON schema of the writer's answer."""
    text = {"type": "string"}
    fields: dict[str, Any] = {"question": text}
    if asked_for.form == "choice":
        fields["options"] = {"type": "array", "items": text, "minItems": 3, "maxItems": 4}
    fields |= {"answer": text, "category": {"type": "string", "enum": list(labels(asked_for))}}
    item = _object(fields)
    return _object({"questions": {"type": "array", "items": item, "maxItems": asked_for.count}})


def read_list(text: str) -> list[Any]:
    """The list of questions in a writer's answer, which may stand in prose or a code block.

    What a reasoning model thinks before it is no part of it: drafts stand there, and lists of what may be.

    Raises:
        Rejected: "not_json" or "no_questions".
    """
    text = spoken(text)
    if text.lstrip().startswith("<think>"):
        raise Rejected("not_json", f"only a thought, which does not end: {' '.join(text.split())[:80]!r}")
    start = _LIST.search(text)
    try:
        value, _ = json.JSONDecoder().raw_decode(text, start.start() if start else len(text))
    except ValueError as error:
        raise Rejected("not_json", f"{error}: {' '.join(text.split())[:80]!r}") from error
    if isinstance(value, dict):
        value = value.get("questions", [value] if "question" in value else [])
    if not isinstance(value, list) or not value:
        raise Rejected("no_questions", f"{' '.join(text.split())[:80]!r}")
    return value


def make_question(entry: Any, name: str, asked_for: QuestionSet, max_key_ratio: float, seed: int) -> Question:
    """A question from an entry of the writer's list.

    Args:
        entry: of the list.
        name: of the question.
        asked_for: the set.
        max_key_ratio: see config.Write.
        seed: with the name, settles the order of options.

    Raises:
        Rejected: with the rule's name.
    """
    text = _text(entry, "question")
    check_no_caption(text)
    count = len(text.split())
    if not _MIN_WORDS <= count <= _MAX_WORDS:
        raise Rejected("too_short" if count < _MIN_WORDS else "too_long", f"{count} words: {text[:80]!r}")
    if not _MARK.search(text):
        raise Rejected("not_a_question", f"no question mark: {text[:80]!r}")
    answer = _text(entry, "answer")
    options: tuple[str, ...] = ()
    if asked_for.form == "choice":
        options, labelled = _options(entry)
        _check_options(options)
        key = _find_key(answer, options, labelled)
        _check_key(options, key, text, max_key_ratio)
        order = list(range(len(options)))
        random.Random(f"{seed} {name}").shuffle(order)
        options, answer = tuple(options[i] for i in order), letter(order.index(key))
    else:
        _check_free(answer, text)
        if words(answer) in (["yes"], ["no"]):
            answer = words(answer)[0]
    query = Query(QueryKind.QUESTION, question=text, options=options, yes_no=answer in ("yes", "no"))
    try:
        check_query(query)
    except CosmosReasonError as error:
        raise Rejected("invalid", error.message) from error
    label = str(entry.get("category", "")).strip().casefold().replace(" ", "_").replace("-", "_")
    return Question(name, asked_for, query, answer, label if label in labels(asked_for) else "")


def _text(entry: Any, name: str) -> str:
    value = entry.get(name) if isinstance(entry, Mapping) else None
    if not isinstance(value, str) or not value.strip():
        raise Rejected("malformed", f"no text {name!r} in {json.dumps(entry)[:80]}")
    return " ".join(value.split())


def _options(entry: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Options, and the label of each: the writer's own where there is one, else the letter of its place."""
    value = entry.get("options")
    given: list[str] = []
    if isinstance(value, Mapping):
        given = list(map(_letter, value))
        value = list(value.values())
    if not isinstance(value, list) or not all(isinstance(option, str) and option.strip() for option in value):
        raise Rejected("malformed", f"options are no list of texts: {json.dumps(value)[:80]}")
    options = [" ".join(option.split()) for option in value]
    if not any(given):
        given = [match[1].lower() if (match := _LABEL.match(option)) else "" for option in options]
    if all(map(_LABEL.match, options)):
        options = [_LABEL.sub("", option) for option in options]
    return tuple(options), tuple(label or letter(i).lower() for i, label in enumerate(given))


def _letter(text: str) -> str:
    """The letter of a label, in lower case; "" where the text is no label."""
    match = _LETTER.fullmatch(text.casefold())
    return match[1] if match else ""


def _find_key(answer: str, options: Sequence[str], labelled: Sequence[str]) -> int:
    """Index of the option that the writer calls right: by its text, else by its label.

    Writers do not always give options in the order of their letters, so "A" need not be the first one. A
    label that two options have, or none, names no option: better no question than a wrong key.
    """
    plain = [words(option) for option in options]
    for text in (answer, _LABEL.sub("", answer)):
        if plain.count(words(text)) == 1:
            return plain.index(words(text))
    if labelled.count(label := _letter(answer)) != 1:
        raise Rejected("no_key", f"{answer[:60]!r} is none of the options")
    return labelled.index(label)


def _check_options(options: Sequence[str]) -> None:
    if not 2 <= len(options) <= 8:
        raise Rejected("malformed", f"{len(options)} options")
    plain = [tuple(words(option)) for option in options]
    if len(set(plain)) < len(plain) or () in plain:
        raise Rejected("options_repeat", f"two options say the same: {list(options)}"[:120])
    for option in options:
        check_no_caption(option)
        if _REFERS.search(option):
            raise Rejected("options_refer", f"{option!r} refers to other options, which are shuffled")


def _check_key(options: Sequence[str], key: int, text: str, max_key_ratio: float) -> None:
    others = [len(option) for i, option in enumerate(options) if i != key]
    if len(options[key]) > max_key_ratio * sum(others) / len(others) and len(options[key]) > max(others):
        raise Rejected("key_stands_out", f"{options[key][:60]!r} is far longer than the others")
    within = [_within(words(option), words(text)) for option in options]
    if within[key] and sum(within) == 1:
        raise Rejected("answer_in_question", f"{options[key]!r} in {text[:80]!r}")


def _check_free(answer: str, text: str) -> None:
    check_no_caption(answer)
    check_no_tags(answer)
    if len(answer.split()) > _MAX_ANSWER_WORDS:
        raise Rejected("too_long", f"an answer of {len(answer.split())} words")
    if not words(answer):
        raise Rejected("malformed", "the answer holds no word")
    if _within(words(answer), words(text)):
        raise Rejected("answer_in_question", f"{answer!r} in {text[:80]!r}")


def _within(part: Sequence[str], whole: Sequence[str]) -> bool:
    """Whether ``part`` stands in ``whole``, word for word."""
    part, whole = list(part), list(whole)
    return any(whole[i : i + len(part)] == part for i in range(len(whole) - len(part) + 1))


def _object(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": dict(fields),
        "required": list(fields),
        "additionalProperties": False,
    }
