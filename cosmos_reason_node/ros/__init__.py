# SPDX-License-Identifier: Apache-2.0
"""The ROS 2 side of the runtime: the only place that imports rclpy, messages or a bag library."""
