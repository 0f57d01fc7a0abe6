# SPDX-License-Identifier: Apache-2.0
"""Quality of service that fits the publishers of a camera topic, and plain words when nothing fits.

A subscription that asks for RELIABLE hears nothing from a BEST_EFFORT publisher, silently. One that asks for
BEST_EFFORT hears everybody, but loses large images under load that a RELIABLE pair would have kept. So:
RELIABLE when every publisher offers it, BEST_EFFORT otherwise and while there is nobody to ask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy

AUTO, BEST_EFFORT, RELIABLE = "auto", "best_effort", "reliable"


@dataclass(frozen=True)
class Offer:
    """What one publisher of a topic offers.

    Attributes:
        node: fully qualified name of the publisher's node.
        type: message type, "sensor_msgs/msg/Image".
        reliable: it offers RELIABLE.
    """

    node: str
    type: str
    reliable: bool


@dataclass(frozen=True)
class Fit:
    """The answer to a set of offers.

    Attributes:
        reliable: ask for RELIABLE.
        problems: publishers that cannot be heard, one sentence each, with what to do.
    """

    reliable: bool
    problems: tuple[str, ...] = ()


def offers_of(node: Node, topic: str) -> list[Offer]:
    """Publishers of ``topic`` (fully resolved) that discovery knows of now."""
    return [
        Offer(
            node=f"{info.node_namespace.rstrip('/')}/{info.node_name}",
            type=info.topic_type,
            reliable=info.qos_profile.reliability == ReliabilityPolicy.RELIABLE,
        )
        for info in node.get_publishers_info_by_topic(topic)
    ]


def fit(offers: Sequence[Offer], topic: str, message_type: str, reliability: str) -> Fit:
    """Choose the reliability for a subscription.

    Args:
        offers: the topic's publishers.
        topic: its name, for the problems' text.
        message_type: what the subscription reads.
        reliability: "auto", "best_effort" or "reliable" (Config.qos_reliability).
    """
    problems = [
        f"{offer.node} publishes {offer.type} on {topic}, but {message_type} is read: "
        "topics that end in /compressed carry CompressedImage, others Image; correct the camera's topic"
        for offer in offers
        if offer.type != message_type
    ]
    heard = [offer for offer in offers if offer.type == message_type]
    if reliability == AUTO:
        return Fit(bool(heard) and all(offer.reliable for offer in heard), tuple(problems))
    if reliability == RELIABLE:
        problems += [
            f"{offer.node} offers BEST_EFFORT on {topic}, we ask RELIABLE: nothing is heard from it; "
            "set qos_reliability to auto"
            for offer in heard
            if not offer.reliable
        ]
    return Fit(reliability == RELIABLE, tuple(problems))


def image_qos(reliable: bool, depth: int) -> QoSProfile:
    """Profile of a camera subscription. Volatile: an old image is of no use to a late joiner."""
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=depth,
        reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
        durability=DurabilityPolicy.VOLATILE,
    )


def describe(profile: QoSProfile) -> str:
    """E.g. "RELIABLE, depth 8"."""
    return f"{profile.reliability.name}, depth {profile.depth}"
