# SPDX-License-Identifier: Apache-2.0
"""What makes large images cheap to receive: shared memory with room for them, a heap that keeps its pages.

Needs no ROS, so that whatever starts processes can use it. Measured by ``python -m benchmarks.ingest``.

- Fast DDS's default shared-memory segment (512 KiB) does not hold one image: config/fastdds.xml enlarges it.
  The segment belongs to the sender, so camera drivers and replay need the profile more than the node does.
- glibc maps, zeroes and unmaps every buffer of that size; with its thresholds raised the pages are kept.

Other middlewares (Cyclone DDS, Zenoh) ignore the profile and gain from the second part alone.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping, MutableMapping
from pathlib import Path

# Fast DDS 2 (Jazzy) reads the first, Fast DDS 3 (Kilted and newer) the second.
PROFILE_VARIABLES = ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")
# With any of these the user has chosen a transport: it is left alone.
_USERS_CHOICE = (*PROFILE_VARIABLES, "FASTDDS_BUILTIN_TRANSPORTS")

_MiB = 1 << 20
# variable -> (mallopt parameter, value): M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_TOP_PAD of malloc.h. A mapping
# threshold above 32 MiB (half of glibc's largest heap) would be refused.
_MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": (-3, 32 * _MiB),
    "MALLOC_TRIM_THRESHOLD_": (-1, 512 * _MiB),
    "MALLOC_TOP_PAD_": (-2, 64 * _MiB),
}

_SHM = Path("/dev/shm")
# Room for the segments of a few processes; a full /dev/shm kills its users with SIGBUS.
_MIN_SHM_BYTES = 256 * _MiB


def transport_env(environ: Mapping[str, str], profile: Path | None) -> dict[str, str]:
    """Variables to add for a process that publishes or receives images.

    Args:
        environ: what the process will have; nothing set there is overridden, and neither is a transport that
            the user chose by other variables.
        profile: config/fastdds.xml; None where the package was installed without it.

    Returns:
        Variables to add. Without the profile where /dev/shm is too small for it (containers have 64 MiB
        unless started with a larger --shm-size).
    """
    added = {name: str(value) for name, (_, value) in _MALLOC.items() if name not in environ}
    if profile is not None and not any(name in environ for name in _USERS_CHOICE) and _shm_has_room():
        added |= dict.fromkeys(PROFILE_VARIABLES, str(profile))
    return added


def tune_process(added: Mapping[str, str], environ: MutableMapping[str, str] = os.environ) -> bool:
    """Give the running process what ``transport_env`` would have given it at its start.

    Call it before ``rclpy.init()``, which is when the middleware reads the profile; processes started from
    here inherit the variables.

    Args:
        added: what ``transport_env`` returned.
        environ: the process's environment.

    Returns:
        True when malloc was tuned as well (glibc only).
    """
    environ.update(added)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    values = {name: _MALLOC[name] for name in added if name in _MALLOC}
    results = [mallopt(parameter, value) for parameter, value in values.values()]
    return all(result == 1 for result in results)


def _shm_has_room() -> bool:
    try:
        space = os.statvfs(_SHM)
    except OSError:
        return False
    return space.f_bavail * space.f_frsize >= _MIN_SHM_BYTES
