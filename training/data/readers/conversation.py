# SPDX-License-Identifier: Apache-2.0
"""What a released conversation says, taken apart: question, options, reasoning, answer.

Data sets carry whole prompts in their user turns ("Answer with the option's letter ..."). The words that say
how to answer are removed here, since cosmos_reason_node.prompt adds its own: training, evaluation and node
then show the model one wording.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from cosmos_reason_node import decision, prompt
from cosmos_reason_node.types import Query, QueryKind

from ..problems import FieldErrors

PLACEHOLDER = re.compile(r"\n?</?(image|video)>\n?", re.IGNORECASE)
_HOW_TO_ANSWER = (
    re.compile(
        r"\s*(please )?answer the question (using|in) the following format.*?</answer>\.?", re.I | re.S
    ),
    re.compile(r"\s*" + re.escape(prompt.OPTIONS_LINE.rstrip(".")) + r"\.?", re.I),
    re.compile(r"\s*(please )?(answer|respond) (with )?(only )?yes or no( only)?\.?\s*\Z", re.I),
)
# What LLaVA's data say behind the options, in many words; taken for that only where options stand before it.
_LETTER_WANTED = re.compile(
    r"\s*(please )?(answer|respond|reply|provide|select|choose|state|give)\b.*\b(letter|option)s?\b.*", re.I
)
_OPTION = re.compile(r"\s*\(?([A-Z])[).:]\s+(\S.*)")
_OUTPUT = re.compile(
    r"\s*(?:<think>(?P<reasoning>.*?)</think>)?\s*(?:<answer>(?P<tagged>.*?)</answer>|(?P<plain>.*?))\s*\Z",
    re.DOTALL,
)
_TAG = re.compile(r"</?(think|answer)>")


def parse_question(text: str) -> tuple[str, tuple[str, ...]]:
    """(question, options) of a user's turn; options are its last lines if these are lettered from A on."""
    text = PLACEHOLDER.sub("\n", text)
    for pattern in _HOW_TO_ANSWER:
        text = pattern.sub("", text)
    lines = text.strip().splitlines()
    found = _take_options(lines)
    if not found and lines and _LETTER_WANTED.fullmatch(lines[-1]):
        found = _take_options(lines[:-1])
    return found or (text.strip(), ())


def _take_options(lines: Sequence[str]) -> tuple[str, tuple[str, ...]] | None:
    """(question, options) where the last lines, blank ones aside, are options from A on; else None."""
    options: list[str] = []
    letters: list[str] = []
    rest = list(lines)
    while rest and ((match := _OPTION.fullmatch(rest[-1])) or not rest[-1].strip()):
        if match:
            letters.insert(0, match[1])
            options.insert(0, match[2].strip())
        rest.pop()
    if len(options) < 2 or letters != [prompt.letter(i) for i in range(len(options))]:
        return None
    return "\n".join(rest).strip(), tuple(options)


def parse_answer(text: str) -> tuple[str, str]:
    """(reasoning, answer) of an assistant's turn, with or without its tags.

    Raises:
        FieldErrors: a tag is not closed, or occurs twice.
    """
    match = _OUTPUT.match(text)
    parts = (match["reasoning"] or "", match["tagged"] or match["plain"] or "") if match else ("", text)
    if any(map(_TAG.search, parts)):
        raise FieldErrors(
            [("answer", "has a <think> or <answer> that is not closed or occurs twice: repair the text")]
        )
    return parts[0].strip(), parts[1].strip()


def option_letter(answer: str, options: Sequence[str]) -> str:
    """Letter of the option that ``answer`` names, by the parser that reads the model's answers.

    Raises:
        FieldErrors: it names none.
    """
    query = Query(QueryKind.QUESTION, question="?", options=tuple(options))
    try:
        parsed = decision.parse_output(f"<think></think><answer>{answer}</answer>", query)
    except decision.ParseError as error:
        letters = ", ".join(prompt.letter(i) for i in range(len(options)))
        raise FieldErrors([("answer", f"names none of the options {letters}: {error}")]) from error
    return prompt.letter(parsed.option_index)


def yes_no(answer: str) -> str:
    """The word yes or no if that is all an answer says, else ""."""
    word = answer.strip().rstrip(".!").lower()
    return word if word in ("yes", "no") else ""
