# SPDX-License-Identifier: Apache-2.0
"""Exports and TensorRT engines: time to make them, sizes, parity; speed where there is a GPU.

    python -m benchmarks.tensorrt --json benchmarks/results/tensorrt.json
    python -m benchmarks.tensorrt --json FILE --model DIR --precisions fp16 int4-awq --targets sm89

- ``parity``: graphs in ONNX Runtime against the checkpoint in torch, float32: greatest difference of features
  relative to the greatest, greatest difference of a yes-no confidence, and how many greedy answers, decoded
  without the grammar, are the same to the last token.
- ``engines``: of every target, built by TensorRT-RTX without its GPU, or by what is installed for the GPU
  that is here.
- ``execution``: milliseconds of a temporal patch, of a window's prefill and of a decode step, engine and
  torch, and the decode floor: weights' bytes over the memory bandwidth that a copy reaches. Only with a CUDA
  GPU that a target names; null elsewhere.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cosmos_reason_node.engine.base import Done, Engine, Request
from cosmos_reason_node.engine.graph_engine import GraphEngine
from cosmos_reason_node.engine.graphs import OnnxExecutor
from cosmos_reason_node.engine.manifest import PARTS, engine_name, onnx_name, read_manifest
from cosmos_reason_node.engine.tensorrt import TensorRtExecutor, gpu_target
from cosmos_reason_node.engine.torch import TorchEngine
from cosmos_reason_node.models.qwen2_5_vl import LoadedModel, load
from cosmos_reason_node.models.spec import ModelSpec, read_model_spec
from cosmos_reason_node.types import Frame, Query, QueryKind, Window
from cosmos_reason_node.vision.patchify import patchify
from training.export.build import BuildError
from training.export.plan import PlanError, make_plan
from training.export.quantise import QUANTISED, Calibration
from training.export.run import build_engines, export
from training.export.targets import TARGETS

from .machine import command_line, describe_machine

TASK = "open the drawer"
QUERIES = (
    Query(QueryKind.COMPLETION, task=TASK, think_tokens=8),
    Query(QueryKind.AFFORDANCE, task=TASK, think_tokens=0),
    Query(QueryKind.NEXT_ACTION, task=TASK, think_tokens=0),
)
_PACKAGES = ("torch", "transformers", "onnx", "onnxruntime", "nvidia-modelopt", "tensorrt-rtx-cu13-libs")
_REPEATS = 20


def main() -> int:
    options = _parser().parse_args()
    torch.set_num_threads(1)
    model = load(options.model, "cpu", "float32")
    reference = TorchEngine(model, min_confidence=0.0, kept_pairs=64)
    result: dict[str, Any] = {
        "command": command_line(),
        "machine": describe_machine(_PACKAGES),
        "model": model.spec.model_id,
        "windows": options.windows,
        "exports": [],
    }
    with tempfile.TemporaryDirectory(prefix="tensorrt-benchmark-") as folder:
        for precision in options.precisions:
            entry = measure(model, reference, Path(folder) / precision, precision, options)
            result["exports"].append(entry)
            print(json.dumps(entry), flush=True)
    result["peak_memory_gb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0


def measure(
    model: LoadedModel, reference: Engine, folder: Path, precision: str, options: argparse.Namespace
) -> dict[str, Any]:
    """Export in one precision, build for all targets, compare."""
    plan = make_plan(options.model, model.spec, "sm89", precision, opset=options.opset)
    calibration = None
    if precision in QUANTISED:
        clips = [((moving(model.spec, seed),), QUERIES) for seed in range(options.calibration)]
        calibration = Calibration("synthetic motion", clips, len(clips))
    started = time.monotonic()
    manifest = export(plan, folder, calibration, _quiet)
    entry: dict[str, Any] = {
        "precision": precision,
        "opset": plan.opset,
        "export_s": round(time.monotonic() - started, 1),
        "graph_mb": {part: _megabytes(folder / f"{onnx_name(part)}.data") for part in PARTS},
        "estimated_export_gb": round(plan.export_bytes / 1e9, 2),
        "parity": parity(model, reference, folder, options.windows) if precision != "bf16" else None,
        "engines": {},
    }
    for name in options.targets:
        try:
            started = time.monotonic()
            manifest = build_engines(TARGETS[name], folder, manifest, _quiet)
            entry["engines"][name] = {
                "build_s": round(time.monotonic() - started, 1),
                "mb": {part: _megabytes(folder / engine_name(part)) for part in PARTS},
                "built_by": f"{manifest.build.library} {manifest.build.version}" if manifest.build else "",
            }
            here = torch.cuda.is_available() and gpu_target(torch.device("cuda")) == name
            entry["engines"][name]["execution"] = (
                execution(options.model, folder, model.spec) if here else None
            )
        except (BuildError, PlanError) as error:
            entry["engines"][name] = {"not_built": str(error)}
    return entry


def parity(model: LoadedModel, reference: Engine, folder: Path, windows: int) -> dict[str, Any]:
    """Graphs against the checkpoint."""
    manifest = read_manifest(folder)
    executor = OnnxExecutor(folder, manifest)
    engine = GraphEngine(
        folder, manifest, read_model_spec(folder), executor, min_confidence=0.0, kept_pairs=64
    )
    pixels, grid = patchify(moving(model.spec, 0).pixels(), model.spec.patches)
    patches = torch.from_numpy(pixels).reshape(grid[0], -1, pixels.shape[1])
    with torch.inference_mode():
        wanted = model.visual_features(torch.from_numpy(pixels), [grid])
        graph_model: Any = engine.model
        found = torch.cat([graph_model.encode(patch) for patch in patches]).float()
    same = total = 0
    choices = []
    started = time.monotonic()
    for seed in range(windows):
        shown = moving(model.spec, seed)
        free = Request("r", (shown,), QUERIES, max_answer_tokens=12, free=True)
        pairs = list(zip(_answers(engine, free), _answers(reference, free), strict=True))
        same, total = same + sum(a.answer == b.answer for a, b in pairs), total + len(pairs)
        one = Request("r", (shown,), QUERIES[1:2])
        choices.append(abs(_answers(engine, one)[0].confidence - _answers(reference, one)[0].confidence))
    seconds = time.monotonic() - started
    engine.close()
    return {
        "features": float((found - wanted).abs().max() / wanted.abs().max()),
        "confidence": float(np.max(choices)),
        "same_answers": same,
        "answers": total,
        "seconds": round(seconds, 1),
    }


def execution(checkpoint: Path, folder: Path, spec: ModelSpec) -> dict[str, Any]:
    """Milliseconds on the GPU that is here. NOT EXECUTED where there is none."""
    device = torch.device("cuda")
    manifest = read_manifest(folder)
    executor = TensorRtExecutor(folder, manifest, device)
    engine = GraphEngine(
        folder, manifest, read_model_spec(folder), executor, min_confidence=0.0, kept_pairs=64
    )
    network = load(checkpoint, "cuda", "bfloat16" if manifest.precision == "bf16" else "float16")
    torch_engine = TorchEngine(network, min_confidence=0.0, kept_pairs=64)
    pixels, _ = patchify(moving(spec, 0).pixels()[: spec.patches.temporal_patch], spec.patches)
    patch = torch.from_numpy(pixels)
    height, width = manifest.dimensions.frame_height, manifest.dimensions.frame_width
    grid = spec.patches.grid(spec.patches.temporal_patch, height, width)
    graph_model: Any = engine.model
    weights = sum((folder / f"{onnx_name(part)}.data").stat().st_size for part in ("decoder", "head"))
    return {
        "gpu": torch.cuda.get_device_name(device),
        "vision_patch_ms": {
            "tensorrt": _time(lambda: graph_model.encode(patch)),
            "torch": _time(lambda: network.visual_features(patch, [grid])),
        },
        "window": {"tensorrt": _window_times(engine, spec), "torch": _window_times(torch_engine, spec)},
        "decode_floor_ms": round(1e3 * weights / _bandwidth(device), 3),
        "same_answers": sum(
            a.answer == b.answer
            for seed in range(_REPEATS)
            for a, b in zip(
                *(_answers(e, Request("r", (moving(spec, seed),), QUERIES)) for e in (engine, torch_engine)),
                strict=True,
            )
        ),
        "answers": _REPEATS * len(QUERIES),
    }


def moving(spec: ModelSpec, seed: int) -> Window:
    """A window of a square that moves over a background, both of the seed's choice."""
    rng = np.random.default_rng(seed)
    height, width = spec.frame_size_for(480, 640)
    background = np.repeat(np.repeat(rng.integers(0, 256, (7, 7, 3)), height // 7 + 1, 0), width // 7 + 1, 1)
    start, step, side = rng.integers(0, height // 2, 2), rng.integers(-3, 4, 2), max(8, height // 8)
    period, frames = round(1e9 / spec.fps), []
    for tick in range(spec.window_frames):
        image = background[:height, :width].astype(np.uint8)
        row, column = (start + step * tick) % (min(height, width) - side)
        image[row : row + side, column : column + side] = rng.integers(0, 256, 3) if tick == 0 else 255
        frames.append(Frame("benchmark", (tick + 1) * period, tick, image))
    return Window("benchmark", tuple(frames), 0, period, 0, spec.window_frames)


def _window_times(engine: Engine, spec: ModelSpec) -> dict[str, float]:
    """Medians over fresh windows: nothing but the graphs is warm."""
    prefill, step = [], []
    for seed in range(100, 100 + _REPEATS):
        query = Query(QueryKind.QUESTION, question="What happens?", think_tokens=0)
        request = Request("r", (moving(spec, seed),), (query,) * 3, max_answer_tokens=32, free=True)
        ended = [event for event in engine.answer(request) if isinstance(event, Done)]
        prefill.append(1e3 * ended[0].latency.prefill_s)
        longest = max(ended, key=lambda done: done.answer.output_tokens)
        step.append(1e3 * longest.latency.decode_s / max(1, longest.answer.output_tokens - 1))
    return {
        "prefill_ms": round(statistics.median(prefill), 3),
        "decode_step_of_3_branches_ms": round(statistics.median(step), 3),
    }


def _answers(engine: Engine, request: Request) -> list[Any]:
    ended = {event.branch: event for event in engine.answer(request) if isinstance(event, Done)}
    return [ended[branch].answer for branch in range(len(request.queries))]


def _time(call: Callable[[], Any]) -> float:
    times = []
    for _ in range(_REPEATS + 5):
        torch.cuda.synchronize()
        started = time.perf_counter()
        call()
        torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - started))
    return round(statistics.median(times[5:]), 3)


def _bandwidth(device: torch.device) -> float:
    """Bytes per second that a copy reads and writes."""
    source = torch.empty(1 << 28, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / (_time(lambda: target.copy_(source)) / 1e3)


def _megabytes(path: Path) -> float:
    return round(path.stat().st_size / 1e6, 2)


def _quiet(_: str) -> None:
    """Progress is not shown."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tensorrt",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", type=Path, help="write the result there")
    parser.add_argument("--model", type=Path, default=Path("models/nano"), help="checkpoint (models/nano)")
    parser.add_argument("--precisions", nargs="+", default=["fp32", "fp16"], help="default: fp32 fp16")
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=["sm80", "sm86", "sm89", "sm120"])
    parser.add_argument("--opset", type=int, default=0, help="of the graphs (0: the target's)")
    parser.add_argument("--windows", type=int, default=20, help="for parity (20)")
    parser.add_argument("--calibration", type=int, default=16, help="windows for quantised precisions (16)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
