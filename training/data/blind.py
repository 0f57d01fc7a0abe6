# SPDX-License-Identifier: Apache-2.0
"""What can be scored without looking: answers guessed from the texts and from how often each was right.

A question kind is worth something only as far as a model beats these. Guesses learn from training samples
where the data set has such a split, else from the split itself: a favourite letter or word is the one that is
right most often in it, a favourite among options that of all its other samples.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from cosmos_reason_node.prompt import letter, question_text

from .schema import Sample

TRAINING_SPLITS = ("train", "sft", "rl")
# Guessing rules, by name.
RULES = (
    "random",
    "most_frequent_answer",
    "most_frequent_letter",
    "longest_option",
    "question_text",
    "source_favourite",
)


@dataclass(frozen=True)
class BlindScore:
    """Blind accuracy of one question kind in one split.

    Attributes:
        group: question kind (Sample.group).
        form: "choice", "yes_no" or "free".
        split: of the samples.
        count: number of samples.
        chance: expected accuracy of a uniform guess; 0 for free-form answers.
        accuracy: in [0, 1], of each of RULES that applies to the form.
        answers: how often each answer is right, most frequent first; letters for multiple choice.
    """

    group: str
    form: str
    split: str
    count: int
    chance: float
    accuracy: dict[str, float]
    answers: dict[str, int]

    @property
    def best(self) -> float:
        """The highest of the accuracies: what a model has to beat."""
        return max(self.accuracy.values())


def blind_scores(samples: Iterable[Sample]) -> list[BlindScore]:
    """Scores of every question kind, form and split."""
    kinds: dict[tuple[str, str], dict[str, list[Sample]]] = defaultdict(lambda: defaultdict(list))
    for sample in samples:
        kinds[sample.group, sample.form][sample.split].append(sample)
    return [
        _score(group, form, split, found, _training(splits, split))
        for (group, form), splits in sorted(kinds.items())
        for split, found in sorted(splits.items())
    ]


def _training(splits: dict[str, list[Sample]], split: str) -> list[Sample]:
    """What guesses about ``split`` may learn from; nothing = the split itself, leaving one out."""
    if split in TRAINING_SPLITS:
        return []
    return [sample for name in TRAINING_SPLITS for sample in splits.get(name, ())]


def _score(
    group: str, form: str, split: str, samples: Sequence[Sample], training: list[Sample]
) -> BlindScore:
    count = len(samples)
    chances = [1 / len(s.options) if s.options else 0.5 if form == "yes_no" else 0.0 for s in samples]
    chance = sum(chances) / count
    accuracy: dict[str, float] = {}
    if form == "choice":
        accuracy["most_frequent_letter"] = _constant(samples, training, lambda sample: sample.answer)
        accuracy["longest_option"] = sum(map(_longest, samples)) / count
        accuracy["most_frequent_answer"] = max(chance, _learned(samples, training, lambda sample: ()))
    else:
        accuracy["most_frequent_answer"] = _constant(samples, training, _text)
    if form != "free":
        accuracy["random"] = chance
        accuracy["question_text"] = max(chance, _learned(samples, training, _question))
        if len({sample.provenance.source for sample in samples}) > 1:
            by_text = _learned(samples, training, _source)
            by_letter = _learned(samples, training, _source, _letter, _letters) if form == "choice" else 0.0
            accuracy["source_favourite"] = max(chance, by_text, by_letter)
    answers = Counter(sample.answer for sample in samples).most_common(26)
    return BlindScore(group, form, split, count, chance, accuracy, dict(answers))


def _constant(samples: Sequence[Sample], training: list[Sample], answer: Callable[[Sample], str]) -> float:
    """Accuracy of always giving the answer that is right most often."""
    ((favourite, _),) = Counter(map(answer, training or samples)).most_common(1)
    return sum(answer(sample) == favourite for sample in samples) / len(samples)


def _learned(
    samples: Sequence[Sample],
    training: list[Sample],
    condition: Callable[[Sample], object],
    answer: Callable[[Sample], str] | None = None,
    allowed: Callable[[Sample], tuple[str, ...]] | None = None,
) -> float:
    """Accuracy of the allowed answer that was right most often under the same ``condition``, else overall.

    Answers are words, those of an option for multiple choice, unless ``answer`` and ``allowed`` say others.

    Ties, and where no allowed answer was seen, score the chance of picking the right one. Without training
    samples each is guessed from the others, which puts a balanced set below chance: callers correct that.
    """
    answer, allowed = answer or _text, allowed or _choices
    counts: dict[object, Counter[str]] = defaultdict(Counter)
    for sample in training or samples:
        for key in (condition(sample), None):
            counts[key][answer(sample)] += 1
    right = 0.0
    for sample in samples:
        own, choices = answer(sample), allowed(sample)
        best = list(choices)
        for key in (condition(sample), None):
            seen = {text: counts[key][text] - (not training and text == own) for text in choices}
            if max(seen.values()) > 0:
                best = [text for text in choices if seen[text] == max(seen.values())]
                break
        right += (own in best) / len(best)
    return right / len(samples)


def _question(sample: Sample) -> object:
    return question_text(sample.to_query()).casefold(), tuple(sorted(_choices(sample)))


def _source(sample: Sample) -> object:
    """Where it comes from: wording and pictures tell a model that, so a favourite of one source is known."""
    return sample.provenance.source


def _letter(sample: Sample) -> str:
    return sample.answer


def _letters(sample: Sample) -> tuple[str, ...]:
    return tuple(letter(i) for i in range(len(sample.options)))


def _text(sample: Sample) -> str:
    """The right answer in words, so that shuffled letters do not hide a favourite."""
    return (sample.options[sample.answer_index] if sample.options else sample.answer).strip().casefold()


def _choices(sample: Sample) -> tuple[str, ...]:
    """Answers that the form allows."""
    return tuple(option.strip().casefold() for option in sample.options) or ("yes", "no")


def _longest(sample: Sample) -> float:
    lengths = [len(option) for option in sample.options]
    best = [i for i, length in enumerate(lengths) if length == max(lengths)]
    return (sample.answer_index in best) / len(best)
