# SPDX-License-Identifier: Apache-2.0
"""The branches that are written behind one prefix, and the steps that advance all of them at once.

    step   see       pairs of the windows that are not encoded yet      -> features
           read      what of the prefix is not kept from before         -> key/value cache, one copy
           start     questions of the branches that have just come      -> a region each, first tokens
           advance   every branch: its last token, or a forced piece    -> next tokens
                     and guesses at what follows, where there are any

Branches come and go at any step: requests about the same windows share a batch, whoever drives a step
advances all of them, and each request finds its events when its turn comes. Regions are dense: the last one
moves into the place of one that ends.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ErrorCode
from ..models.decoder import Branches, Prefix
from .base import Failed, Token
from .drafts import Drafts
from .grammar import Branch, ChoiceStep, FreeStep
from .machine import Machine
from .prefix import Plan, Slot
from .run_ahead import RunAhead
from .sampling import choose, sample_tokens
from .writing import Writing

# Question tokens that start in one step; more start in the next ones.
_START_TOKENS = 2048
_NOT_FINITE = "the model's output is not finite: try dtype float32 or another model"


@dataclass(frozen=True)
class _Said:
    """What a row says after one pass.

    Attributes:
        events: one for each guess that came true, then one for the token that the model chose after them.
    """

    events: list[Token | Failed]

    @property
    def right(self) -> int:
        """Guesses that came true."""
        return len(self.events) - 1


class Batch:
    """Branches behind one prefix.

    Args:
        machine: what it works with.
        plan: the prefix.
    """

    def __init__(self, machine: Machine, plan: Plan) -> None:
        self.plan = plan
        self.seen_at = 0.0
        self.failure: BaseException | None = None
        self._machine = machine
        self._slot: Slot | None = None
        self._is_read = False
        self._regions: Branches | None = None
        self._is_lent = False
        self._rows: list[Writing] = []  # row i writes into region i
        self._waiting: deque[Writing] = deque()
        self._ahead: RunAhead | None = None

    @property
    def drafts(self) -> Drafts | None:
        """Earlier answers, where they are to be used."""
        machine = self._machine
        return machine.drafts if getattr(machine.decoder, "can_draft", False) else None

    @property
    def prefix(self) -> Prefix | None:
        """Keys and values of the prefix, from the step that reads it until the batch is closed."""
        return None if self._slot is None else self._slot.prefix

    @property
    def rows(self) -> Sequence[Writing]:
        """Branches that have begun; row i writes into region i."""
        return self._rows

    @property
    def waiting(self) -> Sequence[Writing]:
        """Branches that have not."""
        return self._waiting

    @property
    def empty(self) -> bool:
        """Whether nobody waits for anything any more."""
        return not self._rows and not self._waiting

    def add(self, writing: Writing) -> None:
        """A branch to be started."""
        self._waiting.append(writing)

    def lend(self, regions: Branches) -> None:
        """Write into these, which have room for all that waits; before the first step only."""
        assert self._regions is None
        self._regions, self._is_lent = regions, True

    @torch.inference_mode()
    def drop(self, writing: Writing) -> None:
        """Forget a branch, wherever it is."""
        if writing in self._waiting:
            self._waiting.remove(writing)
        elif writing in self._rows:
            self._vacate(writing)

    def close(self) -> None:
        """Give back what it holds."""
        self._rows.clear()
        self._waiting.clear()
        if self._slot is not None:
            self._machine.prefixes.release(self._slot)
            self._slot = None
        if self._regions is not None and not self._is_lent:
            self._machine.give_back(self._regions)
        self._regions = None

    @torch.inference_mode()
    def step(self) -> None:
        """Do one step of work for all branches."""
        if self.failure is not None:
            raise self.failure
        try:
            if not self._is_read and self._prepare():
                return
            if self._waiting:
                self._start()
            else:
                self._write()
        except BaseException as error:
            self.failure = error
            raise

    def _prepare(self) -> bool:
        """A step towards a prefix that is read; False: nothing was left to do."""
        machine, plan = self._machine, self.plan
        blind = any(pair.features is None for pair in plan.pairs)
        if blind:
            machine.vision.encode_all(plan.pairs)
            machine.wait()
        self.seen_at = self.seen_at or time.monotonic()
        if blind:
            return True
        self._slot = self._slot or machine.prefixes.take(plan)
        self._is_read = True
        if self._slot.prefix.length == len(plan.tokens):
            return False
        self._read(self._slot.prefix)
        machine.wait()
        return True

    def _read(self, prefix: Prefix) -> None:
        """What ``prefix`` does not hold yet."""
        machine, plan, device = self._machine, self.plan, self._machine.model.device
        features, seen = None, 0
        if plan.pairs:
            seen = int((plan.identity[: prefix.length] < 0).sum())
            features = torch.cat([machine.vision.encode(pair) for pair in plan.pairs])
        ends = plan.parts if getattr(machine.decoder, "recurrent", False) else [len(plan.tokens)]
        for end in (end for end in ends if end > prefix.length):
            piece = slice(prefix.length, end)
            visual = int((plan.identity[piece] < 0).sum())
            shown = None if features is None else features[seen : seen + visual]
            embedded = machine.model.embed(torch.tensor([plan.tokens[piece]], device=device), shown)
            machine.decoder.read(embedded[0], torch.from_numpy(plan.positions[:, piece]).to(device), prefix)
            seen += visual

    def _start(self) -> None:
        """Give waiting branches a region and their first tokens.

        Equal questions, such as those of a group's answers in RL, are read once and copied.
        """
        first, tokens = len(self._rows), 0
        groups: dict[tuple[int, ...], list[Writing]] = {}
        while self._waiting and (not groups or tokens + len(self._waiting[0].suffix) <= _START_TOKENS):
            writing = self._waiting.popleft()
            writing.take()
            writing.pending = writing.suffix + writing.pending
            like = groups.setdefault(tuple(writing.pending), [])
            tokens += 0 if like else len(writing.suffix)
            like.append(writing)
        readers = [like[0] for like in groups.values()]
        copies = [(copy, row) for row, like in enumerate(groups.values()) for copy in like[1:]]
        starting = readers + [copy for copy, _ in copies]
        self._make_room(first + len(starting), max(writing.most for writing in starting))
        self._rows += starting
        self._machine.counters.question_tokens += tokens
        self._stop_ahead()
        logits = self._logits(first, readers, [writing.pending for writing in readers], [[] for _ in readers])
        assert self._regions is not None
        for region, (copy, row) in enumerate(copies, first + len(readers)):
            self._regions.move(first + row, region, len(copy.pending))
        if copies:
            logits = logits[[*range(len(readers)), *(row for _, row in copies)]]
        self._step_of(starting, [[] for _ in starting], logits)

    def _make_room(self, count: int, capacity: int) -> None:
        old = self._regions
        if old is None:
            self._regions = self._machine.regions(count + len(self._waiting), capacity)
        elif old.regions < count or old.capacity < capacity:
            self._regions = self._machine.regions(max(old.regions, count), max(old.capacity, capacity))
            self._regions.copy_from(old)

    def _write(self) -> None:
        """Feed what each row has pending, with guesses at what follows, and choose its next tokens."""
        rows = list(self._rows)
        if self._may_run_ahead(rows):
            self._write_ahead(rows)
            return
        self._stop_ahead()
        guesses = self._guesses(rows)
        chunks = [writing.pending + guess for writing, guess in zip(rows, guesses, strict=True)]
        self._step_of(rows, guesses, self._logits(0, rows, chunks, guesses))

    def _step_of(self, rows: list[Writing], guesses: list[list[int]], logits: Tensor) -> None:
        """What rows say after one pass."""
        counters = self._machine.counters
        counters.decode_steps += 1
        counters.guessed_tokens += sum(map(len, guesses))
        fed = [len(writing.pending) for writing in rows]
        self.finish(rows, fed, guesses, self.choose(rows, guesses, logits))

    def finish(
        self,
        rows: list[Writing],
        fed: list[int],
        guesses: list[list[int]],
        says: list[_Said],
    ) -> None:
        """Note what was fed to each row, hand over what it says, and let go of the rows that end."""
        counters = self._machine.counters
        assert self._regions is not None
        now = time.monotonic()
        for writing, count, guess, said in zip(rows, fed, guesses, says, strict=True):
            counters.right_guesses += said.right
            counters.decode_tokens += count + said.right if writing.length else 0
            writing.length += count + said.right
            writing.prefilled = writing.prefilled or now
            if writing.draft is not None:
                writing.draft.learn(len(guess), said.right)
        failures = [isinstance(said.events[-1], Failed) for said in says]
        if any(failures):
            self._wipe([writing for writing, failed in zip(rows, failures, strict=True) if failed])
        for writing, said, failed in zip(rows, says, failures, strict=True):
            if writing not in self._rows:
                continue  # another order of its options failed just now
            if failed or writing.grammar.done:
                self._vacate(writing)
            for event in said.events:
                writing.say(writing, event)
            if writing.grammar.done:
                self._keep(writing)
                writing.end(writing)

    def _wipe(self, rows: list[Writing]) -> None:
        """Leave nothing behind that is not finite: a masked place is multiplied by zero, and stays NaN.

        Before any row is vacated, for then the last one moves, and what it held stays where it was.
        """
        assert self._regions is not None
        for writing in rows:
            self._regions.wipe(self._rows.index(writing))
        if self._slot is not None:
            self._machine.prefixes.discard(self._slot)

    def _may_run_ahead(self, rows: list[Writing]) -> bool:
        """Whether every row of the batch feeds one token and may choose any next."""
        return self._machine.fixed is not None and all(
            writing.length and len(writing.pending) == 1 and isinstance(writing.grammar.step(), FreeStep)
            for writing in rows
        )

    def _write_ahead(self, rows: list[Writing]) -> None:
        """One token of every row, with the step after it queued already."""
        assert self._machine.fixed is not None
        assert self._slot is not None
        assert self._regions is not None
        self._ahead = self._ahead or RunAhead(self._machine.fixed, self.plan.following)
        steps = [step for step in (writing.grammar.step() for writing in rows) if isinstance(step, FreeStep)]
        masks = [self._machine.masks[id(step.forbidden)] for step in steps]
        same = all(mask is masks[0] for mask in masks)
        chosen = self._ahead.advance(
            rows, masks[0] if same else torch.stack(masks), self._slot.prefix, self._regions
        )
        events = [self._push(writing, *one) for writing, one in zip(rows, chosen, strict=True)]
        for writing, step, (token, _), event in zip(rows, steps, chosen, events, strict=True):
            over = isinstance(event, Failed) or writing.grammar.done or writing.pending != [token]
            if over or getattr(writing.grammar.step(), "forbidden", None) is not step.forbidden:
                self._stop_ahead()
        self._machine.counters.decode_steps += 1
        self.finish(rows, [1] * len(rows), [[]] * len(rows), [_Said([event]) for event in events])

    def _stop_ahead(self) -> None:
        """What is queued does not count: rows come, go or are fed something else."""
        if self._ahead is not None:
            self._ahead.cancel()

    def _guesses(self, rows: Sequence[Writing]) -> list[list[int]]:
        """Tokens to feed each row beyond what is pending."""
        assert self._regions is not None
        # Rows are padded to the longest, and all of that has to lie in their regions.
        room = self._regions.capacity - max(w.length for w in rows) - max(len(w.pending) for w in rows)
        return [
            []
            if writing.draft is None or not isinstance(writing.grammar.step(), FreeStep)
            else writing.draft.guess(room)
            for writing in rows
        ]

    def _keep(self, writing: Writing) -> None:
        if writing.draft is not None and self._machine.drafts is not None:
            self._machine.drafts.keep(self.question(writing.suffix), writing.draft.said)

    def question(self, suffix: Sequence[int]) -> tuple[object, ...]:
        """What an answer is kept under for the next window."""
        return (self.plan.cameras, tuple(suffix))

    def _logits(
        self, first: int, rows: list[Writing], chunks: list[list[int]], guesses: list[list[int]]
    ) -> Tensor:
        """(M, V) logits after each row's pending tokens and after each of its guesses, row by row."""
        machine, device = self._machine, self._machine.model.device
        assert self._slot is not None
        assert self._regions is not None
        longest = max(map(len, chunks))
        padded = [chunk + [0] * (longest - len(chunk)) for chunk in chunks]
        lengths = torch.tensor([writing.length for writing in rows])
        tokens, lengths_there = torch.tensor(padded).to(device), lengths.to(device)
        ends = torch.tensor([len(chunk) - 1 for chunk in chunks]).to(device)
        every = {"every": True} if any(guesses) else {}
        hidden = machine.decoder.write(
            machine.model.embed(tokens),
            lengths_there + self.plan.following,
            lengths_there,
            ends,
            self._slot.prefix,
            self._regions,
            first,
            room=int(lengths.max()) + longest,
            **every,
        )
        if every:
            row = [i for i, guess in enumerate(guesses) for _ in range(len(guess) + 1)]
            place = [
                len(chunk) - len(guess) - 1 + i
                for chunk, guess in zip(chunks, guesses, strict=True)
                for i in range(len(guess) + 1)
            ]
            hidden = hidden[row, place]
        return machine.decoder.logits(hidden)

    def choose(self, rows: list[Writing], guesses: list[list[int]], logits: Tensor) -> list[_Said]:
        """What each row says next: one token, and one more for each guess that came true before it."""
        steps = [writing.grammar.step() for writing in rows]
        firsts = list(itertools.accumulate([len(guess) + 1 for guess in guesses], initial=0))[:-1]
        free = {row: step for row, step in enumerate(steps) if isinstance(step, FreeStep)}
        says: dict[int, _Said] = {}
        if free:
            own = [rows[row] for row in free for _ in range(len(guesses[row]) + 1)]
            places = [firsts[row] + i for row in free for i in range(len(guesses[row]) + 1)]
            masks = [self._machine.masks[id(step.forbidden)] for step in free.values()]
            same = all(mask is masks[0] for mask in masks)
            counts = torch.tensor([len(guesses[row]) + 1 for row in free])
            points = [writing.point() for writing in own]
            tokens, log_probs = sample_tokens(
                logits if len(places) == len(logits) else logits[places],
                masks[0] if same else torch.stack(masks).repeat_interleave(counts.to(logits.device), 0),
                [writing.sampling for writing in own],
                points,
            )
            chosen = list(zip(*_to_host(tokens, log_probs), points, strict=True))
            for row, step in free.items():
                mine, chosen = chosen[: len(guesses[row]) + 1], chosen[len(guesses[row]) + 1 :]
                says[row] = self._accept(rows[row], step, guesses[row], mine)
        for row, other in enumerate(steps):
            if isinstance(other, ChoiceStep):
                says[row] = _Said([self._settle(rows[row], other, logits[firsts[row]])])
        return [says[row] for row in range(len(rows))]

    def _accept(
        self,
        writing: Writing,
        step: FreeStep,
        guess: list[int],
        chosen: list[tuple[int, float, float]],
    ) -> _Said:
        """Write tokens until one is not what was guessed: what follows was computed after another text."""
        events: list[Token | Failed] = []
        for i, (token, log_prob, _) in enumerate(chosen):
            events.append(self._push(writing, token, log_prob))
            if isinstance(events[-1], Failed) or writing.grammar.done:
                break
            now = writing.grammar.step()
            goes_on = isinstance(now, FreeStep) and now.forbidden is step.forbidden
            if writing.pending != guess[i : i + 1] or not goes_on:
                break
        if writing.sampling.temperature > 0:  # the numbers that decided nothing are the next ones
            writing.points.extendleft(point for _, _, point in reversed(chosen[len(events) :]))
        return _Said(events)

    def _push(self, writing: Writing, token: int, log_prob: float) -> Token | Failed:
        if not math.isfinite(log_prob):
            return Failed(writing.index, ErrorCode.ENGINE_FAILED, _NOT_FINITE)
        thinking = writing.grammar.thinking
        event = Token(writing.index, writing.grammar.push(token, log_prob), thinking)
        writing.take()
        return event

    def _settle(self, writing: Writing, step: ChoiceStep, logits: Tensor) -> Token | Failed:
        assert isinstance(writing.grammar, Branch)  # only a grammar asks for choices
        index, shares = choose(logits, step.groups, writing.sampling, writing.point(), writing.calibration)
        if not all(map(math.isfinite, shares)):
            return Failed(writing.index, ErrorCode.ENGINE_FAILED, _NOT_FINITE)
        writing.shares = shares
        event = Token(writing.index, writing.grammar.choose(index, shares[index]), False)
        writing.take()
        return event

    def _vacate(self, writing: Writing) -> None:
        """Take a row out; the last one moves into its region."""
        self._stop_ahead()
        row = self._rows.index(writing)
        last = self._rows.pop()
        if last is not writing:
            self._rows[row] = last
            assert self._regions is not None
            self._regions.move(len(self._rows), row, last.length)


def _to_host(tokens: Tensor, log_probs: Tensor) -> tuple[list[int], list[float]]:
    """Both in one transfer; a double holds every token id exactly."""
    ids, values = torch.stack((tokens.double(), log_probs.double())).tolist()
    return [int(i) for i in ids], values
