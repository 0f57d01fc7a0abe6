# SPDX-License-Identifier: Apache-2.0
"""How answers are sampled, and how they are read.

``released`` and ``strict`` sample alike and differ in the parser, so that one set of predictions serves both.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from cosmos_reason_node import decision, prompt
from cosmos_reason_node.engine.base import Sampling
from cosmos_reason_node.types import Query, Verdict

# Most tokens of a sampled output; that of the released configuration.
OUTPUT_TOKENS = 1024


@dataclass(frozen=True)
class Choice:
    """What an output says.

    Attributes:
        text: the chosen option's text, "yes", "no", or words; "" when the output could not be parsed.
        reasoning: what stands inside <think></think>.
    """

    text: str
    reasoning: str = ""


@dataclass(frozen=True)
class Protocol:
    """A way to evaluate.

    Attributes:
        name: on the command line.
        free: without the engine's grammar.
        sampling: of tokens.
        parse: reads an output.
        about: in a sentence, for reports.
    """

    name: str
    free: bool
    sampling: Sampling
    parse: Callable[[str, Query], Choice]
    about: str

    @property
    def greedy(self) -> bool:
        """Whether seeds make no difference."""
        return self.sampling.temperature <= 0

    def decoding(self, think_tokens: int) -> str:
        """Name of all settings that decide what the model says; predictions are kept under it."""
        if not self.free:
            return f"grammar, greedy, think {think_tokens}"
        most = f"{think_tokens} tokens" if think_tokens else "at once"
        return f"free, T {self.sampling.temperature:g}, top_p {self.sampling.top_p:g}, {most}"


def normal(text: str) -> str:
    """Words to compare by: case, outer and double blanks, and a full stop at the end do not count."""
    return " ".join(text.casefold().split()).rstrip(".")


def parse_strict(output: str, query: Query) -> Choice:
    """By the node's own parser: the format, and in it an option's letter or exactly its text."""
    try:
        parsed = decision.parse_output(output, query)
    except decision.ParseError:
        return Choice("", _inside("think", output))
    if parsed.option_index >= 0:
        return Choice(query.options[parsed.option_index], parsed.reasoning)
    verdicts = {Verdict.YES: "yes", Verdict.NO: "no", Verdict.UNKNOWN: "unknown"}
    return Choice(verdicts.get(parsed.verdict, parsed.answer), parsed.reasoning)


def parse_released(output: str, query: Query) -> Choice:
    """As the released evaluator: the first capital letter inside the first <answer></answer>.

    "The answer is B" gives T, which no option has, and is wrong. The released benchmarks have nothing but
    options; other questions are compared by the words inside the tags.
    """
    answer, reasoning = _inside("answer", output), _inside("think", output)
    if not query.options:
        return Choice(answer, reasoning)
    found = re.search("[A-Z]", answer)
    if found is None:
        return Choice("", reasoning)
    index = ord(found[0]) - ord("A")
    return Choice(query.options[index] if index < len(query.options) else f"option {found[0]}", reasoning)


def _inside(tag: str, output: str) -> str:
    match = re.search(f"<{tag}>(.*?)</{tag}>", output.replace(prompt.END_OF_TURN, ""), re.DOTALL)
    return match[1].strip() if match else ""


_SAMPLED = Sampling(temperature=0.6, top_p=0.95)
PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "letter",
            False,
            Sampling(),
            parse_strict,
            "greedy, under the node's grammar: exactly what the node would decide",
        ),
        Protocol(
            "strict",
            True,
            _SAMPLED,
            parse_strict,
            "sampled freely (T 0.6, top_p 0.95); exact parsing, what does not parse is wrong",
        ),
        Protocol(
            "released",
            True,
            _SAMPLED,
            parse_released,
            "sampled freely (T 0.6, top_p 0.95); first capital letter inside <answer>, as the released "
            "evaluator does, without its retries of empty answers",
        ),
    )
}
