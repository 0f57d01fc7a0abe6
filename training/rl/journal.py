# SPDX-License-Identifier: Apache-2.0
"""What the books must not forget: lines of text by iteration, in files that only grow.

    rollouts/iteration-00000012.jsonl    a line for each group of iteration 12 that was judged

A line that a crash cut off has no end; whoever reads rewrites the file without it, or the next line would be
glued to it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path


class Journal:
    """Of one run. Every method raises OSError where the disk does not do what it is asked.

    Args:
        directory: of the files; made when it is read.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def read(self) -> Iterator[tuple[int, list[str], bool]]:
        """(iteration, lines, whether the last one has its end), oldest iteration first."""
        self.directory.mkdir(parents=True, exist_ok=True)
        for path in sorted(self.directory.glob("iteration-*.jsonl")):
            text = path.read_text(encoding="utf-8", errors="replace")
            yield _iteration(path), text.splitlines(), not text or text.endswith("\n")

    def append(self, iteration: int, line: str) -> None:
        """One more line."""
        with self._path(iteration).open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def rewrite(self, iteration: int, lines: Iterable[str]) -> None:
        """Other lines in place of those that are there: all of them, or the old ones are kept."""
        path = self._path(iteration)
        partial = path.with_suffix(".partial")
        partial.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        os.replace(partial, path)

    def forget(self, before: int) -> None:
        """Iterations before this one are needed no more."""
        for path in self.directory.glob("iteration-*.jsonl"):
            if _iteration(path) < before:
                path.unlink(missing_ok=True)

    def _path(self, iteration: int) -> Path:
        return self.directory / f"iteration-{iteration:08d}.jsonl"


def _iteration(path: Path) -> int:
    return int(path.stem.split("-")[1])
