# SPDX-License-Identifier: Apache-2.0
"""From model output to verdict: the one answer parser, and the rule for UNKNOWN.

Engines decode under a grammar, so their output always parses; text from elsewhere (a remote server, a data
set, a model under evaluation) goes through the same ``parse_output`` and may fail, which is counted and never
guessed at.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from . import prompt
from .types import Query, Verdict

# Below this probability of the better of two sides, neither has won.
DEFAULT_MIN_CONFIDENCE = 0.55

_OPEN, _CLOSE = "<think>", "</answer>"
_BETWEEN = re.compile(r"</think>\s*<answer>")
_LETTER = re.compile(r"\A\(?(?P<letter>[A-Za-z])\)?[.:]?(?:\s+(?P<text>.*))?\Z", re.DOTALL)


@dataclass(frozen=True)
class Parsed:
    """Output text taken apart. ``verdict`` follows from the text alone."""

    reasoning: str
    answer: str
    verdict: Verdict
    option_index: int


class ParseError(ValueError):
    """The output does not follow the format or names no option."""


def parse_output(text: str, query: Query) -> Parsed:
    """Parse ``<think>...</think><answer>...</answer>`` as the answer to ``query``.

    An option is named by its letter (``B``, ``(B)``, ``B. text``) or by exactly its text; nothing else is
    searched for letters.

    Raises:
        ParseError: with the reason.
    """
    output = text.replace(prompt.END_OF_TURN, "").strip()
    # One tag after the other, not as one pattern: that takes seconds where tags come by the thousand.
    between = _BETWEEN.search(output, len(_OPEN))
    whole = output.startswith(_OPEN) and output.endswith(_CLOSE)
    if not whole or between is None or between.end() > len(output) - len(_CLOSE):
        raise ParseError("expected <think>...</think> <answer>...</answer>")
    reasoning = output[len(_OPEN) : between.start()].strip()
    answer = output[between.end() : -len(_CLOSE)].strip()
    if not answer:
        raise ParseError("the answer is empty")
    if query.options:
        return Parsed(reasoning, answer, Verdict.CHOICE, _option_index(answer, query.options))
    if prompt.is_yes_no(query):
        return Parsed(reasoning, answer, _yes_no(answer), -1)
    return Parsed(reasoning, answer, Verdict.CHOICE, -1)


def settle(
    verdict: Verdict, confidence: float, min_confidence: float = DEFAULT_MIN_CONFIDENCE, choices: int = 2
) -> Verdict:
    """UNKNOWN where no side wins: the winner's probability is too near chance.

    ``min_confidence`` is meant for two sides. With more choices the winner needs the same share of the way
    from chance to certainty: 0.55 of two is 0.325 of four.
    """
    chance = 1.0 / choices
    needed = chance + (min_confidence - 0.5) / 0.5 * (1.0 - chance)
    return verdict if confidence >= needed else Verdict.UNKNOWN


def _yes_no(answer: str) -> Verdict:
    first = re.match(r"[A-Za-z]+", answer)
    word = first.group().lower() if first else ""
    if word == "yes":
        return Verdict.YES
    if word == "no":
        return Verdict.NO
    if word == "unknown":
        return Verdict.UNKNOWN
    raise ParseError(f"expected yes or no, got {answer[:40]!r}")


def _option_index(answer: str, options: Sequence[str]) -> int:
    # The options' letters are what the prompt asks for: an option that reads "A" need not be the first.
    if len(answer) == 1 and 0 <= ord(answer) - ord("A") < len(options):
        return ord(answer) - ord("A")
    folded = answer.casefold().rstrip(".")
    for index, option in enumerate(options):
        if folded == option.strip().casefold().rstrip("."):
            return index
    match = _LETTER.match(answer)
    if match is None:
        raise ParseError(f"expected an option's letter, got {answer[:40]!r}")
    index = ord(match["letter"].upper()) - ord("A")
    if index >= len(options):
        raise ParseError(f"there is no option {match['letter']!r}")
    text = match["text"]
    if text is not None and text.strip().casefold().rstrip(".") != options[index].strip().casefold().rstrip(
        "."
    ):
        raise ParseError(f"letter and text disagree: {answer[:40]!r}")
    return index
