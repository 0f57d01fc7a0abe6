# SPDX-License-Identifier: Apache-2.0
"""scripts/setup.py, as far as it can be tried without installing anything."""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ["python3-numpy", "python3-opencv", "python3-yaml", "python3-colcon-common-extensions"]


@pytest.fixture
def script(tmp_path, monkeypatch):
    """The script as a module, for a machine with a ROS 2 distribution, with folders of the test's own."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    commands = importlib.import_module("setup_commands")
    spec = importlib.util.spec_from_file_location("scripts_setup", ROOT / "scripts" / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("BUILD", "VENV"):
        monkeypatch.setattr(module, name, tmp_path / name.lower())
        monkeypatch.setattr(commands, name, tmp_path / name.lower())
    monkeypatch.setattr(module, "sourced_distribution", lambda: "jazzy")
    monkeypatch.setattr(module, "install_system_packages", lambda test: None)
    monkeypatch.setattr(module, "make_environment", lambda distribution: None)
    monkeypatch.setattr(sys, "argv", ["setup.py"])
    monkeypatch.setenv("COSMOS_REASON_NO_APT", "1")
    return module


def has(script, *modules):
    """Give .venv an interpreter that finds these modules besides the standard library."""
    library = script.VENV / "library"
    library.mkdir(parents=True)
    for name in modules:
        (library / f"{name}.py").touch()
    python = script.VENV / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nPYTHONPATH={library} exec {sys.executable} -S "$@"\n')
    python.chmod(0o755)


@pytest.mark.parametrize(
    ("found", "missing"),
    [((), PACKAGES), (("numpy", "colcon_core"), ["python3-opencv", "python3-yaml"])],
)
def test_what_the_distribution_lacks_is_said_before_anything_is_installed(
    script, monkeypatch, capsys, found, missing
):
    monkeypatch.setattr(script, "install_torch", lambda gpu: pytest.fail("installed"))
    has(script, *found)
    assert script.main() == 1
    assert f"sudo apt-get install {' '.join(missing)}\n" in capsys.readouterr().err


def test_a_complete_distribution_goes_on(script, monkeypatch):
    has(script, *script.DISTRIBUTION_PACKAGES)
    done = []
    for step in ("install_torch", "install_requirements", "build_workspace"):
        monkeypatch.setattr(script, step, lambda *arguments, step=step: done.append(step))
    assert script.main() == 0
    assert done == ["install_torch", "install_requirements", "build_workspace"]


@pytest.mark.parametrize(("version", "pandas"), [("1.26.4", "pandas==3.0.6"), ("2.2.0", "pandas==3.1.1")])
def test_what_needs_a_newer_numpy_than_the_distribution_s_is_older(script, monkeypatch, version, pandas):
    (script.VENV / ".setup").mkdir(parents=True)
    monkeypatch.setattr(script, "output", lambda *command: f"{version}\n")
    pins = script._keep_distribution_numpy(script.REQUIREMENTS / "constraints.txt").read_text().splitlines()
    assert f"numpy=={version}" in pins
    assert pandas in pins
    names = [pin.partition("==")[0] for pin in pins if "==" in pin]
    assert len(set(names)) == len(names)


def test_a_moved_checkout_and_a_lost_interpreter_are_set_up_anew(script, tmp_path, monkeypatch):
    commands = importlib.import_module("setup_commands")
    spec = importlib.util.spec_from_file_location("again", ROOT / "scripts" / "setup.py")
    again = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(again)
    made = []

    def run(name, command, *more, **options):
        made.append(name)
        has(again, "pip")
        (again.VENV / "pyvenv.cfg").write_text(f"command = python -m venv {again.VENV}\n")

    def place(folder):
        for module in (again, commands):
            monkeypatch.setattr(module, "VENV", folder / ".venv")
        monkeypatch.setattr(again, "WORKSPACE", folder / "build" / "ros2")

    monkeypatch.setattr(again, "run", run)
    place(tmp_path / "here")
    for _ in range(2):
        again.make_environment("")
    assert made == ["environment"], "the second time nothing is to be done"
    (again.WORKSPACE / "install").mkdir(parents=True)
    (tmp_path / "here").rename(tmp_path / "there")
    place(tmp_path / "there")
    shutil.rmtree(again.VENV / "library")
    shutil.rmtree(again.VENV / "bin")
    again.make_environment("")
    assert made == ["environment"] * 2
    assert not again.WORKSPACE.exists(), "its links name the old place"
    shutil.rmtree(again.VENV / "library")
    shutil.rmtree(again.VENV / "bin")
    again.make_environment("")
    assert made == ["environment"] * 3


def test_a_path_with_a_space_is_refused(script, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(script, "ROOT", tmp_path / "my robot")
    assert script.main() == 1
    assert "there is a space" in capsys.readouterr().err
