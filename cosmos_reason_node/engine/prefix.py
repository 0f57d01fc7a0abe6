# SPDX-License-Identifier: Apache-2.0
"""What stands before the questions, and its keys and values kept from one request to the next.

A prefix is system text and videos. Its tokens are identified by what is behind them (text by token id, video
by the pair that shows it), so how much of a kept prefix a new one can take over is a comparison:

    the same window again   everything                       the query costs its own tokens
    the window has grown    all but <|vision_end|>           only new pairs are read
    the window has slid     system text                      the video is read anew: its tokens have moved

Keys and values of a token depend on the tokens before it and on positions alone, so what is taken over is
exact. A model with recurrent layers goes on from where it kept their state (models/hybrid_decoder.py): at the
same three places. P tokens.

Off unless asked for (``refresh_every``): a window that has slid takes over the pairs that it shares, their
keys rotated to where they are now. That is not exact, for their values still know the pairs that have gone;
so every so many windows the video is read anew. ``python -m training.eval --slide N --approximate`` tells
what it costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .. import prompt
from ..errors import CosmosReasonError, ErrorCode
from ..models.decoder import Decoder, Prefix
from ..models.mrope import MropeTime, VideoGrid
from ..models.qwen2_5_vl import LoadedModel
from ..types import Window
from .vision_cache import Pair

_ROUND = 64  # capacities are multiples of it, so that windows of about one size fit one another's place


@dataclass(frozen=True, eq=False)
class Plan:
    """A prefix to be.

    Attributes:
        cameras: whose windows, in order.
        tokens: P ids.
        positions: (3, P) M-RoPE positions.
        following: text position of the token after the last.
        pairs: of all windows, in order.
        identity: (P,) int64; equal where tokens mean the same: text by id, visual ones by their pair.
    """

    cameras: tuple[str, ...]
    tokens: list[int]
    positions: np.ndarray
    following: int
    pairs: list[Pair]
    identity: np.ndarray

    @property
    def parts(self) -> list[int]:
        """Where other windows' prefixes may part from this one: before the videos, after them, at the end."""
        visual = np.flatnonzero(self.identity < 0)
        ends = {int(visual[0]), int(visual[-1]) + 1} if len(visual) else set()
        return sorted(ends | {len(self.tokens)})

    def shares(self, identity: np.ndarray, positions: np.ndarray) -> int:
        """Length of the beginning that is the same."""
        n = min(len(self.identity), len(identity))
        differs = (self.identity[:n] != identity[:n]) | (self.positions[:, :n] != positions[:, :n]).any(0)
        return int(differs.argmax()) if differs.any() else n

    def is_like(self, other: Plan) -> bool:
        """Whether the two are the same prefix."""
        return len(self.tokens) == len(other.tokens) == self.shares(other.identity, other.positions)


def make_plan(
    model: LoadedModel,
    windows: Sequence[Window],
    videos: Sequence[VideoGrid],
    pairs: Sequence[list[Pair]],
    mrope_time: MropeTime,
) -> Plan:
    """The prefix of some windows; ``videos`` and ``pairs`` are those of each."""
    spec = model.spec
    visual = [spec.patches.visual_tokens(video.grid) for video in videos]
    tokens = prompt.encode_prefix(model.tokenizer, visual)
    positions, following = spec.positions(tokens, list(videos), mrope_time=mrope_time)
    identity = np.array(tokens)
    flat = [pair for own in pairs for pair in own]
    if flat:
        serials = np.array([-1 - pair.serial for own in pairs for pair in own])
        counts = [n // len(own) for n, own in zip(visual, pairs, strict=True) for _ in own]
        identity[identity == spec.video_token] = np.repeat(serials, counts)
    cameras = tuple(window.camera for window in windows)
    return Plan(cameras, tokens, positions, following, flat, identity)


def video_of(model: LoadedModel, window: Window) -> VideoGrid:
    """Grid of a window's video.

    Raises:
        CosmosReasonError: NO_FRAMES or BAD_IMAGE.
    """
    if not window.frames:
        raise CosmosReasonError(ErrorCode.NO_FRAMES, f"the window of camera {window.camera!r} is empty")
    shapes = {(frame.image.shape, frame.image.dtype.str) for frame in window.frames}
    ((shape, dtype), *others) = shapes
    if others or len(shape) != 3 or shape[2] != 3 or dtype != "|u1":
        raise CosmosReasonError(
            ErrorCode.BAD_IMAGE, f"frames must all be (H, W, 3) uint8 of one size, got {sorted(shapes)}"
        )
    try:
        return model.spec.video_grid(len(window.frames), shape[0], shape[1], window.fps)
    except ValueError as error:
        raise CosmosReasonError(ErrorCode.BAD_IMAGE, str(error)) from error


@dataclass(eq=False)
class Slot:
    """A place for a prefix: ``plan`` says what it will hold, ``prefix.length`` how much of that it does.

    Attributes:
        prefix: keys and values.
        plan: what it is for.
        users: batches on it.
        slides: times that its video was moved since it was last read whole.
    """

    prefix: Prefix
    plan: Plan
    users: int = 0
    slides: int = 0


class PrefixPool:
    """Prefixes in use, and the newest of each set of cameras that are not.

    Args:
        decoder: makes their memory.
        keep: most prefixes kept while nobody uses them; 0: none.
        refresh_every: windows from one whole reading of a sliding video to the next; 0 and 1: each.
    """

    def __init__(self, decoder: Decoder, keep: int, refresh_every: int = 0) -> None:
        self._decoder = decoder
        self._refresh_every = refresh_every
        self._keep = keep
        self._slots: list[Slot] = []  # longest unused first
        self.reused_tokens = 0
        self.read_tokens = 0

    def take(self, plan: Plan) -> Slot:
        """A place for ``plan``; its ``prefix.length`` says how many tokens it holds already."""
        shared = {id(slot): slot.prefix.usable(plan.shares(*self._held(slot))) for slot in self._slots}
        # All share the system text: of equals, the one that can be gone on with where it is.
        best = max(
            self._slots,
            key=lambda slot: (shared[id(slot)], slot.plan.cameras == plan.cameras, not slot.users),
            default=None,
        )
        slot = self._place(plan, best)
        if best is None:
            held = 0
        elif slot is best and (gone := self._pairs_gone(slot, plan)):
            held = self._slide(slot, plan, shared[id(best)], gone)
        else:
            held = self._take_over(slot, best, plan, shared[id(best)])
        slot.prefix.length, slot.plan = held, plan
        slot.users += 1
        self.reused_tokens += held
        self.read_tokens += len(plan.tokens) - held
        return slot

    def release(self, slot: Slot) -> None:
        """One user less."""
        slot.users -= 1
        if slot in self._slots:
            self._slots.remove(slot)
            self._slots.append(slot)
        idle = [slot for slot in self._slots if not slot.users]
        for old in idle[: max(0, len(idle) - self._keep)]:
            self._slots.remove(old)

    def discard(self, slot: Slot) -> None:
        """Do not keep a prefix once its users are through: what it holds is not to be used again."""
        if slot in self._slots:
            self._slots.remove(slot)

    def forget(self) -> None:
        """Drop everything: the weights have changed. Who uses a prefix keeps it."""
        self._slots.clear()

    @property
    def nbytes(self) -> int:
        """What is held of them, in memory."""
        return sum(slot.prefix.nbytes for slot in self._slots)

    def _take_over(self, slot: Slot, source: Slot, plan: Plan, shared: int) -> int:
        """Exact: the ``shared`` first tokens of ``source``, in place or copied; tokens held then."""
        if slot is not source:
            slot.prefix.copy_from(source.prefix, shared)
        # A video that was moved stays one when its window comes again or grows.
        slot.slides = source.slides if (plan.identity[:shared] < 0).any() else 0
        return shared

    def _pairs_gone(self, slot: Slot, plan: Plan) -> int:
        """Pairs by which the window of ``slot`` has slid to ``plan``; 0: it has not, or must be read anew."""
        old = slot.plan
        if slot.slides + 1 >= self._refresh_every or slot.prefix.length < len(old.tokens) or not plan.pairs:
            return 0
        gone = next((i for i, pair in enumerate(old.pairs) if pair is plan.pairs[0]), 0)
        same = len(plan.cameras) == 1 and old.pairs[gone:] == plan.pairs[: len(old.pairs) - gone]
        return gone if same else 0

    def _slide(self, slot: Slot, plan: Plan, shared: int, gone: int) -> int:
        """Approximate: the pairs left, moved behind the ``shared`` first tokens; tokens held then."""
        old = slot.plan
        each = int((plan.identity < 0).sum()) // len(plan.pairs)
        source, count = shared + gone * each, (len(old.pairs) - gone) * each
        moved = plan.positions[:, shared : shared + count] - old.positions[:, source : source + count]
        device = slot.prefix.cache.device
        self._decoder.slide(slot.prefix, source, shared, count, torch.from_numpy(moved).to(device))
        slot.slides += 1
        return shared + count

    def _held(self, slot: Slot) -> tuple[np.ndarray, np.ndarray]:
        """Identity and positions of the tokens that are read."""
        length = slot.prefix.length
        return slot.plan.identity[:length], slot.plan.positions[:, :length]

    def _place(self, plan: Plan, best: Slot | None) -> Slot:
        """An idle slot that is large enough: the best match, else the one of the same cameras, else new.

        New is a slot that would be dropped for it, where there is one: what was captured on its memory
        (FixedStep, TensorRT's contexts) goes on.
        """
        need = len(plan.tokens)
        idle = [slot for slot in self._slots if not slot.users and slot.prefix.capacity >= need]
        for slot in idle:
            if slot is best and slot.plan.cameras == plan.cameras:
                return slot
        for slot in idle:
            if slot.plan.cameras == plan.cameras:
                return slot
        unused = sum(not slot.users for slot in self._slots)
        if idle and unused >= self._keep:
            slot = idle[0]
        else:
            slot = Slot(self._decoder.new_prefix(-(-need // _ROUND) * _ROUND), plan)
            self._slots.append(slot)
        # Of the same cameras only the newest is kept; this one was too small.
        self._slots = [s for s in self._slots if s is slot or s.users or s.plan.cameras != plan.cameras]
        return slot
