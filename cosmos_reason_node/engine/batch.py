# SPDX-License-Identifier: Apache-2.0
"""The branches that are written behind one prefix, and the steps that advance all of them at once.

    step   see       pairs of the windows that are not encoded yet      -> features
           read      what of the prefix is not kept from before         -> key/value cache, one copy
           start     questions of the branches that have just come      -> a region each, first tokens
           advance   every branch: its last token, or a forced piece    -> next tokens

Branches come and go at any step: requests about the same windows share a batch, whoever drives a step
advances all of them, and each request finds its events when its turn comes. Regions are dense: the last one
moves into the place of one that ends.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import ErrorCode
from ..models.decoder import Branches, Decoder, Prefix
from ..models.qwen2_5_vl import LoadedModel
from .base import Failed, Sampling, Token
from .free import FreeBranch
from .grammar import Branch, ChoiceStep, FreeStep
from .prefix import Plan, PrefixPool, Slot
from .sampling import choose, draw, sample_tokens
from .vision_cache import VisionCache

# Question tokens that start in one step; more start in the next ones.
_START_TOKENS = 2048
_NOT_FINITE = "the model's output is not finite: try dtype float32 or another model"


@dataclass(eq=False)
class Writing:
    """A branch on its way.

    Attributes:
        index: number of the query in its request.
        suffix: tokens of the question.
        grammar: what may be written.
        sampling, generator: how tokens are chosen.
        calibration: temperature of the confidence.
        most: tokens that its region must have room for.
        say: called with each event; ``Failed`` is the last.
        end: called when the text is complete.
        shares: probability of each choice, once chosen.
        length: tokens in its region.
        prefilled: steady time of its first token.
    """

    index: int
    suffix: list[int]
    grammar: Branch | FreeBranch
    sampling: Sampling
    generator: torch.Generator
    calibration: float
    most: int
    say: Callable[[Writing, Token | Failed], None]
    end: Callable[[Writing], None]
    shares: list[float] = field(default_factory=list)
    length: int = 0
    prefilled: float = 0.0


@dataclass
class Counters:
    """Work done since the engine was made."""

    question_tokens: int = 0
    decode_tokens: int = 0
    decode_steps: int = 0


@dataclass(eq=False)
class Machine:
    """What batches work with.

    Attributes:
        model: for embeddings.
        decoder: the language model.
        vision: features.
        prefixes: key/value caches of prefixes.
        masks: forbidden tokens on the device, by id() of the grammar's array.
        counters: of work.
        spare: regions that no batch uses, kept for the next; None: none, or not wanted.
        keep_spare: whether to keep them.
    """

    model: LoadedModel
    decoder: Decoder
    vision: VisionCache
    prefixes: PrefixPool
    masks: dict[int, Tensor]
    counters: Counters = field(default_factory=Counters)
    spare: Branches | None = None
    keep_spare: bool = False

    def regions(self, count: int, capacity: int) -> Branches:
        """Regions for ``count`` branches of ``capacity`` tokens."""
        spare, self.spare = self.spare, None
        if spare is not None and spare.regions >= count and spare.capacity >= capacity:
            return spare
        return self.decoder.new_branches(count, -(-capacity // 64) * 64)

    def wait(self) -> None:
        """Let the device finish, so that times are true and a step is a step."""
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)


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
        self._rows: list[Writing] = []  # row i writes into region i
        self._waiting: deque[Writing] = deque()

    @property
    def empty(self) -> bool:
        """Whether nobody waits for anything any more."""
        return not self._rows and not self._waiting

    def add(self, writing: Writing) -> None:
        """A branch to be started."""
        self._waiting.append(writing)

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
        if self._regions is not None and self._machine.keep_spare:
            self._machine.spare = self._regions
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
                self._write(0, self._rows)
        except BaseException as error:
            self.failure = error
            raise

    def _prepare(self) -> bool:
        """A step towards a prefix that is read; False: nothing was left to do."""
        machine, plan = self._machine, self.plan
        blind = [pair for pair in plan.pairs if pair.features is None]
        for pair in blind:
            machine.vision.encode(pair)
        if blind:
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
        machine, plan, done = self._machine, self.plan, prefix.length
        device = machine.model.device
        features = None
        if plan.pairs:
            visual = int((plan.identity[:done] < 0).sum())
            features = torch.cat([machine.vision.encode(pair) for pair in plan.pairs])[visual:]
        embedded = machine.model.embed(torch.tensor([plan.tokens[done:]], device=device), features)
        machine.decoder.read(embedded[0], torch.from_numpy(plan.positions[:, done:]).to(device), prefix)

    def _start(self) -> None:
        """Give waiting branches a region and their first tokens."""
        first, tokens = len(self._rows), 0
        starting: list[Writing] = []
        while self._waiting and (not starting or tokens + len(self._waiting[0].suffix) <= _START_TOKENS):
            starting.append(self._waiting.popleft())
            tokens += len(starting[-1].suffix)
        self._make_room(first + len(starting), max(writing.most for writing in starting))
        self._rows += starting
        self._machine.counters.question_tokens += tokens
        self._write(first, starting)

    def _make_room(self, count: int, capacity: int) -> None:
        old = self._regions
        if old is None:
            self._regions = self._machine.regions(count + len(self._waiting), capacity)
        elif old.regions < count or old.capacity < capacity:
            self._regions = self._machine.regions(max(old.regions, count), max(old.capacity, capacity))
            self._regions.copy_from(old)

    def _write(self, first: int, rows: Sequence[Writing]) -> None:
        """Feed what each row has pending, and choose its next token."""
        rows = list(rows)
        chunks = [
            writing.grammar.take() if writing.length else writing.suffix + writing.grammar.take()
            for writing in rows
        ]
        logits = self._logits(first, rows, chunks)
        counters = self._machine.counters
        for writing, chunk in zip(rows, chunks, strict=True):
            counters.decode_tokens += len(chunk) if writing.length else 0
            writing.length += len(chunk)
        counters.decode_steps += 1
        outcomes = self._choose(rows, logits)
        assert self._regions is not None
        now = time.monotonic()
        for writing, outcome in zip(rows, outcomes, strict=True):
            if writing not in self._rows:
                continue  # another order of its options failed just now
            writing.prefilled = writing.prefilled or now
            if isinstance(outcome, Failed):
                self._regions.wipe(self._rows.index(writing))
            if isinstance(outcome, Failed) or writing.grammar.done:
                self._vacate(writing)
            writing.say(writing, outcome)
            if writing.grammar.done:
                writing.end(writing)

    def _logits(self, first: int, rows: list[Writing], chunks: list[list[int]]) -> Tensor:
        """(B, V) logits after each row's chunk."""
        machine, device = self._machine, self._machine.model.device
        assert self._slot is not None
        assert self._regions is not None
        longest = max(map(len, chunks))
        padded = [chunk + [0] * (longest - len(chunk)) for chunk in chunks]
        lengths = torch.tensor([writing.length for writing in rows])
        tokens, lengths_there = torch.tensor(padded).to(device), lengths.to(device)
        ends = torch.tensor([len(chunk) - 1 for chunk in chunks]).to(device)
        hidden = machine.decoder.write(
            machine.model.embed(tokens),
            lengths_there + self.plan.following,
            lengths_there,
            ends,
            self._slot.prefix,
            self._regions,
            first,
            room=int(lengths.max()) + longest,
        )
        return machine.decoder.logits(hidden)

    def _choose(self, rows: list[Writing], logits: Tensor) -> list[Token | Failed]:
        """What each row says next."""
        steps = [writing.grammar.step() for writing in rows]
        said: list[Token | Failed | None] = [None] * len(rows)
        free = [row for row, step in enumerate(steps) if isinstance(step, FreeStep)]
        if free:
            own = [rows[row] for row in free]
            masks = [self._machine.masks[id(steps[row].forbidden)] for row in free]
            same = all(mask is masks[0] for mask in masks)
            tokens, log_probs = sample_tokens(
                logits if len(free) == len(rows) else logits[free],
                masks[0] if same else torch.stack(masks),
                [writing.sampling for writing in own],
                [draw(writing.sampling, writing.generator) for writing in own],
            )
            for row, token, log_prob in zip(free, *_to_host(tokens, log_probs), strict=True):
                said[row] = self._push(rows[row], token, log_prob)
        for row, step in enumerate(steps):
            if isinstance(step, ChoiceStep):
                said[row] = self._settle(rows[row], step, logits[row])
        return [event for event in said if event is not None]

    def _push(self, writing: Writing, token: int, log_prob: float) -> Token | Failed:
        if not math.isfinite(log_prob):
            return Failed(writing.index, ErrorCode.ENGINE_FAILED, _NOT_FINITE)
        thinking = writing.grammar.thinking
        return Token(writing.index, writing.grammar.push(token, log_prob), thinking)

    def _settle(self, writing: Writing, step: ChoiceStep, logits: Tensor) -> Token | Failed:
        assert isinstance(writing.grammar, Branch)  # only a grammar asks for choices
        index, shares = choose(logits, step.groups, writing.sampling, writing.generator, writing.calibration)
        if not all(map(math.isfinite, shares)):
            return Failed(writing.index, ErrorCode.ENGINE_FAILED, _NOT_FINITE)
        writing.shares = shares
        return Token(writing.index, writing.grammar.choose(index, shares[index]), False)

    def _vacate(self, writing: Writing) -> None:
        """Take a row out; the last one moves into its region."""
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
