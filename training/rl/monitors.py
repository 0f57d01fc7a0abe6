# SPDX-License-Identifier: Apache-2.0
"""What a run tells about itself: a line and a log entry an iteration, warnings, TensorBoard events, a page.

monitor/log.jsonl   rewards, accuracy by data set, lengths, staleness, letters, idle shares, counts
log.jsonl           loss, KL, entropy, clip fraction (training.sft.loop)
events/             both, for TensorBoard        rl.html   both, as a page
"""

from __future__ import annotations

import collections
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cosmos_reason_node import decision
from cosmos_reason_node.prompt import letter
from training.sft.report import RunLog, read_log

from .advantages import zero_variance
from .config import RlConfig
from .events import Events
from .groups import Group
from .rewards import read
from .tasks import Task

_WINDOW = 10  # iterations that a warning looks back


class Monitor:
    """Of one run; lives in process 0 of the trainer.

    Args:
        config: of the run.
        directory: run.output.
    """

    def __init__(self, config: RlConfig, directory: Path) -> None:
        self._config, self._directory = config, directory
        self._log: RunLog | None = None
        self._events = Events(directory / "events")
        self._next = 0  # of the trainer's steps, to be shown
        self._warned: set[str] = set()
        self._publish_s = 0.0
        self._since = time.monotonic()

    def published(self, version: int, seconds: float) -> None:
        """The weights after ``version`` iterations were published, which took so long."""
        if self._log is None:  # the first call of this process says where the run goes on
            place = self._directory / "monitor"
            place.mkdir(parents=True, exist_ok=True)
            self._log = RunLog(place, version, self._config.iterations, self._config.run.log_every)
            self._next = version * self._config.grpo.minibatches
        self._publish_s = seconds

    def arrived(
        self, iteration: int, groups: Sequence[Group], tasks: Sequence[Task], report: Mapping[str, Any]
    ) -> None:
        """The groups of an iteration are here."""
        assert self._log is not None
        now = time.monotonic()
        answers = sum(len(group.answers) for group in groups)
        entry = {
            "step": iteration,
            **summarise(iteration, groups, tasks),
            "idle": report["idle"],
            "counts": report["counts"],
            "publish_s": self._publish_s,
            "seconds": now - self._since,
            "answers_per_s": answers / max(now - self._since, 1e-9),
        }
        self._since = now
        self._log.write(entry)
        entries, trained = read_log(self._directory / "monitor"), read_log(self._directory)
        self._events.add(iteration, {f"rollouts/{name}": value for name, value in flat(entry).items()})
        self._trained(trained)
        if iteration % self._config.run.log_every == 0:
            print(line(entry), flush=True)
            self._page()
        for warning in warnings(entries, trained):
            if warning not in self._warned:
                self._warned.add(warning)
                print(f"WARNING, iteration {iteration}: {warning}", flush=True)

    def close(self) -> None:
        """The run is at its end."""
        self._trained(read_log(self._directory))
        self._page()

    def _trained(self, logged: Sequence[Mapping[str, Any]]) -> None:
        """Show the optimizer's steps since the last call."""
        for entry in [entry for entry in logged if entry["step"] >= self._next]:
            self._events.add(entry["step"], {f"trainer/{name}": value for name, value in flat(entry).items()})
            self._next = entry["step"] + 1

    def _page(self) -> None:
        from .page import write_page

        try:
            write_page(self._directory)
        except OSError as error:  # a page is not worth a run
            print(f"{self._directory / 'rl.html'} cannot be written ({error})", flush=True)


def summarise(iteration: int, groups: Sequence[Group], tasks: Sequence[Task]) -> dict[str, Any]:
    """Numbers of one iteration's groups; ``digest`` is of all tokens and their probabilities."""
    by_source: dict[str, list[float]] = collections.defaultdict(list)
    said: collections.Counter[str] = collections.Counter()
    right: collections.Counter[str] = collections.Counter()
    staleness: collections.Counter[int] = collections.Counter()
    none: list[float] = []
    digest = hashlib.sha256()
    for group, task in zip(groups, tasks, strict=True):
        right[task.answer if task.query.options else "other"] += len(group.answers)
        for answer, judgement in zip(group.answers, group.judgements, strict=True):
            by_source[group.source].append(judgement.accuracy)
            said[_said(answer.text, task)] += 1
            staleness.update(iteration - version for version in answer.versions)
            digest.update(json.dumps([answer.tokens, answer.log_probs]).encode())
        if group.none:
            none += [judgement.accuracy for judgement in group.judgements]
    judgements = [judgement for group in groups for judgement in group.judgements]
    lengths = [len(answer.tokens) for group in groups for answer in group.answers]
    return {
        "reward": _mean([j.reward for j in judgements]),
        "accuracy": _mean([j.accuracy for j in judgements]),
        "format": _mean([j.format for j in judgements]),
        "accuracy_by_source": {name: _mean(values) for name, values in sorted(by_source.items())},
        "none_accuracy": _mean(none) if none else None,
        "length": _mean(lengths),
        "longest": max(lengths),
        "cut": _mean([answer.cut for group in groups for answer in group.answers]),
        "zero_variance": _mean([zero_variance(group.rewards) for group in groups]),
        "staleness": {str(old): count for old, count in sorted(staleness.items())},
        "said": dict(sorted(said.items())),
        "right": dict(sorted(right.items())),
        "attempts": [group.ticket.attempt for group in groups],
        "digest": digest.hexdigest(),
    }


def warnings(entries: Sequence[Mapping[str, Any]], trained: Sequence[Mapping[str, Any]]) -> list[str]:
    """Signs of collapse in the last iterations, with what to do.

    Args:
        entries: of monitor/log.jsonl.
        trained: of log.jsonl.
    """
    if len(entries) < _WINDOW:
        return []
    last = entries[-_WINDOW:]
    found = []
    said, right = _sum(last, "said"), _sum(last, "right")
    letters = {name: count for name, count in said.items() if len(name) == 1}
    if letters:
        top = max(letters, key=lambda name: letters[name])
        share = letters[top] / sum(letters.values())
        wanted = right.get(top, 0) / max(1, sum(n for name, n in right.items() if len(name) == 1))
        if share > 0.9 and wanted < 0.7:
            found.append(
                f"option {top} is nearly always chosen: the policy has collapsed to a letter. Go back to an "
                "earlier checkpoint with a lower optimizer.peak_rate, or start from better fine-tuned weights"
            )
    if _average(last, "zero_variance") > 0.9:
        found.append(
            "over 90 % of the groups have equal rewards and teach nothing: begin a run with "
            "grpo.dynamic_sampling, or with harder (or, at low reward, easier) questions"
        )
    if _average(last, "cut") > 0.5:
        found.append("over half of the answers do not end within rollout.max_tokens: raise it")
    if _average(last, "format") < 0.5 * _average(entries[:_WINDOW], "format"):
        found.append(
            "the answer format gets lost: lower optimizer.peak_rate, or begin a run with a higher "
            "grpo.format_reward"
        )
    recent = [entry for entry in trained[-_WINDOW:] if "entropy" in entry]
    first = [entry for entry in trained[:_WINDOW] if "entropy" in entry]
    if recent and "kl" in recent[0] and _average(recent, "kl") > 1.0:
        found.append(
            "the policy is more than 1 nat per token away from its start: lower optimizer.peak_rate, or "
            "begin a run with a higher grpo.kl_coefficient"
        )
    if recent and _average(recent, "entropy") < 0.02 * _average(first, "entropy"):
        found.append(
            "entropy has fallen to a fiftieth of its start: little is explored any more. Begin a run with a "
            "higher grpo.clip_high"
        )
    return found


def line(entry: Mapping[str, Any]) -> str:
    """Progress in one line."""
    idle = "  ".join(f"{role} idle {100 * share:.0f} %" for role, share in sorted(entry["idle"].items()))
    return (
        f"iteration {entry['step']}  reward {entry['reward']:.3f}  accuracy {entry['accuracy']:.3f}  "
        f"format {entry['format']:.3f}  length {entry['length']:.1f}  alike {entry['zero_variance']:.2f}  "
        f"{entry['answers_per_s']:.1f} answers/s  {idle}"
    )


def flat(entry: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of an entry, by name/name."""
    values: dict[str, float] = {}
    for name, value in entry.items():
        if isinstance(value, Mapping):
            values |= {f"{name}/{key}": inner for key, inner in flat(value).items()}
        elif isinstance(value, (int, float)) and name != "step":
            values[name] = float(value)
    return values


def _said(text: str, task: Task) -> str:
    """An option's letter, "yes", "no", "words" or "unparsed"."""
    if read(text) is None:
        return "unparsed"
    try:
        parsed = decision.parse_output(text, task.query)
    except decision.ParseError:
        return "unparsed"
    if parsed.option_index >= 0:
        return letter(parsed.option_index)
    answer = parsed.answer.lower()
    return answer if answer in ("yes", "no") else "words"


def _sum(entries: Sequence[Mapping[str, Any]], name: str) -> dict[str, int]:
    total: collections.Counter[str] = collections.Counter()
    for entry in entries:
        total.update(entry[name])
    return dict(total)


def _average(entries: Sequence[Mapping[str, Any]], name: str) -> float:
    return _mean([entry[name] for entry in entries])


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else 0.0
