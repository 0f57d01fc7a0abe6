# SPDX-License-Identifier: Apache-2.0
"""Where relative paths start in the processes that Ray starts."""

from __future__ import annotations

import os


def enter(folder: str) -> None:
    """Have a worker's relative paths start where the driver's do, and not where ``ray start`` was called.

    A node that has no such folder is left as it is: absolute paths serve there.
    """
    if os.path.isdir(folder):
        os.chdir(folder)
