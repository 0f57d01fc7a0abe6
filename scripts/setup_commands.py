# SPDX-License-Identifier: Apache-2.0
"""The commands that the set-up runs, and what it says meanwhile. Uses the standard library only."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
BUILD = ROOT / "build"
STEP_TIMEOUT_S = 3600
HEARTBEAT_S = 20


class SetupError(Exception):
    """A step failed; the message says which command and what to do."""


class Progress:
    """Prints what is being done, with the time since the start."""

    def __init__(self) -> None:
        self.start = time.monotonic()

    def say(self, text: str) -> None:
        """One line."""
        print(f"[setup {time.monotonic() - self.start:4.0f} s] {text}", flush=True)


progress = Progress()


def pip(verb: str) -> list[str]:
    """The start of a pip command in .venv."""
    return [
        str(VENV / "bin" / "python"),
        "-m",
        "pip",
        "--disable-pip-version-check",
        "--no-input",
        verb,
        "--progress-bar=off",
    ]


def uv(verb: str) -> list[str]:
    """The same of uv, which ``pip`` has to install first."""
    # Copies, not hard links: files of the environment are rewritten, those of uv's cache must not be.
    options = ["--python", str(VENV / "bin" / "python"), "--no-progress", "--link-mode", "copy"]
    return [str(VENV / "bin" / "uv"), "pip", verb, *options]


def apt_install(packages: list[str], reason: str) -> None:
    """Install Debian packages when this is root on Debian or Ubuntu; else say what to install."""
    line = f"apt-get install {' '.join(packages)}"
    if os.getuid() != 0 or not shutil.which("apt-get") or os.environ.get("COSMOS_REASON_NO_APT"):
        raise SetupError(f"{', '.join(packages)} missing ({reason}). On Debian or Ubuntu:\n  sudo {line}")
    progress.say(f"{line} ({reason}; COSMOS_REASON_NO_APT=1 declines)")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    run("apt-update", ["apt-get", "update", "-qq"], env=environment)
    run(
        "apt-install",
        ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages],
        env=environment,
    )


def reachable(url: str) -> bool:
    """Whether an address answers within six seconds."""
    try:
        with urllib.request.urlopen(url, timeout=6):
            return True
    except (urllib.error.URLError, OSError, ValueError):
        return False


def output(*command: str) -> str | None:
    """What a quick command prints; None if it fails or does not exist."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def works(*command: str) -> bool:
    """Whether a quick command exists and succeeds."""
    return output(*command) is not None


def attempt(name: str, command: Sequence[str]) -> bool:
    """``run`` a command that may fail; false if it did."""
    try:
        run(name, command)
    except SetupError:
        return False
    return True


def run(
    name: str,
    command: Sequence[str],
    hint: str = "",
    *,
    env: dict[str, str] | None = None,
    show: bool = False,
) -> None:
    """Run ``command`` with its output in build/setup/``name``.log; raises SetupError with the end of it."""
    log = BUILD / "setup" / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    with log.open("wb") as written:
        process = subprocess.Popen(
            command, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=written, stderr=subprocess.STDOUT
        )
        try:
            while True:
                try:
                    code = process.wait(timeout=HEARTBEAT_S)
                    break
                except subprocess.TimeoutExpired:
                    if time.monotonic() - start > STEP_TIMEOUT_S:
                        raise SetupError(f"{name} took over {STEP_TIMEOUT_S} s; see {log}") from None
                    progress.say(f"  ... {name}, {time.monotonic() - start:.0f} s so far")
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(timeout=30)
    text = log.read_text(errors="replace")
    if show and not code:
        print(text.rstrip(), flush=True)
    if code:
        tail = "\n".join(f"  | {line}" for line in text.splitlines()[-25:])
        where = log.relative_to(ROOT)
        raise SetupError(
            f"exit code {code} of\n  {' '.join(command)}\n{tail}\nAll of its output: {where}. {hint}".rstrip()
        )
