# SPDX-License-Identifier: Apache-2.0
"""What a benchmark ran on."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any


def describe_machine(packages: tuple[str, ...] = ()) -> dict[str, Any]:
    """CPU, memory, system and versions; the load says how quiet the machine was."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}, glibc {platform.libc_ver()[1]}",
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in packages},
        "load_average_at_start": [round(value, 2) for value in os.getloadavg()],
    }


def command_line() -> str:
    """The command that was run, as one would type it."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    module = spec.name if spec else sys.argv[0]
    return " ".join(["python -m", module, *sys.argv[1:]])


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"
