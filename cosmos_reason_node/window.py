# SPDX-License-Identifier: Apache-2.0
"""Windows by capture stamp on an absolute time grid.

Tick ``k`` is the time cell [k * period, (k + 1) * period) of the camera's clock. The first frame whose stamp
falls into a cell is that tick's frame; later ones in the same cell are skipped before they are decoded. A
pair of ticks (2j, 2j + 1) is one temporal patch of the vision tower, so windows start and end on pair
boundaries: two windows that share a pair share its features exactly.

A cell without a frame repeats the frame before it (sample and hold) and is counted, so that the model always
sees evenly spaced frames and the decision says which were real. A hole longer than ``max_hold_s``, or a stamp
that jumps back by more than ``max_backward_s``, empties the buffer: frames from before and after never share
a window.
"""

from __future__ import annotations

import enum
from collections import deque
from dataclasses import dataclass

from .types import Frame, Window


class Offer(enum.Enum):
    """What becomes of a frame, known from its stamp alone."""

    SAMPLE = "sample"  # first frame of its tick: decode it and put() it
    SKIP = "skip"  # its tick has a frame already
    DUPLICATE = "duplicate"  # same stamp as the newest one
    OUT_OF_ORDER = "out_of_order"  # older than the newest one
    INVALID = "invalid"  # zero or negative stamp


@dataclass
class WindowCounters:
    """Counts since start; ``received`` is the sum of the five outcomes of an offer."""

    received: int = 0
    sampled: int = 0
    skipped: int = 0
    duplicates: int = 0
    out_of_order: int = 0
    invalid_stamps: int = 0
    gaps: int = 0  # holes of at least one tick
    held: int = 0  # ticks filled by repetition
    clock_jumps: int = 0  # resets by a backward or over-long forward jump
    lost: int = 0  # sampled frames that could not be decoded


@dataclass(frozen=True)
class TimeGrid:
    """An absolute grid of ticks. ``period_ns`` = length of a tick."""

    period_ns: int

    @classmethod
    def from_fps(cls, fps: float) -> TimeGrid:
        """Grid with ``fps`` ticks per second, 0.1 to 60."""
        if not 0.1 <= fps <= 60.0:
            raise ValueError(f"fps must be between 0.1 and 60, got {fps}")
        return cls(round(1e9 / fps))

    def tick(self, stamp_ns: int) -> int:
        """Index of the cell that holds ``stamp_ns``."""
        return stamp_ns // self.period_ns


class WindowBuffer:
    """The newest frames of one camera. Not thread-safe: one thread offers and puts.

    Args:
        camera: name that frames must carry.
        grid: the time grid.
        num_frames: frames of a full window, even, at least 2.
        anchored: windows start on a coarse grid (half a window) and grow, instead of sliding; see ``window``.
        max_hold_s: longest hole that is filled by repetition.
        max_backward_s: stamps older than the newest by at most this much are dropped as out of order; beyond
            it the clock has jumped (a bag looped, the time source was set) and the buffer starts anew.
    """

    def __init__(
        self,
        camera: str,
        grid: TimeGrid,
        num_frames: int = 32,
        max_hold_s: float = 1.0,
        max_backward_s: float = 1.0,
        anchored: bool = False,
    ) -> None:
        if num_frames < 2 or num_frames % 2:
            raise ValueError(f"num_frames must be even and at least 2, got {num_frames}")
        self.camera = camera
        self.grid = grid
        self.num_frames = num_frames
        self.counters = WindowCounters()
        self._anchored = anchored
        self._max_hold_ticks = max(0, round(max_hold_s * 1e9 / grid.period_ns))
        self._max_backward_ns = round(max_backward_s * 1e9)
        # One more pair than a window, so that an unfinished pair does not push out the oldest complete one.
        self._frames: deque[tuple[int, Frame]] = deque(maxlen=num_frames + 2)
        self._newest_ns: int | None = None
        self._usable_ns: int | None = None
        self._offered_tick: int | None = None
        self._hole_ns = 0

    @property
    def hole_ns(self) -> int:
        """Time between the two images around the hole that restarted the window; 0: no hole did."""
        return self._hole_ns

    @property
    def usable_ns(self) -> int | None:
        """Stamp of the newest image that is a frame or was not needed beside one; None without frames."""
        return self._usable_ns

    def offer(self, stamp_ns: int) -> Offer:
        """Decide about a frame by its stamp, before it is decoded.

        After ``SAMPLE`` the caller decodes the image and calls ``put``, or ``lose`` when it cannot.
        """
        self.counters.received += 1
        if stamp_ns <= 0:
            self.counters.invalid_stamps += 1
            return Offer.INVALID
        tick = self.grid.tick(stamp_ns)
        if self._newest_ns is not None:
            if stamp_ns == self._newest_ns:
                self.counters.duplicates += 1
                return Offer.DUPLICATE
            if stamp_ns < self._newest_ns:
                if self._newest_ns - stamp_ns <= self._max_backward_ns:
                    self.counters.out_of_order += 1
                    return Offer.OUT_OF_ORDER
                self._jump()
        self._newest_ns = stamp_ns
        if self._offered_tick is not None and tick == self._offered_tick:
            self.counters.skipped += 1
            if self._usable_ns is not None:
                self._usable_ns = stamp_ns
            return Offer.SKIP
        self._offered_tick = tick
        self.counters.sampled += 1
        return Offer.SAMPLE

    def lose(self) -> None:
        """The frame that ``offer`` wanted could not be decoded: the next of its tick may stand in."""
        self.counters.lost += 1
        self._offered_tick = None

    def put(self, frame: Frame) -> None:
        """Add the frame ``offer`` asked for, right after it. Missed ticks are held, or reset the buffer."""
        if frame.camera != self.camera:
            raise ValueError(f"frame of camera {frame.camera!r} put into the buffer of {self.camera!r}")
        if self._frames:
            last_tick, last = self._frames[-1]
            if frame.tick <= last_tick:
                return  # the buffer was reset or refilled while this one was decoded
            missing = frame.tick - last_tick - 1
            if missing > self._max_hold_ticks:
                self._jump()
                self._hole_ns = frame.stamp_ns - last.stamp_ns
                self._newest_ns = frame.stamp_ns
                self._offered_tick = frame.tick
            elif missing:
                self.counters.gaps += 1
                self.counters.held += missing
                for tick in range(last_tick + 1, frame.tick):
                    self._frames.append((tick, last))
        self._frames.append((frame.tick, frame))
        self._usable_ns = max(frame.stamp_ns, self._usable_ns or 0)

    def window(self, min_frames: int = 2) -> Window | None:
        """The newest window that ends on a complete pair; None while it is shorter than ``min_frames``.

        It has up to ``num_frames`` frames; anchored, it starts at a multiple of half of that (an even number
        of ticks), so that it grows from more than a half to the whole and only then leaves its older half.
        """
        ticks = list(self._frames)
        if ticks and ticks[-1][0] % 2 == 0:
            ticks.pop()
        if ticks and ticks[0][0] % 2 == 1:
            ticks.pop(0)
        ticks = ticks[-self.num_frames :]
        if self._anchored and len(ticks) == self.num_frames:
            step = max(2, self.num_frames // 4 * 2)
            ticks = ticks[-ticks[0][0] % step :]
        if len(ticks) < max(2, min_frames):
            return None
        return Window(
            camera=self.camera,
            frames=tuple(frame for _, frame in ticks),
            first_tick=ticks[0][0],
            period_ns=self.grid.period_ns,
            held=sum(tick != frame.tick for tick, frame in ticks),
            asked=self.num_frames,
        )

    def clear(self) -> None:
        """Forget all frames (not the counters)."""
        self._frames.clear()
        self._newest_ns = None
        self._usable_ns = None
        self._offered_tick = None
        self._hole_ns = 0

    def _jump(self) -> None:
        self.counters.clock_jumps += 1
        self.clear()
