# SPDX-License-Identifier: Apache-2.0
"""Message definitions as bags carry them, so that a bag can be read where the packages are not installed."""

from __future__ import annotations

import functools
import json
import re
from dataclasses import dataclass
from pathlib import Path

from ament_index_python.packages import PackageNotFoundError, get_package_share_directory

from ..errors import CosmosReasonError, ErrorCode

_TYPE = re.compile(r"[a-z][a-z0-9_]*/msg/[A-Z][A-Za-z0-9]*\Z")
_SEPARATOR = "=" * 80


@dataclass(frozen=True)
class Definition:
    """A message type in full.

    Attributes:
        type: "sensor_msgs/msg/Image".
        text: its .msg file and those of all types in it, in the "ros2msg" layout of MCAP.
        type_hash: "RIHS01_..." (REP 2011).
    """

    type: str
    text: str
    type_hash: str


@functools.cache
def definition_of(message_type: str) -> Definition:
    """Look a type up in the installed packages' share directories.

    Raises:
        CosmosReasonError: RECORDING_FAILED when the type or its files are not installed.
    """
    description = _share_file(message_type, "json")
    # The first entry is the type itself, the others are all types it is made of.
    entries = json.loads(description.read_text())["type_hashes"]
    names = [entry["type_name"] for entry in entries]
    parts = [_share_file(names[0], "msg").read_text()]
    for name in names[1:]:
        package, _, short = name.split("/")
        parts.append(f"{_SEPARATOR}\nMSG: {package}/{short}\n{_share_file(name, 'msg').read_text()}")
    return Definition(message_type, "\n".join(parts), entries[0]["hash_string"])


def _share_file(message_type: str, suffix: str) -> Path:
    if not _TYPE.match(message_type):
        raise CosmosReasonError(
            ErrorCode.RECORDING_FAILED, f"{message_type!r} is not the name of a message type (pkg/msg/Name)"
        )
    package, _, name = message_type.split("/")
    try:
        path = Path(get_package_share_directory(package)) / "msg" / f"{name}.{suffix}"
    except (PackageNotFoundError, OSError) as error:  # OSError: there is no AMENT_PREFIX_PATH
        raise CosmosReasonError(
            ErrorCode.RECORDING_FAILED, f"package {package} is not installed; source its workspace"
        ) from error
    if not path.is_file():
        raise CosmosReasonError(
            ErrorCode.RECORDING_FAILED,
            f"{path} is missing, so {message_type} cannot be recorded; reinstall {package}",
        )
    return path
