# SPDX-License-Identifier: Apache-2.0
"""Publish a video file or a camera device as a live camera topic.

ros2 launch cosmos_reason_node replay.launch.py source:=episode.mp4 topic:=front/image_raw
"""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction

from cosmos_reason_node.deployment import LOG_LEVELS, replay
from cosmos_reason_node.ros.launching import argument, flag, launch_node, node_namespace, number

BOOLEAN = ("true", "false")


def start(context):
    """Turn the arguments into the process that deployment.py defines."""

    def text(name):
        return argument(context, name)

    process = replay(
        text("source"),
        topic=text("topic"),
        format=text("format"),
        rate=number(context, "rate"),
        loop=flag(context, "loop"),
        frame_id=text("frame_id"),
        wait_s=number(context, "wait_s"),
        max_duration_s=number(context, "max_duration_s"),
        max_side=round(number(context, "max_side")),
        reliability=text("reliability"),
        publish_clock=flag(context, "publish_clock"),
        name=text("node_name"),
        namespace=node_namespace(context),
        log_level=text("log_level"),
    )
    return [launch_node(process)]


def declare(name, default, description, choices=None):
    """An argument with a default."""
    return DeclareLaunchArgument(name, default_value=default, description=description, choices=choices)


def generate_launch_description():
    """Arguments, then the node."""
    return LaunchDescription(
        [
            DeclareLaunchArgument(
                "source", description="Video file, or a camera device such as /dev/video0."
            ),
            declare("topic", "image_raw", "Topic of the images; format jpeg appends /compressed."),
            declare("format", "raw", "raw: sensor_msgs/Image; jpeg: CompressedImage.", ("raw", "jpeg")),
            declare("rate", "1.0", "Speed of a file; 1 = its own."),
            declare("loop", "false", "Start again at the end of the file.", BOOLEAN),
            declare("frame_id", "camera", "tf frame in the header."),
            declare("wait_s", "60", "Longest wait for a first subscriber before the first frame, seconds."),
            declare("max_duration_s", "0", "Stop after this long, seconds; 0 = at the end of the file."),
            declare(
                "max_side", "0", "Scale larger images down to this longer side, pixels; 0 = as recorded."
            ),
            declare(
                "reliability", "reliable", "Of the images' publisher.", choices=("reliable", "best_effort")
            ),
            declare("publish_clock", "false", "Publish /clock from the recording's time.", BOOLEAN),
            declare("node_name", "replay", "Name of the node; several replays need different ones."),
            declare(
                "namespace",
                "",
                "ROS namespace of the node; a relative one goes under what was pushed.",
            ),
            declare("log_level", "info", "Level of the log.", LOG_LEVELS),
            OpaqueFunction(function=start),
        ]
    )
