# SPDX-License-Identifier: Apache-2.0
"""Three questions of a window that slides by two frames: the engine against transformers' ``generate``.

    python -m benchmarks.streaming --json benchmarks/results/streaming.json

One process, the contenders in turn on every window, greedy, answers of one fixed length, tokens compared:

- ``generate``: called once per question on the stock network, as the released script does.
- ``best_generate``: the same with the best of its settings here (static cache; compiled with ``--compile``).
- ``engine``: the frame pair is observed when it arrives, then the questions are asked; both count. It
  guesses answers from those about earlier windows (engine/drafts.py), which pays as far as they repeat;
  ``engine_without_guesses`` does not.

Seconds are of one CPU thread's time (``cpu_s``; on a machine with nothing else to do that is what a clock
shows) and of the clock (``clock_s``); speed-ups are ratios of medians of the first on a CPU and of the second
on a GPU. Memory is this process's resident set over many more windows of the engine alone. Where there is a
GPU, ``gpu`` has a network of the 7B shape with random weights; see streaming_gpu.py.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch

from cosmos_reason_node import deployment, prompt
from cosmos_reason_node.engine.base import Done, Request
from cosmos_reason_node.engine.torch import TorchEngine
from cosmos_reason_node.models import qwen2_5_vl
from cosmos_reason_node.models.tokenizer import TextTokenizer
from cosmos_reason_node.types import Frame, Query, QueryKind, Window
from cosmos_reason_node.vision.resize import resize

from .cost import COSMOS_REASON1_7B, Work, rows, table
from .machine import command_line, describe_machine
from .reference import Reference

CLIP = Path(__file__).parents[1] / "tests/assets/drawer_open.mp4"
FRAMES, STRIDE = 32, 2
PERIOD_NS = 250_000_000
QUESTION_TOKENS = 40
FILLER = "Is the drawer open now and can the robot arm pull the handle or is it closed again at the end?"


def read_frames(path: Path, count: int, size: tuple[int, int], every: int = 3) -> list[Frame]:
    """Every third frame of a clip as the ticks of a grid; the clip goes back and forth if it is too short."""
    import av

    with av.open(str(path)) as container:
        images = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)][::every]
    there_and_back = itertools.cycle([*images, *images[-2:0:-1]])
    return [
        Frame("camera", (i + 1) * PERIOD_NS, i, resize(image, size))
        for i, image in zip(range(count), there_and_back, strict=False)
    ]


def window(frames: Sequence[Frame], first: int, count: int = FRAMES) -> Window:
    """``count`` frames from tick ``first``."""
    return Window("camera", tuple(frames[first : first + count]), first, PERIOD_NS, 0, count)


def questions(tokenizer: TextTokenizer, count: int = 3) -> list[Query]:
    """Different questions, of ``QUESTION_TOKENS`` tokens each where the tokenizer allows it."""

    def query(words: Sequence[str]) -> Query:
        return Query(QueryKind.QUESTION, question=" ".join(words), think_tokens=0)

    found, words = [], FILLER.split()
    for number in range(count):
        turned = words[2 * number :] + words[: 2 * number]
        tries = [query(turned[:length]) for length in range(1, len(turned) + 1)]
        lengths = [len(prompt.encode_suffix(tokenizer, one)) for one in tries]
        found.append(tries[min(range(len(tries)), key=lambda i: abs(lengths[i] - QUESTION_TOKENS))])
    return found


class Clock:
    """CPU time and time of one piece of work."""

    def __init__(self) -> None:
        self.cpu_s: list[float] = []
        self.clock_s: list[float] = []

    def __call__(self, work: Callable[[], Any]) -> Any:
        """Do the work; its result."""
        cpu, clock = time.process_time(), time.perf_counter()
        result = work()
        self.cpu_s.append(time.process_time() - cpu)
        self.clock_s.append(time.perf_counter() - clock)
        return result

    def report(self) -> dict[str, float]:
        """Medians over the windows but the first, which warms up."""
        return {
            "cpu_s": round(statistics.median(self.cpu_s[1:]), 5),
            "clock_s": round(statistics.median(self.clock_s[1:]), 5),
            "clock_s_max": round(max(self.clock_s[1:]), 5),
        }


def ask(engine: TorchEngine, seen: Window, queries: Sequence[Query], tokens: int) -> list[list[int]]:
    """The engine's answers, ``tokens`` long."""
    request = Request(
        "benchmark", (seen,), tuple(queries), max_answer_tokens=tokens, free=True, min_tokens=tokens
    )
    done = {event.branch: event.answer for event in engine.answer(request) if isinstance(event, Done)}
    return [list(done[branch].token_ids) for branch in range(len(queries))]


def stream(
    engine: TorchEngine, frames: Sequence[Frame], first: int, queries: Sequence[Query], tokens: int
) -> list[list[int]]:
    """A pair arrives, and the window that it completes is asked about."""
    engine.observe(window(frames, first + FRAMES - STRIDE, STRIDE))
    return ask(engine, window(frames, first), queries, tokens)


def repeat(reference: Reference, seen: Window, queries: Sequence[Query], tokens: int) -> list[list[int]]:
    """``generate`` once per question."""
    return [reference.answer(seen, query, tokens) for query in queries]


def slide(
    engines: dict[str, TorchEngine],
    references: dict[str, Reference],
    frames: Sequence[Frame],
    queries: Sequence[Query],
    windows: int,
    tokens: int,
) -> dict[str, Any]:
    """All contenders, window by window."""
    clocks = {name: Clock() for name in (*engines, *references)}
    different = 0
    for number in range(windows):
        first = number * STRIDE
        seen = window(frames, first)

        said = [
            clocks[name](partial(stream, engine, frames, first, queries, tokens))
            for name, engine in engines.items()
        ]
        said += [
            clocks[name](partial(repeat, reference, seen, queries, tokens))
            for name, reference in references.items()
        ]
        different += sum(answers != said[-1] for answers in said)
    return {
        "windows": windows,
        "answers_of_each": windows * len(queries),
        "windows_answered_differently": different,
        **{name: clock.report() for name, clock in clocks.items()},
    }


def memory(
    engine: TorchEngine, frames: Sequence[Frame], queries: Sequence[Query], count: int
) -> dict[str, Any]:
    """Resident set of this process while the engine slides over ``count`` windows."""
    process, samples = psutil.Process(), []
    positions = len(frames) - FRAMES
    for number in range(count):
        first = number * STRIDE % positions
        ask(engine, window(frames, first), queries, 4)
        if number in (count // 10, count // 2, count - 1):
            samples.append(round(process.memory_info().rss / 2**20, 1))
    assert engine.machine is not None
    return {
        "windows": count,
        "rss_mib_after_10_50_100_percent": samples,
        "growth_mib": round(samples[-1] - samples[0], 1),
        "vision_cache_bytes_per_camera": max(engine.machine.vision.bytes_by_camera.values()),
        "prefix_cache_bytes": engine.machine.prefixes.nbytes,
    }


def grammar_share(engine: TorchEngine, seen: Window) -> dict[str, Any]:
    """Part of the time of constrained answers that is spent in the grammar's Python."""
    from cosmos_reason_node.engine import grammar

    spent, steps = 0.0, 0

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            nonlocal spent, steps
            start = time.process_time()
            try:
                return function(*arguments)
            finally:
                spent += time.process_time() - start
                steps += 1

        return run

    queries = [
        Query(QueryKind.COMPLETION, task="open the drawer", think_tokens=48),
        Query(QueryKind.NEXT_ACTION, task="open the drawer", options=("reach", "pull"), think_tokens=48),
        Query(QueryKind.NEXT_ACTION, task="open the drawer", think_tokens=48),
    ]
    originals = {name: getattr(grammar.Branch, name) for name in ("take", "step", "push")}
    try:
        for name, function in originals.items():
            setattr(grammar.Branch, name, timed(function))
        start = time.process_time()
        events = list(engine.answer(Request("grammar", (seen,), tuple(queries))))
        total = time.process_time() - start
    finally:
        for name, function in originals.items():
            setattr(grammar.Branch, name, function)
    tokens = sum(event.answer.output_tokens for event in events if isinstance(event, Done))
    return {
        "tokens": tokens,
        "grammar_us_per_token": round(1e6 * spent / tokens, 1),
        "share": round(spent / total, 4),
    }


def on_cpu(model_dir: Path, windows: int, tokens: int, compiled: bool, memory_windows: int) -> dict[str, Any]:
    """The CPU section."""
    from transformers import Qwen2_5_VLForConditionalGeneration

    torch.set_num_threads(1)
    model = qwen2_5_vl.load(model_dir, "cpu", "float32")
    stock = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        model_dir, dtype=torch.float32, attn_implementation="sdpa", local_files_only=True
    ).eval()
    engine, plain = (
        TorchEngine(model, min_confidence=0.0, kept_pairs=FRAMES // 2 + 2, drafts=drafts)
        for drafts in (True, False)
    )
    engines = {"engine": engine, "engine_without_guesses": plain}
    references = {
        "generate": Reference(stock, model.tokenizer, model.spec),
        "static": Reference(stock, model.tokenizer, model.spec, static=True),
    }
    if compiled:
        references["static_compiled"] = Reference(
            stock, model.tokenizer, model.spec, static=True, compiled=True
        )
    size = model.spec.frame_size_for(448, 448)
    frames = read_frames(CLIP, FRAMES + STRIDE * windows, size)
    queries = questions(model.tokenizer)
    result = slide(engines, references, frames, queries, windows, tokens)
    work = vars(engine.statistics)
    best = min((name for name in references), key=lambda name: result[name]["cpu_s"])
    engine_s = result["engine"]["cpu_s"]
    return {
        "speedup_vs_generate": round(result["generate"]["cpu_s"] / engine_s, 2),
        "speedup_vs_best_generate": round(result[best]["cpu_s"] / engine_s, 2),
        "tokens_equal": result["windows_answered_differently"] == 0,
        "speedup_without_guesses": round(
            result["generate"]["cpu_s"] / result["engine_without_guesses"]["cpu_s"], 2
        ),
        "best_generate": best,
        "dtype": "float32",
        "threads": 1,
        "window": f"{FRAMES} frames of {size[0]}x{size[1]}, sliding by {STRIDE}",
        "question_tokens": [len(prompt.encode_suffix(model.tokenizer, query)) for query in queries],
        "answer_tokens": tokens,
        **result,
        "grammar": grammar_share(engine, window(frames, 0)),
        "memory": memory(engine, frames, queries, memory_windows),
        "statistics": work,
    }


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.streaming", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--json", type=Path, help="where to write the result")
    parser.add_argument("--model", type=Path, help="checkpoint directory (default: the bundled one)")
    parser.add_argument("--windows", type=int, default=24, help="windows of the comparison")
    parser.add_argument("--tokens", type=int, default=48, help="of each answer")
    parser.add_argument("--compile", action="store_true", help="let generate compile, too (a minute)")
    parser.add_argument("--memory-windows", type=int, default=1000, help="windows of the memory check")
    parser.add_argument("--no-cpu", action="store_true", help="only the GPU section")
    options = parser.parse_args()
    result: dict[str, Any] = {
        "command": command_line(),
        "machine": describe_machine(("torch", "transformers")),
    }
    if not options.no_cpu:
        model_dir = (options.model or deployment.bundled_model()).absolute()
        cpu = on_cpu(model_dir, options.windows, options.tokens, options.compile, options.memory_windows)
        for key in ("speedup_vs_generate", "speedup_vs_best_generate", "tokens_equal"):
            result[key] = cpu.pop(key)
        result |= {"model": model_dir.name, "cpu": cpu}
    result["counted_7b"] = rows(table(COSMOS_REASON1_7B, Work(answer=options.tokens)))
    if torch.cuda.is_available():
        from .streaming_gpu import on_gpu

        result["gpu"] = on_gpu(options.tokens)
        result.setdefault("tokens_equal", None)
    print(json.dumps(result, indent=1))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
