# SPDX-License-Identifier: Apache-2.0
"""What asynchronous RL costs and gains.

    python -m benchmarks.async_rl --json benchmarks/results/async_rl.json

- ``rollout_engine``: answers a second of the rollout engine against Hugging Face ``generate``, same weights,
  windows, group size and bound on tokens, in turns. The engine reads video and question once a group. Both
  answer one question at a time, and sixteen in one pass (``rollout.together``).
- ``training_step``: forward and backward of a group on the same weights, with one copy of the question and
  one pass of a frozen tower, against a copy an answer and a pass for policy and reference each.
- ``roles``: a run of processes: share of time that each role waited, cost of publishing weights, and how long
  after the kill of each role the next iteration is complete.
- ``simulation``: phase times measured here, and what training.rl.simulate makes of them, beside the iteration
  times of real runs, synchronous and asynchronous. Their learning rate is next to nothing, or the lengths of
  answers would not stay what they were when measured.
- ``gpu``: with CUDA, synchronous against asynchronous on one card: same questions, iterations and seeds. On
  CPU cores the two share what they run on, so nothing is said about their speed there.

Answers in runs have lengths with a long tail (``toy.THOUGHTS``).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from cosmos_reason_node import prompt
from cosmos_reason_node.decision import DEFAULT_MIN_CONFIDENCE
from cosmos_reason_node.deployment import bundled_model
from cosmos_reason_node.engine.base import Done, Request, Sampling
from cosmos_reason_node.engine.loading import black_window
from cosmos_reason_node.engine.torch import TorchEngine
from cosmos_reason_node.models.qwen2_5_vl import load
from cosmos_reason_node.models.spec import ModelSpec
from cosmos_reason_node.types import Query, QueryKind, Window
from cosmos_reason_node.vision.patchify import patchify
from training.rl import toy
from training.rl.config import GrpoConfig, RlConfig
from training.rl.groups import Ticket
from training.rl.loop import make_roller, run_inline
from training.rl.policy import GrpoLoss, Policy, RlBatch, RowPacker
from training.rl.publish import weight_store
from training.rl.rewards import judge
from training.rl.simulate import Cluster, Phases, asynchronous, synchronous
from training.sft.report import read_log
from training.sft.rows import Branch, pack_rows

from .machine import command_line, describe_machine

GROUP, TOKENS, TOGETHER = 9, 48, 16
QUERY = Query(QueryKind.COMPLETION, task="open the drawer", think_tokens=TOKENS // 2)
ACTORS = {"rollout": "_Rollout", "reward": "_Reward", "trainer": "_Trainer", "books": "_BooksActor"}
QUESTIONS = 6  # of an iteration of the runs
_BATCHES = 4  # of those, to measure phases on


def rollout_engine(model_dir: Path, turns: int) -> dict[str, Any]:
    """Answers a second, in turns."""
    from transformers import Qwen2_5_VLForConditionalGeneration

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load(model_dir, device=device)
    engine = TorchEngine(model, min_confidence=DEFAULT_MIN_CONFIDENCE, join=True)
    spec = model.spec
    windows = [_grey_window(spec, shade) for shade in range(TOGETHER)]
    patches, grids = zip(*(patchify(window.pixels(), spec.patches) for window in windows), strict=True)
    network: Any = Qwen2_5_VLForConditionalGeneration.from_pretrained(model_dir, dtype=model.dtype)
    network = network.to(device).eval()
    tokens = prompt.encode_prefix(model.tokenizer, [spec.patches.visual_tokens(grids[0])])
    tokens += prompt.encode_suffix(model.tokenizer, QUERY)
    end = model.tokenizer.id_of(prompt.END_OF_TURN)
    written: dict[str, int] = {}

    def ours(name: str, count: int, seed: int) -> None:
        requests = [
            Request(
                f"benchmark {place}",
                (windows[place],),
                (QUERY,) * GROUP,
                max_answer_tokens=TOKENS - TOKENS // 2,
                sampling=Sampling(temperature=1.0),
                free=True,
                branch_seeds=tuple(GROUP * (TOGETHER * seed + place) + i for i in range(GROUP)),
            )
            for place in range(count)
        ]
        for _, event in engine.answer_together(requests):
            if isinstance(event, Done):
                written[name] += event.answer.output_tokens

    def theirs(name: str, count: int, seed: int) -> None:
        torch.manual_seed(seed)
        ids = torch.tensor([tokens] * count, device=device)
        with torch.inference_mode():
            made = network.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                pixel_values_videos=torch.from_numpy(np.concatenate(patches[:count])).to(device, model.dtype),
                video_grid_thw=torch.tensor(grids[:count], device=device),
                second_per_grid_ts=torch.tensor([spec.patches.temporal_patch / spec.fps] * count),
                mm_token_type_ids=(ids == spec.video_token).int() * 2,
                do_sample=True,
                temperature=1.0,
                top_p=1.0,
                top_k=0,
                num_return_sequences=GROUP,
                max_new_tokens=TOKENS,
                eos_token_id=end,
                pad_token_id=end,
            )[:, len(tokens) :]
        written[name] += sum(int((row == end).nonzero()[0]) + 1 if end in row else TOKENS for row in made)

    ways: dict[str, tuple[Callable[[str, int, int], None], int]] = {
        "engine": (ours, 1),
        "generate": (theirs, 1),
        "engine_together": (ours, TOGETHER),
        "generate_together": (theirs, TOGETHER),
    }
    clock = time.perf_counter if device == "cuda" else time.process_time
    written = dict.fromkeys(ways, 0)
    for name, (way, count) in ways.items():
        way(name, count, 0)
    written = dict.fromkeys(ways, 0)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(1, turns + 1):
        for name, (way, count) in ways.items():
            started = clock()
            way(name, count, turn)
            seconds[name].append(clock() - started)
    rates = {name: ways[name][1] * GROUP / statistics.median(times) for name, times in seconds.items()}
    return {
        "model": model.spec.model_id,
        "frames": spec.window_frames,
        "group_size": GROUP,
        "together": TOGETHER,
        "max_tokens": TOKENS,
        "turns": turns,
        "clock": "wall" if device == "cuda" else "CPU seconds of one thread: others may run beside it",
        "answers_per_s": {name: round(rate, 2) for name, rate in rates.items()},
        "tokens_an_answer": {
            name: round(count / turns / GROUP / ways[name][1], 1) for name, count in written.items()
        },
        "ratio": {
            "a group at a time": round(rates["engine"] / rates["generate"], 2),
            f"{TOGETHER} groups in a pass, both": round(
                rates["engine_together"] / rates["generate_together"], 2
            ),
            f"{TOGETHER} groups in a pass, to a group at a time": round(
                rates["engine_together"] / rates["generate"], 2
            ),
        },
    }


def _grey_window(spec: ModelSpec, shade: int) -> Window:
    """One that no other shade's features or prefix can be taken for."""
    height, width = spec.frame_size_for(480, 640)
    window = black_window(spec.window_frames, height, width, spec.fps)
    frames = tuple(
        dataclasses.replace(frame, image=np.full_like(frame.image, 8 * shade)) for frame in window.frames
    )
    return dataclasses.replace(window, frames=frames)


def training_step(model_dir: Path, turns: int) -> dict[str, Any]:
    """Seconds of training on a group, in turns."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, other = (load(model_dir, device=device, dtype="float32") for _ in range(2))
    for network in (model.network.model.visual, other.network):
        network.requires_grad_(False)
    spec = model.spec
    height, width = spec.frame_size_for(480, 640)
    window = black_window(spec.window_frames, height, width, spec.fps)
    patches, _ = patchify(window.pixels(), spec.patches)
    video = spec.video_grid(spec.window_frames, height, width, window.fps)
    question = prompt.encode_suffix(model.tokenizer, QUERY)
    answer = prompt.encode_target(model.tokenizer, "", "yes")
    apart = [Branch(question, answer, [1.0] * len(answer), (0, len(answer)))] * GROUP
    shared = [apart[0], *(dataclasses.replace(branch, question=[]) for branch in apart[1:])]
    settings = GrpoConfig()
    ways, lengths = {}, {}
    for name, branches, frozen in (("shared", shared, True), ("apart", apart, False)):
        rows = pack_rows([branches], [[video]], [patches], model.tokenizer, spec)
        values = torch.zeros(len(rows.labels)), torch.linspace(-1.0, 1.0, len(rows.labels))
        batch = RlBatch(rows, *values, total=float(GROUP)).to(torch.device(device))
        policy, reference = (Policy(m, torch.float32, frozen_vision=frozen) for m in (model, other))
        ways[name] = partial(_train, GrpoLoss(policy, reference, settings), batch)
        lengths[name] = rows.size
    clock = time.perf_counter if device == "cuda" else time.process_time
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    losses = {name: way() for name, way in ways.items()}
    for _ in range(turns):
        for name, way in ways.items():
            started = clock()
            way()
            seconds[name].append(clock() - started)
    median = {name: statistics.median(times) for name, times in seconds.items()}
    return {
        "model": spec.model_id,
        "group_size": GROUP,
        "tokens": lengths,
        "answer_tokens": len(answer),
        "seconds": {name: round(value, 4) for name, value in median.items()},
        "losses": losses,
        "ratio": round(median["apart"] / median["shared"], 2),
    }


def _train(objective: GrpoLoss, batch: RlBatch) -> float:
    loss, _ = objective(batch)
    loss.backward()
    objective.zero_grad()
    return loss.item()


def roles(base: Path, data: Path, root: Path, iterations: int) -> dict[str, Any]:
    """Idle shares, publication, recovery."""
    from training.rl.actors import run_ray

    config = _config(base, data, root / "roles", iterations, "ray", 1, save_every=1)
    log = root / "roles" / "monitor"
    done: dict[str, float] = {}
    errors: list[Exception] = []

    def run() -> None:
        try:
            run_ray(config)
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    for number, (role, name) in enumerate(ACTORS.items(), 1):
        _wait(partial(_reached, log, 3 * number, thread))
        before = len(read_log(log))
        killed = _processes(name)[:1]
        for process in killed:
            process.kill()
        started = time.monotonic()
        _wait(partial(_reached, log, before + 1, thread))
        if killed:
            done[role] = round(time.monotonic() - started, 2)
    thread.join()
    if errors:
        raise errors[0]
    entries = read_log(log)
    return {
        "iterations": len(entries),
        "questions": config.questions,
        "group_size": config.grpo.group_size,
        "idle_share": {role: round(share, 3) for role, share in entries[-1]["idle"].items()},
        "publish_s": round(statistics.median(entry["publish_s"] for entry in entries), 4),
        "weights_mb": round(sum(f.stat().st_size for f in _newest(root / "roles" / "weights")) / 1e6, 3),
        "kill_to_next_iteration_s": done,
        "median_iteration_s": round(statistics.median(entry["seconds"] for entry in entries), 2),
        "staleness": entries[-1]["staleness"],
        "counts": entries[-1]["counts"],
    }


def simulation(base: Path, data: Path, root: Path, iterations: int) -> dict[str, Any]:
    """Measured phases, predictions from them, and what happened."""
    from training.rl.actors import run_ray

    still = {"peak_rate": 1e-7, "final_rate": 1e-7}
    phases = measure_phases(_config(base, data, root / "phases", iterations, "inline", 0))
    shape = {"questions": QUESTIONS, "group_size": GROUP, "slots": 1, "train_efficiency": 1.0}
    started = time.monotonic()
    run_inline(_config(base, data, root / "sync", iterations, "inline", 0, optimizer=still))
    sync = _steady(root / "sync")
    run_ray(_config(base, data, root / "async", iterations, "ray", 1, optimizer=still))
    real = _steady(root / "async")
    predicted = synchronous(phases, Cluster(1, **shape))  # type: ignore[arg-type]
    overlapped = asynchronous(phases, Cluster(2, train_share=0.5, max_staleness=1, **shape))  # type: ignore[arg-type]
    return {
        "phases": dataclasses.asdict(phases),
        "seconds": round(time.monotonic() - started, 1),
        "points": [
            _point("one process, synchronous", predicted, sync),
            _point("rollout worker and trainer on a core each, staleness 1", overlapped["seconds"], real),
        ],
    }


def _point(what: str, predicted: float, measured: float) -> dict[str, Any]:
    """Seconds of an iteration, and how far the simulation is from what happened."""
    return {
        "what": what,
        "predicted_s": round(predicted, 3),
        "measured_s": round(measured, 3),
        "measured_to_predicted": round(measured / predicted, 2),
    }


def measure_phases(config: RlConfig) -> Phases:
    """Times of a group's parts and of training on it, in this process."""
    roller = make_roller(config)
    roller.version = 0
    batches, rolled = [], []
    for number in range(_BATCHES):
        groups = []
        for place in range(QUESTIONS):
            ticket = Ticket(number, place, 0)
            started = time.perf_counter()
            group = roller.roll(ticket)
            rolled.append((time.perf_counter() - started, [len(answer.tokens) for answer in group.answers]))
            groups.append(judge(group, roller.sampler.draw(ticket), config))
        batches.append(groups)
    model = load(config.model.path, device=config.run.device, dtype="float32")
    packer = RowPacker(model, config, roller.sampler.window)
    policy, reference = (Policy(m, torch.float32, frozen_vision=False) for m in (model, roller._model))
    objective = GrpoLoss(policy, reference, config.grpo)
    times = []
    for groups in [batches[0], *batches]:  # the first pass warms up
        started = time.perf_counter()
        batch = packer.batch([row for g in groups for row in packer.rows(g, roller.sampler.draw(g.ticket))])
        objective(batch)[0].backward()
        times.append(time.perf_counter() - started)
    store = weight_store(config)
    started = time.perf_counter()
    store.publish(0, model.network.state_dict())
    published = time.perf_counter()
    roller.load(store)
    loaded = time.perf_counter()
    # A group is written until its longest answer ends.
    token_s, prompt_s = np.polyfit([max(lengths) for _, lengths in rolled], [s for s, _ in rolled], 1)
    lengths = [length for _, group in rolled for length in group]
    return Phases(
        prompt_s=max(0.0, float(prompt_s)),
        token_s=float(token_s),
        train_s=statistics.mean(times[1:]) / QUESTIONS / config.grpo.group_size,
        load_s=loaded - published,
        publish_s=published - started,
        median_tokens=statistics.median(lengths),
        sigma=float(np.log(lengths).std()),
        max_tokens=config.rollout.max_tokens,
    )


def gpu(base: Path, data: Path, root: Path, iterations: int) -> dict[str, Any]:
    """Synchronous against asynchronous on one card."""
    from training.rl.actors import run_ray

    found: dict[str, Any] = {}
    for name, staleness in (("synchronous", 0), ("asynchronous", 1)):
        run_ray(_config(base, data, root / name, iterations, "ray", staleness, cuda=True))
        entries = read_log(root / name / "monitor")
        found[name] = {"iteration_s": _steady(root / name), "reward": entries[-1]["reward"]}
    found["speed_up"] = found["synchronous"]["iteration_s"] / found["asynchronous"]["iteration_s"]
    return found


def _config(
    base: Path,
    data: Path,
    output: Path,
    steps: int,
    launcher: str,
    staleness: int,
    *,
    cuda: bool = False,
    save_every: int = 1000,
    optimizer: dict[str, float] | None = None,
) -> RlConfig:
    device = {"device": "cuda", "gpus": 0.5} if cuda else {"device": "cpu"}
    return toy.settings(
        base,
        data,
        output,
        0,
        optimizer={"steps": steps, "batch": QUESTIONS, "warm_up": 0, **(optimizer or {})},
        run={"launcher": launcher, "save_every": save_every, **device},
        rollout={
            "max_staleness": staleness,
            "max_tokens": toy.MAX_THOUGHT + toy.MAX_TOKENS,
            "workers": 1,
            "gpus": 0.5 if cuda else 0.0,
        },
    )


def _reached(log: Path, iterations: int, thread: threading.Thread) -> bool:
    return len(read_log(log)) >= iterations or not thread.is_alive()


def _steady(output: Path) -> float:
    """Seconds of an iteration on average, the first two aside."""
    return statistics.mean(entry["seconds"] for entry in read_log(output / "monitor")[2:])


def _newest(weights: Path) -> list[Path]:
    return list(sorted(weights.glob("step-*"))[-1].iterdir())


def _processes(name: str) -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if f"ray::{name}" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def _wait(condition: Callable[[], bool], seconds: float = 600.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"nothing happened for {seconds:g} s")
        time.sleep(0.02)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.async_rl",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--turns", type=int, default=5, help="of each comparison")
    parser.add_argument("--iterations", type=int, default=12, help="of each run")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    machine = describe_machine(("torch", "transformers", "ray"))
    with tempfile.TemporaryDirectory(prefix="async_rl_") as name:
        root = Path(name)
        data = toy.write_data(root / "data", 64, 1)
        base = toy.warm_up(toy.write_model(root / "base", 0), data, 0, steps=120, thoughts=True)
        report: dict[str, Any] = {
            "command": command_line(),
            "machine": machine,
            "rollout_engine": rollout_engine(bundled_model(), options.turns),
        }
        print(json.dumps(report["rollout_engine"]), flush=True)
        report["training_step"] = training_step(bundled_model(), options.turns)
        print(json.dumps(report["training_step"]), flush=True)
        report["roles"] = roles(base, data, root, options.iterations)
        print(json.dumps(report["roles"]), flush=True)
        report["simulation"] = simulation(base, data, root, options.iterations)
        if torch.cuda.is_available():
            report["gpu"] = gpu(base, data, root, options.iterations)
    text = json.dumps(report, indent=1) + "\n"
    options.json.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
