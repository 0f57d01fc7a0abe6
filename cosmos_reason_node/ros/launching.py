# SPDX-License-Identifier: Apache-2.0
"""What the launch files share: a deployment.Process as a launch_ros node."""

from __future__ import annotations

from typing import Any

from launch.launch_context import LaunchContext
from launch_ros.actions import Node
from launch_ros.utilities import prefix_namespace

from ..deployment import PACKAGE, Process, absolute_namespace


def launch_node(process: Process, **options: Any) -> Node:
    """The action that starts ``process``.

    Args:
        process: what to start.
        options: further arguments of launch's ExecuteProcess, e.g. ``respawn``.
    """
    return Node(
        package=PACKAGE,
        executable=process.executable,
        name=process.name,
        namespace=process.namespace,
        parameters=process.all_parameter_files(),
        remappings=list(process.remappings),
        ros_arguments=["--log-level", process.log_level],
        additional_env=dict(process.env),
        output="screen",
        # Bags are completed and the engine is ended first, which takes longer than launch's 5 s allow.
        **{"sigterm_timeout": "20", "sigkill_timeout": "5", **options},
    )


def argument(context: LaunchContext, name: str) -> str:
    """Value of a launch argument."""
    return str(context.launch_configurations[name])


def node_namespace(context: LaunchContext) -> str:
    """The namespace that a node of this launch file gets; absolute.

    The argument ``namespace`` goes under what an including file has pushed, unless it is absolute. Worked out
    here and not by launch_ros, because the node's full name stands in its parameter file.
    """
    pushed = context.launch_configurations.get("ros_namespace")
    return absolute_namespace(prefix_namespace(pushed, argument(context, "namespace") or None) or "")


def flag(context: LaunchContext, name: str) -> bool:
    """Value of a launch argument that is true or false.

    Raises:
        ValueError: it is something else.
    """
    text = argument(context, name).strip().lower()
    if text not in ("true", "false"):
        raise ValueError(f"{name} must be true or false, not {text!r}")
    return text == "true"


def number(context: LaunchContext, name: str) -> float:
    """Value of a launch argument that is a number.

    Raises:
        ValueError: it is something else.
    """
    text = argument(context, name).strip()
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{name} must be a number, not {text!r}") from None
