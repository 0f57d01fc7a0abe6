# SPDX-License-Identifier: Apache-2.0
"""What a server's stream says about one query: pieces to text, text to answer, and whether it can be true."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from .. import decision, prompt
from ..errors import CosmosReasonError, ErrorCode
from ..types import Answer, Query, Verdict
from .grammar import YES_NO

_MOST = 2**32 - 1  # of a field of a decision's message
# Reasons for an end other than that the model was done or at its bound.
_BROKEN_OFF = ("error", "abort", "cancelled", "canceled", "content_filter")
CUT_OFF = "the server's stream ended in the middle of an answer: it died or was restarted; ask again"


def failed(message: str) -> CosmosReasonError:
    """The error of a server that does not do as it should."""
    return CosmosReasonError(ErrorCode.ENGINE_FAILED, well_formed(message))


def well_formed(text: str) -> str:
    """``text`` without halves of surrogate pairs, which JSON can hold and no ROS message can.

    Halves that follow each other (a server may stream them apart) become their character.
    """
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


class RemoteText:
    """One text being streamed.

    Args:
        query: what it answers.
        opened: beginning of the assistant's turn that the server was given; "" for none.
        free: the raw text is the answer.
        most: tokens that the server may write.
        visual: tokens that the frames alone are.
        min_confidence: probability under which a verdict is UNKNOWN.
        calibration: temperature of probabilities, as in ``sampling.choose``.
    """

    def __init__(
        self,
        query: Query,
        opened: str,
        free: bool,
        most: int,
        visual: int,
        min_confidence: float,
        calibration: float = 1.0,
    ) -> None:
        self._query, self._free, self._most, self._visual = query, free, most, visual
        self._min_confidence, self._calibration = min_confidence, calibration
        self._opened, self._thoughts, self._content = opened, "", ""
        # Per token: where it ends in the content, and the likeliest tokens in its place.
        self._tops: list[tuple[int, list[tuple[str, float]]]] = []
        self._finish = ""
        self._usage: Mapping[str, Any] = {}

    @property
    def text(self) -> str:
        """All of it. Thoughts that the server has taken out of the text are put back."""
        if self._thoughts:
            thoughts = f"{prompt.THINK_OPEN}{self._thoughts.strip()}\n</think>\n\n"
            return well_formed(thoughts + self._content.lstrip())
        return well_formed(self._opened + self._content)

    @property
    def thinking(self) -> bool:
        """Whether what comes next is reasoning."""
        return not self._opened and "</think>" not in self._content and "<answer>" not in self._content

    def take(self, piece: Mapping[str, Any]) -> str:
        """Add a piece of the stream; return its text.

        Raises:
            CosmosReasonError: ENGINE_FAILED, it is none.
        """
        try:
            self._usage = piece.get("usage") or self._usage
            new = ""
            for choice in piece.get("choices") or ():
                delta = choice.get("delta") or {}
                thought = delta.get("reasoning_content") or delta.get("reasoning") or ""
                text = delta.get("content") or ""
                end = len(self._content) - len(thought)  # tokens of a thought are none of the answer's
                entries = (choice.get("logprobs") or {}).get("content") or ()
                for number, entry in enumerate(entries, 1):
                    # A token that a grammar forbids has no logarithm, hence null.
                    tops = [
                        (str(top["token"]), float(top["logprob"]))
                        for top in entry.get("top_logprobs") or ()
                        if top["logprob"] is not None
                    ]
                    end += len(str(entry["token"]))
                    if number == len(entries):  # one that is not among its likeliest may come without text
                        end = max(end, len(self._content) + len(text))
                    self._tops.append((end, tops))
                self._thoughts += thought
                self._content += text
                new += thought + text
                self._finish = choice.get("finish_reason") or self._finish
            return well_formed(new)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise failed(
                f"the server's stream is damaged ({type(error).__name__}: {error}): is it an "
                "OpenAI-compatible server?"
            ) from error

    def answer(self) -> Answer:
        """The answer, after the end of the stream.

        Raises:
            CosmosReasonError: ENGINE_FAILED: cut off, not in the format, or with numbers that cannot be.
        """
        self._check_usage()
        if not self._finish:
            raise failed(CUT_OFF)
        if self._finish in _BROKEN_OFF:
            raise failed(f"the server broke the answer off ({self._finish}): look at its log, ask again")
        cut = self._finish == "length"
        counts: dict[str, Any] = {
            "prompt_tokens": int(self._usage.get("prompt_tokens", 0)),
            "output_tokens": int(self._usage.get("completion_tokens", len(self._tops))),
        }
        if self._free:
            return Answer(Verdict.UNKNOWN, self.text, -1, 0.0, "", **counts, think_closed_by_budget=cut)
        if cut:
            raise failed(
                f"the server's answer was cut at {self._most} tokens: allow more think_tokens or answer "
                "tokens"
            )
        return self._parsed(counts)

    def _check_usage(self) -> None:
        if not self._usage:
            return
        seen, written = self._usage.get("prompt_tokens"), self._usage.get("completion_tokens")
        if not isinstance(seen, int) or not isinstance(written, int) or not 0 <= seen <= _MOST or written < 0:
            raise failed(f"the server's token counts make no sense: {json.dumps(self._usage)[:200]}")
        if seen < self._visual:
            raise failed(
                f"the server saw a prompt of {seen} tokens, the frames alone are {self._visual}: it samples "
                "or shrinks frames; serve it with the frame size and rate of the window, or set frame_width, "
                "frame_height and fps to its own"
            )
        if written > self._most:
            raise failed(f"the server says that it wrote {written} tokens, {self._most} were allowed")

    def _parsed(self, counts: Mapping[str, Any]) -> Answer:
        text, query = self.text, self._query
        if "<answer>" in text and "</answer>" not in text:
            text += prompt.ANSWER_CLOSE  # the end of the turn closed it
        try:
            parsed = decision.parse_output(text, query)
        except decision.ParseError as error:
            raise failed(
                f"the server's answer does not follow the format ({error}; it ends with {text[-80:]!r}): "
                "serve a model that was trained for it"
            ) from error
        verdict, confidence = parsed.verdict, 0.0
        sides = _sides(query)
        if sides:
            index = parsed.option_index if query.options else int(verdict is not Verdict.YES)
            known = self._confidence(sides, index)
            if known is None:  # nothing was told: the verdict stands, as unsure as may be
                chance = 1 / len(sides)
                confidence = chance + (self._min_confidence - 0.5) / 0.5 * (1 - chance)
            else:
                confidence = known
                verdict = decision.settle(verdict, known, self._min_confidence, len(sides))
        wins = bool(query.options) and verdict is not Verdict.UNKNOWN
        return Answer(
            verdict,
            parsed.answer,
            parsed.option_index if wins else -1,
            confidence,
            parsed.reasoning,
            **counts,
        )

    def _confidence(self, sides: Sequence[Sequence[str]], index: int) -> float | None:
        """Probability of a side among the sides, where the answer begins; None: not told."""
        begins = self._content.find("<answer>")
        begins = 0 if begins < 0 else begins + len("<answer>")
        body = self._content[begins:]
        at = begins + len(body) - len(body.lstrip())
        for end, tops in self._tops:
            if end > at:  # the first token that reaches into the answer
                masses = [
                    sum(math.exp(value) for token, value in tops if token.strip() in side) for side in sides
                ]
                masses = [mass ** (1 / self._calibration) for mass in masses]
                if sum(masses) > 0:
                    return min(1.0, masses[index] / sum(masses))
        return None


def _sides(query: Query) -> list[tuple[str, ...]]:
    """First tokens that count for each choice, without blanks; [] for free-form answers."""
    if query.options:
        return [(prompt.letter(i), f"({prompt.letter(i)}") for i in range(len(query.options))]
    if prompt.is_yes_no(query):
        return [tuple({text.strip() for text in side}) for side in YES_NO]
    return []
