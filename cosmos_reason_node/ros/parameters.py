# SPDX-License-Identifier: Apache-2.0
"""Every field of Config as a ROS parameter: declared, described, bounded, read and changed.

Fields marked ``live`` in the schema may change at any time and apply to the next request. The others may
change while the node is unconfigured and are read when it is configured; later they are refused, unless the
value is the one that they have.
An empty list of strings is written ``[""]`` on the command line and by ``ros2 param set``: ROS 2 cannot tell
the type of ``[]``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy.exceptions import (
    InvalidParameterTypeException,
    InvalidParameterValueException,
    ParameterUninitializedException,
)
from rclpy.node import Node
from rclpy.parameter import Parameter

from ..config import Config
from ..errors import CosmosReasonError, ErrorCode

_TYPE_NAMES = {
    Parameter.Type.BOOL: "true or false",
    Parameter.Type.INTEGER: "a whole number, as 4",
    Parameter.Type.DOUBLE: "a number with a point, as 4.0",
    Parameter.Type.STRING: "a text",
    Parameter.Type.STRING_ARRAY: 'a list of texts, [""] when empty',
}
_FIELDS = {field.name: field for field in dataclasses.fields(Config)}


def descriptor(field: dataclasses.Field[Any]) -> ParameterDescriptor:
    """What ``ros2 param describe`` shows of a setting."""
    low, high, choices = (field.metadata[key] for key in ("low", "high", "choices"))
    constraints = ["may change at any time" if field.metadata["live"] else "read at configure"]
    if choices:
        constraints.append(f"{'one' if isinstance(field.default, str) else 'any'} of {', '.join(choices)}")
    result = ParameterDescriptor(
        name=field.name, description=field.metadata["doc"], additional_constraints="; ".join(constraints)
    )
    if low is not None and isinstance(field.default, float):
        result.floating_point_range = [FloatingPointRange(from_value=float(low), to_value=float(high))]
    elif low is not None:
        result.integer_range = [IntegerRange(from_value=int(low), to_value=int(high), step=1)]
    return result


def to_ros(value: Any) -> Any:
    """A setting's value as ROS can carry it."""
    return (list(value) or [""]) if isinstance(value, tuple) else value


def from_ros(value: Any) -> Any:
    """The reverse of ``to_ros``."""
    if isinstance(value, (list, tuple)) or hasattr(value, "tolist"):
        texts = tuple(value)
        return () if texts == ("",) else texts
    return value


class Parameters:
    """Declares the parameters of ``node`` and keeps them in step with the schema.

    Args:
        node: to declare them on.
        locked: whether settings that are not live are in use, so that they must not change.
        on_change: called with the new settings after live ones changed.
    """

    def __init__(self, node: Node, locked: Callable[[], bool], on_change: Callable[[Config], None]) -> None:
        self._node = node
        self._locked = locked
        self._on_change = on_change
        self._problems = {name: problem for name in _FIELDS if (problem := self._declare(name))}
        node.add_on_set_parameters_callback(self._check)
        node.add_post_set_parameters_callback(self._changed)

    def read(self) -> Config:
        """All settings, checked.

        Raises:
            CosmosReasonError: INVALID_REQUEST, naming every problem at once.
        """
        problems = list(self._problems.values())
        config = Config()
        try:
            config = Config.from_mapping(self._values())
        except CosmosReasonError as error:
            problems.append(error.message.removeprefix("bad settings: "))
        if problems:
            raise CosmosReasonError(ErrorCode.INVALID_REQUEST, "bad settings: " + "; ".join(problems))
        return config

    def get(self, name: str) -> Any:
        """One setting, unchecked: the default where the given value was of the wrong type."""
        try:
            return from_ros(self._node.get_parameter(name).value)
        except ParameterUninitializedException:  # ``[]`` in a file or on the command line
            return () if isinstance(_FIELDS[name].default, tuple) else _FIELDS[name].default

    def _declare(self, name: str) -> str | None:
        """Declare one parameter; a given value that does not fit is reported and the default taken."""
        default, described = to_ros(_FIELDS[name].default), descriptor(_FIELDS[name])
        try:
            self._node.declare_parameter(name, default, described)
        except InvalidParameterTypeException:
            problem = f"{name} must be {_TYPE_NAMES[Parameter.Type.from_parameter_value(default)]}"
        except InvalidParameterValueException:
            low, high = (_FIELDS[name].metadata[key] for key in ("low", "high"))
            problem = f"{name} must be between {low} and {high}"
        else:
            return None
        self._node.declare_parameter(name, default, described, ignore_override=True)
        return problem

    def _values(self, changes: Sequence[Parameter] = ()) -> dict[str, Any]:
        values = {name: self.get(name) for name in _FIELDS}
        values.update({change.name: from_ros(change.value) for change in changes})
        return values

    def _check(self, changes: list[Parameter]) -> SetParametersResult:
        changes = [change for change in changes if change.name in _FIELDS]
        if not self._locked():
            for change in changes:  # a value set now takes the place of a bad one given at start
                self._problems.pop(change.name, None)
            return SetParametersResult(successful=True)  # configure checks it
        # The value that it has is no change: a whole file of settings may be loaded into an active node.
        changed = [change.name for change in changes if from_ros(change.value) != self.get(change.name)]
        fixed = [name for name in changed if not _FIELDS[name].metadata["live"]]
        if fixed:
            reason = f"{', '.join(fixed)}: read at configure; deactivate and clean up the node first"
            return SetParametersResult(successful=False, reason=reason)
        try:
            Config.from_mapping(self._values(changes))
        except CosmosReasonError as error:
            return SetParametersResult(successful=False, reason=error.message)
        return SetParametersResult(successful=True)

    def _changed(self, changes: list[Parameter]) -> None:
        if self._locked() and any(change.name in _FIELDS for change in changes):
            self._on_change(Config.from_mapping(self._values()))
