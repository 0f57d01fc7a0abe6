# SPDX-License-Identifier: Apache-2.0
"""What a run tells: a progress line, log.jsonl, a plot of the loss."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

LOG = "log.jsonl"
PLOT = "loss.png"


class RunLog:
    """Log of one run, written by process 0.

    A resumed run drops the lines of steps that are done again, so the file tells one story.

    Args:
        directory: of the run.
        first: step that the run goes on with.
        steps: of the whole run.
        every: steps between progress lines.
    """

    def __init__(self, directory: Path, first: int, steps: int, every: int) -> None:
        self._directory, self._first, self._steps, self._every = directory, first, steps, every
        self._started = time.monotonic()
        self._since = (self._started, 0, 0)  # time, samples, tokens since the last line
        kept = [entry for entry in read_log(directory) if entry["step"] < first]
        partial = directory / f"{LOG}.partial"
        partial.write_text("".join(json.dumps(entry) + "\n" for entry in kept), encoding="utf-8")
        os.replace(partial, directory / LOG)

    def add(self, entry: dict[str, Any]) -> None:
        """Log a step; ``entry`` holds step, loss, rate, samples and tokens at least."""
        self.write(entry)
        step = entry["step"]
        since, samples, tokens = self._since
        samples, tokens = samples + entry["samples"], tokens + entry["tokens"]
        if (step + 1) % self._every and step + 1 != self._steps:
            self._since = (since, samples, tokens)
            return
        now = time.monotonic()
        left = (now - self._started) / (step + 1 - self._first) * (self._steps - step - 1)
        span = max(now - since, 1e-9)
        print(
            f"step {step + 1}/{self._steps}  loss {entry['loss']:.4f}  lr {entry['rate']:.2e}  "
            f"{tokens / span:.0f} tokens/s  {samples / span:.1f} samples/s  {_clock(left)} left",
            flush=True,
        )
        self._since = (now, 0, 0)

    def write(self, entry: dict[str, Any]) -> None:
        """Append one line; floats as they are, so that runs can be compared bit for bit."""
        with (self._directory / LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")


def read_log(directory: Path) -> list[dict[str, Any]]:
    """Entries of log.jsonl; a last line that was cut off by a crash is left out."""
    path = directory / LOG
    if not path.exists():
        return []
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entries.append(json.loads(line))
        except ValueError:
            break
    return entries


def plot(directory: Path) -> None:
    """Draw the losses of log.jsonl to loss.png."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    entries = read_log(directory)
    training = [(e["step"] + 1, e["loss"]) for e in entries if "loss" in e]
    validation = [(e["step"] + 1, e["validation_loss"]) for e in entries if "validation_loss" in e]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    if training:
        steps, losses = zip(*training, strict=True)
        axes.plot(steps, losses, color="C0", alpha=0.3, linewidth=0.8, label="training")
        axes.plot(steps, _smooth(losses), color="C0", linewidth=1.5, label="training, smoothed")
    if validation:
        axes.plot(*zip(*validation, strict=True), "o-", color="C1", label="validation")
    axes.set_xlabel("step")
    axes.set_ylabel("loss per answer token")
    axes.grid(alpha=0.3)
    if training or validation:
        axes.legend()
    partial = directory / f"{PLOT}.partial"
    with partial.open("wb") as file:
        FigureCanvasAgg(figure).print_png(file)
    os.replace(partial, directory / PLOT)


def _smooth(values: tuple[float, ...], keep: float = 0.95) -> list[float]:
    """Exponential moving average without the pull of its start."""
    average, weight, smoothed = 0.0, 0.0, []
    for value in values:
        average = keep * average + (1 - keep) * value
        weight = keep * weight + (1 - keep)
        smoothed.append(average / weight)
    return smoothed


def _clock(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}"
