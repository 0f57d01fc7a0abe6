# SPDX-License-Identifier: Apache-2.0
"""Start the node that watches cameras and answers.

    ros2 launch cosmos_reason_node reason.launch.py cameras:="[front=/front/image_raw]" task:="open the door"

Every setting of the node is an argument, taken from the node's own schema (cosmos_reason_node/config.py);
``ros2 launch cosmos_reason_node reason.launch.py --show-args`` lists them.
"""

import dataclasses

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction

from cosmos_reason_node.config import Config
from cosmos_reason_node.deployment import LOG_LEVELS, parameter_file, reason, settings_from_text
from cosmos_reason_node.ros.launching import argument, flag, launch_node, node_namespace

SETTINGS = tuple(dataclasses.fields(Config))


def start(context):
    """Turn the arguments into the process that deployment.py defines."""
    params_file = argument(context, "params_file")
    use_sim_time = flag(context, "use_sim_time") if argument(context, "use_sim_time") else None
    process = reason(
        settings_from_text({setting.name: argument(context, setting.name) for setting in SETTINGS}),
        namespace=node_namespace(context),
        parameter_files=[parameter_file(params_file)] if params_file else [],
        use_sim_time=use_sim_time,
        log_level=argument(context, "log_level"),
    )
    return [launch_node(process, respawn=flag(context, "respawn"), respawn_delay=2.0)]


def describe(setting):
    """A setting's meaning, choices and default, as shown by --show-args."""
    default = ", ".join(setting.default) if isinstance(setting.default, tuple) else setting.default
    choices = f" One of: {', '.join(setting.metadata['choices'])}." if setting.metadata["choices"] else ""
    shown = str(default).lower() if isinstance(default, bool) else default
    fallback = "nothing" if shown == "" else shown
    return f"{setting.metadata['doc']}{choices} Not given: as in params_file, else {fallback}."


def generate_launch_description():
    """Arguments, then the node."""
    return LaunchDescription(
        [
            DeclareLaunchArgument(
                "namespace",
                default_value="",
                description="ROS namespace of the node; a relative one goes under what was pushed.",
            ),
            DeclareLaunchArgument(
                "params_file",
                default_value="",
                description="ROS parameter YAML file, or the name of one in config/: nano-cpu, gpu, jetson. "
                "Arguments given here win over it.",
            ),
            DeclareLaunchArgument(
                "log_level", default_value="info", choices=LOG_LEVELS, description="Level of the log."
            ),
            DeclareLaunchArgument(
                "use_sim_time",
                default_value="",
                description="Take time from /clock: true or false. Not given: as in params_file, else false.",
            ),
            DeclareLaunchArgument(
                "respawn",
                default_value="false",
                choices=("true", "false"),
                description="Start the node again when it ends.",
            ),
            *(
                DeclareLaunchArgument(setting.name, default_value="", description=describe(setting))
                for setting in SETTINGS
            ),
            OpaqueFunction(function=start),
        ]
    )
