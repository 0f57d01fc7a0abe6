# SPDX-License-Identifier: Apache-2.0
"""Evaluate a checkpoint, through the engine that is deployed.

    python -m training.eval --model models/nano --bench sim
    python -m training.eval --model DIR --bench embodied --data FOLDER --protocol strict --seeds 5
    python -m training.eval --model DIR --bench FOLDER_OR_FILE
    python -m training.eval score DIR                        # reports anew, without the model
    python -m training.eval calibrate DIR --model models/nano --write     # confidences; see calibration.py
    python -m training.eval compare BEFORE AFTER             # paired differences, with intervals
    python -m training.eval export DIR/letter.json ... --out models/nano/eval.json

Started again with the same --out, it goes on where it was. An --out that holds another model or benchmark is
refused without --replace.
"""

from __future__ import annotations

import argparse
import dataclasses
import errno
import sys
from pathlib import Path
from typing import Any

from cosmos_reason_node.engine.base import Engine
from cosmos_reason_node.errors import CosmosReasonError
from cosmos_reason_node.models.spec import ModelSpec, read_model_spec
from training.data.problems import DataError
from training.settings import ConfigError
from training.sft.lock import only_run

from . import calibration, compare, export, run
from .benchmarks import FAMILIES, data_set, family
from .item import Benchmark
from .markdown import kinds
from .protocol import OUTPUT_TOKENS, PROTOCOLS
from .rollout import Plan

SIM = "sim"
SIM_DATA = (Path("build/nano/episodes"), Path("build/nano/clips"))
SIM_SPLIT, SIM_WINDOWS = "held_out", 300
_FULL = (errno.ENOSPC, errno.EDQUOT)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    commands = {"score": _score, "compare": _compare, "export": _export, "calibrate": _calibrate}
    command = commands.get(given[0] if given else "", _evaluate)
    try:
        command(given if command is _evaluate else given[1:])
    except ConfigError as error:  # of the lock, which training runs share
        print(f"training.eval: {str(error).replace('run.output', '--out')}", file=sys.stderr)
        return 1
    except (CosmosReasonError, DataError, ValueError, OSError) as error:
        full = isinstance(error, OSError) and error.errno in _FULL
        advice = ": make room there and start it again; all answers before are kept" if full else ""
        print(f"training.eval: {error}{advice}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("training.eval: interrupted; start it again to go on", file=sys.stderr)
        return 130
    return 0


def _evaluate(arguments: list[str]) -> None:
    options = _parser().parse_args(arguments)
    protocol = PROTOCOLS[options.protocol]
    think = options.think_tokens if options.think_tokens >= 0 else OUTPUT_TOKENS if protocol.free else 0
    if options.slide < 0 or (options.approximate and not options.slide):
        raise ValueError("--approximate needs --slide N, N at least 1")
    way = f"slide {options.slide}{' approximate' * options.approximate}" if options.slide else ""
    plan = Plan(
        protocol, options.seeds, options.permutations, not options.no_blind, think, options.branches, way
    )
    model = read_model_spec(options.model)
    benchmark = _benchmark(options, model)
    known = options.bench in (SIM, *FAMILIES)
    asked = [benchmark.name] if known else [_place(Path(options.bench)), options.split]
    parts = [checkpoint_name(options.model), *asked, *map(_place, options.data), way]
    directory = options.out or Path("build/eval") / "-".join(filter(None, parts)).replace(" ", "-")
    for note in benchmark.notes:
        print(f"note: {note}", file=sys.stderr)
    labels = run.Labels(options.stage, tuple(options.held_out_tasks))
    with only_run(directory):
        engine = _engine(options, model)
        run.ask(engine, benchmark, plan, labels, directory, replace=options.replace)
        engine.close()
        reports = run.score(directory)
    _show(reports, directory, options.protocol)


def checkpoint_name(directory: Path) -> str:
    """Name for a checkpoint's results: training calls all of its own "model", each in its run's folder."""
    path = directory.expanduser().resolve()
    return f"{path.parent.name}-{path.name}" if path.name == "model" else path.name


def _place(path: Path) -> str:
    """The end of a path, by which data sets are told apart in the names of folders."""
    path = path.resolve()
    parts = path.with_suffix("").parts[1:][-3:] if path.is_file() else path.parts[1:][-2:]
    return "-".join(parts)


def _engine(options: argparse.Namespace, model: ModelSpec) -> Engine:
    # Importing torch takes seconds: whatever is wrong with the arguments has been said by now.
    import torch

    from cosmos_reason_node.engine.torch import TorchEngine
    from cosmos_reason_node.models.load import load

    if options.threads:
        torch.set_num_threads(options.threads)
    # Every answer counts here, however unsure: min_confidence 0 leaves no verdict UNKNOWN.
    loaded = load(options.model, options.device, options.dtype)
    engine: Engine = TorchEngine(loaded, min_confidence=0.0)
    if options.slide:
        from .slid import SlidEngine

        refresh_every = options.slide + 1 if options.approximate else 0
        kept = model.window_frames // model.patches.temporal_patch
        engine = SlidEngine(
            TorchEngine(
                loaded, min_confidence=0.0, kept_pairs=kept, refresh_every=refresh_every, drafts=False
            ),
            options.slide,
        )
    return engine


def _benchmark(options: argparse.Namespace, model: ModelSpec) -> Benchmark:
    if options.bench == SIM:
        return _simulated(options, model)
    if options.windows or options.frames:
        raise ValueError(f"--windows and --frames are for --bench {SIM}: leave them out")
    if options.bench in FAMILIES:
        if options.split:
            raise ValueError(f"--bench {options.bench} has no splits: leave --split out")
        if len(options.data) != 1:
            raise ValueError(
                f"--bench {options.bench} needs the folder of its files: --data FOLDER "
                f"({FAMILIES[options.bench].origin})"
            )
        return family(options.bench, options.data[0], model, options.limit)
    path = Path(options.bench)
    if not path.exists():
        raise ValueError(f"--bench must be {SIM}, {', '.join(FAMILIES)}, or a data set; there is no {path}")
    if options.data:
        raise ValueError(f"{path} is a data set and needs no --data: leave it out")
    return data_set(path, model, options.split, options.limit)


def _simulated(options: argparse.Namespace, model: ModelSpec) -> Benchmark:
    from .simulated import find_sources, simulated  # its libraries are not needed for files

    if options.limit:
        raise ValueError(f"--limit is for benchmarks from files: say with --windows how many {SIM} takes")
    if options.data and options.split:
        raise ValueError(
            f"--split says which folders of {SIM_DATA[0].parent} to take, --data names others: leave one out"
        )
    split = options.split or SIM_SPLIT
    own = [path / split for path in SIM_DATA]
    folders = options.data or [path for path in own if path.is_dir()] or own[:1]
    sources = find_sources(folders, options.frames or model.window_frames)
    made = simulated(sources, options.windows or SIM_WINDOWS, model)
    made = dataclasses.replace(made, origin=f"{SIM} of {', '.join(str(path.resolve()) for path in folders)}")
    if split == SIM_SPLIT:
        return made
    return dataclasses.replace(made, name=f"{SIM}-{split}", notes=(f"Split {split}.",))


def _show(reports: dict[str, dict[str, Any]], directory: Path, first: str = "") -> None:
    for name, report in reports.items():
        if not first or name == first:
            print(f"\n{report['model']['model_id']}, protocol {name}\n\n{kinds(report)}")
        print(f"written: {directory / name}.json .md .html")


def _score(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m training.eval score")
    parser.add_argument("directory", type=Path, help="the --out of an evaluation")
    parser.add_argument("--protocol", choices=PROTOCOLS, help="only this one")
    options = parser.parse_args(arguments)
    _show(run.score(options.directory, [options.protocol] if options.protocol else []), options.directory)


def _calibrate(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m training.eval calibrate")
    parser.add_argument("directory", type=Path, help="the --out of an evaluation with protocol letter")
    parser.add_argument("--model", type=Path, required=True, help="the checkpoint that was evaluated")
    parser.add_argument("--write", action="store_true", help="put the temperature into the checkpoint")
    options = parser.parse_args(arguments)
    fitted = calibration.calibrate(options.directory, options.model)
    print(
        f"temperature {fitted.temperature} from {fitted.items} verdicts: expected calibration error "
        f"{fitted.error_before:.4f} -> {fitted.error_after:.4f}, log loss {fitted.loss_before:.4f} -> "
        f"{fitted.loss_after:.4f}"
    )
    if options.write:
        print(f"written to {calibration.write(options.model, fitted.temperature)}")


def _export(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m training.eval export")
    parser.add_argument("reports", type=Path, nargs="+", help="DIR/{protocol}.json")
    parser.add_argument("--out", type=Path, required=True, help="e.g. models/nano/eval.json")
    options = parser.parse_args(arguments)
    made = export.export(options.reports, options.out)
    print(f"{len(made)} rows written to {options.out}")


def _compare(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m training.eval compare")
    parser.add_argument("before", type=Path, help="the --out of an evaluation")
    parser.add_argument("after", type=Path, help="of another model, asked the same")
    parser.add_argument("--protocol", choices=PROTOCOLS, default="letter", help="default: letter")
    options = parser.parse_args(arguments)
    print(compare.table(compare.compare(options.before, options.after, options.protocol)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.eval",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", type=Path, required=True, help="checkpoint directory")
    parser.add_argument(
        "--bench", required=True, help=f"{SIM}, {', '.join(FAMILIES)}, or a data set (folder or .jsonl)"
    )
    parser.add_argument(
        "--data",
        type=Path,
        nargs="+",
        default=[],
        help=f"where its files are (default for {SIM}: {', '.join(map(str, SIM_DATA))}, in them --split)",
    )
    parser.add_argument("--protocol", choices=PROTOCOLS, default="letter", help="default: letter")
    parser.add_argument("--seeds", type=positive, default=5, help="runs of a sampling protocol (5)")
    parser.add_argument("--permutations", type=positive, default=4, help="orders of the options (4)")
    parser.add_argument("--no-blind", action="store_true", help="do not ask without video")
    parser.add_argument(
        "--think-tokens",
        type=int,
        default=-1,
        help=f"tokens of reasoning (letter: 0), or of the whole output (else: {OUTPUT_TOKENS}; 0: the empty "
        "thought is given)",
    )
    parser.add_argument("--windows", type=positive, default=0, help=f"of a source of {SIM} ({SIM_WINDOWS})")
    parser.add_argument("--frames", type=int, default=0, help="of a simulated robot window (0: the model's)")
    parser.add_argument("--split", default="", help=f"of a data set (all) or of {SIM} ({SIM_SPLIT})")
    parser.add_argument("--limit", type=int, default=0, help="most clips of a benchmark from files (all)")
    parser.add_argument(
        "--held-out-tasks",
        nargs="+",
        default=[],
        metavar="NAME",
        help="scenes, tasks or actions that were never trained on: reported apart",
    )
    parser.add_argument("--stage", choices=("base", "sft", "rl"), default="sft", help="of the model (sft)")
    parser.add_argument("--branches", type=positive, default=32, help="questions at once (32)")
    parser.add_argument(
        "--slide", type=int, default=0, metavar="N", help="let windows slide into place by N pairs (slid.py)"
    )
    parser.add_argument(
        "--approximate", action="store_true", help="with --slide: in the engine's approximate mode"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16, float16")
    parser.add_argument("--threads", type=int, default=0, help="of torch on the CPU (0: its default)")
    parser.add_argument("--out", type=Path, help="folder of the evaluation (build/eval/MODEL-BENCH-SPLIT)")
    parser.add_argument(
        "--replace", action="store_true", help="let reports go that --out holds of another model or benchmark"
    )
    return parser


def positive(text: str) -> int:
    """An argument that is a number, at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, not {value}")
    return value


if __name__ == "__main__":
    sys.exit(main())
