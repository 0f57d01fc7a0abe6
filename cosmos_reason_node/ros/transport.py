# SPDX-License-Identifier: Apache-2.0
"""What makes large images cheap to receive: shared memory with room for them, and a heap that is kept."""

from __future__ import annotations

from collections.abc import Mapping


def transport_env(environ: Mapping[str, str]) -> dict[str, str]:
    """Variables to add to ``environ`` for a process that publishes or receives images (ROS-free).

    Nothing that the user has set is overridden. Give it to camera drivers and replay too: the shared-memory
    segment belongs to the sender.
    """
    raise NotImplementedError  # published early for its signature


def tune_process() -> None:
    """The same for the running process; call before rclpy.init()."""
    raise NotImplementedError
