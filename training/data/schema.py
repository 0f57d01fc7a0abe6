# SPDX-License-Identifier: Apache-2.0
"""The one sample record of all sources: media, a question, its answer, and where they come from.

A sample asks one question. ``to_query`` gives it as the node would be asked, so the prompt is built by
cosmos_reason_node.prompt and nowhere else. On disk it is one line of ``samples.jsonl`` (readers/jsonl.py,
docs/data.md). Everything is checked when a record is made; a wrong one raises ``FieldErrors`` that lists all
wrong fields.
"""

from __future__ import annotations

import dataclasses
import enum
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, TypeAlias

from cosmos_reason_node.errors import CosmosReasonError
from cosmos_reason_node.prompt import check_query, is_yes_no, letter
from cosmos_reason_node.types import Query, QueryKind

from .problems import FieldErrors

SCHEMA_VERSION = 1


class QuestionKind(str, enum.Enum):
    """What is asked. First the node's own three queries, then the paper's three of intuitive physics."""

    TASK_COMPLETION = "task_completion"
    AFFORDANCE = "affordance"
    NEXT_ACTION = "next_action"
    ARROW_OF_TIME = "arrow_of_time"
    SPATIAL_PUZZLE = "spatial_puzzle"
    OBJECT_PERMANENCE = "object_permanence"
    COMMON_SENSE = "common_sense"  # one of the 16 categories; see Sample.category
    EMBODIED = "embodied"  # embodied reasoning of another kind; see Sample.capability
    CAPTION = "caption"
    OTHER = "other"


class Style(str, enum.Enum):
    """Whether an answer is given at once or after reasoning; the paper trains both."""

    UNDERSTANDING = "understanding"
    REASONING = "reasoning"


# The paper's ontology of physical common sense: three areas, sixteen categories.
ONTOLOGY: dict[str, tuple[str, ...]] = {
    "space": ("relationship", "plausibility", "affordance", "environment"),
    "time": ("actions", "order", "causality", "camera", "planning"),
    "physics": (
        "attributes",
        "states",
        "object_permanence",
        "mechanics",
        "electromagnetism",
        "thermodynamics",
        "anti_physics",
    ),
}
CATEGORIES = tuple(name for names in ONTOLOGY.values() for name in names)
# Its ontology of embodied reasoning: capability x embodiment.
CAPABILITIES = (
    "process_sensory_inputs",
    "predict_action_effects",
    "respect_physical_constraints",
    "learn_from_interaction",
)
EMBODIMENTS = ("human", "animal", "robot_arm", "humanoid", "vehicle")

ROLES = ("system", "user", "assistant")
Scalar: TypeAlias = str | int | float | bool
_QUERY_KINDS = {
    QuestionKind.TASK_COMPLETION: QueryKind.COMPLETION,
    QuestionKind.AFFORDANCE: QueryKind.AFFORDANCE,
    QuestionKind.NEXT_ACTION: QueryKind.NEXT_ACTION,
}
_SURROGATE = re.compile("[\ud800-\udfff]")
# What stands between the parts of an output, and the control tokens that prompt.check_query refuses.
_MARK = re.compile(r"</?(think|answer)>|<\|[^|<>]*\|>")
_SPLIT = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}\Z")
ARRAY_SUFFIXES = (".npz", ".npy")


@dataclass(frozen=True)
class Grid:
    """Where frames lie on the node's absolute time grid (cosmos_reason_node.window).

    Attributes:
        period_ns: length of a tick.
        first_tick: tick of the first frame; even, as windows start on pairs.
    """

    period_ns: int
    first_tick: int = 0

    def __post_init__(self) -> None:
        _raise(
            [("period_ns", f"must be positive, not {self.period_ns}")] * (self.period_ns <= 0)
            + [("first_tick", f"must be even and not negative, not {self.first_tick}")]
            * (self.first_tick < 0 or self.first_tick % 2)
        )


@dataclass(frozen=True)
class Video:
    """A part of a video file; frames are taken from it by their own times, never by counting.

    Attributes:
        path: of the file, or of the archive that holds it; relative to the data set, with "/".
        member: name inside the archive (tar, tar.gz); "" = ``path`` is the video itself.
        start_s: begin of the part, seconds after the file's first frame.
        end_s: its end, exclusive; None = the file's.
        camera: name of the camera.
    """

    path: str
    member: str = ""
    start_s: float = 0.0
    end_s: float | None = None
    camera: str = "camera"

    def __post_init__(self) -> None:
        errors = [("path", what) for what in path_errors(self.path)]
        if self.member:
            errors += [("member", what) for what in path_errors(self.member)]
        if not (math.isfinite(self.start_s) and self.start_s >= 0):
            errors.append(("start_s", f"must be 0 or more seconds, not {self.start_s}"))
        elif self.end_s is not None and not self.start_s < self.end_s < math.inf:
            errors.append(("end_s", f"must be after start_s ({self.start_s}), not {self.end_s}"))
        _raise(errors)

    @property
    def paths(self) -> tuple[str, ...]:
        """Files that are read."""
        return (self.path,)


@dataclass(frozen=True)
class Frames:
    """Single pictures with their capture times.

    Attributes:
        paths: an image file (PNG, JPEG) for each frame; or one .npz (array ``frames``) or .npy of
            (N, H, W, 3) uint8 RGB. Relative to the data set, with "/".
        stamps_ns: capture time of each frame, nanoseconds, not decreasing. Of a rearranged clip (reversed,
            say) the times at which frames are shown.
        index: rows of the array, one a frame; () = its rows in order. Only with an array.
        grid: set when the frames fill consecutive ticks already, as the windows of a decision do: they are
            then used as they are. A repeated stamp is a tick that held the frame before it.
        camera: name of the camera.
    """

    paths: tuple[str, ...]
    stamps_ns: tuple[int, ...]
    index: tuple[int, ...] = ()
    grid: Grid | None = None
    camera: str = "camera"

    def __post_init__(self) -> None:
        errors = [(f"paths[{i}]", what) for i, path in enumerate(self.paths) for what in path_errors(path)]
        count = len(self.stamps_ns)
        if not count:
            errors.append(("stamps_ns", "is empty: give one capture time for each frame"))
        if any(b < a for a, b in zip(self.stamps_ns, self.stamps_ns[1:], strict=False)):
            errors.append(("stamps_ns", "decreases: sort the frames by capture time"))
        if self.is_array:
            if self.index and (len(self.index) != count or min(self.index) < 0):
                errors.append(("index", f"must name {count} rows of 0 and up, one for each of stamps_ns"))
        elif len(self.paths) != count:
            errors.append(("paths", f"{len(self.paths)} files for {count} stamps_ns: give one for each"))
        elif self.index:
            errors.append(("index", "is for arrays (.npz, .npy); leave it out for image files"))
        if self.grid is not None and count % 2:
            errors.append(("grid", f"frames on the grid come in pairs, not {count}"))
        _raise(errors)

    @property
    def is_array(self) -> bool:
        """Whether the frames are rows of one array file."""
        return len(self.paths) == 1 and PurePosixPath(self.paths[0]).suffix.lower() in ARRAY_SUFFIXES


Media: TypeAlias = Video | Frames


@dataclass(frozen=True)
class Turn:
    """A turn of a conversation: ``role`` is one of ROLES."""

    role: str
    text: str

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise FieldErrors([("role", f"{self.role!r} is none of {', '.join(ROLES)}")])


@dataclass(frozen=True)
class Step:
    """A step of curation that made or changed a sample.

    Attributes:
        name: "caption", "question", "reasoning", "rewrite", ...
        model: what did it; a program's name for rules.
        prompt: digest or name of the prompt.
        version: of the step's code or of the model.
        parameters: of the model's call, or of the rules; by name.
        started: when it was done, ISO 8601 in UTC.
        seconds: how long it took.
        cost: what it cost, in the currency of the run; a call shared by several samples is named in each.
    """

    name: str
    model: str = ""
    prompt: str = ""
    version: str = ""
    parameters: Mapping[str, Scalar] = field(default_factory=dict)
    started: str = ""
    seconds: float = 0.0
    cost: float = 0.0


@dataclass(frozen=True)
class Provenance:
    """Where a sample comes from.

    Attributes:
        source: data source: "sim", "robovqa", "bridgedata_v2", "bag", ... Scores are reported per source.
        file: file it was read from.
        row: 1-based row in it; 0 = none.
        episode: recording or simulated episode (a seed, an index); its samples belong to one split.
        made_by: program or person that wrote question and answer.
        steps: of curation, in order.
    """

    source: str
    file: str = ""
    row: int = 0
    episode: str = ""
    made_by: str = ""
    steps: tuple[Step, ...] = ()


@dataclass(frozen=True)
class Sample:
    """One question about some media, with its answer.

    Attributes:
        sample_id: unique in its data set.
        media: what is looked at, in the order shown; one entry a camera. May be empty (text only).
        kind: what is asked.
        answer: an option's letter for multiple choice, "yes" or "no" for yes/no questions, else words.
        provenance: where it comes from.
        split: "train", "test", "held_out", ...: a lower-case word. Splits must not share media or episodes.
        task, action: as in Query.
        question: in the source's own words; "" = the node's question of this kind about task or action.
        options: choices, 2 to 26; () = yes/no or free-form.
        yes_no: with ``question`` and without options: the answer is yes or no.
        reasoning: what leads to the answer; "" for none.
        style: whether the reasoning belongs to the training target.
        category: of the 16 of CATEGORIES, or "".
        capability: of CAPABILITIES, or "".
        embodiment: of EMBODIMENTS, or "".
        licence: SPDX id or name; "" = not known.
        history: turns before the question, of a longer conversation. The node's prompts have none, so
            ``to_query`` leaves them out; take only samples without where the question must stand alone.
        extra: the source's other facts, by name.
    """

    sample_id: str
    media: tuple[Media, ...]
    kind: QuestionKind
    answer: str
    provenance: Provenance
    split: str = "train"
    task: str = ""
    action: str = ""
    question: str = ""
    options: tuple[str, ...] = ()
    yes_no: bool = False
    reasoning: str = ""
    style: Style = Style.UNDERSTANDING
    category: str = ""
    capability: str = ""
    embodiment: str = ""
    licence: str = ""
    history: tuple[Turn, ...] = ()
    extra: Mapping[str, Scalar] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _raise(_sample_errors(self))

    @property
    def answer_index(self) -> int:
        """Index of the right option; -1 without options."""
        return ord(self.answer) - ord("A") if self.options else -1

    @property
    def form(self) -> str:
        """How it is answered: "choice", "yes_no" or "free"."""
        return "choice" if self.options else "yes_no" if is_yes_no(self.to_query()) else "free"

    @property
    def group(self) -> str:
        """Name under which scores are reported: the kind, or a common-sense question's category."""
        if self.kind is not QuestionKind.COMMON_SENSE:
            return self.kind.value
        # The category "object_permanence" is not the kind of that name, whose questions are simulated.
        clash = self.category in {kind.value for kind in QuestionKind}
        return f"common_sense_{self.category}" if clash else self.category or self.kind.value

    def to_query(self, think_tokens: int = -1) -> Query:
        """The question as the node would be asked it; ``think_tokens`` as in Query."""
        if self.question:
            return Query(
                QueryKind.QUESTION,
                task=self.task,
                action=self.action,
                question=self.question,
                options=self.options,
                yes_no=self.yes_no,
                think_tokens=think_tokens,
            )
        return Query(
            _QUERY_KINDS.get(self.kind, QueryKind.QUESTION),
            task=self.task,
            action=self.action,
            options=self.options,
            think_tokens=think_tokens,
        )

    def reordered(self, order: Sequence[int]) -> Sample:
        """The same question with option ``order[i]`` in place ``i``; the letter of the answer follows.

        The letters in ``reasoning`` do not: shuffle before a trace that names letters is written.
        """
        if sorted(order) != list(range(len(self.options))):
            raise ValueError(f"{list(order)} is no order of {len(self.options)} options")
        options = tuple(self.options[i] for i in order)
        answer = letter(list(order).index(self.answer_index))
        return dataclasses.replace(self, options=options, answer=answer)


def query_fields(query: Query) -> dict[str, Any]:
    """``kind``, ``task``, ``action``, ``question``, ``options``, ``yes_no`` of a Sample that asks ``query``.

    Example::

        Sample(sample_id="7", media=(video,), answer="yes", provenance=origin, **query_fields(query))
    """
    kinds = {query_kind: kind for kind, query_kind in _QUERY_KINDS.items()}
    fields: dict[str, Any] = {"task": query.task, "action": query.action, "options": query.options}
    if query.kind is QueryKind.QUESTION:
        fields |= {"question": query.question, "yes_no": query.yes_no}
    return {"kind": kinds.get(query.kind, QuestionKind.OTHER), **fields}


def path_errors(path: str) -> Iterator[str]:
    """What is wrong with a media path; nothing is if it stays inside its data set on every system."""
    parts = PurePosixPath(path).parts
    if not path or path.endswith("/"):
        yield "is empty or a folder: name a file"
    elif (
        path.startswith("/")
        or "\\" in path
        or "\0" in path
        or re.match(r"[A-Za-z]:|[A-Za-z][A-Za-z0-9+.-]*://", path)
    ):
        yield f"{path!r} must be relative to the data set's folder, with / between names"
    elif ".." in parts:
        yield f"{path!r} leaves the data set's folder: move the file into it"


def _half_characters(value: object, name: str) -> Iterator[str]:
    """Names of texts with half of a surrogate pair: JSON can hold it, files and tokenizers cannot."""
    if isinstance(value, str):
        if _SURROGATE.search(value):
            yield name
    elif isinstance(value, tuple):
        for i, item in enumerate(value):
            yield from _half_characters(item, f"{name}[{i}]")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _half_characters((key, item), f"{name}.{key}".encode(errors="replace").decode())
    elif dataclasses.is_dataclass(value):
        for item in dataclasses.fields(value):
            yield from _half_characters(getattr(value, item.name), f"{name}.{item.name}".lstrip("."))


def _sample_errors(sample: Sample) -> Iterator[tuple[str, str]]:
    broken = [(name, "holds half a character (a lone surrogate)") for name in _half_characters(sample, "")]
    if broken:
        yield from broken
        return
    if not sample.sample_id.strip():
        yield "sample_id", "is empty: give each sample an id that is unique in its data set"
    if not _SPLIT.match(sample.split):
        yield "split", f"{sample.split!r} is no name: lower-case letters, digits, _, . and -"
    if not sample.provenance.source:
        yield "provenance.source", "is empty: name the data source"
    for name, allowed in (
        ("category", CATEGORIES),
        ("capability", CAPABILITIES),
        ("embodiment", EMBODIMENTS),
    ):
        value = getattr(sample, name)
        if value and value not in allowed:
            yield name, f"{value!r} is none of {', '.join(allowed)}"
    if not sample.question and sample.kind not in _QUERY_KINDS:
        yield "question", f"is empty: a sample of kind {sample.kind.value} needs its question in words"
        return
    if sample.yes_no and sample.options:
        yield "yes_no", "cannot be set together with options: leave one of the two out"
    try:
        check_query(sample.to_query())
    except CosmosReasonError as error:
        yield ("options" if "option" in error.message else "question"), error.message
        return
    yield from _answer_errors(sample)


def _answer_errors(sample: Sample) -> Iterator[tuple[str, str]]:
    answer = sample.answer
    if not answer.strip():
        yield "answer", "is empty"
    elif sample.options:
        letters = [letter(i) for i in range(len(sample.options))]
        if answer not in letters:
            yield "answer", f"{answer!r} is no letter of the {len(letters)} options: {', '.join(letters)}"
        if len(set(map(_normal, sample.options))) < len(sample.options):
            yield "options", "two options are the same: the right one cannot be told apart"
    elif is_yes_no(sample.to_query()) and answer not in ("yes", "no"):
        yield "answer", f"must be yes or no, not {answer!r}"
    if sample.style is Style.REASONING and not sample.reasoning.strip():
        yield "reasoning", "is empty, but the style is reasoning: give a trace, or style understanding"
    for name in ("answer", "reasoning"):
        if mark := _MARK.search(getattr(sample, name)):
            yield name, f"holds {mark[0]}, which would end or begin a part of the output: take it out"


def _normal(option: str) -> str:
    """As training.eval.protocol.normal, by which an answer in words is compared with the options."""
    return " ".join(option.casefold().split()).rstrip(".")


def _raise(errors: Iterator[tuple[str, str]] | list[tuple[str, str]]) -> None:
    found = list(errors)
    if found:
        raise FieldErrors(found)
