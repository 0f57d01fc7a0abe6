# SPDX-License-Identifier: Apache-2.0
"""The ``fixture`` decorator."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from launch import LaunchDescription

from .service import RunningLaunch

# What runs now, by the name of its fixture.
running: dict[str, RunningLaunch] = {}


def fixture(*args: Any, **options: Any) -> Any:
    """Declare a pytest fixture that returns a LaunchDescription (or a tuple that begins with one).

    Args:
        args: the function, when used as a bare decorator.
        options: as of pytest.fixture; ``scope`` is at most "module".
    """

    def decorate(function: Callable[..., Any]) -> Any:
        name = options.get("name") or function.__name__

        @functools.wraps(function)
        def launched(*arguments: Any, **named: Any) -> Iterator[Any]:
            result = function(*arguments, **named)
            description = result[0] if isinstance(result, tuple) else result
            if not isinstance(description, LaunchDescription):
                raise TypeError(f"{name} must return a LaunchDescription, not {type(description).__name__}")
            launch = RunningLaunch(description)
            try:
                launch.start()
                running[name] = launch
                yield result
            finally:
                running.pop(name, None)
                launch.close()

        return pytest.fixture(**options)(launched)

    return decorate(args[0]) if args else decorate
