# SPDX-License-Identifier: Apache-2.0
"""A checkpoint to ONNX graphs and TensorRT engines, in a folder that the node loads.

    python -m training.export --model models/nano --target sm89 --precision fp16
    python -m training.export --model DIR --target sm87 --precision int4-awq   # graphs; engines on the board:
    python -m training.export --build-only --out FOLDER --target sm87
    python -m training.export compare --model DIR --export FOLDER --bench sim     # what the precision costs

Started again with the same --out, it goes on where it was.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from safetensors import SafetensorError

from cosmos_reason_node.engine.manifest import PRECISIONS, onnx_name, read_manifest
from cosmos_reason_node.errors import CosmosReasonError
from cosmos_reason_node.models.checkpoint import check_files
from cosmos_reason_node.models.spec import read_model_spec

from .plan import OPSETS, PlanError, build_bytes, describe, make_plan
from .targets import TARGETS

_BUILT_ELSEWHERE = 3  # exit code: the graphs are written, the engines have to be built on the target


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        if given[:1] == ["compare"]:
            from .compare import main as compare

            return compare(given[1:])
        return _export(_parser().parse_args(given))
    except (CosmosReasonError, PlanError, ValueError, OSError, SafetensorError) as error:
        print(f"training.export: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("training.export: interrupted; start it again to go on", file=sys.stderr)
        return 130


def _export(options: argparse.Namespace) -> int:
    start = time.monotonic()

    def say(text: str) -> None:
        print(f"[export {time.monotonic() - start:5.0f} s] {text}", flush=True)

    if options.target not in TARGETS:
        raise PlanError(f"--target must be one of {', '.join(TARGETS)}, not {options.target!r}")
    target = TARGETS[options.target]
    if options.build_only:
        if options.out is None:
            raise PlanError("--build-only needs --out, the folder that holds the graphs")
        directory, manifest = options.out, read_manifest(options.out)
        # Files that are missing or torn are found before anything is built.
        weights = manifest.files.get(f"{onnx_name('decoder')}.data")
        needed = build_bytes(weights.bytes if weights else 0)
        say(f"memory: about {needed / 1e9:.1f} GB to build engines")
    else:
        if options.model is None:
            raise PlanError("--model is missing: give a checkpoint directory (or --build-only and --out)")
        spec = read_model_spec(options.model).require_qwen()
        check_files(options.model)
        plan = make_plan(
            options.model,
            spec,
            options.target,
            options.precision,
            opset=options.opset,
            frame_size=tuple(options.frame_size) if options.frame_size else None,
            max_tokens=options.max_tokens,
        )
        name = f"{spec.model_id}-{options.precision}-{options.target}"
        directory, needed = options.out or Path("build/export") / name, plan.build_bytes
        for line in describe(plan):
            say(line)
        # Importing torch takes seconds: whatever is wrong with the arguments has been said by now.
        from .calibration import find_calibration
        from .run import export

        calibration = find_calibration(plan, options.calibration, options.calibration_clips)
        manifest = export(plan, directory, calibration, say)
    if options.graphs_only:
        return 0
    from .build import BuildError, choose_library
    from .run import build_engines, check_memory

    try:
        choose_library(target)
        check_memory(needed, "building the engines")
        build_engines(target, directory, manifest, say)
    except BuildError as error:
        command = f"python -m training.export --build-only --out {directory} --target {target.name}"
        print(f"training.export: {error}\n  there: {command}", file=sys.stderr)
        return 1 if options.build_only else _BUILT_ELSEWHERE
    say(f"ready: engine:=tensorrt model:={directory}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", type=Path, help="checkpoint directory")
    parser.add_argument("--target", required=True, help=f"GPU generation: {', '.join(TARGETS)}")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp16", help="default: fp16")
    parser.add_argument("--out", type=Path, help="folder (build/export/MODEL-PRECISION-TARGET)")
    parser.add_argument("--opset", type=int, choices=OPSETS, default=0, help="default: the target's")
    parser.add_argument(
        "--frame-size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="pixels (default: the model's)"
    )
    parser.add_argument(
        "--max-tokens", type=int, default=0, help="of system text and videos (two full windows)"
    )
    parser.add_argument(
        "--calibration",
        type=Path,
        nargs="+",
        default=[],
        help="data for int8-wo, int4-awq, fp8: folders of simulated recordings, or a data set",
    )
    parser.add_argument("--calibration-clips", type=int, default=64, help="windows to measure on (64)")
    parser.add_argument(
        "--build-only", action="store_true", help="only the engines, from the graphs in --out"
    )
    parser.add_argument("--graphs-only", action="store_true", help="no engines")
    return parser


if __name__ == "__main__":
    sys.exit(main())
