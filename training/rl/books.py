# SPDX-License-Identifier: Apache-2.0
"""The books: which question is with whom, what has come back, what may be trained on. No torch, no Ray.

Iteration *n* trains on exactly the tickets (n, place, attempt), one place for each question of its batch:

    open ──lease──> rolling ──answered──> to judge ──lease──> judging ──judged──> done ──batch(n)──> trained
      ^               │ worker died, late            │ worker died    │
      └───────────────┴──────────────────────────────┘                └─> attempt + 1, open
                                                       (failed; or dynamic sampling: all rewards alike)

Tickets of iteration n are leased only while the trainer's version is at least n - max_staleness, and rolled
with the newest weights. So no answer can be trained on that is older, nothing is ever dropped for being
stale, long answers are as likely as short ones to be in a batch, and at most (max_staleness + 1) batches are
on their way: that is the bound of all queues. A batch is what its tickets say, whoever was faster or died.

A worker is leased a round: all places of a parcel (``together`` neighbours) that want answers, once no place
of it is with anybody. What is computed together differs in the last bits from what is computed alone, so who
is in a round must not depend on who was faster either. Its answers come back at once, or not at all.

Judged groups are appended to rollouts/iteration-*.jsonl until a checkpoint covers them. Books that start
anew, with or without the rest of the run, read them back, whole rounds alone; all else is leased again.
"""

from __future__ import annotations

import collections
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .advantages import zero_variance
from .config import RlConfig
from .groups import Group, Ticket, read_group
from .journal import Journal

_DEADLY = 3  # workers that may die over a question
_UNLOADABLE_S = 60.0  # a worker that comes back without new weights for so long cannot load them


class BooksError(Exception):
    """The run cannot go on; the message says why and what to do."""


class RolloutError(Exception):
    """A ticket cannot be answered; the message says why."""


@dataclass
class _Entry:
    """A ticket on its way."""

    ticket: Ticket
    roll: str = ""  # worker that has it; "" = nobody
    group: Group | None = None
    judge: str = ""
    deaths: int = 0
    reasons: list[str] = field(default_factory=list)

    @property
    def done(self) -> bool:
        return self.group is not None and bool(self.group.judgements)

    @property
    def open(self) -> bool:
        return self.group is None and not self.roll


@dataclass
class Counts:
    """What has happened since these books were opened.

    Attributes:
        leased: tickets given to rollout workers.
        taken_back: leases that ended without an answer: a worker died or hung.
        answered: groups that came back; judged: that were judged.
        refused: results of tickets that somebody else had answered already, or that nobody waits for.
        failed: groups without answers or rewards; replaced: zero-variance groups. Each was asked anew.
    """

    leased: int = 0
    taken_back: int = 0
    answered: int = 0
    judged: int = 0
    refused: int = 0
    failed: int = 0
    replaced: int = 0


class Books:
    """See the module's first lines. Every call is short; none waits.

    Args:
        directory: of the journal: rollouts/ of the run.
        questions: places of a batch.
        max_staleness: see above.
        iterations: of the whole run.
        max_attempts: questions for one place.
        dynamic_sampling: replace groups whose rewards are all alike.
        silence_s: a worker that asks for nothing for so long hangs.
        together: places of a parcel.
        clock: steady seconds; for tests.

    Raises:
        BooksError: the journal cannot be read or written.
    """

    def __init__(
        self,
        directory: Path,
        questions: int,
        max_staleness: int,
        iterations: int,
        max_attempts: int,
        dynamic_sampling: bool,
        silence_s: float,
        together: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._journal, self._questions, self._staleness = Journal(directory), questions, max_staleness
        self._iterations, self._max_attempts, self._dynamic = iterations, max_attempts, dynamic_sampling
        self._silence_s, self._together, self._clock = silence_s, together, clock
        self._entries: dict[int, list[_Entry]] = {}  # by iteration, one a place
        self._broken = ""
        self._stopped = False
        self._heard: dict[str, float] = {}  # when a worker last asked for work
        # Weights that it was sent for, and when it first came back without.
        self._told: dict[str, tuple[int, float | None]] = {}
        self._roles: dict[str, dict[str, float]] = {}
        self.version = -1  # newest weights; -1: the trainer has not begun
        self.counts = Counts()
        self._read_journal()

    # --- rollout workers ---------------------------------------------------------------------------------

    def began(self, worker: str) -> None:
        """A worker, of either role, is there and loads what it needs: from now on it may hang."""
        self._heard[worker] = self._clock()

    def next_round(self, worker: str, version: int) -> tuple[Ticket, ...] | int | None:
        """What a rollout worker is to do.

        Args:
            worker: its name.
            version: of the weights that it has; -1: none.

        Returns:
            Tickets to roll together; or the version to load first; or None: nothing now, ask again.
        """
        self._heard[worker] = self._clock()
        if version == self.version:
            self._told.pop(worker, None)
        if self._stopped or self.version < 0:
            return None
        entries = self._first_round()
        if not entries:
            return None
        if version != self.version:
            told, since = self._told.get(worker, (-1, None))
            back = since if since is not None else self._clock()
            self._told[worker] = self.version, back if told == self.version else None
            return self.version
        for entry in entries:
            entry.roll = worker
        self.counts.leased += len(entries)
        return tuple(entry.ticket for entry in entries)

    def answered(self, groups: Sequence[Group], failures: Sequence[tuple[Ticket, str]] = ()) -> int:
        """A round has its answers; how many of its groups are still wanted.

        Args:
            groups: of the tickets that were answered.
            failures: the others, and why: their places get other questions.
        """
        wanted = 0
        for group in groups:
            entry = self._find(group.ticket)
            if entry is None or entry.group is not None:
                self.counts.refused += 1
                continue
            entry.group, entry.roll = group, ""
            self.counts.answered += 1
            wanted += 1
        for ticket, reason in failures:
            self.failed(ticket, reason)
        return wanted

    def failed(self, ticket: Ticket, reason: str) -> None:
        """A ticket could not be answered or judged: its place gets another question.

        A place whose questions all fail ends the run.
        """
        entry = self._find(ticket)
        if entry is None or entry.done:
            self.counts.refused += 1
            return
        self.counts.failed += 1
        entry.reasons.append(reason)
        print(f"{ticket}: {reason}", flush=True)
        if len(entry.reasons) >= self._max_attempts:  # questions replaced for other reasons do not count
            self._broken = (
                f"place {ticket.place} of iteration {ticket.iteration}: {len(entry.reasons)} questions in a "
                f"row failed, the last because: {reason}"
            )
            return
        self._replace(entry)

    # --- reward workers ----------------------------------------------------------------------------------

    def next_to_judge(self, worker: str) -> Group | None:
        """A group without rewards; None: nothing now."""
        self._heard[worker] = self._clock()
        if self._stopped:
            return None
        entry = self._first(lambda entry: entry.group is not None and not entry.done and not entry.judge)
        if entry is None:
            return None
        entry.judge = worker
        return entry.group

    def judged(self, group: Group) -> bool:
        """A group has its rewards; False where it is not wanted any more."""
        entry = self._find(group.ticket)
        if entry is None or entry.done or entry.group is None:
            self.counts.refused += 1
            return False
        self.counts.judged += 1
        entry.judge = ""
        self._write(group)
        if self._teaches_nothing(group):
            self.counts.replaced += 1
            self._replace(entry)
        else:
            entry.group = group
        return True

    # --- trainer -----------------------------------------------------------------------------------------

    def published(self, version: int) -> None:
        """The weights after ``version`` iterations are there to be loaded.

        Less than before: the trainer died and goes on from a checkpoint; groups since then are still here.
        Where those of the next iteration are not, it has gone back beyond a checkpoint that was damaged, and
        the later ones are of weights that it will not have again: they are asked anew.
        """
        if self._entries and min(self._entries) > version:
            for iteration in self._entries:
                self._rewrite(iteration)
            self._entries.clear()
        self.version = version

    def batch(self, iteration: int) -> list[Group] | None:
        """The groups of an iteration in the order of their places; None: not all are here yet.

        Who asks has the weights after ``iteration`` iterations and has published them.

        Raises:
            BooksError: they will never be.
        """
        self.version = iteration
        if self._broken:
            raise BooksError(self._broken)
        entries = self._entries.get(iteration, [])
        groups = [entry.group for entry in entries if entry.group is not None and entry.done]
        return groups if len(groups) == self._questions else None

    def unloadable(self) -> bool:
        """Whether workers cannot load the newest weights: their file is damaged, or not there for them."""
        late = self._clock() - _UNLOADABLE_S
        return any(
            version == self.version and since is not None and since < late
            for version, since in self._told.values()
        )

    def checkpointed(self, iteration: int) -> None:
        """A checkpoint of the state after ``iteration`` iterations is on the disk: forget what led to it."""
        for done in [n for n in self._entries if n < iteration]:
            del self._entries[done]
        self._journal.forget(iteration)

    # --- whoever watches ---------------------------------------------------------------------------------

    def lost(self, worker: str) -> int:
        """A worker is dead: what it had is free again. Returns how much that was.

        A question over which one worker after the other dies has failed.
        """
        self._heard.pop(worker, None)
        self._told.pop(worker, None)
        freed = 0
        for entry in self._all():
            if worker in (entry.roll, entry.judge):
                entry.roll = entry.judge = ""  # it has one of the two: what is rolled is not judged yet
                freed += 1
                entry.deaths += 1
                if entry.deaths >= _DEADLY:
                    self.failed(entry.ticket, f"{entry.deaths} workers died or hung over it")
        self.counts.taken_back += freed
        return freed

    def hanging(self) -> list[str]:
        """Workers that have not been heard of for too long, each told once: they are to be ended.

        What they had is free again.
        """
        late = self._clock() - self._silence_s
        found = [worker for worker, heard in self._heard.items() if heard < late]
        for worker in found:
            self.lost(worker)
        return found

    def stop(self) -> None:
        """No more work is given out."""
        self._stopped = True

    def fail(self, reason: str) -> None:
        """The run cannot go on; the first reason is kept."""
        self._broken, self._stopped = self._broken or reason, True

    def failure(self) -> str:
        """Why the run cannot go on; "" = it can."""
        return self._broken

    def stopped(self) -> bool:
        """Whether workers may end."""
        return self._stopped

    def note(self, worker: str, role: str, busy_s: float, idle_s: float) -> None:
        """A worker's time since its last note."""
        kept = self._roles.setdefault(worker, {"role": role, "busy_s": 0.0, "idle_s": 0.0})  # type: ignore[dict-item]
        kept["busy_s"] += busy_s
        kept["idle_s"] += idle_s

    def report(self) -> dict[str, Any]:
        """Counts, queues, and the share of time that each role waited."""
        waiting: dict[str, list[float]] = collections.defaultdict(lambda: [0.0, 0.0])
        for kept in self._roles.values():
            sums = waiting[str(kept["role"])]
            sums[0] += kept["idle_s"]
            sums[1] += kept["idle_s"] + kept["busy_s"]
        entries = list(self._all())
        return {
            "counts": asdict(self.counts),
            "version": self.version,
            "trained": max(0, self.version) * self._questions,
            "rolling": sum(bool(e.roll) for e in entries),
            "to_judge": sum(e.group is not None and not e.done for e in entries),
            "done": sum(e.done for e in entries),
            "idle": {role: idle / total if total else 0.0 for role, (idle, total) in waiting.items()},
        }

    # --- inside ------------------------------------------------------------------------------------------

    def _open_iterations(self) -> range:
        return range(max(0, self.version), min(self._iterations, self.version + self._staleness + 1))

    def _open_entries(self) -> Iterator[list[_Entry]]:
        """Of each open iteration; those needed soonest come first."""
        for iteration in self._open_iterations():
            if iteration not in self._entries:
                self._entries[iteration] = [
                    _Entry(Ticket(iteration, place, 0)) for place in range(self._questions)
                ]
            yield self._entries[iteration]

    def _first(self, wanted: Callable[[_Entry], bool]) -> _Entry | None:
        return next((entry for entries in self._open_entries() for entry in entries if wanted(entry)), None)

    def _first_round(self) -> list[_Entry]:
        """What is open of the first parcel of which nothing is with a worker, rolling or judging."""
        for entries in self._open_entries():
            for start in range(0, self._questions, self._together):
                parcel = entries[start : start + self._together]
                if all(entry.open or entry.done for entry in parcel):
                    found = [entry for entry in parcel if entry.open]
                    if found:
                        return found
        return []

    def _find(self, ticket: Ticket) -> _Entry | None:
        entries = self._entries.get(ticket.iteration, [])
        entry = entries[ticket.place] if ticket.place < len(entries) else None
        return entry if entry is not None and entry.ticket == ticket else None

    def _all(self) -> Sequence[_Entry]:
        return [entry for entries in self._entries.values() for entry in entries]

    def _replace(self, entry: _Entry) -> None:
        ticket = entry.ticket
        entry.ticket = Ticket(ticket.iteration, ticket.place, ticket.attempt + 1)
        entry.roll, entry.judge, entry.group = "", "", None
        entry.deaths = 0

    def _write(self, group: Group) -> None:
        line = json.dumps(asdict(group), separators=(",", ":"))
        self._try(lambda: self._journal.append(group.ticket.iteration, line))

    def _rewrite(self, iteration: int) -> None:
        self._try(lambda: self._journal.rewrite(iteration, ()))

    def _try(self, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as error:
            self._broken = (
                f"judged answers cannot be written to {self._journal.directory} ({error}): make room there, "
                "then start again; it goes on from the last checkpoint"
            )

    def _read_journal(self) -> None:
        """Take back the groups of an earlier life; a line cut off by a crash is as if it had not come."""
        try:
            for iteration, lines, ended in self._journal.read():
                entries = [_Entry(Ticket(iteration, place, 0)) for place in range(self._questions)]
                read = [(line, group) for line in lines if (group := read_group(line)) and self._fits(group)]
                there = {(group.ticket.place, group.ticket.attempt) for _, group in read}
                groups = [(line, group) for line, group in read if there.issuperset(group.beside)]
                for _, group in groups:
                    entry = entries[group.ticket.place]
                    entry.ticket, entry.group = group.ticket, group
                    if self._teaches_nothing(group):
                        self._replace(entry)
                self._entries[iteration] = entries
                if len(groups) != len(lines) or not ended:
                    self._journal.rewrite(iteration, [line for line, _ in groups])
        except OSError as error:
            raise BooksError(
                f"{self._journal.directory} cannot be used ({error}): make room there, or choose another "
                "run.output"
            ) from error

    def _fits(self, group: Group) -> bool:
        """Whether it is of this run, and no older than may be: that setting may have been another."""
        versions = [version for answer in group.answers for version in answer.versions]
        stale = group.ticket.iteration - min(versions, default=-1) > self._staleness
        return group.ticket.place < self._questions and not stale

    def _teaches_nothing(self, group: Group) -> bool:
        """Whether another question is to be asked in its place."""
        return (
            self._dynamic and group.ticket.attempt + 1 < self._max_attempts and zero_variance(group.rewards)
        )


def arguments(config: RlConfig, questions: str) -> dict[str, Any]:
    """What a run's books are made with; the journal's folder is named after what its groups depend on.

    Args:
        config: of the run.
        questions: digest of the checkpoint and of all that may be asked: a ticket's question is drawn anew,
            so answers to others, or of another model, must not be taken back.
    """
    settings = (config.model.path, config.data, config.grpo, config.optimizer, config.rollout.max_tokens)
    name = hashlib.sha256(repr((settings, config.run.seed, questions)).encode()).hexdigest()[:8]
    return {
        "directory": Path(config.run.output).expanduser() / "rollouts" / name,
        "questions": config.questions,
        "max_staleness": config.rollout.max_staleness,
        "iterations": config.iterations,
        "max_attempts": config.grpo.max_attempts,
        "dynamic_sampling": config.grpo.dynamic_sampling,
        "silence_s": config.rollout.silence_s,
        "together": config.rollout.together,
    }
