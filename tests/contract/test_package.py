# SPDX-License-Identifier: Apache-2.0
"""What is installed is what the sources say: entry points, versions, parameter files, workspace."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from unittest import mock
from xml.etree import ElementTree

import pytest
import yaml

from cosmos_reason_node import deployment
from cosmos_reason_node.config import Config

ROOT = Path(__file__).resolve().parents[2]
PARAMETER_FILES = sorted((ROOT / "config").glob("*.yaml"))


@pytest.fixture(scope="module")
def setup_arguments():
    """What setup.py hands to setuptools."""
    with pytest.MonkeyPatch.context() as patch, mock.patch("setuptools.setup") as setup:
        patch.chdir(ROOT)
        runpy.run_path("setup.py")
    return setup.call_args.kwargs


def test_entry_points_are_the_executables_of_the_deployment(setup_arguments):
    points = dict(re.split(r"\s*=\s*", text) for text in setup_arguments["entry_points"]["console_scripts"])
    assert points == {name: f"{module}:main" for name, module in deployment.EXECUTABLES.items()}


def test_only_the_runtime_is_installed(setup_arguments):
    packages = setup_arguments["packages"]
    assert "cosmos_reason_node" in packages
    folders = {path.parent for path in (ROOT / "cosmos_reason_node").rglob("*.py")}
    assert {ROOT.joinpath(*package.split(".")) for package in packages} == folders


def test_files_beside_the_modules_are_installed_with_them(setup_arguments):
    beside = {
        path
        for path in (ROOT / "cosmos_reason_node").rglob("*")
        if path.is_file() and path.suffix != ".py" and "__pycache__" not in path.parts
    }
    installed = {
        file
        for package, patterns in setup_arguments["package_data"].items()
        for pattern in patterns
        for file in ROOT.joinpath(*package.split(".")).glob(pattern)
    }
    assert installed == beside


def test_launch_files_parameters_and_transport_profile_are_installed(setup_arguments):
    installed = {file for _, files in setup_arguments["data_files"] for file in files}
    expected = {
        "launch/reason.launch.py",
        "launch/replay.launch.py",
        "config/fastdds.xml",
        "package.xml",
        "LICENSE",
    }
    assert expected | {str(path.relative_to(ROOT)) for path in PARAMETER_FILES} <= installed


def test_versions_agree(setup_arguments):
    versions = {
        ElementTree.parse(ROOT / name).findtext("version") for name in ("package.xml", "msgs/package.xml")
    }
    assert versions == {setup_arguments["version"]}


@pytest.mark.parametrize("path", PARAMETER_FILES, ids=lambda path: path.stem)
def test_every_parameter_file_holds_valid_settings(path):
    document = yaml.safe_load(path.read_text())
    assert list(document) == ["/**"]  # so that it counts in every namespace
    values = document["/**"]["ros__parameters"]
    config = Config.from_mapping(values)
    for name, value in values.items():
        # ROS is strict about 1 and 1.0.
        assert isinstance(value, float) == isinstance(getattr(Config, name), float), name
        assert getattr(config, name) == (tuple(value) if isinstance(value, list) else value)
    assert deployment.parameter_file(path.stem) == path


def test_the_workspace_holds_both_packages():
    for name, target in (("cosmos_reason_node", ROOT), ("cosmos_reason_msgs", ROOT / "msgs")):
        link = ROOT / "ros2_ws" / "src" / name
        assert link.is_symlink()
        assert not link.readlink().is_absolute()
        assert link.resolve() == target
        assert ElementTree.parse(link / "package.xml").findtext("name") == name
