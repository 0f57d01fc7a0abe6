# SPDX-License-Identifier: Apache-2.0
"""A video question that a very small model learns from rewards alone, in a minute on one core.

    python -m training.rl.toy --seeds 3 --json benchmarks/results/rl_toy.json

Two frames of noise; the light gets brighter or darker from the first to the second, by an amount and from a
start that no single frame tells. The question is multiple choice with options in random order, and answered
by an option's text. The model is first fine-tuned on random answers, so it answers in the right format and at
chance. Then it is trained with rewards: as they are, and as controls with shuffled answers and with blank
videos, both of which have to stay at chance.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from cosmos_reason_node import prompt
from cosmos_reason_node.engine.base import Done, Request
from cosmos_reason_node.engine.torch import TorchEngine
from cosmos_reason_node.models.qwen2_5_vl import LoadedModel, load, wrap
from cosmos_reason_node.models.spec import read_model_spec
from cosmos_reason_node.models.tokenizer import TextTokenizer
from cosmos_reason_node.vision.patchify import patchify
from training.data.media import WindowSpec, load_window
from training.data.readers import open_data_set
from training.data.readers.jsonl import write_samples
from training.data.schema import Frames, Grid, Provenance, QuestionKind, Sample
from training.sft.rows import AnswerLoss, encode_answer, pack_rows

from . import rewards
from .config import RlConfig, make_config

SIDE, FRAMES, PERIOD_NS = 56, 2, 250_000_000
MAX_TOKENS = 8  # of an answer; the right ones have 5
MAX_THOUGHT = 192  # tokens
# Lengths with a long tail, for benchmarks: a letter, how often it is written on average, share of answers. A
# model this small learns a constant chance to end for each letter, so it samples the same mixture.
THOUGHTS = (("x", 6, 0.5), ("y", 20, 0.35), ("z", 60, 0.15))
QUESTION = "What happens to the light?"
OPTIONS = ("it gets brighter", "it gets darker")
CONTROL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
CASES: dict[str, dict[str, bool]] = {"rewards": {}, "shuffled": {"shuffled": True}, "blank": {"blank": True}}
_PIECES = (
    "system\n" + prompt.SYSTEM,
    "user\n",
    "assistant\n",
    "\n" + prompt.OPTIONS_LINE + "\n" + prompt.FORMAT_LINE.format(answer="your single letter answer"),
    prompt.THINK_OPEN,
    prompt.THINK_CLOSE,
    prompt.ANSWER_CLOSE,
    QUESTION,
    "\n(A) ",
    "\n(B) ",
    *OPTIONS,
)


def write_model(directory: Path, seed: int) -> Path:
    """A checkpoint of random weights, 0.1 million parameters, with a tokenizer of whole phrases."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    directory.mkdir(parents=True, exist_ok=True)
    alphabet = {symbol: i for i, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(piece, normalized=False) for piece in _PIECES])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CONTROL])
    tokenizer.save(str(directory / "tokenizer.json"))
    ids: dict[str, Any] = {token: tokenizer.token_to_id(token) for token in CONTROL}
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": tokenizer.get_vocab_size(),
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "max_position_embeddings": 512,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
            "bos_token_id": None,
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
        },
        vision_config={
            "depth": 1,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": 64,
            "fullatt_block_indexes": [0],
            "window_size": SIDE,
            "tokens_per_second": 2,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=False,
    )
    torch.manual_seed(seed)
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(directory)
    own = {"window_frames": FRAMES, "fps": 4.0, "frame_height": SIDE, "frame_width": SIDE}
    (directory / "cosmos_reason.json").write_text(json.dumps(own))
    return directory


def write_data(
    directory: Path, count: int, seed: int, *, shuffled: bool = False, blank: bool = False
) -> Path:
    """A data set of ``count`` questions; ``shuffled`` answers or ``blank`` videos make the controls."""
    rng = np.random.default_rng(seed)
    directory.mkdir(parents=True, exist_ok=True)
    frames = np.zeros((count * FRAMES, SIDE, SIDE, 3), np.uint8)
    truth = rng.permutation(np.arange(count) % 2)
    for number, darker in enumerate(truth):
        start, change = rng.uniform(90, 166), rng.uniform(40, 80) * (-1 if darker else 1)
        for i in range(FRAMES):
            light = start + change * (i - 0.5)
            noisy = rng.normal(light, 20, (SIDE, SIDE, 3))
            frames[number * FRAMES + i] = 0 if blank else noisy.clip(0, 255)
    np.save(directory / "frames.npy", frames)
    told = rng.permutation(truth) if shuffled else truth
    stamps = tuple(PERIOD_NS * (8 + i) for i in range(FRAMES))
    write_samples(
        directory,
        [
            Sample(
                sample_id=str(number),
                media=(
                    Frames(
                        ("frames.npy",),
                        stamps,
                        index=tuple(number * FRAMES + i for i in range(FRAMES)),
                        grid=Grid(PERIOD_NS, 8),
                    ),
                ),
                kind=QuestionKind.OTHER,
                question=QUESTION,
                options=OPTIONS,
                answer="AB"[told[number]],
                provenance=Provenance("toy", file="made.json", row=number + 1),
            )
            for number in range(count)
        ],
    )
    return directory


def warm_up(directory: Path, data: Path, seed: int, steps: int = 80, *, thoughts: bool = False) -> Path:
    """Fine-tune on videos with random answers: teaches the format, and nothing about the light.

    Args:
        directory: the checkpoint, which is replaced.
        data: whose videos.
        seed: of everything random.
        steps: of 12 questions.
        thoughts: also to think before, for lengths with a long tail (``THOUGHTS``).
    """
    model = _trainable(directory)
    rng = np.random.default_rng(seed)
    opened = open_data_set(data)
    window = WindowSpec.of(model.spec)
    objective = AnswerLoss(model)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0)
    grid = model.spec.video_grid(FRAMES, SIDE, SIDE, 4.0)
    for step in range(steps):
        branches, patches = [], []
        for index in rng.integers(len(opened.samples), size=12):
            sample = opened.samples[index].reordered(rng.permutation(2).tolist())
            said = OPTIONS[int(rng.integers(2))]
            thought = draw_thought(rng) if thoughts else ""
            branches.append([encode_answer(model.tokenizer, sample.to_query(), thought, said, 1.0)])
            pixels = load_window(opened.root, sample.media[0], window).pixels()
            patches.append(patchify(pixels, model.spec.patches)[0])
        batch = pack_rows(branches, [[grid]] * len(branches), patches, model.tokenizer, model.spec)
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1.0, (step + 1) / 10) * (1.0 - 0.9 * step / steps)
        optimizer.zero_grad(set_to_none=True)
        (objective(batch)[0] / batch.weight).backward()
        torch.nn.utils.clip_grad_norm_(objective.parameters(), 1.0)
        optimizer.step()
    model.network.save_pretrained(directory)
    return directory


def draw_thought(rng: np.random.Generator) -> str:
    """Reasoning of at most ``MAX_THOUGHT`` tokens: a letter again and again, which tells how long."""
    letter, mean, _ = THOUGHTS[rng.choice(len(THOUGHTS), p=[share for _, _, share in THOUGHTS])]
    return letter * int(min(rng.geometric(1 / mean), MAX_THOUGHT))


def settings(model: Path, data: Path, output: Path, seed: int, /, **sections: dict[str, Any]) -> RlConfig:
    """The configuration of a toy run; ``sections`` change single keys."""
    value: dict[str, dict[str, Any]] = {
        "model": {"path": str(model), "compute": "float32", "checkpointing": False},
        "data": {"sources": [{"path": str(data)}]},
        "run": {"output": str(output), "seed": seed, "device": "cpu", "threads": 1, "save_every": 1000},
        "grpo": {"preset": "paper"},
        "rollout": {"max_tokens": MAX_TOKENS, "max_staleness": 0},
        "optimizer": {
            "steps": 60,
            "batch": 12,
            "peak_rate": 2e-3,
            "final_rate": 5e-4,
            "warm_up": 3,
            "weight_decay": 0.0,
        },
    }
    for name, changes in sections.items():
        value[name] = value[name] | changes
    return make_config(value)


def accuracy(model_dir: Path, data: Path) -> float:
    """Share of questions answered rightly, greedily, in both orders of the options."""
    model = load(model_dir, device="cpu", dtype="float32")
    engine = TorchEngine(model, min_confidence=0.5)
    opened, window = open_data_set(data), WindowSpec.of(model.spec)
    right = 0.0
    for sample in opened.samples:
        asked = [sample, sample.reordered([1, 0])]
        windows = (load_window(opened.root, sample.media[0], window),)
        queries = tuple(one.to_query(think_tokens=MAX_TOKENS - 1) for one in asked)
        for event in engine.answer(Request(sample.sample_id, windows, queries, 1, free=True)):
            if isinstance(event, Done):
                one = asked[event.branch]
                right += rewards.accuracy(event.answer.answer, one.to_query(), one.answer)
    return right / (2 * len(opened.samples))


def learn(root: Path, seed: int, *, shuffled: bool = False, blank: bool = False) -> dict[str, Any]:
    """One run from warm-up to held-out accuracy."""
    from .loop import run_inline

    started = time.monotonic()
    data = write_data(root / "train", 256, 1000 + seed, shuffled=shuffled, blank=blank)
    held_out = write_data(root / "held_out", 100, 5000 + seed, blank=blank)
    base = warm_up(write_model(root / "base", seed), data, seed)
    before = accuracy(base, held_out)
    warmed = time.monotonic()
    run_inline(settings(base, data, root / "run", seed))
    return {
        "seed": seed,
        "before": before,
        "after": accuracy(root / "run" / "model", held_out),
        "warm_up_s": round(warmed - started, 1),
        "grpo_s": round(time.monotonic() - warmed, 1),
    }


def _trainable(directory: Path) -> LoadedModel:
    from transformers import Qwen2_5_VLForConditionalGeneration

    network = Qwen2_5_VLForConditionalGeneration.from_pretrained(directory, dtype=torch.float32)
    return wrap(network, TextTokenizer(directory / "tokenizer.json"), read_model_spec(directory))


def main() -> None:
    """All seeds and controls."""
    parser = argparse.ArgumentParser(
        prog="python -m training.rl.toy",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    options = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, list[dict[str, Any]]] = {}
    for name in options.cases:
        for seed in range(options.seeds):
            with tempfile.TemporaryDirectory(prefix="rl_toy_") as folder:
                found = learn(Path(folder), seed, **CASES[name])
            print(name, found, flush=True)
            results.setdefault(name, []).append(found)
            if options.json:
                options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
