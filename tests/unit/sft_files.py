# SPDX-License-Identifier: Apache-2.0
"""A tiny checkpoint, a data set of a few windows and a configuration to train on it."""

import json
import multiprocessing
import resource
import signal
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import yaml

from tests.unit.nano_files import described
from training.data.readers.jsonl import write_samples
from training.data.schema import Frames, Grid, Provenance, QuestionKind, Sample, Style
from training.sft import loop

PERIOD_NS = 250_000_000  # 4 frames per second, as nano
SIDE = 112


def make_model(directory, *, tied=True, **text):
    """Nano with two layers everywhere and random weights; ``text`` replaces numbers of the language model."""
    from transformers import AutoConfig, Qwen2_5_VLForConditionalGeneration

    directory.mkdir(parents=True, exist_ok=True)
    described(directory)
    config = json.loads((directory / "config.json").read_text())
    config["vision_config"] |= {"depth": 2, "fullatt_block_indexes": [1]}
    config["text_config"] |= {"num_hidden_layers": 2, "layer_types": ["full_attention"] * 2, **text}
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = tied
    (directory / "config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    made = AutoConfig.from_pretrained(directory)
    network = Qwen2_5_VLForConditionalGeneration._from_config(made, dtype=torch.float32)
    network.save_pretrained(directory)
    return directory


def make_samples(windows=6, frames=(2, 4), source="sim"):
    """Windows that are dark or bright, three questions about each; every third window has none to see."""
    samples = []
    for number in range(windows):
        bright = number % 2
        count = frames[number % len(frames)]
        stamps = tuple(PERIOD_NS * (8 + i) for i in range(count))
        media = (Frames((f"{number}.npz",), stamps, grid=Grid(PERIOD_NS, 8)),)
        if number % 3 == 2:
            media = ()
        common = {"media": media, "provenance": Provenance(source, file="made.json", row=number + 1)}
        samples += [
            Sample(
                sample_id=f"{number}-done",
                kind=QuestionKind.TASK_COMPLETION,
                task="open the drawer",
                answer="yes" if bright else "no",
                **common,
            ),
            Sample(
                sample_id=f"{number}-next",
                kind=QuestionKind.NEXT_ACTION,
                task="open the drawer",
                options=("reach for the handle", "pull the drawer open"),
                answer="B" if bright else "A",
                reasoning="The drawer is open." if bright else "The drawer is closed.",
                style=Style.REASONING,
                **common,
            ),
            Sample(
                sample_id=f"{number}-can",
                kind=QuestionKind.AFFORDANCE,
                action="pull the drawer open",
                answer="no" if bright else "yes",
                **common,
            ),
        ]
    return samples


def make_data(directory, windows=6, frames=(2, 4), source="sim"):
    """Write those samples and their frames."""
    rng = np.random.default_rng(0)
    directory.mkdir(parents=True, exist_ok=True)
    for number in range(windows):
        low = 120 * (number % 2)
        pixels = rng.integers(low, low + 100, (frames[number % len(frames)], SIDE, SIDE, 3), np.uint8)
        np.savez_compressed(directory / f"{number}.npz", frames=pixels)
    write_samples(directory, make_samples(windows, frames, source))
    return directory


def settings(base, folder, output, **sections):
    """Settings of a short run on one thread, as a mapping; ``sections`` change single keys."""
    value = {
        "model": {"path": str(base), "compute": "float32", "checkpointing": False},
        "data": {"sources": [{"path": str(folder)}], "max_tokens": 2048, "branches": 2, "workers": 0},
        "optimizer": {"steps": 6, "batch": 4, "peak_rate": 1e-3, "final_rate": 1e-4},
        "run": {"output": str(output), "save_every": 2, "threads": 1, "device": "cpu"},
    }
    for name, changes in sections.items():
        value[name] |= changes
    return value


def write_config(path, value) -> Path:
    """Write settings as YAML."""
    path.write_text(yaml.safe_dump(value))
    return path


def forked(target, *arguments):
    """A child process that runs ``target``; it can be killed."""
    process = multiprocessing.get_context("fork").Process(target=target, args=arguments)
    process.start()
    return process


def held_at(step, target, *arguments):
    """``target(*arguments)`` in a child that waits before step ``step`` (from 0), to be killed there."""
    real = loop._step

    def waiting(job, optimizer, number, *rest):
        if number == step:
            signal.pause()
        return real(job, optimizer, number, *rest)

    loop._step = waiting
    target(*arguments)


@contextmanager
def files_up_to(size):
    """No file may grow beyond ``size`` bytes: writing fails half-way, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)


def wait_for(condition, seconds=600):
    """Wait until ``condition()`` holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)
