# SPDX-License-Identifier: Apache-2.0
"""Typed access to the fields of one JSON row; what is wrong is collected and raised together."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from ..problems import FieldErrors, Report

T = TypeVar("T")
_MISSING: Any = object()
_NUMBER = "a finite number"  # Python reads NaN and Infinity too, and whole numbers of any length


class Fields:
    """The fields of a JSON object.

    Args:
        value: what was read.
        prefix: name of the object in messages, e.g. "media[0].".
        errors: shared list of (field, message); new when None.
    """

    def __init__(self, value: object, prefix: str = "", errors: list[tuple[str, str]] | None = None) -> None:
        self.errors: list[tuple[str, str]] = [] if errors is None else errors
        self._prefix = prefix
        self._value: dict[str, Any] = value if isinstance(value, dict) else {}
        self._used: set[str] = set()
        if not isinstance(value, dict):
            self.error("", f"must be a JSON object, not {_kind(value)}")

    def __contains__(self, name: str) -> bool:
        return name in self._value

    def error(self, name: str, message: str) -> None:
        """Note that field ``name`` is wrong."""
        self.errors.append(((self._prefix + name).rstrip("."), message))

    def text(self, name: str, default: str = _MISSING) -> str:
        """A string."""
        return self._get(name, default, lambda value: isinstance(value, str), "a string", "")

    def whole(self, name: str, default: int = _MISSING) -> int:
        """An integer."""
        return self._get(name, default, _is_whole, "a whole number", 0)

    def number(self, name: str, default: float | None = _MISSING) -> Any:
        """A number, as float; ``null`` where the default is None."""
        value = self._get(name, default, lambda v: _is_number(v) or (v is None is default), _NUMBER, 0.0)
        return value if value is None else float(value)

    def flag(self, name: str, default: bool = _MISSING) -> bool:
        """True or false."""
        return self._get(name, default, lambda value: isinstance(value, bool), "true or false", False)

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of strings; () when missing."""
        return tuple(
            self._get(name, (), lambda v: _all(v, lambda x: isinstance(x, str)), "a list of strings", ())
        )

    def wholes(self, name: str) -> tuple[int, ...]:
        """A list of integers; () when missing."""
        return tuple(self._get(name, (), lambda v: _all(v, _is_whole), "a list of whole numbers", ()))

    def object(self, name: str) -> Fields:
        """A nested object; required."""
        value = self._get(name, _MISSING, lambda _: True, "", {})
        errors = self.errors if name in self else []  # of a missing object its fields need not be listed
        return Fields(value, f"{self._prefix}{name}.", errors)

    def objects(self, name: str) -> Iterator[Fields]:
        """The objects of a list; none when missing."""
        for i, value in enumerate(self._get(name, (), lambda v: _all(v, lambda _: True), "a list", ())):
            yield Fields(value, f"{self._prefix}{name}[{i}].", self.errors)

    def scalars(self, name: str) -> dict[str, Any]:
        """An object of strings, numbers and flags; {} when missing."""
        value = self._get(name, {}, lambda v: isinstance(v, dict), "a JSON object", {})
        for key, item in value.items():
            if not isinstance(item, str | int | float | bool):
                self.error(f"{name}.{key}", f"must be a string, a number, true or false, not {_kind(item)}")
        return value

    def make(self, maker: Callable[[], T]) -> T | None:
        """``maker()``; its field errors are noted here. None when anything is wrong by then."""
        if self.errors:
            return None
        try:
            return maker()
        except FieldErrors as error:
            self.errors += [(self._prefix + name, message) for name, message in error.errors]
            return None

    def finish(self) -> None:
        """Note fields that nobody asked for: most are misspelt."""
        for name in sorted(set(self._value) - self._used):
            self.error(name, f"is not known here; known: {', '.join(sorted(self._used))}")

    def _get(self, name: str, default: Any, good: Callable[[Any], bool], what: str, instead: Any) -> Any:
        self._used.add(name)
        value = self._value.get(name, default)
        if value is _MISSING:
            self.error(name, "is missing")
            return instead
        if value is not default and not good(value):
            self.error(name, f"must be {what}, not {_kind(value)}")
            return instead
        return value


def file_head(path: Path) -> bytes:
    """The first bytes of a file, to tell its layout by; none when it cannot be read."""
    try:
        with open(path, "rb") as stream:
            return stream.read(1 << 16)
    except OSError:
        return b""


def json_rows(path: Path, shown: str, report: Report) -> Iterator[tuple[int, Any]]:
    """The rows of a JSON Lines file, or of a JSON file that holds a list (or, misnamed, a row a line).

    (1-based row, value).

    A line that is no JSON is a bad row; an unreadable file is one problem.
    """
    try:
        if path.suffix == ".jsonl":
            with open(path, "rb") as stream:
                yield from _lines(stream, shown, report)
            return
        with open(path, "rb") as stream:
            if _has_a_row_a_line(stream):
                stream.seek(0)
                yield from _lines(stream, shown, report)
                return
        value = json.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        report.add(shown, 0, "", f"cannot be read: {error.strerror or error}")
    except (ValueError, RecursionError) as error:  # also bytes that are no UTF-8, and nesting without end
        report.add(
            shown, 0, "", f"is not JSON in UTF-8 ({error}): was it cut off? Download or write it again"
        )
    else:
        if not isinstance(value, list):
            report.add(shown, 0, "", f"must hold a list of rows, not {_kind(value)}")
            return
        for row, item in enumerate(value, 1):
            report.rows += 1
            report.place = shown, row
            yield row, item


def _has_a_row_a_line(stream: BinaryIO) -> bool:
    """Whether the first line is a whole JSON object, and another one begins in the second."""
    if not stream.read(64).decode("utf-8-sig", "replace").lstrip().startswith("{"):
        return False  # a list may be one line of gigabytes
    stream.seek(0)
    try:
        json.loads(stream.readline().decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return False
    return stream.read(1) == b"{"


def _lines(stream: Any, shown: str, report: Report) -> Iterator[tuple[int, Any]]:
    for row, line in enumerate(stream, 1):
        if not line.strip():
            continue
        report.rows += 1
        try:
            value = json.loads(line.decode("utf-8-sig" if row == 1 else "utf-8"))
        except (ValueError, RecursionError) as error:
            cut = (
                ""
                if line.endswith(b"\n")
                else "; the last line was cut off: remove it or write the file again"
            )
            report.bad_row(shown, row, f"is not JSON in UTF-8 ({error}){cut}")
            continue
        report.place = shown, row
        yield row, value


def _all(value: Any, good: Callable[[Any], bool]) -> bool:
    return isinstance(value, list | tuple) and all(map(good, value))


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true/false", type(None): "null"}
    shown = json.dumps(value, ensure_ascii=False, default=str)
    return f"{names.get(type(value), 'a number')} ({shown[:40]}{'...' if len(shown) > 40 else ''})"
