# SPDX-License-Identifier: Apache-2.0
"""What a benchmark is made of: questions with their answers, and the windows that they are about."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cosmos_reason_node.prompt import is_yes_no
from cosmos_reason_node.types import Query, QueryKind, Window


@dataclass(frozen=True)
class Item:
    """One question with its answer.

    Attributes:
        item_id: unique in its benchmark.
        stimulus: key of the windows it is about (``Stimulus.key``).
        query: as the node would be asked it.
        answer: an option's letter, "yes" or "no", or words.
        group: kind or category under which it is scored ("task_completion", "order").
        source: data set it comes from.
        cluster: recording; items of one are not independent, intervals are taken over these.
        category: of the ontology's sixteen, or "".
        tasks: names (scene, task, action) by which a task is declared as never trained on.
    """

    item_id: str
    stimulus: str
    query: Query
    answer: str
    group: str
    source: str
    cluster: str
    category: str = ""
    tasks: tuple[str, ...] = ()

    @property
    def form(self) -> str:
        """How it is answered: "choice", "yes_no" or "free"."""
        return "choice" if self.query.options else "yes_no" if is_yes_no(self.query) else "free"

    @property
    def wanted(self) -> str:
        """The right answer in words, an option's letter resolved to its text."""
        options = self.query.options
        return options[ord(self.answer) - ord("A")] if options else self.answer

    @property
    def chance(self) -> float:
        """Accuracy of guessing among the answers that are allowed; 0 for free-form answers."""
        return {"choice": 1.0 / max(1, len(self.query.options)), "yes_no": 0.5, "free": 0.0}[self.form]

    @property
    def digest(self) -> str:
        """Of all that is asked: a prediction counts only for the item that it was made for."""
        asked = {"stimulus": self.stimulus, "answer": self.answer, **dataclasses.asdict(self.query)}
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]

    def rotated(self, rotation: int) -> Query:
        """The query with its options moved on by ``rotation`` places; 0 = as it is.

        Over all rotations every option stands in every place once (as in MMBench's circular evaluation).
        """
        options = self.query.options
        if not rotation:
            return self.query
        return dataclasses.replace(self.query, options=options[rotation:] + options[:rotation])


@dataclass(frozen=True)
class Stimulus:
    """What is looked at, and all that is asked about it.

    Attributes:
        key: unique in its benchmark; says which frames of which recording.
        items: at least one.
        load: makes the windows, one a camera, as the node would.
    """

    key: str
    items: tuple[Item, ...]
    load: Callable[[], tuple[Window, ...]]


@dataclass(frozen=True)
class Benchmark:
    """A list of stimuli.

    Attributes:
        name: as given on the command line.
        stimuli: in the order asked.
        notes: what a reader of its scores has to know (parts that are missing, rows left out).
        official: whether it is one of the paper's own, whose published scores may stand beside it.
        origin: its files and what was taken of them, by which it is known again; "" = by its name.
    """

    name: str
    stimuli: tuple[Stimulus, ...]
    notes: tuple[str, ...] = ()
    official: bool = False
    origin: str = ""

    @property
    def items(self) -> list[Item]:
        """All items."""
        return [item for stimulus in self.stimuli for item in stimulus.items]


def write_items(path: Path, items: list[Item]) -> None:
    """Keep items as JSON Lines, whole or not at all."""
    lines = [json.dumps(_record(item), ensure_ascii=False, separators=(",", ":")) for item in items]
    write_text(path, "\n".join(lines) + "\n")


def read_items(path: Path) -> list[Item]:
    """The reverse of ``write_items``.

    Raises:
        ValueError: a line is damaged; the message names file and line.
        FileNotFoundError: there is no such file.
    """
    items = []
    # Not by str.splitlines: questions may hold U+2028 and other ends of line that JSON leaves as they are.
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            record = json.loads(line)
            query = record.pop("query")
            kind, options = QueryKind[query.pop("kind")], tuple(query.pop("options", ()))
            record["tasks"] = tuple(record.pop("tasks", ()))
            items.append(Item(query=Query(kind, options=options, **query), **record))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path}, row {number}: is no item ({error}); run the evaluation again"
            ) from error
    return items


def write_text(path: Path, text: str) -> None:
    """Write a text file that appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _record(item: Item) -> dict[str, Any]:
    query = {k: v for k, v in dataclasses.asdict(item.query).items() if v and k != "kind"}
    query.pop("think_tokens", None)
    record = {k: v for k, v in vars(item).items() if v}
    return {**record, "query": {"kind": item.query.kind.name, **query}}
