# SPDX-License-Identifier: Apache-2.0
r"""The grammar that every answer is decoded under, so that every decision parses.

    forced: <think>\n
    free:   reasoning, until it says </think> or the budget is spent
    forced: \n</think>\n\n<answer>\n
    one of: yes | no    A | B | ...    free text, until it says </answer> or the budget is spent
    forced: \n</answer><|im_end|>

<think> and <answer> are ordinary text of several tokens in Qwen's vocabulary, so closing tags are found in
the text. Forced pieces are tokenised on their own, exactly as ``prompt.encode_target`` does for training, and
reach the model as one chunk. The token with which the model itself completes a closing tag is replaced by the
forced one, so that whatever way it spells the tag, it goes on from the text it was trained on. Control tokens
are never sampled, except that <|im_end|> closes what is open.

No torch: an engine asks a ``Branch`` what to feed (``take``) and what to choose next (``step``), and tells
what was chosen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .. import decision, prompt
from ..errors import CosmosReasonError, ErrorCode
from ..models.tokenizer import TextTokenizer
from ..types import Answer, Query, Verdict

THINK_TAG = "</think>"
ANSWER_TAG = "</answer>"
# Spellings whose first tokens count for a verdict; the canonical one comes first and is what the answer says.
YES_NO = (("yes", "Yes", "YES", " yes", " Yes"), ("no", "No", "NO", " no", " No"))
_WHOLE_CHARACTER_TOKENS = 4  # a character has at most four bytes, so at most four tokens


@dataclass(frozen=True, eq=False)
class FreeStep:
    """Sample one token; ``forbidden`` is a bool mask over the vocabulary."""

    forbidden: np.ndarray


@dataclass(frozen=True)
class ChoiceStep:
    """Choose among groups of tokens by their summed probability."""

    groups: tuple[tuple[int, ...], ...]


class Vocabulary:
    """What the grammar needs of a tokenizer, computed once.

    Args:
        tokenizer: of the checkpoint.
        rows: rows of the model's output; those beyond the tokenizer are padding and never sampled.

    Raises:
        CosmosReasonError: MODEL_INVALID when the tokenizer cannot tell yes from no or the letters apart.
    """

    def __init__(self, tokenizer: TextTokenizer, rows: int) -> None:
        self.tokenizer = tokenizer
        self.think_open = self.encode(prompt.THINK_OPEN)
        self.think_close = self.encode(prompt.THINK_CLOSE)
        self.answer_close = self.encode(prompt.ANSWER_CLOSE + prompt.END_OF_TURN)
        end = tokenizer.id_of(prompt.END_OF_TURN)
        if end is None:
            raise CosmosReasonError(
                ErrorCode.MODEL_INVALID, f"the tokenizer has no {prompt.END_OF_TURN}: take another"
            )
        self.end = end
        self.in_text = np.ones(rows, bool)
        self.in_text[: len(tokenizer)] = False
        self.in_text[list(tokenizer.control_ids)] = True
        self.no_end = self.in_text.copy()
        self.in_text[end] = False
        # An answer is never empty: until it has a character that counts, no blank, no tag and no end.
        self.at_answer_start = self.in_text.copy()
        self.at_answer_start[end] = True
        for i, text in enumerate(tokenizer.texts):
            if not text.strip() or text.lstrip().startswith("<"):
                self.at_answer_start[i] = True
        self.yes_no = self._groups(YES_NO)
        letters = [prompt.letter(i) for i in range(prompt.MAX_OPTIONS)]
        self.letters = self._groups([(letter, " " + letter) for letter in letters])

    def encode(self, text: str) -> list[int]:
        """Ids of a piece of text on its own."""
        return self.tokenizer.encode(text, add_special_tokens=False)

    def _groups(self, spellings: Sequence[Sequence[str]]) -> tuple[tuple[int, ...], ...]:
        firsts = [{self.encode(text)[0] for text in group} for group in spellings]
        groups = []
        for i, own in enumerate(firsts):
            # A first token that two choices share (a blank, say) tells nothing.
            groups.append(tuple(sorted(own.difference(*(firsts[:i] + firsts[i + 1 :])))))
        if not all(groups):
            raise CosmosReasonError(
                ErrorCode.MODEL_INVALID,
                "the tokenizer starts different choices (yes, no, option letters) with the same token: the "
                "answer cannot be read off one token; take another tokenizer",
            )
        return tuple(groups)


class TextStream:
    """Tokens to text, a whole character at a time, up to a tag.

    Args:
        tokenizer: of the checkpoint.
        tag: text that ends the stream; what could be its beginning is held back from ``push``'s result.
    """

    def __init__(self, tokenizer: TextTokenizer, tag: str) -> None:
        self._tokenizer = tokenizer
        self._tag = tag
        self._ids: list[int] = []
        self._context = 0  # ids from here on are decoded again, so that joins between tokens come out right
        self._read = 0  # ids before this have their text in self.text
        self._shown = 0
        self.text = ""

    def push(self, token: int) -> str:
        """Add a token; return the text that became certain."""
        self._ids.append(token)
        text = self._tokenizer.plain_text(token) if self._read == len(self._ids) - 1 else None
        if text is not None:  # by far the most: no decoding, a look into a table
            self._accept(text)
            return self._certain()
        before = self._tokenizer.decode(self._ids[self._context : self._read])
        now = self._tokenizer.decode(self._ids[self._context :])
        if now.endswith("\ufffd") and len(self._ids) - self._read < _WHOLE_CHARACTER_TOKENS:
            return ""
        self._accept(now[len(before) :])
        return self._certain()

    def _certain(self) -> str:
        sure = self.tag_at if self.tag_at >= 0 else len(self.text) - len(self.partial_tag)
        new, self._shown = self.text[self._shown : sure], max(self._shown, sure)
        return new

    def flush(self) -> None:
        """Take unfinished characters into the text too: no token follows that could complete them."""
        before = self._tokenizer.decode(self._ids[self._context : self._read])
        self._accept(self._tokenizer.decode(self._ids[self._context :])[len(before) :])

    def _accept(self, new: str) -> None:
        self.text += new
        self._context, self._read = self._read, len(self._ids)

    @property
    def tag_at(self) -> int:
        """Where the tag starts in the text, -1 while it is not there."""
        return self.text.find(self._tag)

    @property
    def partial_tag(self) -> str:
        """The longest end of the text that the tag starts with."""
        for n in range(min(len(self._tag) - 1, len(self.text)), 0, -1):
            if self.text.endswith(self._tag[:n]):
                return self._tag[:n]
        return ""


class Branch:
    """One answer being written.

    Args:
        vocabulary: of the checkpoint.
        query: what is answered; checked already.
        think_tokens: most tokens of reasoning, 0 or more.
        max_answer_tokens: most tokens of a free-form answer, at least 1.
    """

    def __init__(
        self, vocabulary: Vocabulary, query: Query, think_tokens: int, max_answer_tokens: int
    ) -> None:
        self._vocabulary = vocabulary
        self._query = query
        self._think_budget = think_tokens
        self._answer_budget = max_answer_tokens
        self._pending = list(vocabulary.think_open)
        self._think = TextStream(vocabulary.tokenizer, THINK_TAG)
        self._think_ids: list[int] = []
        self._answer = TextStream(vocabulary.tokenizer, ANSWER_TAG)
        self._answer_log_probs: list[tuple[int, float]] = []  # start of the token's text, its log probability
        self._taken = 0
        self._cut = False
        self._thinking = think_tokens > 0
        self.reasoning = ""
        self.answer: str | None = None
        self._option = -1
        self._confidence = 0.0
        if not self._thinking:
            self._pending += vocabulary.think_close

    @property
    def done(self) -> bool:
        """Whether the answer is complete; nothing is left to feed or to choose then."""
        return self.answer is not None

    @property
    def thinking(self) -> bool:
        """Whether the next token is inside <think></think>."""
        return self._thinking

    @property
    def output_tokens(self) -> int:
        """Tokens of the output so far, forced ones included."""
        return self._taken + len(self._pending)

    def take(self) -> list[int]:
        """The tokens that the model has not been fed yet."""
        chunk, self._pending = self._pending, []
        self._taken += len(chunk)
        return chunk

    def step(self) -> FreeStep | ChoiceStep:
        """What to choose from the logits after the tokens taken."""
        vocabulary = self._vocabulary
        if self._thinking:
            return FreeStep(vocabulary.in_text)
        if self._query.options:
            return ChoiceStep(vocabulary.letters[: len(self._query.options)])
        if prompt.is_yes_no(self._query):
            return ChoiceStep(vocabulary.yes_no)
        return FreeStep(vocabulary.in_text if self._answer.text.strip() else vocabulary.at_answer_start)

    def choose(self, index: int, confidence: float) -> str:
        """Answer a ChoiceStep; return the text it adds."""
        self._option = index
        self._confidence = confidence
        text = prompt.letter(index) if self._query.options else YES_NO[index][0]
        self._finish(text, self._vocabulary.encode(text))
        return text

    def settle(self, index: int, confidence: float) -> None:
        """Replace the choice of a finished answer: more than this branch had a say in it."""
        self._option = index
        self._confidence = confidence
        self.answer = prompt.letter(index)

    def push(self, token: int, log_prob: float) -> str:
        """Answer a FreeStep; return the text that became certain."""
        return self._push_thought(token) if self._thinking else self._push_answer(token, log_prob)

    def result(self, prompt_tokens: int, min_confidence: float) -> Answer:
        """The finished answer; UNKNOWN where no choice wins."""
        assert self.answer is not None, "result() before done"
        is_option = bool(self._query.options)
        verdict = Verdict.CHOICE
        if not is_option and prompt.is_yes_no(self._query):
            verdict = Verdict.YES if self._option == 0 else Verdict.NO
        if self._option >= 0:
            choices = len(self._query.options) or 2
            verdict = decision.settle(verdict, self._confidence, min_confidence, choices)
        wins = is_option and verdict is not Verdict.UNKNOWN
        return Answer(
            verdict=verdict,
            answer=self.answer,
            option_index=self._option if wins else -1,
            confidence=self._confidence,
            reasoning=self.reasoning,
            prompt_tokens=prompt_tokens,
            output_tokens=self.output_tokens,
            think_closed_by_budget=self._cut,
        )

    def _push_thought(self, token: int) -> str:
        if token == self._vocabulary.end:
            self._think.flush()
            self._close_thought(self._think.partial_tag, len(self._think.text))
            return ""
        before = len(self._think.text)
        new = self._think.push(token)
        at = self._think.tag_at
        if at >= 0:  # this token is not fed: the forced piece takes its place
            self._close_thought(self._think.text[at : max(at, before)], at + max(0, before - at))
            return new
        self._think_ids.append(token)
        self._pending.append(token)
        if len(self._think_ids) >= self._think_budget:
            self._cut = True
            self._think.flush()
            self._close_thought(self._think.partial_tag, len(self._think.text))
        return new

    def _close_thought(self, opened: str, end: int) -> None:
        """Force the closing piece; ``opened`` is the part of the tag that was fed and ends ``text[:end]``."""
        text = self._think.text[: end - len(opened)]
        self.reasoning = text.strip()
        self._pending += self._rest_of_close(opened, ends_line=text.endswith("\n"))
        self._thinking = False

    def _rest_of_close(self, opened: str, ends_line: bool) -> list[int]:
        close = self._vocabulary.think_close
        decode = self._vocabulary.tokenizer.decode
        for n in range(min(len(close), len(self._think_ids)), 0, -1):
            if self._think_ids[-n:] == close[:n] and decode(close[:n]) == "\n" + opened:
                return close[n:]  # spelt as in training so far
        if not opened and not ends_line:
            return list(close)
        return self._vocabulary.encode(prompt.THINK_CLOSE[1 + len(opened) :])

    def _push_answer(self, token: int, log_prob: float) -> str:
        start = len(self._answer.text)
        if token == self._vocabulary.end:
            self._finish_open_text()
            return ""
        new = self._answer.push(token)
        at = self._answer.tag_at
        if at >= 0:
            self._finish_text(at)
            return new
        self._answer_log_probs.append((start, log_prob))
        self._pending.append(token)
        if len(self._answer_log_probs) >= self._answer_budget:
            self._finish_open_text()
        return new

    def _finish_open_text(self) -> None:
        self._answer.flush()
        self._finish_text(len(self._answer.text) - len(self._answer.partial_tag))

    def _finish_text(self, end: int) -> None:
        answer = self._answer.text[:end].rstrip()
        said = [log_prob for start, log_prob in self._answer_log_probs if start < len(answer)]
        self._confidence = math.exp(sum(said) / len(said)) if said else 0.0
        self._finish(answer.strip() or "\ufffd", [])

    def _finish(self, answer: str, tokens: list[int]) -> None:
        self.answer = answer
        self._pending += tokens + self._vocabulary.answer_close
