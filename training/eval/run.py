# SPDX-License-Identifier: Apache-2.0
"""One evaluation on disk: what was asked, what was said, and the reports made of it.

DIR/run.json            model, benchmark, how it was asked
DIR/items.jsonl         questions and right answers
DIR/predictions.jsonl   what was said; only ever appended to
DIR/frames/             a strip of each window's frames
DIR/{protocol}.json .md .html
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cosmos_reason_node.engine.base import Engine
from cosmos_reason_node.types import Window

from .item import Benchmark, Stimulus, read_items, write_items, write_text
from .markdown import markdown
from .page import page
from .prediction import PredictionLog, read_predictions
from .protocol import PROTOCOLS, Protocol
from .report import build
from .rollout import Plan, collect, decoding
from .scoring import Outcome, Run, read_outcomes
from .thumbnails import strip, strip_path

RUN, ITEMS, PREDICTIONS, FRAMES = "run.json", "items.jsonl", "predictions.jsonl", "frames"
_REPORT = (".json", ".md", ".html")
_PROGRESS_S = 5.0


@dataclass(frozen=True)
class Labels:
    """What a reader has to know that neither model nor benchmark says.

    Attributes:
        stage: of training that the model went through: "base", "sft", "rl".
        held_out_tasks: names of tasks that it was never trained on; reported apart.
    """

    stage: str = "sft"
    held_out_tasks: tuple[str, ...] = ()


def ask(
    engine: Engine,
    benchmark: Benchmark,
    plan: Plan,
    labels: Labels,
    directory: Path,
    *,
    replace: bool = True,
) -> None:
    """Ask all that was not asked before, and keep it.

    Args:
        engine: drives the model.
        benchmark: what to ask.
        plan: how.
        labels: for the reports.
        directory: of the evaluation. May hold an earlier one: what still applies is kept.
        replace: let reports go that it holds of another model or benchmark; answers are kept all the same.

    Raises:
        ValueError: a file in it is damaged, or it holds what may not be replaced.
        OSError: it cannot be written.
    """
    with _named(directory):
        _write_run(engine, benchmark, plan, labels, directory, replace)
        _ask(engine, benchmark, plan, directory)


def _ask(engine: Engine, benchmark: Benchmark, plan: Plan, directory: Path) -> None:
    write_items(directory / ITEMS, benchmark.items)
    log = PredictionLog(directory / PREDICTIONS)

    def shown(stimulus: Stimulus, windows: Sequence[Window]) -> None:
        path = strip_path(directory / FRAMES, stimulus.key)
        if windows and not path.exists():
            path.parent.mkdir(exist_ok=True)
            partial = path.with_suffix(".partial")
            partial.write_bytes(strip(windows))
            partial.replace(path)

    collect(engine, benchmark, plan, log, shown=shown, progress=_progress(len(benchmark.stimuli)))


@contextmanager
def _named(directory: Path) -> Iterator[None]:
    """A write that fails, of a full disk say, does not tell where it was to go."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(directory)
        raise


@dataclass(frozen=True)
class Evaluation:
    """What is known of an evaluation without its model.

    Attributes:
        outcomes: of the items that were asked in full.
        unasked: number of items that were not.
        settings: how they were asked.
        facts: see read_run.
    """

    outcomes: list[Outcome]
    unasked: int
    settings: dict[str, Any]
    facts: dict[str, Any]


def read_evaluation(directory: Path, protocol: str) -> Evaluation:
    """An evaluation's files, read by a protocol.

    Raises:
        FileNotFoundError, ValueError: there is no evaluation, a file of it is damaged, or it was not asked
            for this protocol.
    """
    facts = read_run(directory)
    settings = facts["asked"].get(_way(PROTOCOLS[protocol]))
    if settings is None:
        raise ValueError(
            f"{directory} was not asked for protocol {protocol}: run it with --protocol {protocol}"
        )
    run = Run(
        facts["model"]["digest"],
        facts["model"]["prompt_id"],
        settings["decoding"],
        settings["seeds"],
        settings["permutations"],
        settings["blind"],
    )
    items, log = read_items(directory / ITEMS), read_predictions(directory / PREDICTIONS)
    outcomes, unasked = read_outcomes(items, log, run, PROTOCOLS[protocol])
    return Evaluation(outcomes, unasked, settings, facts)


def score(directory: Path, protocols: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """Make the reports of an evaluation anew, from its files alone.

    Args:
        directory: of the evaluation.
        protocols: by name; () = all for which any of its present questions was asked.

    Returns:
        Reports by protocol, as written to {protocol}.json.

    Raises:
        FileNotFoundError, ValueError: there is no evaluation, or a file of it is damaged.
    """
    asked = read_run(directory)["asked"]
    reports = {}
    for name in protocols or [name for name in PROTOCOLS if _way(PROTOCOLS[name]) in asked]:
        found = read_evaluation(directory, name)
        if not found.outcomes and not protocols:
            continue
        facts = found.facts
        report = build(
            found.outcomes,
            found.unasked,
            {
                "model": facts["model"],
                "stage": facts["stage"],
                "benchmark": facts["benchmark"],
                "protocol": {"name": name, "about": PROTOCOLS[name].about},
                "settings": found.settings,
            },
            held_out_tasks=facts["held_out_tasks"],
            official=facts["benchmark"]["official"],
        )
        with _named(directory):
            write_text(directory / f"{name}.json", json.dumps(report, indent=2, ensure_ascii=False) + "\n")
            write_text(directory / f"{name}.md", markdown(report))
            write_text(directory / f"{name}.html", page(report, found.outcomes, directory / FRAMES))
        reports[name] = report
    if not reports:
        raise ValueError(f"{directory}: no item was asked in full yet: run the evaluation, or let it finish")
    return reports


def _way(protocol: Protocol) -> str:
    """Protocols of the same way share their predictions."""
    return "free" if protocol.free else "grammar"


def _write_run(
    engine: Engine, benchmark: Benchmark, plan: Plan, labels: Labels, directory: Path, replace: bool
) -> None:
    """Note how this is asked; what was noted of other ways to ask the same stays."""
    facts: dict[str, Any] = {
        "model": dataclasses.asdict(engine.info),
        "stage": labels.stage,
        "held_out_tasks": list(labels.held_out_tasks),
        "benchmark": {
            "name": benchmark.name,
            "origin": benchmark.origin,
            "notes": list(benchmark.notes),
            "official": benchmark.official,
            "windows": len(benchmark.stimuli),
            "items": len(benchmark.items),
        },
    }
    asked: dict[str, Any] = {}
    if (directory / RUN).exists():
        before = read_run(directory)
        other = _other(before, facts)
        if other and not replace:
            raise ValueError(
                f"{directory} holds the evaluation of another {other}: choose another --out, or let its "
                "reports go with --replace"
            )
        if other:
            for path in (directory / f"{name}{suffix}" for name in PROTOCOLS for suffix in _REPORT):
                path.unlink(missing_ok=True)
        else:
            asked = before["asked"]
    asked[_way(plan.protocol)] = {
        "decoding": decoding(engine, plan),
        "seeds": plan.runs,
        "permutations": plan.permutations,
        "blind": plan.blind,
        "think_tokens": plan.think_tokens,
    }
    write_text(directory / RUN, json.dumps({**facts, "asked": asked}, indent=2, ensure_ascii=False) + "\n")


def _other(before: dict[str, Any], now: dict[str, Any]) -> str:
    """What an evaluation is of that another one is not; "" = both are of the same."""
    was, asked = before["benchmark"], now["benchmark"]
    by = "origin" if was.get("origin") else "name"  # older ones have no origin
    if was[by] != asked[by]:
        return f"benchmark ({was[by]}, not {asked[by]})"
    if asked["windows"] < was["windows"]:  # more of them go on with what was asked
        return f"number of windows ({was['windows']}, not {asked['windows']})"
    models = [f"{facts['model']['model_id']} {facts['model']['digest'][:12]}" for facts in (before, now)]
    if before["model"]["digest"] != now["model"]["digest"]:
        return f"model ({models[0]}, not {models[1]})"
    ways = [f"{facts['model']['engine']} {facts['model']['dtype']}" for facts in (before, now)]
    return "" if ways[0] == ways[1] else f"engine or precision ({ways[0]}, not {ways[1]})"


def read_run(directory: Path) -> dict[str, Any]:
    """How an evaluation was asked: model, stage, held_out_tasks, benchmark, asked.

    Raises:
        FileNotFoundError, ValueError: there is no evaluation, or its file is damaged.
    """
    path = directory / RUN
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        return {key: facts[key] for key in ("model", "stage", "held_out_tasks", "benchmark", "asked")}
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{directory} holds no evaluation ({RUN} is missing): give the --out of one"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}): delete it and run the evaluation again") from error


def _progress(total: int) -> Callable[[int], None]:
    started = last = time.monotonic()

    def show(done: int) -> None:
        nonlocal last
        now = time.monotonic()
        if done < total and now - last < _PROGRESS_S:
            return
        last = now
        left = (now - started) / done * (total - done)
        print(f"asked {done}/{total} windows, {left:.0f} s left", file=sys.stderr, flush=True)

    return show
