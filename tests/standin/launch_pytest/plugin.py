# SPDX-License-Identifier: Apache-2.0
"""pytest plugin: runs tests marked ``launch`` beside their launch service."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import pytest
from launch import LaunchContext, LaunchService

from .fixture import running
from .service import RunningLaunch


def pytest_configure(config: pytest.Config) -> None:
    """Declare the mark."""
    config.addinivalue_line(
        "markers", "launch(fixture, shutdown=False): run while (or after) a launch description runs"
    )


@pytest.fixture
def launch_service(request: pytest.FixtureRequest) -> LaunchService:
    """The launch service of the test's description."""
    return _launch_of(request.node).service


@pytest.fixture
def launch_context(request: pytest.FixtureRequest) -> LaunchContext:
    """The launch context of the test's description."""
    return _launch_of(request.node).context


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    """Start the description, unless an earlier test has."""
    yield
    if item.get_closest_marker("launch") is not None:
        _launch_of(item)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Within each module, tests of what is left after the shutdown come last."""
    items.sort(key=functools.partial(_order, {item.path: i for i, item in reversed([*enumerate(items)])}))


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Call a marked test in a thread while launch runs in this one."""
    mark = pyfuncitem.get_closest_marker("launch")
    if mark is None:
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    test = functools.partial(pyfuncitem.obj, **arguments)
    launch = _launch_of(pyfuncitem)
    if mark.kwargs.get("shutdown", False):
        launch.shutdown()
        test()
    else:
        launch.run_test(test)
    return True


def _launch_of(item: Any) -> RunningLaunch:
    mark = item.get_closest_marker("launch")
    if mark is None or "fixture" not in mark.kwargs:
        raise pytest.UsageError(f"{item.nodeid}: write @pytest.mark.launch(fixture=<description>)")
    name = mark.kwargs["fixture"].__name__
    item._request.getfixturevalue(name)
    return running[name]


def _order(first: dict[Any, int], item: pytest.Item) -> tuple[int, bool]:
    mark = item.get_closest_marker("launch")
    return first[item.path], bool(mark and mark.kwargs.get("shutdown", False))
