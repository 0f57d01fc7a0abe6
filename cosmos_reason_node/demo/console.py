# SPDX-License-Identifier: Apache-2.0
"""The demo's output: a table that grows, above a progress line that is drawn again where there is a terminal.

Text from models and files is stripped of control characters: a terminal obeys them.
"""

from __future__ import annotations

import shutil
import textwrap
import time
from typing import TextIO

from .session import Record

# Without a terminal a progress line is printed this often, seconds.
_QUIET_PERIOD_S = 5.0
# Width of rows without a terminal, characters.
_PLAIN_COLUMNS = 160
_RESET = "\x1b[0m"
_STYLES = {
    "bold": "\x1b[1m",
    "dim": "\x1b[2m",
    "red": "\x1b[31m",
    "green": "\x1b[32m",
    "yellow": "\x1b[33m",
    "blue": "\x1b[34m",
    "cyan": "\x1b[36m",
}
_VERDICT_STYLES = {"YES": "green", "NO": "yellow", "UNKNOWN": "dim", "CHOICE": "cyan"}
_KINDS = {"completion": "complete?", "affordance": "possible?", "next_action": "next", "question": "question"}
_BAR = 10


def printable(text: str) -> str:
    """One line without control characters."""
    return "".join(c if c.isprintable() else " " for c in text)


class Console:
    """Writes to ``stream``, with colour and a live progress line if that is a terminal."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._live = stream.isatty()
        self._unicode = (stream.encoding or "").lower().startswith("utf")
        self._progress_shown = False
        self._progress_at_s = float("-inf")
        self._streaming: bool | None = None  # thinking, answering, or neither
        self._line_begun = False
        self._last: dict[str, str] = {}

    def line(self, text: str = "", style: str = "") -> None:
        """A line of its own."""
        self._clear()
        print(self._styled(text, style), file=self._stream, flush=True)

    def fact(self, name: str, value: str) -> None:
        """A named fact of the introduction."""
        self.line(f"  {self._styled(f'{name:<11}', 'dim')} {printable(value)}")

    def progress(self, text: str) -> None:
        """What is going on now; replaces the progress line before it."""
        now_s = time.monotonic()
        if self._live:
            self._clear()
            shown = printable(text)[: self._columns() - 3]
            print(f"  {self._styled(shown, 'blue')}", end="", file=self._stream, flush=True)
            self._progress_shown = True
        elif now_s - self._progress_at_s >= _QUIET_PERIOD_S:
            self._progress_at_s = now_s
            print(f"  {printable(text)}", file=self._stream, flush=True)

    def meter(self, share: float, width: int = _BAR) -> str:
        """A bar for a share in [0, 1]."""
        full = round(min(1.0, max(0.0, share)) * width)
        return ("█" if self._unicode else "#") * full + ("░" if self._unicode else ".") * (width - full)

    def table_head(self) -> None:
        """Column titles of ``decision``."""
        titles = f"  {'capture':>8}  {'query':<9}  {'answer':<30}  {'confidence':<15}  {'age':>6}  reasoning"
        self.line(titles, "dim")

    def decision(self, record: Record, seconds: float) -> None:
        """A row: one decision about the session time ``seconds``."""
        answer = printable(record.headline)
        answer = answer if len(answer) <= 30 else answer[:29] + ("…" if self._unicode else "~")
        changed = self._last.get(record.kind) != record.headline
        self._last[record.kind] = record.headline
        style = "red" if record.failed else _VERDICT_STYLES.get(record.verdict, "")
        head = f"  {seconds:6.2f} s  {_KINDS.get(record.kind, record.kind):<9}  "
        why = printable(record.error_msg if record.failed else record.reasoning)
        tail = f"  {self.meter(record.confidence)} {record.confidence:4.2f}  {record.age_s:4.2f} s  "
        room = self._columns() - len(head) - 30 - len(tail) - 1
        if len(why) > room:
            why = why[: max(0, room - 1)] + ("…" if self._unicode else "~")
        row = head + self._styled(f"{answer:<30}", style, "bold" if changed else "") + tail
        self.line(row + self._styled(why, "dim"))

    def paragraph(self, text: str, style: str = "") -> None:
        """Text as long as it is, indented and broken into lines."""
        for line in textwrap.wrap(printable(text), max(20, self._columns() - 6)):
            self.line(f"    {line}", style)

    def stream(self, text: str, thinking: bool) -> None:
        """Text as the model writes it, on lines of its own; the answer begins one, too."""
        if not text:
            return
        self._clear()
        if self._streaming is None or (self._line_begun and self._streaming != thinking):
            print("\n    " if self._streaming is not None else "    ", end="", file=self._stream)
        self._streaming = thinking
        self._line_begun = not text.endswith("\n")
        safe = "\n    ".join(printable(part) for part in text.split("\n"))
        print(self._styled(safe, "dim" if thinking else "bold"), end="", file=self._stream, flush=True)

    def stream_end(self) -> None:
        """End the lines of ``stream``."""
        if self._streaming is not None:
            print(file=self._stream, flush=True)
            self._streaming = None

    def _columns(self) -> int:
        return shutil.get_terminal_size().columns if self._live else _PLAIN_COLUMNS

    def _clear(self) -> None:
        if self._progress_shown:
            print("\r\x1b[2K", end="", file=self._stream)
            self._progress_shown = False

    def _styled(self, text: str, *styles: str) -> str:
        codes = "".join(_STYLES[style] for style in styles if style)
        return f"{codes}{text}{_RESET}" if self._live and codes else text
