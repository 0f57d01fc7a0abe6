# SPDX-License-Identifier: Apache-2.0
"""``python -m training.data check DIR`` and ``python -m training.data bag BAG OUT``; see docs/data.md."""

from __future__ import annotations

import argparse
import errno
import sys
from pathlib import Path

from cosmos_reason_node.deployment import bundled_model
from cosmos_reason_node.errors import CosmosReasonError
from cosmos_reason_node.models.spec import read_model_spec

from .check import check, report_text, show_progress, unusable, write_json
from .media import WindowSpec
from .problems import DataError, Report
from .readers import READERS, joined, open_data_set

_FULL = ": make room there and start again; what is whole is not made again"
_ADVICE = {errno.ENOSPC: _FULL, errno.EDQUOT: _FULL}


def main(arguments: list[str] | None = None) -> int:
    """Run a command; 0 = all is well, 1 = it is not, 2 = the command line is wrong."""
    parser = argparse.ArgumentParser(prog="python -m training.data", description="Data sets: check, convert.")
    commands = parser.add_subparsers(dest="command", required=True)
    _add_check(commands.add_parser("check", help="list what is wrong with a data set, before it is used"))
    _add_bag(commands.add_parser("bag", help="make a data set of a recorded bag"))
    options = parser.parse_args(arguments)
    try:
        return {"check": _check, "bag": _bag}[options.command](options)
    except DataError as error:
        print(error, file=sys.stderr)
    except CosmosReasonError as error:
        print(error.message, file=sys.stderr)
    except OSError as error:  # a write names no file: it is one of those that were to be made
        file = error.filename or getattr(options, "out", None) or getattr(options, "json", None)
        print(
            f"{file or 'output'}: {error.strerror or error}{_ADVICE.get(error.errno or 0, '')}",
            file=sys.stderr,
        )
    return 1


def _add_check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", type=Path, metavar="DIR", help="folder of the data set")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was found")
    parser.add_argument(
        "--against",
        type=Path,
        nargs="+",
        default=[],
        metavar="DIR",
        help="data sets it must share nothing with",
    )
    parser.add_argument("--layout", choices=sorted(READERS), default="", help="default: find out")
    parser.add_argument("--processes", type=_count, default=0, help="default: one a core, at most 8")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must be 0 or more, not {value}")
    return value


def _add_bag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bag", type=Path, metavar="BAG", help="rosbag2 directory, or one .mcap or .db3 file")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of the data set; made when missing")
    parser.add_argument(
        "--labels", type=Path, metavar="FILE", help="where to cut windows, and what is true there"
    )
    parser.add_argument(
        "--corrections",
        type=Path,
        metavar="FILE",
        help="operators' labels for its decisions (default: corrections.jsonl beside the bag)",
    )
    parser.add_argument(
        "--model", type=Path, help="checkpoint whose windows are cut (default: the bundled one)"
    )
    parser.add_argument("--split", default="train", help="split of all samples (default: train)")


def _check(options: argparse.Namespace) -> int:
    try:
        data = open_data_set(options.directory, options.layout, strict=False)
        if options.against:
            data = joined(data, [open_data_set(other, strict=False) for other in options.against])
    except DataError as error:
        result = unusable(options.directory, error.problems)
    else:
        result = check(data, options.processes, None if options.quiet else show_progress)
    print(report_text(result))
    if options.json:
        write_json(result, options.json)
    return 0 if result.ok else 1


def _bag(options: argparse.Namespace) -> int:
    from .bag import convert  # here: the only command that needs a bag library

    spec = WindowSpec.of(read_model_spec(options.model or bundled_model()))
    report = Report()
    if options.corrections and not options.corrections.exists():
        raise FileNotFoundError(2, "there is no such file of corrections", str(options.corrections))
    samples = convert(
        options.bag,
        options.out,
        report,
        spec=spec,
        labels=options.labels,
        corrections=options.corrections,
        split=options.split,
    )
    for problem in report.problems:
        print(problem, file=sys.stderr)
    silent = report.rows - report.bad_rows - len(samples)
    print(
        f"{options.bag}: {len(samples)} samples from {report.rows} decisions and labels "
        f"({report.bad_rows} unusable, {silent} without an answer)"
    )
    return 0 if samples and not report.problems else 1


if __name__ == "__main__":
    sys.exit(main())
