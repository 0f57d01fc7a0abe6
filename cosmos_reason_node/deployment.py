# SPDX-License-Identifier: Apache-2.0
"""What is started, defined once: executable, name, parameters, remappings and environment of every process.

The launch files turn a :class:`Process` into a ``launch_ros`` node; the demo, the benchmarks and the tests
start it as a plain process. Needs neither ROS nor launch, so it also runs where launch is not installed.

    process = reason({"task": "open the drawer"}, namespace="/robot1")
    subprocess.Popen(process.command(), env=process.environ())
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from .config import Config
from .ros.transport import transport_env

PACKAGE = "cosmos_reason_node"

# Executable -> module with a main(). setup.py installs the same pairs as entry points (a test compares them).
EXECUTABLES: Mapping[str, str] = MappingProxyType(
    {"reason_node": "cosmos_reason_node.ros.node", "replay": "cosmos_reason_node.ros.replay"}
)

LOG_LEVELS = ("debug", "info", "warn", "error", "fatal")


@dataclass(frozen=True)
class Process:
    """One ROS process.

    Attributes:
        executable: a key of EXECUTABLES.
        name: node name.
        namespace: absolute namespace; "/" is the root.
        parameters: name -> bool, int, float, str or sequence of one of them; win over ``parameter_files``.
        parameter_files: ROS parameter YAML files, later ones win.
        remappings: (from, to) pairs of topic or service names.
        env: variables set on top of the starter's environment.
        log_level: of the process's loggers, one of LOG_LEVELS.
    """

    executable: str
    name: str
    namespace: str = "/"
    parameters: Mapping[str, Any] = field(default_factory=dict)
    parameter_files: tuple[Path, ...] = ()
    remappings: tuple[tuple[str, str], ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    log_level: str = "info"

    def __post_init__(self) -> None:
        """Check what would otherwise fail far away, in another process."""
        if self.executable not in EXECUTABLES:
            raise ValueError(f"no executable {self.executable!r}; there are {', '.join(EXECUTABLES)}")
        if self.log_level not in LOG_LEVELS:
            raise ValueError(f"log level must be of {', '.join(LOG_LEVELS)}, not {self.log_level!r}")
        if not self.namespace.startswith("/"):
            raise ValueError(f"namespace must be absolute, not {self.namespace!r}")
        for path in self.parameter_files:
            if not path.is_file():
                raise FileNotFoundError(f"there is no parameter file {path}")

    @property
    def node_path(self) -> str:
        """Fully qualified node name, e.g. ``/robot1/cosmos_reason``."""
        return f"{self.namespace.rstrip('/')}/{self.name}"

    def all_parameter_files(self) -> list[str]:
        """``parameter_files`` and, last, a file written from ``parameters``, so that these win.

        A file because ``-p name:=value`` cannot do it: rcl files it under "any node", where it loses to any
        entry of a parameter file for this very node.
        """
        files = [str(path) for path in self.parameter_files]
        return [*files, str(self._write_parameters())] if self.parameters else files

    def command(self, python: str = sys.executable) -> list[str]:
        """Argument vector of a plain process of the interpreter ``python``; needs no installed package."""
        arguments = ["-r", f"__node:={self.name}", "-r", f"__ns:={self.namespace}"]
        for source, target in self.remappings:
            arguments += ["-r", f"{source}:={target}"]
        for path in self.all_parameter_files():
            arguments += ["--params-file", path]
        arguments += ["--log-level", self.log_level]
        return [python, "-m", EXECUTABLES[self.executable], "--ros-args", *arguments]

    def environ(self, base: Mapping[str, str] | None = None) -> dict[str, str]:
        """Full environment: ``base`` (default: this process's) with ``env`` on top."""
        return {**(os.environ if base is None else base), **self.env}

    def _write_parameters(self) -> Path:
        """Write ``parameters`` to a file of this user, named by its content (equal ones share it)."""
        values = "".join(f"    {key}: {_yaml(value)}\n" for key, value in self.parameters.items())
        # Under both names: of two entries for a node, rcl takes the name that appeared later in any file.
        text = "".join(f"{name}:\n  ros__parameters:\n{values}" for name in ("/**", self.node_path))
        path = _parameter_directory() / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.yaml"
        partial = path.with_suffix(f".{os.getpid()}")
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
        return path


def _parameter_directory() -> Path:
    """A directory of this user that outlives the launch: a node that is respawned reads its file again.

    Systems clean their temporary directory of what was not read for days; it is taken where there is no home.
    """
    directory = Path(os.environ.get("ROS_HOME") or "~/.ros").expanduser() / "cosmos_reason_launch"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if os.access(directory, os.W_OK):
            return directory
    except (OSError, RuntimeError):  # RuntimeError: no home
        pass
    directory = Path(tempfile.gettempdir()) / f"cosmos_reason-{os.getuid()}"
    directory.mkdir(mode=0o700, exist_ok=True)
    if directory.is_symlink() or directory.stat().st_uid != os.getuid():
        raise PermissionError(f"{directory} belongs to someone else; remove it or set TMPDIR")
    return directory


def reason(
    settings: Mapping[str, Any] | None = None,
    *,
    name: str = "cosmos_reason",
    namespace: str = "/",
    parameter_files: Sequence[str | Path] = (),
    remappings: Sequence[tuple[str, str]] = (),
    use_sim_time: bool | None = None,
    log_level: str = "info",
) -> Process:
    """The node that watches cameras and answers.

    Args:
        settings: any fields of :class:`~cosmos_reason_node.config.Config`; checked here, so that a bad value
            fails at once. When ``model`` is empty or set nowhere, engine torch takes :func:`bundled_model`;
            the other engines refuse.
        name: node name.
        namespace: ROS namespace; "" and "/" are the root.
        parameter_files: ROS parameter YAML files; ``settings`` win over them.
        remappings: (from, to) pairs.
        use_sim_time: take time from /clock; None leaves it to the parameter files.
        log_level: one of LOG_LEVELS.

    Raises:
        CosmosReasonError: a setting is unknown or out of bounds.
        FileNotFoundError: a parameter file does not exist.
    """
    given = dict(settings or {})
    checked = Config.from_mapping(given)
    parameters: dict[str, Any] = {}
    for key in given:
        value, default = getattr(checked, key), getattr(Config, key)
        # An integer where the node declares a double would be refused there.
        parameters[key] = float(value) if isinstance(default, float) else value
    if use_sim_time is not None:
        parameters["use_sim_time"] = use_sim_time
    return Process(
        executable="reason_node",
        name=name,
        namespace=absolute_namespace(namespace),
        parameters=parameters,
        parameter_files=tuple(Path(path) for path in parameter_files),
        remappings=tuple(remappings),
        env=transport_environment(),
        log_level=log_level,
    )


def replay(
    source: str | Path,
    *,
    topic: str = "image_raw",
    format: str = "raw",
    rate: float = 1.0,
    loop: bool = False,
    frame_id: str = "camera",
    wait_s: float = 60.0,
    max_duration_s: float = 0.0,
    max_side: int = 0,
    reliability: str = "reliable",
    publish_clock: bool = False,
    name: str = "replay",
    namespace: str = "/",
    remappings: Sequence[tuple[str, str]] = (),
    log_level: str = "info",
) -> Process:
    """A video file or camera device as a live camera topic, at its real rate. Ends when the file does.

    Args:
        source: a video file, or a device such as ``/dev/video0``.
        topic: where images go: sensor_msgs/Image on it, or with ``format="jpeg"``
            sensor_msgs/CompressedImage on ``<topic>/compressed``.
        format: "raw" or "jpeg".
        rate: speed, 1 = the recording's own.
        loop: begin again at the end, with stamps that go on.
        frame_id: tf frame of the images.
        wait_s: longest wait for a first subscriber before the first frame; 0 starts at once. Seconds.
        max_duration_s: stop after this long; 0 = at the end of the file. Seconds.
        max_side: scale larger images down to this longer side, pixels; 0 = as recorded.
        reliability: "reliable" or "best_effort".
        publish_clock: publish /clock from the recording's time, for nodes with ``use_sim_time``.
        name: node name.
        namespace: ROS namespace.
        remappings: (from, to) pairs.
        log_level: one of LOG_LEVELS.

    Raises:
        FileNotFoundError: there is no such file or device.
        ValueError: an argument is out of its bounds.
    """
    path = Path(source).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"there is no video file or camera device {path}")
    for what, value, allowed in (
        ("format", format, ("raw", "jpeg")),
        ("reliability", reliability, ("reliable", "best_effort")),
    ):
        if value not in allowed:
            raise ValueError(f"{what} must be {' or '.join(allowed)}, not {value!r}")
    for what, number, low, high in (
        ("rate", rate, 0.01, 100.0),
        ("wait_s", wait_s, 0.0, 3600.0),
        ("max_duration_s", max_duration_s, 0.0, 86400.0),
        ("max_side", max_side, 0, 16384),
    ):
        if not low <= number <= high:  # false for NaN too
            raise ValueError(f"{what} must be between {low:g} and {high:g}, not {number}")
    return Process(
        executable="replay",
        name=name,
        namespace=absolute_namespace(namespace),
        parameters={
            "source": str(path.absolute()),
            "topic": topic,
            "format": format,
            "rate": float(rate),
            "loop": loop,
            "frame_id": frame_id,
            "wait_s": float(wait_s),
            "max_duration_s": float(max_duration_s),
            "max_side": max_side,
            "reliability": reliability,
            "publish_clock": publish_clock,
        },
        remappings=tuple(remappings),
        env=transport_environment(),
        log_level=log_level,
    )


def settings_from_text(texts: Mapping[str, str]) -> dict[str, Any]:
    """Settings of :func:`reason` from launch arguments or a command line; empty texts are left out.

    Args:
        texts: field of Config -> "true", "4", "front=/front/image_raw, wrist=/wrist/image_raw", "[a, b]" ...
            An empty list is written ``[]``.

    Raises:
        ValueError: a text does not fit the field's type.
    """
    return {name: _from_text(name, text) for name, text in texts.items() if text.strip()}


def parameter_file(name: str) -> Path:
    """A parameter file by its path, or one of those in config/ by its name (``gpu`` -> config/gpu.yaml).

    Raises:
        FileNotFoundError: it is neither.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path.absolute()
    shipped = share_path(f"config/{name}.yaml") if re.fullmatch(r"[A-Za-z0-9_-]+", name) else None
    if shipped is None:
        raise FileNotFoundError(f"there is no parameter file {name}, nor one of that name in config/")
    return shipped


def transport_environment(base: Mapping[str, str] | None = None) -> dict[str, str]:
    """Variables that make images arrive fast.

    A Fast DDS profile whose shared-memory segment holds images, and malloc thresholds. Whatever the user has
    set in ``base`` (default: this process's environment) stays as it is.
    """
    return transport_env(os.environ if base is None else base, share_path("config/fastdds.xml"))


def share_path(relative: str) -> Path | None:
    """A file of this package, in the source tree or under the install's share/cosmos_reason_node, or None."""
    here = Path(__file__).resolve()
    roots = [here.parents[1]] if (here.parents[1] / "package.xml").is_file() else []
    roots += [parent / "share" / PACKAGE for parent in here.parents[1:6]]
    prefixes = os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep)
    roots += [Path(prefix) / "share" / PACKAGE for prefix in prefixes if prefix]
    return next((root / relative for root in roots if (root / relative).exists()), None)


def bundled_model() -> Path:
    """Directory of the checkpoint that comes with the package.

    Raises:
        FileNotFoundError: the package was installed without it.
    """
    path = share_path("models/nano")
    if path is None:
        raise FileNotFoundError(
            "the bundled checkpoint models/nano is missing from this install; build the package from a full "
            "checkout or set the parameter `model` to a checkpoint directory"
        )
    return path


def absolute_namespace(namespace: str) -> str:
    """``robot1``, ``/robot1`` and ``/robot1/`` -> ``/robot1``; empty -> ``/``."""
    return "/" + namespace.strip("/")


def _from_text(name: str, text: str) -> Any:
    default = getattr(Config, name)
    try:
        if isinstance(default, tuple):
            # The base loader leaves every item a text: no, 1.0 and null are options as good as others.
            items = yaml.load(text, yaml.BaseLoader) if text.strip().startswith("[") else text.split(",")
            if not all(isinstance(item, str) for item in items):  # reach: up
                raise ValueError
            return tuple(item.strip() for item in items)
        if isinstance(default, bool):
            return {"true": True, "false": False}[text.strip().lower()]
        return type(default)(text)
    except (KeyError, ValueError, yaml.YAMLError):
        kind = {
            tuple: "a list of texts, as [a, 'b: c']",
            bool: "true or false",
            int: "a whole number",
            float: "a number",
        }
        raise ValueError(f"{name} must be {kind[type(default)]}, not {text!r}") from None


def _yaml(value: Any) -> str:
    """A parameter value as YAML flow text: JSON, except that floats are written so that they stay floats."""
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"a parameter cannot be {value}")
        mantissa, exponent, power = repr(value).partition("e")
        return f"{mantissa if '.' in mantissa else mantissa + '.0'}{exponent}{power}"
    if isinstance(value, (tuple, list)):
        # An empty list has no type in ROS parameters; [""] stands for it (ros/parameters.py reads it so).
        return f"[{', '.join(_yaml(item) for item in value)}]" if value else '[""]'
    return json.dumps(str(value) if isinstance(value, Path) else value, ensure_ascii=False)
