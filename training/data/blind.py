# SPDX-License-Identifier: Apache-2.0
"""What can be scored without looking: answers guessed from the texts and from how often each was right.

A question kind is worth something only as far as a model beats these. Guesses learn from training samples
where the data set has such a split, else from all other samples of the same split (leave one out), never from
the sample itself.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from cosmos_reason_node.prompt import question_text

from .schema import Sample

TRAINING_SPLITS = ("train", "sft", "rl")
# Guessing rules, by name.
RULES = ("random", "most_frequent_answer", "most_frequent_letter", "longest_option", "question_text")


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
    accuracy = {"most_frequent_answer": _accuracy(samples, training, lambda s: (), _text, _options)}
    if form != "free":
        accuracy["random"] = chance
        accuracy["question_text"] = _accuracy(samples, training, _question, _text, _options)
    if form == "choice":
        letters = _accuracy(samples, training, lambda s: (), lambda s: s.answer, lambda s: None)
        accuracy["most_frequent_letter"] = letters
        accuracy["longest_option"] = sum(map(_longest, samples)) / count
    answers = Counter(sample.answer for sample in samples).most_common(26)
    return BlindScore(group, form, split, count, chance, accuracy, dict(answers))


def _accuracy(
    samples: Sequence[Sample],
    training: list[Sample],
    condition: Callable[[Sample], object],
    answer: Callable[[Sample], str],
    allowed: Callable[[Sample], tuple[str, ...] | None],
) -> float:
    """Accuracy of the answer that was right most often under the same ``condition``, else overall.

    Ties and answers never seen score their chance of being picked.
    """
    counts: dict[object, Counter[str]] = defaultdict(Counter)
    for sample in training or samples:
        counts[condition(sample)][answer(sample)] += 1
        counts[None][answer(sample)] += 1
    right = 0.0
    for sample in samples:
        own = answer(sample)
        for key in (condition(sample), None):
            seen = counts.get(key, Counter())
            choices = allowed(sample)
            known = {
                text: seen[text] for text in (choices if choices is not None else seen) if seen[text] > 0
            }
            if not training and own in known:
                known[own] -= 1  # leave the sample itself out
            top = max(known.values(), default=0)
            if top > 0:
                best = [text for text, number in known.items() if number == top]
                right += (own in best) / len(best)
                break
        else:
            right += 1 / len(choices) if choices else 0.0
    return right / len(samples)


def _question(sample: Sample) -> object:
    return question_text(sample.to_query()).casefold(), tuple(sorted(_options(sample) or ()))


def _text(sample: Sample) -> str:
    """The right answer in words, so that shuffled letters do not hide a favourite."""
    return (sample.options[sample.answer_index] if sample.options else sample.answer).strip().casefold()


def _options(sample: Sample) -> tuple[str, ...] | None:
    if sample.form == "yes_no":
        return ("yes", "no")
    return tuple(option.strip().casefold() for option in sample.options) or None


def _longest(sample: Sample) -> float:
    lengths = [len(option) for option in sample.options]
    best = [i for i, length in enumerate(lengths) if length == max(lengths)]
    return (sample.answer_index in best) / len(best)
