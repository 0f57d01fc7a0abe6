# SPDX-License-Identifier: Apache-2.0
# Environment of the virtual environment and the built workspace, for bash:
#
#     . scripts/env.sh
#
# `make setup` has to have run. With a ROS 2 distribution, source its setup.bash first, as for `make setup`.

_cosmos_reason_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
_cosmos_reason_venv=$_cosmos_reason_root/.venv
_cosmos_reason_workspace=$_cosmos_reason_root/build/ros2/install

if [ ! -f "$_cosmos_reason_workspace/local_setup.sh" ] || [ ! -x "$_cosmos_reason_venv/bin/python" ]; then
    echo "scripts/env.sh: not set up yet; run: make setup" >&2
    return 1
fi

_cosmos_reason_prepend() { # variable, folder: put the folder first unless it is already in
    eval "_cosmos_reason_old=\${$1:-}"
    case ":$_cosmos_reason_old:" in
        *":$2:"*) ;;
        *) export "$1=$2${_cosmos_reason_old:+:$_cosmos_reason_old}" ;;
    esac
}

export VIRTUAL_ENV=$_cosmos_reason_venv
_cosmos_reason_prepend PATH "$_cosmos_reason_venv/bin"

if [ -d "$_cosmos_reason_venv/share/rclpy" ]; then
    # ROS 2 from wheels: the virtual environment is the underlay.
    if [ -n "${ROS_DISTRO:-}" ] && [ "${COSMOS_REASON_ROS:-}" != wheels ]; then
        echo "scripts/env.sh: ROS_DISTRO is $ROS_DISTRO but .venv was set up with the ROS wheels;" \
            "run 'make clean-all setup' in this shell, or use a shell without ROS" >&2
        return 1
    fi
    export COSMOS_REASON_ROS=wheels ROS_DISTRO=jazzy ROS_VERSION=2 ROS_PYTHON_VERSION=3
    _cosmos_reason_prepend AMENT_PREFIX_PATH "$_cosmos_reason_venv"
    _cosmos_reason_prepend CMAKE_PREFIX_PATH "$_cosmos_reason_venv"
    if [ -d "$_cosmos_reason_venv/launch" ]; then # test set-up: see scripts/launch_packages.py
        _cosmos_reason_prepend AMENT_PREFIX_PATH "$_cosmos_reason_venv/launch"
        _cosmos_reason_prepend PYTHONPATH "$_cosmos_reason_venv/launch/python"
        _cosmos_reason_prepend PATH "$_cosmos_reason_venv/launch/bin"
    fi
fi

case $- in *u*) _cosmos_reason_old=-u ;; *) _cosmos_reason_old=+u ;; esac
set +u # colcon's script reads variables that may not be set
. "$_cosmos_reason_workspace/local_setup.bash"
set $_cosmos_reason_old
_cosmos_reason_prepend PYTHONPATH "$_cosmos_reason_root"

unset -f _cosmos_reason_prepend
unset _cosmos_reason_root _cosmos_reason_venv _cosmos_reason_workspace _cosmos_reason_old
