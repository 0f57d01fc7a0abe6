# SPDX-License-Identifier: Apache-2.0
"""Actions for launch descriptions under test."""

from __future__ import annotations

from launch import Action, LaunchContext

READY_KEY = "launch_pytest_ready_to_test"


class ReadyToTest(Action):
    """Reached when tests may begin."""

    def execute(self, context: LaunchContext) -> None:
        """Tell the fixture."""
        context.extend_globals({READY_KEY: True})
