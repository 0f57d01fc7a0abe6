# SPDX-License-Identifier: Apache-2.0
"""Who may import whom: the runtime works without ROS, and never needs the training tree."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RUNTIME = ROOT / "cosmos_reason_node"
TRAINING = ROOT / "training"
ROS = RUNTIME / "ros"
BAG = TRAINING / "data" / "bag.py"
# Modules of ros/ that whatever starts processes uses; they need no ROS themselves.
ROS_FREE = {"transport.py", "__init__.py"}

ROS_PACKAGES = (
    "rclpy",
    "rosidl",
    "ament_index_python",
    "launch",
    "launch_ros",
    "builtin_interfaces",
    "rcl_interfaces",
)
BAG_PACKAGES = ("mcap", "rosbags", "rosbag2_py")


def imports(path: Path) -> Iterator[str]:
    """Absolute names of what a file imports, wherever in it."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) + "." if node.level else ""
            yield (base + (node.module or "")).rstrip(".")


def files(folder: Path) -> list[Path]:
    found = sorted(folder.rglob("*.py"))
    assert found
    return found


def is_ros(module: str) -> bool:
    top = module.split(".")[0]
    return top in ROS_PACKAGES or top.endswith("_msgs") or top in BAG_PACKAGES


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_ros_is_imported_in_ros_and_in_the_bag_reader_only():
    allowed = {path for path in files(ROS) if path.name not in ROS_FREE} | {BAG}
    offenders = {
        named(path): sorted(filter(is_ros, imports(path)))
        for path in (*files(RUNTIME), *files(TRAINING))
        if path not in allowed and any(map(is_ros, imports(path)))
    }
    assert offenders == {}


def test_the_runtime_never_imports_training():
    offenders = [
        named(path)
        for path in files(RUNTIME)
        if any(name.split(".")[0] == "training" for name in imports(path))
    ]
    assert offenders == []


def test_the_runtime_imports_where_there_is_no_ros():
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in files(RUNTIME)
        if ROS not in path.parents or path.name in ROS_FREE
    ]
    script = f"""
import importlib, sys

class NoRos:
    def find_spec(self, name, path=None, target=None):
        top = name.split(".")[0]
        if top in {(*ROS_PACKAGES, *BAG_PACKAGES)!r} or top.endswith("_msgs"):
            raise ModuleNotFoundError(f"{{name}} is not here", name=name)

sys.meta_path.insert(0, NoRos())
for name in {modules!r}:
    importlib.import_module(name.removesuffix(".__init__"))
assert "training" not in sys.modules, "training was imported"
"""
    done = run(script)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", ["config", "deployment", "errors", "types", "window", "prompt"])
def test_the_contracts_import_nothing_heavy(module):
    done = run(f"import cosmos_reason_node.{module}, sys; print(*sys.modules)")
    assert done.returncode == 0, done.stderr
    assert not {"torch", "transformers", "cv2", "rclpy"} & set(done.stdout.split())


def test_the_node_never_imports_torch():
    pytest.importorskip("rclpy", reason="no ROS 2; run `make test`")
    pytest.importorskip("cosmos_reason_msgs", reason="messages not built; run `make test`")
    done = run("import cosmos_reason_node.ros.node, sys; print(*sys.modules)")
    assert done.returncode == 0, done.stderr
    assert not {"torch", "transformers"} & set(done.stdout.split())


def run(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )


def test_graphs_are_exported_without_the_simulator():
    """requirements/export.txt is enough; only simulated recordings want more."""
    code = (
        "import sys, training.export.__main__, training.export.run, training.export.calibration;"
        "assert not {'mujoco', 'metaworld'} & set(sys.modules), 'the simulator is imported'"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
