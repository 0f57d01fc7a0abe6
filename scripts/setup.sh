#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Find a Python for the set-up and hand over to setup.py.   scripts/setup.sh [--test]
set -eu
here=$(cd "$(dirname "$0")" && pwd)

suits() { command -v "$1" >/dev/null 2>&1 && "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null; }

# With a distribution sourced only its own interpreter has rclpy.
if [ -n "${ROS_DISTRO:-}" ] && [ "${COSMOS_REASON_ROS:-}" != wheels ]; then
    candidates="${COSMOS_REASON_PYTHON:-/usr/bin/python3 python3}"
else
    candidates="${COSMOS_REASON_PYTHON:-python3 python3.12 python3.13 python3.11 python3.14}"
fi
for python in $candidates; do
    if suits "$python"; then exec "$python" "$here/setup.py" "$@"; fi
done

if ! command -v python3 >/dev/null 2>&1 && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1 &&
    [ -z "${COSMOS_REASON_NO_APT:-}" ]; then
    echo "setup: no python3; installing it with apt-get (COSMOS_REASON_NO_APT=1 declines)"
    apt-get update -qq && apt-get install -y -qq --no-install-recommends python3 python3-venv python3-dev
    if suits python3; then exec python3 "$here/setup.py" "$@"; fi
fi

cat >&2 <<'END'
setup: Python 3.11 to 3.14 is needed and none of these is it: python3, python3.11 ... python3.14.
  Debian 12 or newer, Ubuntu 24.04 or newer:  sudo apt-get install python3 python3-venv python3-dev
  older systems: install a newer Python beside the system's (uv python install 3.12, pyenv, conda) and name it:
      COSMOS_REASON_PYTHON=/path/to/python3.12 make setup
END
exit 1
