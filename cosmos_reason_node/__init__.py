# SPDX-License-Identifier: Apache-2.0
"""Runtime of cosmos_reason: camera frames in, structured decisions out.

Everything here imports without ROS except the subpackage ``ros``.
"""

__version__ = "0.1.0"
