# SPDX-License-Identifier: Apache-2.0
"""Settings as frozen dataclasses with bounds, read from YAML.

Every field states its default, bounds or choices with ``setting``; whatever a file holds beyond that is an
error that names file, key, value, bound, and what to do.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

T = TypeVar("T")


class ConfigError(Exception):
    """A configuration cannot be used; the message says what to change."""


def setting(
    default: Any = dataclasses.MISSING,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
) -> Any:
    """A field within [low, high], or one of ``choices``."""
    return dataclasses.field(default=default, metadata={"low": low, "high": high, "choices": choices})


def read_settings(kind: type[T], path: Path) -> T:
    """A dataclass from a YAML file.

    Raises:
        ConfigError: with file, key and what to change.
    """
    value = read_yaml(path)
    try:
        return make_settings(kind, value)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def read_yaml(path: Path) -> Any:
    """What a YAML file holds; ConfigError where it cannot be read."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}): check --config") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no YAML: {error}") from error


def make_settings(kind: type[T], value: Any, where: str = "") -> T:
    """A dataclass from a mapping; a ValueError of its ``__post_init__`` is a ConfigError too."""
    if not isinstance(value, dict):
        raise ConfigError(f"{where or 'the file'}: must be a mapping of settings, not {value!r}")
    fields = {entry.name: entry for entry in dataclasses.fields(kind)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(kind)
    prefix = f"{where}." if where else ""
    made = {}
    for key, item in value.items():
        if key not in fields:
            close = difflib.get_close_matches(str(key), fields, 1)
            hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(fields)}"
            raise ConfigError(f"{prefix}{key}: is not a setting; {hint}")
        made[key] = _value(hints[key], item, f"{prefix}{key}", fields[key].metadata)
    for name, entry in fields.items():
        if name not in made and entry.default is entry.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{prefix}{name}: is missing; add it")
    try:
        return kind(**made)
    except ValueError as error:
        raise ConfigError(f"{prefix}{error}") from None


def _value(hint: Any, value: Any, name: str, metadata: Mapping[str, Any]) -> Any:
    """``value`` as the type ``hint``, within the bounds of ``metadata``."""
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) in (types.UnionType, typing.Union) and type(None) in arguments:
        return None if value is None else _value(arguments[0], value, name, metadata)
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, list):
            raise ConfigError(f"{name}: must be a list, not {value!r}")
        return tuple(_value(arguments[0], item, f"{name}[{i}]", metadata) for i, item in enumerate(value))
    if dataclasses.is_dataclass(hint):
        return make_settings(hint, value, name)  # type: ignore[arg-type]
    if hint is float and type(value) is int:
        value = float(value)
    if hint is float and isinstance(value, str):  # YAML 1.1 reads 1e-5 as text
        with contextlib.suppress(ValueError):
            value = float(value)
    if type(value) is not hint:
        raise ConfigError(f"{name}: must be {hint.__name__}, not {value!r}")
    choices, low, high = metadata.get("choices"), metadata.get("low"), metadata.get("high")
    if choices and value not in choices:
        raise ConfigError(f"{name}: {value!r} is none of {', '.join(map(repr, choices))}; take one of them")
    if hint is float and not math.isfinite(value):
        raise ConfigError(f"{name}: must be a finite number, not {value}")
    if low is not None and value < low:
        raise ConfigError(f"{name}: {value} is below the least value {low:g}; raise it")
    if high is not None and value > high:
        raise ConfigError(f"{name}: {value} is above the greatest value {high:g}; lower it")
    return value
