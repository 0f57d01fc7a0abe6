# SPDX-License-Identifier: Apache-2.0
"""How fast samples are made and loaded, each beside a plain loop in one process.

    python -m benchmarks.data --json benchmarks/results/data.json

- ``generated``: robot episodes and physics clips simulated, rendered and saved; by training.data.sim.generate
  with worker processes that keep scenes and renderers (their start included), and by a loop that makes each
  scene anew.
- ``loaded``: clips decoded, frames chosen on the time grid, resized, patchified; by training.data.loader with
  worker processes (their start included), and by a loop over the same function.

The two ways are timed in turns; rates are medians over the turns. ``speedup`` is their ratio: for ``loaded``
at most the number of cores, and less where something else runs on the machine (``load_average_at_start``);
``plain_cpu_ms_per_sample`` does not depend on that. Without ``--data`` clips are made first: H.264, moving
shapes, a key frame every two seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import torch

from cosmos_reason_node.deployment import bundled_model
from cosmos_reason_node.models.spec import read_model_spec
from training.data.loader import Windows, load, loader
from training.data.media import WindowSpec
from training.data.readers import open_data_set
from training.data.schema import Provenance, QuestionKind, Sample, Video
from training.data.sim.generate import Counts, generate, make
from training.data.sim.simulator import release_scenes

from .machine import command_line, describe_machine

CLIP_SIDE, CLIP_FPS, CLIP_S = 256, 20, 10


@dataclass(frozen=True)
class Options:
    """What to measure.

    Attributes:
        data: folder of a data set to load; None = make ``clips`` clips.
        model: checkpoint whose windows are made.
        samples: samples a turn.
        turns: of each way.
        workers: processes.
        clips: number of clips made.
        episodes: robot episodes generated a turn; three times as many physics clips.
    """

    data: Path | None
    model: Path
    samples: int
    turns: int
    workers: int
    clips: int
    episodes: int


def generated(options: Options) -> dict[str, Any]:
    """Episodes and clips a second, generated."""
    third = options.episodes // 3
    counts = Counts(
        episodes=options.episodes - third,
        galleries=third,
        held_out_episodes=0,
        clips=3 * options.episodes,
        held_out_clips=0,
    )

    def plain() -> int:
        with tempfile.TemporaryDirectory(prefix="data_benchmark_") as name:
            for folder, seed in counts.seeds():
                release_scenes()
                make((Path(name), folder, seed))
        return len(counts.seeds())

    def workers() -> int:
        with tempfile.TemporaryDirectory(prefix="data_benchmark_") as name:
            return generate(Path(name), counts, options.workers)

    return {
        "episodes_a_turn": options.episodes,
        "clips_a_turn": counts.clips,
        "workers": options.workers,
        **compare(plain, workers, len(counts.seeds()), options.turns),
    }


def loaded(options: Options) -> dict[str, Any]:
    """Samples a second, loaded."""
    spec = WindowSpec.of(read_model_spec(options.model))
    with tempfile.TemporaryDirectory(prefix="data_benchmark_") as name:
        root, samples = _samples(options, Path(name))
        windows = Windows(root, samples, spec)

        def plain() -> int:
            return sum(not load(root, sample, spec).error for sample in samples)

        def workers() -> int:
            return sum(not one.error for (one,) in loader(windows, workers=options.workers, prefetch=4))

        load(root, samples[0], spec)
        return {
            "clips": str(options.data or f"{CLIP_SIDE}x{CLIP_SIDE} H.264, {CLIP_FPS} fps, {CLIP_S} s"),
            "window_frames": spec.num_frames,
            "window_fps": 1e9 / spec.period_ns,
            "frame_size": spec.size_for(CLIP_SIDE, CLIP_SIDE),
            "samples_a_turn": len(samples),
            "workers": options.workers,
            **compare(plain, workers, len(samples), options.turns),
        }


# What the report holds, by name; each is measured by itself.
PARTS: dict[str, Callable[[Options], dict[str, Any]]] = {"generated": generated, "loaded": loaded}


def compare(plain: Callable[[], int], workers: Callable[[], int], count: int, turns: int) -> dict[str, Any]:
    """Time two ways of doing the same, in turns.

    Args:
        plain: the loop in one process; returns how many samples it gave.
        workers: the way with worker processes.
        count: samples that each gives in a turn.
        turns: of each.

    Returns:
        Samples a second of both (median and each turn), their ratio, and the CPU time of the plain way.
    """
    rates: dict[str, list[float]] = {"plain": [], "workers": []}
    cpu_s = 0.0
    for _ in range(turns):
        for name, way in (("plain", plain), ("workers", workers)):
            start, start_cpu = time.perf_counter(), time.process_time()
            done = way()
            rates[name].append(done / (time.perf_counter() - start))
            cpu_s += time.process_time() - start_cpu if name == "plain" else 0.0
            if done != count:
                raise RuntimeError(f"{name} gave {done} of {count} samples: check the data set first")
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return {
        **{f"{name}_samples_per_s": round(value, 2) for name, value in medians.items()},
        "speedup": round(medians["workers"] / medians["plain"], 3),
        "plain_cpu_ms_per_sample": round(1e3 * cpu_s / (turns * count), 2),
        "turns": {name: [round(value, 2) for value in values] for name, values in rates.items()},
    }


def _samples(options: Options, scratch: Path) -> tuple[Path, list[Sample]]:
    """Data set and the samples of a turn; few samples are repeated."""
    if options.data is not None:
        found: Iterable[Sample] = open_data_set(options.data, strict=False).samples
        root, all_samples = options.data, [sample for sample in found if sample.media]
    else:
        origin = Provenance("benchmark")
        root, all_samples = scratch, []
        for i in range(options.clips):
            _make_clip(scratch / f"{i}.mp4", i)
            media = (Video(f"{i}.mp4"),)
            all_samples.append(
                Sample(f"{i}", media, QuestionKind.CAPTION, "x", origin, question="What is seen?")
            )
    return root, [all_samples[i % len(all_samples)] for i in range(options.samples)]


def _make_clip(path: Path, seed: int) -> None:
    """Shapes that move over a grainy ground, as costly to decode as a camera's picture."""
    rng = np.random.default_rng(seed)
    ground = rng.integers(90, 150, (CLIP_SIDE, CLIP_SIDE, 3), np.uint8)
    places = rng.uniform(0, CLIP_SIDE, (6, 2))
    speeds = rng.uniform(-40, 40, (6, 2))
    colours = rng.integers(0, 255, (6, 3)).tolist()
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=CLIP_FPS)
        stream.width = stream.height = CLIP_SIDE
        stream.pix_fmt, stream.gop_size = "yuv420p", 2 * CLIP_FPS
        stream.options = {"preset": "veryfast", "crf": "23"}
        stream.codec_context.thread_count = 1
        for i in range(CLIP_FPS * CLIP_S):
            image = ground.copy()
            for place, speed, colour in zip(places, speeds, colours, strict=True):
                x, y = ((place + speed * i / CLIP_FPS) % CLIP_SIDE).astype(int).tolist()
                cv2.circle(image, (x, y), 24, colour, -1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data", description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="where to write the result")
    parser.add_argument("--data", type=Path, help="data set to load (default: clips made here)")
    parser.add_argument("--model", type=Path, help="checkpoint directory (default: the bundled one)")
    parser.add_argument("--samples", type=int, default=96, help="samples a turn")
    parser.add_argument("--turns", type=int, default=3, help="of each way")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="worker processes")
    parser.add_argument("--clips", type=int, default=16, help="clips to make")
    parser.add_argument("--episodes", type=int, default=24, help="robot episodes to generate a turn")
    parser.add_argument("--parts", nargs="+", choices=sorted(PARTS), default=sorted(PARTS))
    given = vars(parser.parse_args())
    target, parts = given.pop("json"), given.pop("parts")
    options = Options(**given | {"model": given["model"] or bundled_model()})
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    os.environ["LP_NUM_THREADS"] = "1"  # the software rasteriser's own threads
    machine = describe_machine(("av", "torch", "numpy", "opencv-python-headless"))
    result: dict[str, Any] = {"command": command_line(), "machine": machine}
    for name in parts:
        result[name] = PARTS[name](options)
        print(json.dumps({name: result[name]}, indent=1))
    if target:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
