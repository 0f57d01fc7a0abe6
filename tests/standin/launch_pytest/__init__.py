# SPDX-License-Identifier: Apache-2.0
"""Stand-in for launch_pytest, for machines where it is not installed (the ROS wheels lack it).

Only the names that this repository's tests use, with launch_pytest's meaning, on launch.LaunchService:

- ``@launch_pytest.fixture(scope=...)``: a pytest fixture that returns a LaunchDescription; it is started when
  a test first needs it and shut down when the fixture's scope ends.
- ``launch_pytest.actions.ReadyToTest``: put it into the description; tests begin when it is reached.
- ``@pytest.mark.launch(fixture=description)``: the test runs while that description runs; with
  ``shutdown=True`` after everything has ended.
- fixtures ``launch_service`` and ``launch_context``.

launch wants the main thread's event loop, so the loop runs there while a test runs in a thread beside it, as
launch_pytest does it. tests/conftest.py registers ``plugin`` and says in pytest's header which of the two is
in use.
"""

from .fixture import fixture

__all__ = ["fixture"]
