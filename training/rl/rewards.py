# SPDX-License-Identifier: Apache-2.0
"""Verifiable rewards: pure functions of an output and of what is true.

Nothing is searched for: an output is read by the node's own parser (cosmos_reason_node.decision), and what it
does not read earns nothing. All rewards are in [0, 1].
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from cosmos_reason_node import decision
from cosmos_reason_node.types import Query, QueryKind

from .groups import Group, Judgement

if TYPE_CHECKING:
    from .config import RlConfig
    from .tasks import Task

NONE_OPTION = "none of the options"

_ANY = Query(QueryKind.QUESTION, question="any")  # read for its format alone
_TAG = re.compile(r"</?(?:think|answer)>")
_TAGS = ["<think>", "</think>", "<answer>", "</answer>"]
_ENDS = (".", "!", "?", '."', ".)")
_NUMBER = r"-?\d+(?:\.\d+)?"
_SPAN = re.compile(rf"\A(?:from )?({_NUMBER}) ?s? ?(?:to|-|–|,) ?({_NUMBER}) ?s?\.?\Z")
_POINT = re.compile(rf"\A[(\[] ?({_NUMBER}), ?({_NUMBER}) ?[)\]]\Z")
_BOX = re.compile(rf"\A[(\[] ?({_NUMBER}), ?({_NUMBER}), ?({_NUMBER}), ?({_NUMBER}) ?[)\]]\Z")


def read(output: str) -> tuple[str, str] | None:
    """(reasoning, answer) of an output in exactly the format that the prompt asks for, else None."""
    if _TAG.findall(output) != _TAGS:  # first: thousands of tags would take the parser seconds
        return None
    try:
        parsed = decision.parse_output(output, _ANY)
    except decision.ParseError:
        return None
    return parsed.reasoning, parsed.answer


def format_reward(output: str, thought_words: int = 0) -> float:
    """1 for one <think></think> and one <answer></answer> with an answer inside, and nothing else.

    Args:
        output: what the model wrote.
        thought_words: least words of the reasoning, which has to end as a sentence does; 0: any, also none.
    """
    found = read(output)
    if found is None:
        return 0.0
    thought = found[0].split()
    return float(not thought_words or (len(thought) >= thought_words and thought[-1].endswith(_ENDS)))


def accuracy(output: str, query: Query, answer: str) -> float:
    """1 for the right answer: an option's letter or exactly its text, yes or no alone, or the words.

    Args:
        output: what the model wrote.
        query: what it was asked.
        answer: an option's letter, "yes" or "no", or words (case, blanks and a full stop do not count).
    """
    if read(output) is None:
        return 0.0
    try:
        parsed = decision.parse_output(output, query)
    except decision.ParseError:
        return 0.0
    if query.options:
        return float(parsed.option_index == ord(answer) - ord("A"))
    # The node takes "yes, it is open" for a yes. Here that would pay for "yes or no" as well.
    return float(_normal(parsed.answer) == _normal(answer))


def completion(output: str, task: str, succeeded: bool) -> float:
    """Whether the task is complete, against the simulator's outcome."""
    return accuracy(output, Query(QueryKind.COMPLETION, task=task), "yes" if succeeded else "no")


def next_action(output: str, task: str, actions: Sequence[str], phase: int) -> float:
    """The next action in words, against the one that the phase of the simulated skill calls for.

    Args:
        output: what the model wrote.
        task: of the robot.
        actions: of the skill, one a phase.
        phase: index of the present one.
    """
    return accuracy(output, Query(QueryKind.NEXT_ACTION, task=task), actions[phase])


def temporal_iou(output: str, begin_s: float, end_s: float) -> float:
    """Overlap of "2.5 to 4.0" (seconds) with the true part of the video, intersection over union."""
    numbers = _numbers(output, _SPAN)
    if numbers is None or numbers[0] >= numbers[1]:
        return 0.0
    first, last = numbers
    both = max(0.0, min(last, end_s) - max(first, begin_s))
    return both / (last - first + end_s - begin_s - both)


def point_in_box(output: str, box: Sequence[float]) -> float:
    """1 where the point "(x, y)" lies in the box (left, top, right, bottom)."""
    numbers = _numbers(output, _POINT)
    if numbers is None:
        return 0.0
    (x, y), (left, top, right, bottom) = numbers, box
    return float(left <= x <= right and top <= y <= bottom)


def box_iou(output: str, box: Sequence[float]) -> float:
    """Overlap of the box "[left, top, right, bottom]" with the true one, intersection over union."""
    numbers = _numbers(output, _BOX)
    if numbers is None or numbers[0] >= numbers[2] or numbers[1] >= numbers[3]:
        return 0.0
    width = max(0.0, min(numbers[2], box[2]) - max(numbers[0], box[0]))
    height = max(0.0, min(numbers[3], box[3]) - max(numbers[1], box[1]))
    both = width * height
    return both / (_area(numbers) + _area(box) - both)


def judge_for(name: str) -> Callable[[str, Query, str], float]:
    """The reward that a sample names in ``extra["reward"]``; "" is the accuracy.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in JUDGES:
        raise ValueError(
            f"reward {name!r} is none of {', '.join(filter(None, JUDGES))}: correct extra.reward"
        )
    return JUDGES[name]


def check_truth(name: str, answer: str, *, options: bool) -> None:
    """Refuse what a reward cannot judge, before anything is asked.

    Args:
        name: of the reward.
        answer: of the sample.
        options: the sample has some.

    Raises:
        ValueError: with what to correct.
    """
    judge_for(name)
    if name and options:
        raise ValueError(f"reward {name!r} reads no options: remove them, or extra.reward")
    if name == "temporal_iou":
        _true_span(answer)
    elif name:
        _true_box(answer)


def judge(group: Group, task: Task, config: RlConfig) -> Group:
    """The group with its rewards; whatever a reward raises is raised.

    An answer that was cut has not the asked format, whatever stands in it.
    """
    settings, measure = config.grpo, judge_for(task.reward)
    words = 0 if task.at_once else settings.thought_words
    judgements = []
    for answer in group.answers:
        form = 0.0 if answer.cut else format_reward(answer.text, words)
        right = 0.0 if answer.cut else measure(answer.text, task.query, task.answer)
        if not math.isfinite(right):
            raise ValueError(f"it is {right}")
        total = settings.format_reward * form + settings.accuracy_reward * right
        judgements.append(Judgement(form, right, total))
    return dataclasses.replace(group, judgements=tuple(judgements))


def _temporal_iou(output: str, query: Query, answer: str) -> float:
    return temporal_iou(output, *_true_span(answer))


def _point_in_box(output: str, query: Query, answer: str) -> float:
    return point_in_box(output, _true_box(answer))


def _box_iou(output: str, query: Query, answer: str) -> float:
    return box_iou(output, _true_box(answer))


JUDGES: dict[str, Callable[[str, Query, str], float]] = {
    "": accuracy,
    "temporal_iou": _temporal_iou,
    "point_in_box": _point_in_box,
    "box_iou": _box_iou,
}


def _numbers(output: str, pattern: re.Pattern[str]) -> list[float] | None:
    found = read(output)
    match = pattern.match(found[1]) if found else None
    numbers = [float(text) for text in match.groups()] if match else None
    return numbers if numbers and all(map(math.isfinite, numbers)) else None


def _true_span(answer: str) -> list[float]:
    match = _SPAN.match(answer)
    numbers = [float(text) for text in match.groups()] if match else []
    if not numbers or not 0 <= numbers[0] < numbers[1] < math.inf:
        raise ValueError(f"the sample's answer {answer!r} is not of the form 2.5 to 4.0 (seconds)")
    return numbers


def _true_box(answer: str) -> list[float]:
    match = _BOX.match(answer)
    numbers = [float(text) for text in match.groups()] if match else []
    if not all(map(math.isfinite, numbers)) or not (
        numbers and numbers[0] < numbers[2] and numbers[1] < numbers[3]
    ):
        raise ValueError(f"the sample's answer {answer!r} is not of the form [left, top, right, bottom]")
    return numbers


def _area(box: Sequence[float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _normal(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(".")
