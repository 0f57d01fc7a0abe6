# SPDX-License-Identifier: Apache-2.0
"""Operators' labels for decisions, kept beside the recorded bags as ``corrections.jsonl``.

``python -m training.data bag`` finds the file there and gives the windows of corrected decisions the right
answers. One line a correction; the last one of a decision holds::

    {"decision_id": "...", "answer": "no", "said": "yes", "note": "", "stamp_ns": 1760000000000000000}
"""

from __future__ import annotations

import json
import os
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from ..errors import CosmosReasonError, ErrorCode
from ..prompt import check_query, is_yes_no, letter
from ..types import Decision, Query, QueryKind, Verdict

FILE = "corrections.jsonl"
_REMEMBERED = 20_000  # decisions: about an hour at six a second


@dataclass(frozen=True, slots=True)
class Known:
    """What is remembered of a decision.

    Attributes:
        query: what was asked.
        said: what the model answered, as a label.
        stamp_ns: of the newest image, nanoseconds of capture time.
        first: (camera, stamp) of the oldest image of each window.
        published_s: moment of its publication, monotonic.
    """

    query: Query
    said: str
    stamp_ns: int
    first: tuple[tuple[str, int], ...]
    published_s: float


class Corrections:
    """Knows the newest decisions, and writes what an operator says about them.

    Args:
        directory: of the bags; made when first needed.
        remembered: so many decisions can still be corrected.
    """

    def __init__(self, directory: str | Path, remembered: int = _REMEMBERED) -> None:
        self.path = Path(directory).expanduser() / FILE
        self._remembered = remembered
        self._decisions: OrderedDict[str, Known] = OrderedDict()

    def add(self, decision: Decision) -> None:
        """Remember a published decision."""
        if decision.windows:
            first = tuple((window.camera, window.start_ns) for window in decision.windows)
            self._decisions[decision.decision_id] = Known(
                decision.query, _said(decision), decision.stamp_ns, first, time.monotonic()
            )
            if len(self._decisions) > self._remembered:
                self._decisions.popitem(last=False)

    def correct(self, decision_id: str, verdict: Verdict, answer: str, note: str) -> Known:
        """Write a correction to disk.

        Args:
            decision_id: of a decision that is remembered.
            verdict: YES or NO for yes/no questions, CHOICE for others.
            answer: for others: the option (its text or letter), or the right answer in words.
            note: anything worth knowing.

        Returns:
            What the correction is about.

        Raises:
            CosmosReasonError: INVALID_REQUEST or QUESTION_TOO_LONG when the label does not fit the question,
                RECORDING_FAILED when it cannot be written.
        """
        known = self._decisions.get(decision_id)
        if known is None:
            raise CosmosReasonError(
                ErrorCode.INVALID_REQUEST,
                f"no decision {decision_id!r} about images is among the last {self._remembered} of this "
                "activation: copy decision_id from the decisions topic",
            )
        check_query(Query(QueryKind.QUESTION, question=note or "-"))  # bounds and control tokens
        line = {
            "decision_id": decision_id,
            "answer": _label(known.query, verdict, answer),
            "said": known.said,
            "note": note,
            "stamp_ns": known.stamp_ns,
        }
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab+") as file:
                # A process that died while writing left a line without an end: it must not swallow this one.
                torn = file.tell() > 0 and os.pread(file.fileno(), 1, file.tell() - 1) != b"\n"
                text = json.dumps(line, ensure_ascii=False) + "\n"
                file.write(b"\n" * torn + text.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise CosmosReasonError(
                ErrorCode.RECORDING_FAILED, f"the correction cannot be written to {self.path} ({error})"
            ) from error
        return known


def _said(decision: Decision) -> str:
    """What the model answered, as a label; "" where it gave no answer."""
    answer = decision.answer
    if decision.error_code or answer is None or answer.verdict is Verdict.UNKNOWN:
        return ""
    return letter(answer.option_index) if decision.query.options else answer.answer


def _label(query: Query, verdict: Verdict, answer: str) -> str:
    """The answer to train on: "yes", "no", a letter, or words."""
    text = answer.strip()
    if is_yes_no(query):
        label = {Verdict.YES: "yes", Verdict.NO: "no"}.get(verdict)
        if label is None or text.lower() not in ("", label):
            raise _unfit("the question is a yes/no question: give verdict YES or NO and leave answer empty")
        return label
    if verdict is not Verdict.CHOICE:
        raise _unfit("the question is no yes/no question: give verdict CHOICE and the right answer")
    if not query.options:
        check_query(Query(QueryKind.QUESTION, question=text))
        return text
    for index, option in enumerate(query.options):
        if text == letter(index) or text.casefold() == option.strip().casefold():
            return letter(index)
    raise _unfit(f"answer must be one of the options: {'; '.join(query.options)}")


def _unfit(message: str) -> CosmosReasonError:
    return CosmosReasonError(ErrorCode.INVALID_REQUEST, message)
