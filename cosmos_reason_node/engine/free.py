# SPDX-License-Identifier: Apache-2.0
"""Decoding without the grammar: the model writes what it likes, format errors included.

Evaluation and RL need to see them (``Request.free``); the node never asks this way. Same interface towards
an engine as ``grammar.Branch``. Control tokens are not sampled here either, except <|im_end|>, which ends the
text.
"""

from __future__ import annotations

import math
import re

from .. import prompt
from ..types import Answer, Verdict
from .grammar import FreeStep, TextStream, Vocabulary

_ANSWER = re.compile(r"<answer>\s*(?P<inside>.*?)\s*</answer>", re.DOTALL)


class FreeBranch:
    """One text being written.

    Args:
        vocabulary: of the checkpoint.
        max_tokens: most tokens of it, at least 1.
        min_tokens: of it before it may end.
        opening: what it begins with, already fed to the model.
    """

    def __init__(
        self, vocabulary: Vocabulary, max_tokens: int, min_tokens: int = 0, opening: str = ""
    ) -> None:
        self._opening = opening
        self._vocabulary = vocabulary
        self._budget = max_tokens
        self._least = min_tokens
        self._stream = TextStream(vocabulary.tokenizer, prompt.END_OF_TURN)
        self._ids: list[int] = []
        self._tokens: list[tuple[int, int, float]] = []  # begin and end in the text, log probability
        self._pending: list[int] = []
        self._cut = False
        self.done = False

    @property
    def thinking(self) -> bool:
        """Whether the text is inside <think></think>."""
        text = self._opening + self._stream.text
        return text.rfind("<think>") > text.rfind("</think>")

    @property
    def output_tokens(self) -> int:
        """Tokens of the text so far."""
        return len(self._tokens)

    def take(self) -> list[int]:
        """The tokens that the model has not been fed yet."""
        chunk, self._pending = self._pending, []
        return chunk

    def step(self) -> FreeStep:
        """What to choose from the logits after the tokens taken."""
        open_end = len(self._tokens) >= self._least
        return FreeStep(self._vocabulary.in_text if open_end else self._vocabulary.no_end)

    def push(self, token: int, log_prob: float) -> str:
        """Answer a FreeStep; return the text that became certain."""
        begin = len(self._stream.text)
        new = "" if token == self._vocabulary.end else self._stream.push(token)
        self._ids.append(token)
        self._tokens.append((begin, len(self._stream.text), log_prob))
        self._pending = [token]
        self._cut = len(self._tokens) >= self._budget and token != self._vocabulary.end
        if self._cut or token == self._vocabulary.end or self._stream.tag_at >= 0:
            self._stream.flush()
            self.done = True
        return new

    def result(self, prompt_tokens: int, min_confidence: float) -> Answer:
        """The raw text as an answer that nobody has parsed.

        Its confidence is the geometric mean probability of the tokens inside <answer></answer>, 0 where there
        are none. ``min_confidence`` has no meaning here.
        """
        text, given = self._opening + self._stream.text, len(self._opening)
        match = _ANSWER.search(text)
        low, high = (place - given for place in match.span("inside")) if match else (0, 0)
        said = [log_prob for begin, end, log_prob in self._tokens if begin < high and end > low]
        return Answer(
            verdict=Verdict.UNKNOWN,
            answer=text,
            option_index=-1,
            confidence=math.exp(sum(said) / len(said)) if said else 0.0,
            reasoning="",
            prompt_tokens=prompt_tokens,
            output_tokens=self.output_tokens,
            think_closed_by_budget=self._cut,
            token_ids=tuple(self._ids),
            log_probs=tuple(log_prob for _, _, log_prob in self._tokens),
        )
