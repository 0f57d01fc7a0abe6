# SPDX-License-Identifier: Apache-2.0
"""The state of a curation run: every answer ever paid for, every request ever sent, in one SQLite file.

A request is written down before it is sent and an answer in the same transaction that settles it, so after
a kill at any moment the file tells what was answered, what was not, and what is in doubt (sent, but the
process died before the answer came). Requests in doubt count against the budget with what they may have cost.
"""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_LAYOUT = 1
_TABLES = """
CREATE TABLE IF NOT EXISTS facts (key TEXT PRIMARY KEY, record TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS attempts (
    id INTEGER PRIMARY KEY, key TEXT NOT NULL, step TEXT NOT NULL, sent_at REAL NOT NULL,
    state TEXT NOT NULL, tokens INTEGER NOT NULL, cost REAL NOT NULL
);
"""
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
SENT = "sent"  # state of an attempt that nothing has been heard of


class StoreError(Exception):
    """The state cannot be used or kept; the message says what to do."""


@dataclass(frozen=True)
class Spent:
    """What requests have used up: number sent, tokens, and cost in the currency of the prices."""

    requests: int = 0
    tokens: int = 0
    cost: float = 0.0

    def __add__(self, other: Spent) -> Spent:
        return Spent(
            self.requests + other.requests, self.tokens + other.tokens, round(self.cost + other.cost, 9)
        )


class Store:
    """State of one output directory. Use as a context manager; one process at a time.

    Args:
        path: of the SQLite file; made when missing.

    Raises:
        StoreError: another run uses it, it is damaged, or it is of another program's version.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._broken: StoreError | None = None
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = open(path.with_suffix(".lock"), "w")  # noqa: SIM115 - held as long as the store
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise StoreError(f"another run works in {path.parent}: wait for it, or end it") from None
        try:
            self._open()
        except StoreError:
            self._lock.close()
            raise

    def _open(self) -> None:
        try:
            self._base = sqlite3.connect(self._path, isolation_level=None)
            self._base.execute("PRAGMA journal_mode=WAL")
            self._base.execute("PRAGMA synchronous=FULL")  # an answer is paid for: it outlives a power cut
            layout = self._base.execute("PRAGMA user_version").fetchone()[0]
            if layout not in (0, _LAYOUT):
                raise StoreError(f"{self._path} is of layout {layout}, this program reads {_LAYOUT}")
            self._base.executescript(_TABLES)
            self._base.execute(f"PRAGMA user_version={_LAYOUT}")
            row = self._base.execute("SELECT count(*), sum(tokens), sum(cost) FROM attempts").fetchone()
        except sqlite3.DatabaseError as error:
            raise StoreError(
                f"{self._path} cannot be opened ({error}); move it away to start anew, which pays for all "
                "answers again, or free disk space"
            ) from error
        self.spent = Spent(row[0], row[1] or 0, row[2] or 0.0)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self._base.close()
        self._lock.close()

    def get(self, key: str) -> Any:
        """The record under ``key``, as it was put; None when there is none.

        Raises:
            StoreError: it cannot be read.
        """
        try:
            row = self._base.execute("SELECT record FROM facts WHERE key = ?", (key,)).fetchone()
            return None if row is None else json.loads(row[0])
        except (sqlite3.Error, ValueError) as error:  # ValueError: the page is whole, the record is not
            raise self._unreadable(error) from error

    def put(self, key: str, record: Any) -> None:
        """Keep a record that costs nothing to make again but time."""
        self._write([("INSERT OR REPLACE INTO facts VALUES (?, ?)", (key, _json(record)))])

    def send(self, key: str, step: str, most: Spent) -> int:
        """Write down that a request is about to be sent, which may use up ``most``; returns its id."""
        columns = "(key, step, sent_at, state, tokens, cost)"
        values = (key, step, time.time(), SENT, most.tokens, most.cost)
        self._write([(f"INSERT INTO attempts {columns} VALUES (?, ?, ?, ?, ?, ?)", values)])
        self.spent += most
        return int(self._base.execute("SELECT last_insert_rowid()").fetchone()[0])

    def settle(self, attempt: int, state: str, most: Spent, used: Spent, answer: Any = None) -> None:
        """Write down how a request ended.

        Args:
            attempt: what ``send`` returned.
            state: "answered", or what went wrong.
            most: as given to ``send``.
            used: what it used up; ``most`` where that is not known.
            answer: record to keep under the request's key.
        """
        statements: list[tuple[str, tuple[Any, ...]]] = [
            (
                "UPDATE attempts SET state = ?, tokens = ?, cost = ? WHERE id = ?",
                (state, used.tokens, used.cost, attempt),
            )
        ]
        if answer is not None:
            statements.append(
                (
                    "INSERT OR REPLACE INTO facts SELECT key, ? FROM attempts WHERE id = ?",
                    (_json(answer), attempt),
                )
            )
        self._write(statements)
        self.spent += Spent(0, used.tokens - most.tokens, used.cost - most.cost)

    def attempts_by_state(self) -> dict[str, int]:
        """Number of requests of all runs by how they ended.

        Raises:
            StoreError: they cannot be read.
        """
        try:
            rows = self._base.execute("SELECT state, count(*) FROM attempts GROUP BY state ORDER BY state")
            return dict(rows)
        except sqlite3.Error as error:
            raise self._unreadable(error) from error

    def _write(self, statements: list[tuple[str, tuple[Any, ...]]]) -> None:
        """All of ``statements`` or none; after a failure nothing more is written, hence sent and paid for."""
        if self._broken is not None:
            raise self._broken
        try:
            self._base.execute("BEGIN IMMEDIATE")
            for statement, values in statements:
                self._base.execute(statement, values)
            self._base.execute("COMMIT")
        except BaseException as error:
            # Also of what is no error of the data base, such as a value that it cannot hold: a transaction
            # left open would refuse all later ones and lose at the end what was paid for.
            if self._base.in_transaction:
                self._base.execute("ROLLBACK")
            if not isinstance(error, sqlite3.Error):
                raise
            self._broken = StoreError(
                f"{self._path} cannot be written ({error}): is the disk full? Make room and run this again"
            )
            if getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGED:
                self._broken = self._unreadable(error)  # room would not help
            raise self._broken from error

    def _unreadable(self, error: Exception) -> StoreError:
        return StoreError(
            f"{self._path} is damaged or cannot be read ({error}); put a backup in its place, or move it, "
            "its -wal and its -shm away to start anew, which pays for all answers again"
        )


def _json(record: Any) -> str:
    return json.dumps(record, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def write_json(path: Path, text: str) -> None:
    """Replace a file of JSON, UTF-8; it appears whole or not at all.

    Half characters, as which Python holds the bytes of a file's name that are no UTF-8, are written as JSON's
    escapes: whoever reads the file gets the same name, and by os.fsencode its bytes.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "w", encoding="utf-8", errors="backslashreplace", newline="\n") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
