# SPDX-License-Identifier: Apache-2.0
"""Clips for calibration, from the data that the project trains and evaluates with."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from cosmos_reason_node.types import Query, Window
from training.data.problems import DataError
from training.eval.benchmarks import data_set, thinned
from training.eval.item import Benchmark

from .plan import Plan, PlanError
from .quantise import QUANTISED, Calibration

TRAINED_ON = (Path("build/nano/episodes/train"), Path("build/nano/clips/train"))
_SPLIT = "train"  # of a data set: what a model is evaluated on is not looked at
_QUERIES = 3  # of a clip


def find_calibration(plan: Plan, data: Sequence[Path], clips: int) -> Calibration | None:
    """What to calibrate on; None for precisions that need nothing.

    Args:
        plan: of the export.
        data: a data set, or folders of simulated recordings; (): the ones that nano trains on.
        clips: windows to take.

    Raises:
        PlanError: there is no data.
    """
    if plan.precision not in QUANTISED:
        return None
    try:
        benchmark = _benchmark(plan, data, clips)
    except (DataError, OSError, ValueError) as error:
        raise PlanError(f"--calibration: {error}") from error
    stimuli = thinned(benchmark.stimuli, clips)

    def read() -> Iterator[tuple[tuple[Window, ...], tuple[Query, ...]]]:
        for stimulus in stimuli:
            yield stimulus.load(), tuple(item.query for item in stimulus.items[:_QUERIES])

    shown = "\n".join(item.digest for stimulus in stimuli for item in stimulus.items[:_QUERIES])
    content = hashlib.sha256(shown.encode()).hexdigest()[:16]
    return Calibration(benchmark.name, read(), len(stimuli), content)


def _benchmark(plan: Plan, data: Sequence[Path], clips: int) -> Benchmark:
    if not data:
        data = [path for path in TRAINED_ON if path.is_dir()]
        if not data:
            raise ValueError(
                f"{plan.precision} measures activations: name recordings or a data set (the default, "
                f"{' and '.join(map(str, TRAINED_ON))}, is made by make nano)"
            )
    if len(data) == 1 and not any(data[0].glob("*.npz")) and not any(data[0].glob("*.mp4")):
        return data_set(data[0], plan.spec, _SPLIT, clips)
    from training.eval.simulated import find_sources, simulated  # it wants the simulator installed

    sources = find_sources(list(data), plan.spec.window_frames)
    return simulated(sources, max(1, clips // max(1, len(sources))), plan.spec)
