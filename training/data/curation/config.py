# SPDX-License-Identifier: Apache-2.0
"""Settings of a curation run, read from YAML. Unknown or wrong keys are errors that name file and key."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

from ..problems import FieldErrors
from ..schema import EMBODIMENTS, Provenance, QuestionKind, Sample

T = TypeVar("T")
FORMS = ("choice", "free")
STYLES = ("understanding", "reasoning")
ONTOLOGIES = ("common_sense", "embodied")


class ConfigError(Exception):
    """The configuration cannot be used; the message says what to change."""


def setting(
    default: Any = dataclasses.MISSING, *, low: float | None = None, choices: tuple[str, ...] = ()
) -> Any:
    """A field with a lower bound or a fixed choice."""
    return field(default=default, metadata={"low": low, "choices": choices})


@dataclass(frozen=True)
class Select:
    """Which videos are good enough. Rules only, no model.

    Attributes:
        min_s, max_s: bounds on the length, seconds.
        min_side: shorter side, pixels.
        min_motion: mean absolute change between frames 1/4 s apart, grey levels of 255; a robot arm at
            work gives 1 to 3.
        min_sharpness: median over frames of the Laplacian's variance at 320 pixels; blurred video is under
            10.
        near_duplicate: two videos are one when their mean pictures and the courses of what moves in them
            correlate more than this (clip.likeness); 1 keeps all but exact copies.
        workers: threads that decode.
    """

    min_s: float = setting(2.0, low=0)
    max_s: float = setting(60.0, low=0)
    min_side: int = setting(112, low=1)
    min_motion: float = setting(0.3, low=0)
    min_sharpness: float = setting(10.0, low=0)
    near_duplicate: float = setting(0.97, low=0)
    workers: int = setting(2, low=1)


@dataclass(frozen=True)
class FrameSettings:
    """Which frames a vision model is sent: ``fps`` of them a second, spread evenly where that is too many.

    Attributes:
        fps: frames per second.
        most: most frames of a video.
        max_side: longer side, pixels.
        quality: of the JPEG, 1-100.
    """

    fps: float = setting(2.0, low=0.01)
    most: int = setting(32, low=1)
    max_side: int = setting(448, low=28)
    quality: int = setting(85, low=1)


@dataclass(frozen=True)
class EndpointConfig:
    """An OpenAI-compatible endpoint (``POST {base_url}/chat/completions``).

    Attributes:
        base_url: e.g. "http://localhost:8000/v1".
        model: name of the model there.
        api_key_env: environment variable that holds the key; "" = the endpoint needs none. The key itself
            is never logged or written.
        concurrency: most requests at a time.
        timeout_s: for one whole request, seconds.
        retries: after a 408, 409, 429, 5xx, a timeout, a broken connection or an answer that is none.
        backoff_s: pause before the first retry, doubled for each further one, with jitter; Retry-After
            overrides.
        max_wait_s: longest pause; a Retry-After beyond it ends the attempts.
        stop_after: so many requests in a row that failed for good end the run.
        structured: send a JSON schema for steps that answer in JSON (OpenAI's ``response_format``).
        token_limit: name of the parameter for the most tokens to write.
        input_price, output_price: per million tokens.
        image_tokens: estimate for one picture, used for the budget until answers tell of more.
    """

    base_url: str
    model: str
    api_key_env: str = ""
    concurrency: int = setting(4, low=1)
    timeout_s: float = setting(120.0, low=0.01)
    retries: int = setting(5, low=0)
    backoff_s: float = setting(1.0, low=0)
    max_wait_s: float = setting(120.0, low=0)
    stop_after: int = setting(5, low=1)
    structured: bool = False
    token_limit: str = setting("max_tokens", choices=("max_tokens", "max_completion_tokens"))
    input_price: float = setting(0.0, low=0)
    output_price: float = setting(0.0, low=0)
    image_tokens: int = setting(300, low=0)


@dataclass(frozen=True)
class Call:
    """How a step calls its model.

    Attributes:
        endpoint: name of one of ``endpoints``.
        max_tokens: most tokens to write, reasoning included.
        parameters: passed on as they are, e.g. temperature, top_p, seed, chat_template_kwargs.
    """

    endpoint: str
    max_tokens: int = setting(1024, low=1)
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Caption:
    """Where captions come from.

    Attributes:
        call: a vision model describes the frames; None = captions are read from a file beside the video.
        sidecar: that file's suffix: ".txt" is the caption, ".json" an object.
        field: its entry in the object.
        min_words: shorter captions are rejected.
    """

    call: Call | None = None
    sidecar: str = ".txt"
    field: str = "caption"
    min_words: int = setting(20, low=1)


@dataclass(frozen=True)
class QuestionSet:
    """Questions that are asked for in one request.

    Attributes:
        style: "understanding" (what can be seen; answered at once) or "reasoning" (needs a trace).
        form: "choice" (multiple choice) or "free".
        ontology: "common_sense" (the 16 categories) or "embodied" (the four capabilities).
        count: how many.
    """

    style: str = setting("understanding", choices=STYLES)
    form: str = setting("choice", choices=FORMS)
    ontology: str = setting("common_sense", choices=ONTOLOGIES)
    count: int = setting(3, low=1)

    @property
    def name(self) -> str:
        """Short name, used in ids."""
        return f"{self.style}-{self.form}-{self.ontology}"


@dataclass(frozen=True)
class Write:
    """Question writing.

    Attributes:
        call: the writer.
        attempts: requests for one set, as long as none gives a usable list.
        sets: what is asked for.
        max_key_ratio: a right option longer than the others' mean by this factor gives itself away.
    """

    call: Call
    attempts: int = setting(2, low=1)
    sets: tuple[QuestionSet, ...] = (
        QuestionSet("understanding", "choice"),
        QuestionSet("understanding", "free"),
        QuestionSet("reasoning", "choice"),
        QuestionSet("reasoning", "free"),
    )
    max_key_ratio: float = setting(2.5, low=1)


@dataclass(frozen=True)
class Blind:
    """The question is asked without video and caption; one that is answered right every time is rejected.

    Attributes:
        call: who is asked.
        trials: for multiple choice, with the options in another order each time; free questions are asked
            once.
    """

    call: Call
    trials: int = setting(2, low=1)


@dataclass(frozen=True)
class Clean:
    """Bounds of the rules for reasoning traces.

    Attributes:
        min_words, max_words: of the trace after rewriting.
        min_overlap: F1 of the words of a free answer and its key from which on they agree (see agreement.py).
    """

    min_words: int = setting(12, low=1)
    max_words: int = setting(600, low=1)
    min_overlap: float = setting(0.6, low=0)


@dataclass(frozen=True)
class Budget:
    """Most that may be spent on this output directory, all runs together; 0 = no limit.

    Attributes:
        requests: sent, retries included.
        tokens: read and written.
        cost: in the currency of the endpoints' prices.
    """

    requests: int = setting(0, low=0)
    tokens: int = setting(0, low=0)
    cost: float = setting(0.0, low=0)


@dataclass(frozen=True)
class CurationConfig:
    """A curation run.

    Attributes:
        output: the data set that is made: samples.jsonl, videos/, rejected.jsonl, report.json,
            curation.sqlite.
        videos: files, and folders that are searched.
        source: name of the data source, as in Provenance.
        endpoints: by name.
        write: question writing.
        blind: the check that a question needs its video.
        trace: the reasoning model; needed for sets of style "reasoning".
        judge: decides whether two free answers agree where their words differ; None = by words only.
        embodiment, licence, split: of all samples.
        seed: of the order of options.
    """

    output: str
    videos: tuple[str, ...]
    source: str
    endpoints: Mapping[str, EndpointConfig]
    write: Write
    blind: Blind
    trace: Call | None = None
    judge: Call | None = None
    caption: Caption = Caption()
    select: Select = Select()
    frames: FrameSettings = FrameSettings()
    clean: Clean = Clean()
    budget: Budget = Budget()
    embodiment: str = setting("", choices=("", *EMBODIMENTS))
    licence: str = ""
    split: str = "train"
    seed: int = 0


def load_config(path: Path) -> CurationConfig:
    """Read and check a configuration.

    Raises:
        ConfigError: with file, key and what to change.
    """
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
        config = _make(CurationConfig, value, "")
        _check(config)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no YAML: {error}") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    return config


def _check(config: CurationConfig) -> None:
    steps = {
        "caption.call": config.caption.call,
        "write.call": config.write.call,
        "blind.call": config.blind.call,
        "trace": config.trace,
        "judge": config.judge,
    }
    for name, call in steps.items():
        if call is not None and call.endpoint not in config.endpoints:
            known = ", ".join(config.endpoints) or "none"
            raise ConfigError(f"{name}.endpoint: there is no endpoint {call.endpoint!r}; defined: {known}")
    names = [entry.name for entry in config.write.sets]
    if len(set(names)) < len(names):
        raise ConfigError(
            "write.sets: two sets are of the same style, form and ontology: raise count instead"
        )
    if config.trace is None and any(entry.style == "reasoning" for entry in config.write.sets):
        raise ConfigError("trace: is missing, but write.sets asks for reasoning questions; name an endpoint")
    if config.select.min_s > config.select.max_s:
        raise ConfigError("select.max_s: must not be below select.min_s")
    if config.clean.min_words > config.clean.max_words:
        raise ConfigError("clean.max_words: must not be below clean.min_words")
    if not config.videos:
        raise ConfigError("videos: is empty; name files or folders")
    try:
        Sample(
            "0", (), QuestionKind.OTHER, "yes", Provenance(config.source), config.split, question="Is it so?"
        )
    except FieldErrors as error:
        raise ConfigError(str(error)) from error


def _make(kind: type[T], value: Any, where: str) -> T:
    """A dataclass from a YAML mapping."""
    if not isinstance(value, dict):
        raise ConfigError(f"{where or 'the file'}: must be a mapping of settings, not {value!r}")
    fields = {entry.name: entry for entry in dataclasses.fields(kind)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(kind)
    made = {}
    for key, item in value.items():
        name = f"{where}.{key}" if where else str(key)
        if key not in fields:
            close = difflib.get_close_matches(str(key), fields, 1)
            hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(fields)}"
            raise ConfigError(f"{name}: is not a setting; {hint}")
        made[key] = _value(hints[key], item, name, fields[key].metadata)
    for name, entry in fields.items():
        if name not in made and entry.default is entry.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{where}.{name}: is missing".lstrip("."))
    return kind(**made)


def _value(hint: Any, value: Any, name: str, metadata: Mapping[str, Any]) -> Any:
    """``value`` as the type ``hint``, within the bounds of ``metadata``."""
    if hint is Any:
        return value
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union) and type(None) in arguments:
        return None if value is None else _value(arguments[0], value, name, metadata)
    if origin is tuple:
        if not isinstance(value, list):
            raise ConfigError(f"{name}: must be a list, not {value!r}")
        return tuple(_value(arguments[0], item, f"{name}[{i}]", {}) for i, item in enumerate(value))
    if origin is Mapping:
        if not isinstance(value, dict):
            raise ConfigError(f"{name}: must be a mapping, not {value!r}")
        return {str(key): _value(arguments[1], item, f"{name}.{key}", {}) for key, item in value.items()}
    if dataclasses.is_dataclass(hint):
        return _make(hint, value, name)  # type: ignore[arg-type]
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    kinds = arguments if origin else (hint,)
    if type(value) not in kinds:
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise ConfigError(f"{name}: must be {wanted}, not {value!r}")
    choices, low = metadata.get("choices"), metadata.get("low")
    if choices and value not in choices:
        raise ConfigError(f"{name}: {value!r} is none of {', '.join(map(repr, choices))}")
    if low is not None and not value >= low:  # also NaN
        raise ConfigError(f"{name}: must be {low} or more, not {value}")
    return value
