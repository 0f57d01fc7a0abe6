# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a data set: every problem names file, row and field and says what to do.

One bad row never hides the others: readers add to a ``Report`` and go on. Who reads decides at the end:
strict (``Report.raise_if_any``) or skip and count.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

_SHOWN = 20


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        file: path as the user knows it.
        row: 1-based line or entry; 0 = the file as a whole.
        field: of the row, e.g. "options" or "media[0].path"; "" = the row as a whole.
        message: what is wrong and what to do.
    """

    file: str
    row: int
    field: str
    message: str

    def __str__(self) -> str:
        where = (
            self.file + (f", row {self.row}" if self.row else "") + (f", {self.field}" if self.field else "")
        )
        return f"{where}: {self.message}"


class FieldErrors(ValueError):
    """Some fields of one record are wrong; who knows file and row makes ``Problem`` of each.

    Args:
        errors: (field, message) pairs, at least one.
    """

    def __init__(self, errors: Iterable[tuple[str, str]]) -> None:
        self.errors = tuple(errors)
        super().__init__(
            "; ".join(f"{name}: {message}" if name else message for name, message in self.errors)
        )


class DataError(Exception):
    """A data set cannot be used as it is.

    Args:
        problems: all that were found, at least one.
    """

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        more = len(self.problems) - _SHOWN
        lines = [str(problem) for problem in self.problems[:_SHOWN]]
        super().__init__("\n".join(lines + ([f"... and {more} more"] if more > 0 else [])))


@dataclass
class Report:
    """Counts and problems of one reading.

    Attributes:
        rows: rows met; one row can give several samples.
        bad_rows: rows left out because of a problem.
        problems: all of them, in the order met.
        place: file and row that are being read.
    """

    rows: int = 0
    bad_rows: int = 0
    problems: list[Problem] = field(default_factory=list)
    place: tuple[str, int] = ("", 0)

    def add(self, file: object, row: int, name: str, message: str) -> None:
        """Note one problem."""
        self.problems.append(Problem(str(file), row, name, message))

    def bad_row(self, file: object, row: int, error: FieldErrors | str) -> None:
        """Note that a row is left out, and why."""
        self.bad_rows += 1
        errors = [("", error)] if isinstance(error, str) else error.errors
        self.problems += [Problem(str(file), row, name, message) for name, message in errors]

    def raise_if_any(self) -> None:
        """Strict reading ends here.

        Raises:
            DataError: something was wrong.
        """
        if self.problems:
            raise DataError(self.problems)
