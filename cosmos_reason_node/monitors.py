# SPDX-License-Identifier: Apache-2.0
"""Monitors: the node's own continuous queries about the current task, and whose turn it is.

    camera A  window moves ─> due ─┐ a newer window takes the place of one that waits (superseded)
    camera B  window moves ─> due ─┼─> next(): the due camera that was asked longest ago ─> one request
    camera C  window moves ─> due ─┘   with all monitor queries as branches

The schedule holds no frames: whoever asks takes the newest window at that moment.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .types import Query, QueryKind

KINDS = {
    "completion": QueryKind.COMPLETION,
    "affordance": QueryKind.AFFORDANCE,
    "next_action": QueryKind.NEXT_ACTION,
}


@dataclass(frozen=True)
class Task:
    """What the robot is doing.

    Attributes:
        text: in words; empty stops the monitors.
        affordance_action: action that the affordance monitor asks about; empty = the task.
        action_options: choices of the next-action monitor; empty = free-form.
    """

    text: str = ""
    affordance_action: str = ""
    action_options: tuple[str, ...] = ()


def monitor_queries(
    task: Task, monitors: Sequence[str], think_tokens: int, at_once: Sequence[str] = ()
) -> tuple[Query, ...]:
    """The queries of the configured monitors about ``task``; none without a task.

    Args:
        task: what they are about.
        monitors: their names.
        think_tokens: most reasoning tokens.
        at_once: monitors that get none.
    """
    if not task.text.strip():
        return ()
    return tuple(
        Query(
            kind=KINDS[name],
            task=task.text,
            action=task.affordance_action if name == "affordance" else "",
            options=task.action_options if name == "next_action" else (),
            think_tokens=0 if name in at_once else think_tokens,
        )
        for name in monitors
    )


@dataclass
class _Turn:
    """One camera's place in the schedule."""

    asked_tick: int | None = None  # last tick of the window that became due last
    due: bool = False
    ready_ns: int = 0  # node clock when the newest window became complete
    order: int = 0  # serial number of the last time it was asked


class MonitorSchedule:
    """Latest wins, cameras in turn.

    Args:
        cameras: names.
        stride: frames by which a window must have moved to be asked about again.
    """

    def __init__(self, cameras: Iterable[str], stride: int) -> None:
        self._turns = {camera: _Turn() for camera in cameras}
        self._stride = stride
        self._serial = 0
        self.superseded = 0

    def window_moved(self, camera: str, last_tick: int, now_ns: int) -> None:
        """The newest window of ``camera`` now ends with grid tick ``last_tick``."""
        turn = self._turns[camera]
        turn.ready_ns = now_ns
        # A smaller tick means that the clock jumped back: the window is new, however far it "moved".
        if turn.asked_tick is not None and 0 <= last_tick - turn.asked_tick < self._stride:
            return
        if turn.due:
            self.superseded += 1
        turn.asked_tick = last_tick
        turn.due = True

    def next(self) -> str | None:
        """The due camera that was asked longest ago; None when no window is due."""
        due = [(turn.order, camera) for camera, turn in self._turns.items() if turn.due]
        return min(due)[1] if due else None

    def asked(self, camera: str, last_tick: int) -> int:
        """``camera`` was asked about the window that ends with ``last_tick``.

        Returns:
            Node clock in ns at which that window had become complete.
        """
        turn = self._turns[camera]
        self._serial += 1
        turn.order = self._serial
        turn.asked_tick = last_tick
        turn.due = False
        return turn.ready_ns

    def skip(self, camera: str) -> None:
        """The due window of ``camera`` cannot be asked about (it is stale or gone)."""
        self._turns[camera].due = False

    def ask_again(self) -> None:
        """Every camera's newest window is due, whether it moved or not (a new task)."""
        for turn in self._turns.values():
            turn.due = turn.asked_tick is not None

    def forget(self) -> None:
        """All windows are gone (the clock jumped); waiting ones count as superseded."""
        for turn in self._turns.values():
            self.superseded += turn.due
            turn.due = False
            turn.asked_tick = None
