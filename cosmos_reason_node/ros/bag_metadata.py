# SPDX-License-Identifier: Apache-2.0
"""metadata.yaml of a rosbag2 directory (layout version 9, Jazzy's)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

FILE_NAME = "metadata.yaml"
_VERSION = 9
# rmw's "no limit" for durations.
_INFINITE = {"sec": 9223372036, "nsec": 854775807}


@dataclass(frozen=True)
class TopicCount:
    """One topic of a bag.

    Attributes:
        name: resolved topic name.
        type: "sensor_msgs/msg/Image".
        type_hash: RIHS01 hash of the type.
        qos: offered profiles, YAML (see ``qos_yaml``).
        count: messages in the bag.
    """

    name: str
    type: str
    type_hash: str
    qos: str
    count: int


def qos_yaml(profiles: Sequence[Any]) -> str:
    """Offered QoS profiles (rclpy QoSProfile) as YAML, the form in which an MCAP channel keeps them."""
    return yaml.safe_dump(
        [
            {
                "history": _word(profile.history),
                "depth": profile.depth,
                "reliability": _word(profile.reliability),
                "durability": _word(profile.durability),
                "deadline": _duration(profile.deadline),
                "lifespan": _duration(profile.lifespan),
                "liveliness": _word(profile.liveliness),
                "liveliness_lease_duration": _duration(profile.liveliness_lease_duration),
                "avoid_ros_namespace_conventions": bool(profile.avoid_ros_namespace_conventions),
            }
            for profile in profiles
        ],
        sort_keys=False,
    )


def write_metadata(
    directory: Path, file_name: str, start_ns: int, end_ns: int, topics: Sequence[TopicCount]
) -> None:
    """Write metadata.yaml of a bag of one MCAP file, atomically.

    Args:
        directory: of the bag.
        file_name: of the MCAP file in it.
        start_ns: receive stamp of the first message; 0 for an empty bag.
        end_ns: of the last one.
        topics: what the bag holds.
    """
    count = sum(topic.count for topic in topics)
    start = {"nanoseconds_since_epoch": start_ns}
    duration = {"nanoseconds": end_ns - start_ns}
    document = {
        "rosbag2_bagfile_information": {
            "version": _VERSION,
            "storage_identifier": "mcap",
            "duration": duration,
            "starting_time": start,
            "message_count": count,
            "topics_with_message_count": [_topic(topic) for topic in topics],
            "compression_format": "",
            "compression_mode": "",
            "relative_file_paths": [file_name],
            "files": [
                {
                    "path": file_name,
                    "starting_time": dict(start),
                    "duration": dict(duration),
                    "message_count": count,
                }
            ],
            "custom_data": None,
            "ros_distro": os.environ.get("ROS_DISTRO", "unknown"),
        }
    }
    target, partial = directory / FILE_NAME, directory / f".{FILE_NAME}.partial"
    with open(partial, "w", encoding="utf-8") as stream:
        yaml.safe_dump(document, stream, sort_keys=False)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(partial, target)


def _topic(topic: TopicCount) -> Mapping[str, Any]:
    return {
        "topic_metadata": {
            "name": topic.name,
            "type": topic.type,
            "serialization_format": "cdr",
            "offered_qos_profiles": yaml.safe_load(topic.qos) or [],
            "type_description_hash": topic.type_hash,
        },
        "message_count": topic.count,
    }


def _word(policy: Any) -> str:
    return policy.name.lower()


def _duration(duration: Any) -> dict[str, int]:
    nanoseconds = duration.nanoseconds
    if not 0 < nanoseconds < 2**63 - 1:
        return dict(_INFINITE)
    sec, nsec = divmod(nanoseconds, 1_000_000_000)
    return {"sec": sec, "nsec": nsec}
