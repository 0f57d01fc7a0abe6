# SPDX-License-Identifier: Apache-2.0
"""What a precision costs: the same questions to a checkpoint and to its export, by training.eval.

Exports are asked through ONNX Runtime, which computes what the graphs say, or through TensorRT where it runs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cosmos_reason_node.engine.base import Engine
from cosmos_reason_node.engine.loading import load_engine
from cosmos_reason_node.engine.manifest import Manifest, read_manifest
from cosmos_reason_node.engine.spec import EngineSpec
from cosmos_reason_node.models.spec import ModelSpec, read_model_spec
from training.eval import run
from training.eval.benchmarks import data_set
from training.eval.item import Benchmark
from training.eval.protocol import PROTOCOLS
from training.eval.rollout import Plan
from training.eval.simulated import find_sources, simulated

WARN_POINTS = 1.0
_EXPORT = "export.json"  # beside the answers: the files that gave them


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code: 2 when an export loses more than a point."""
    options = _parser().parse_args(arguments)
    benchmark = _benchmark(options, read_model_spec(options.model))
    names = ["checkpoint", *(directory.resolve().name for directory in options.export)]
    if len(set(names)) < len(names):
        raise ValueError(f"results are kept by name of folder, and these are not unlike: {', '.join(names)}")
    reports: dict[str, Any] = {}
    for name, directory in zip(names, (options.model, *options.export), strict=True):
        is_export = directory is not options.model
        kind = options.engine if is_export else "torch"
        if is_export:
            forget_others(options.out / name, read_manifest(directory), kind)
        engine = load_engine(
            EngineSpec(str(directory), kind=kind, dtype="auto", warm_up=False, min_confidence=0.0, threads=1)
        )
        reports[name] = ask(engine, benchmark, options.out / name)
        engine.close()
    rows = table(reports)
    text = markdown(rows)
    print(text)
    (options.out / "compare.md").write_text(text, encoding="utf-8")
    (options.out / "compare.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    warnings = losses(rows)
    for warning in warnings:
        print(f"training.export: {warning}", file=sys.stderr)
    return 2 if warnings else 0


def forget_others(results: Path, manifest: Manifest, kind: str) -> None:
    """Drop the answers that another export gave.

    Answers belong to a checkpoint's digest, and every export of a checkpoint has the same.

    Args:
        results: folder of the answers; made.
        manifest: of the export that is to be asked.
        kind: of the engine.
    """
    suffixes = (".engine",) if kind == "tensorrt" else (".onnx", ".onnx.data")
    asked = {name: entry.sha256 for name, entry in manifest.files.items() if name.endswith(suffixes)}
    text = json.dumps({"engine": kind, "files": asked}, indent=2, sort_keys=True) + "\n"
    path = results / _EXPORT
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        (results / run.PREDICTIONS).unlink(missing_ok=True)
        results.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def ask(engine: Engine, benchmark: Benchmark, directory: Path) -> dict[str, Any]:
    """Accuracy by kind of question, under the node's grammar; an interrupted run goes on."""
    protocol = PROTOCOLS["letter"]
    plan = Plan(protocol, seeds=1, permutations=1, blind=False)
    run.ask(engine, benchmark, plan, run.Labels(), directory)
    return run.score(directory, [protocol.name])[protocol.name]


def table(reports: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each report, the first of which the others are compared with."""
    first = next(iter(reports.values()))
    rows = []
    for name, report in reports.items():
        cells = {"overall": report["overall"], **report["by_kind"]}
        rows.append(
            {
                "name": name,
                "engine": report["model"]["engine"],
                "precision": report["model"]["dtype"],
                "n": report["overall"]["n"],
                "accuracy": {kind: round(100 * cell["mean"], 1) for kind, cell in cells.items()},
                "ci95": [round(100 * bound, 1) for bound in report["overall"]["ci95"]],
                "lost_points": round(100 * (first["overall"]["mean"] - report["overall"]["mean"]), 2),
            }
        )
    return rows


def losses(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What to say about rows that lose more than a point."""
    return [
        f"{row['name']} ({row['precision']}) loses {row['lost_points']} points of "
        f"{rows[0]['accuracy']['overall']} on {row['n']} questions: take another precision, or calibrate on "
        "more of your own data"
        for row in rows
        if row["lost_points"] > WARN_POINTS
    ]


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a table, accuracy in %."""
    kinds = list(rows[0]["accuracy"])
    lines = [
        "| model | precision | engine | n | " + " | ".join(kinds) + " | 95 % | lost |",
        "|" + "---|" * (len(kinds) + 6),
    ]
    for row in rows:
        values = " | ".join(str(row["accuracy"].get(kind, "")) for kind in kinds)
        low, high = row["ci95"]
        lines.append(
            f"| {row['name']} | {row['precision']} | {row['engine']} | {row['n']} | {values} | "
            f"{low} to {high} | {row['lost_points']:+.1f} |"
        )
    return "\n".join(lines) + "\n"


def _benchmark(options: argparse.Namespace, model: ModelSpec) -> Benchmark:
    if options.bench == "sim":
        folders = options.data or [Path("build/nano/episodes/held_out"), Path("build/nano/clips/held_out")]
        return simulated(find_sources(folders, model.window_frames), options.windows, model)
    return data_set(Path(options.bench), model, options.split, options.windows)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.export compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", type=Path, required=True, help="checkpoint directory")
    parser.add_argument("--export", type=Path, nargs="+", required=True, help="folders of its exports")
    parser.add_argument("--bench", default="sim", help="sim, or a data set (folder or .jsonl)")
    parser.add_argument("--data", type=Path, nargs="+", default=[], help="folders for sim")
    parser.add_argument("--split", default="", help="of a data set (all)")
    parser.add_argument("--windows", type=int, default=100, help="of each simulated source, or in all (100)")
    parser.add_argument("--engine", choices=("onnx", "tensorrt"), default="onnx", help="for the exports")
    parser.add_argument(
        "--out", type=Path, default=Path("build/export/compare"), help="folder of the results"
    )
    return parser
