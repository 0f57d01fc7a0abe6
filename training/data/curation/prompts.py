# SPDX-License-Identifier: Apache-2.0
"""Every prompt of the curation pipeline, with its version.

Raise the version with every change of words: it is part of the key under which answers are kept, of each
sample's provenance, and a test holds text and version together. ``$name`` is filled in.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from string import Template

from cosmos_reason_node.prompt import PROMPT_ID, SYSTEM


@dataclass(frozen=True)
class Prompt:
    """A prompt with places to fill in.

    Attributes:
        name: of the step and its variant.
        version: raised with every change.
        system: text of the system turn.
        user: text of the user's turn, a string.Template. The frames of the caption step stand before it.
    """

    name: str
    version: int
    system: str
    user: str

    @property
    def digest(self) -> str:
        """Of the words, sha256 in hex, 12 digits."""
        return hashlib.sha256(f"{self.system}\0{self.user}".encode()).hexdigest()[:12]

    @property
    def label(self) -> str:
        """As kept in provenance: name@version:digest."""
        return f"{self.name}@{self.version}:{self.digest}"

    def fill(self, **values: str) -> str:
        """Text of the user's turn."""
        return Template(self.user).substitute(values)


CAPTION = Prompt(
    "caption",
    1,
    "You describe videos for people who cannot see them.",
    """\
The pictures above are frames of one video, in order, each with its time in seconds.
Describe in plain prose, in the order of time, what can be seen: the place, the things and where they are
relative to each other, who or what acts (people, animals, robots, vehicles), each action with its begin,
course and result, how things move, touch, change or break, and how the camera moves. Say what is not
achieved, too. Write only what the pictures show. Do not guess at intentions, do not judge, do not mention
frames or pictures.""",
)

_WRITE_SYSTEM = "You write exam questions about videos and answer with one JSON object and nothing else."

_STYLE = {
    "understanding": """\
They test understanding: what is there, where, what happens, in which order. One who has watched attentively
can answer at once.""",
    "reasoning": """\
They test reasoning: the answer is not said anywhere and follows from several things in the video together
with knowledge of space, time and physics: why something happens, what happens next, what would happen
otherwise, whether something is possible.""",
}

_FORM = {
    "choice": """\
Each has three or four options of about the same length and style, exactly one of them right; the wrong ones
are plausible to someone who has not seen the video. No option refers to another one ("all of the above",
"both A and B").
JSON: {"questions": [{"question": "...", "options": ["...", "..."], "answer": "the right option, word for \
word", "category": "..."}]}""",
    "free": """\
Each has one short answer (at most 15 words) on which all who watched would agree.
JSON: {"questions": [{"question": "...", "answer": "...", "category": "..."}]}""",
}


def write_prompt(style: str, form: str) -> Prompt:
    """The prompt that asks for questions of a style and a form."""
    return Prompt(
        f"write-{style}-{form}",
        1,
        _WRITE_SYSTEM,
        f"""\
A video shows this:
$caption

Write $count different questions about the video. {_STYLE[style]}
The reader sees the video and not this text: never mention a text, a caption or a description. Whoever has
not seen the video must not be able to answer: neither the question nor common knowledge gives the answer
away.
{_FORM[form]}
"category" is one of: $categories.""",
    )


# The node's own conventions (cosmos_reason_node.prompt), without the video; $question is its user text.
BLIND = Prompt(f"blind-{PROMPT_ID}", 1, SYSTEM, "$question")

TRACE = Prompt(
    "trace",
    1,
    "You watch a video and answer a question about it. Think step by step, briefly, before you answer.",
    """\
The video shows this:
$caption

$question
In your reasoning speak of what the video shows, as one who sees it.""",
)

JUDGE = Prompt(
    "judge",
    1,
    "You compare two answers to a question. Answer with one word, yes or no.",
    """\
Question: $question
Answer 1: $key
Answer 2: $answer
Do both say the same? yes or no:""",
)

ALL = (CAPTION, *(write_prompt(style, form) for style in _STYLE for form in _FORM), BLIND, TRACE, JUDGE)
