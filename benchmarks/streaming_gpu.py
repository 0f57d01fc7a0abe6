# SPDX-License-Identifier: Apache-2.0
"""The GPU section of benchmarks.streaming: random weights of the true 7B shape, bfloat16.

Set against ``generate`` on the same network, and against what the machine could do at best:

- floor of a decode step: weights, and keys and values, read once at the measured copy bandwidth;
- floor of a slid window: FLOPs of one pair's features and of prefill at the measured rate of a large matrix
  product, plus the floors of its steps.

Random weights say nothing sensible, so answers are compared for information only.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from cosmos_reason_node import prompt
from cosmos_reason_node.engine.torch import TorchEngine
from cosmos_reason_node.models import qwen2_5_vl
from cosmos_reason_node.models.spec import ModelSpec
from cosmos_reason_node.models.tokenizer import TextTokenizer
from cosmos_reason_node.vision.patchify import PatchSpec

from .cost import COSMOS_REASON1_7B as SHAPE
from .reference import Reference
from .streaming import CLIP, FRAMES, STRIDE, ask, questions, read_frames, window

TOKENIZER = Path(__file__).parents[1] / "models/nano/tokenizer.json"
SIDE = 448
WINDOWS, BASELINE_WINDOWS = 8, 2


def random_7b(tokenizer: TextTokenizer, device: str = "cuda") -> Any:
    """The network of the 7B shape with random weights, with the special tokens of ``tokenizer``."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    ids: dict[str, Any] = {
        "video_token_id": tokenizer.id_of("<|video_pad|>"),
        "vision_start_token_id": tokenizer.id_of("<|vision_start|>"),
        "vision_end_token_id": tokenizer.id_of("<|vision_end|>"),
    }
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": SHAPE.vocab,
            "hidden_size": SHAPE.hidden,
            "intermediate_size": SHAPE.ffn,
            "num_hidden_layers": SHAPE.layers,
            "num_attention_heads": SHAPE.heads,
            "num_key_value_heads": SHAPE.kv_heads,
            "max_position_embeddings": 128_000,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
            "eos_token_id": tokenizer.id_of(prompt.END_OF_TURN),
        },
        vision_config={
            "depth": SHAPE.vision_layers,
            "hidden_size": SHAPE.vision_hidden,
            "intermediate_size": SHAPE.vision_ffn,
            "num_heads": 16,
            "out_hidden_size": SHAPE.hidden,
            "fullatt_block_indexes": [7, 15, 23, 31],
            "window_size": 112,
            "tokens_per_second": 2,
        },
        **ids,
        tie_word_embeddings=False,
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            return Qwen2_5_VLForConditionalGeneration._from_config(config, attn_implementation="sdpa").eval()
    finally:
        torch.set_default_dtype(before)


def spec_7b(tokenizer: TextTokenizer) -> ModelSpec:
    """The description that the released checkpoint's files give."""
    video = tokenizer.id_of("<|video_pad|>")
    assert video is not None
    return ModelSpec("random-7b", PatchSpec(), FRAMES, 4.0, (SIDE, SIDE), SIDE * SIDE, video, 2.0, 128_000)


def seconds(work: Callable[[], Any], repeats: int) -> float:
    """Median time of ``work``, the device's included."""
    times = []
    for _ in range(repeats + 1):
        torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def machine_rates() -> tuple[float, float]:
    """Measured bytes a second of a copy (read and written) and FLOPs a second of a bfloat16 product."""
    source = torch.empty(1 << 31, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    bandwidth = 2 * source.numel() / seconds(lambda: target.copy_(source), 10)
    a, b = (torch.randn(8192, 8192, dtype=torch.bfloat16, device="cuda") for _ in "ab")
    return bandwidth, 2 * 8192**3 / seconds(lambda: a @ b, 10)


@torch.inference_mode()
def on_gpu(tokens: int) -> dict[str, Any]:
    """Measure everything; some minutes, about 20 GiB of GPU memory."""
    bandwidth, rate = machine_rates()
    tokenizer = TextTokenizer(TOKENIZER)
    spec, network = spec_7b(tokenizer), random_7b(tokenizer)
    frames = read_frames(CLIP, FRAMES + STRIDE * (2 * WINDOWS + 4), (SIDE, SIDE))
    queries = questions(tokenizer)
    reference = Reference(network, tokenizer, spec)  # before ``wrap``, which puts in faster modules
    number = iter(range(10**6))

    def generate() -> list[list[int]]:
        seen = window(frames, STRIDE * next(number))
        return [reference.answer(seen, query, tokens) for query in queries]

    generate_s = seconds(generate, BASELINE_WINDOWS)
    engine = TorchEngine(
        qwen2_5_vl.wrap(network, tokenizer, spec), min_confidence=0.0, kept_pairs=FRAMES // 2 + 2
    )
    number = iter(range(10**6))

    def slid(length: int) -> Callable[[], Any]:
        def run() -> Any:
            first = STRIDE * next(number)
            engine.observe(window(frames, first + FRAMES - STRIDE, STRIDE))
            return ask(engine, window(frames, first), queries, length)

        return run

    slid(4)()
    long_s, short_s = (seconds(slid(length), WINDOWS // 2) for length in (tokens, tokens // 3))
    step_s = (long_s - short_s) / (tokens - tokens // 3)
    prefix = 24 + FRAMES // 2 * (SIDE // 28) ** 2
    step_floor_s = (2 * SHAPE.step_weights + SHAPE.kv_bytes(2) * (prefix + 3 * 64)) / bandwidth
    prefill = SHAPE.read_flops(prefix) + 3 * SHAPE.read_flops(40, prefix, 1)
    window_floor_s = (SHAPE.vision_flops((SIDE // 14) ** 2) + prefill) / rate + (tokens - 1) * step_floor_s
    return {
        "device": torch.cuda.get_device_name(),
        "copy_gb_per_s": round(bandwidth / 1e9, 1),
        "matmul_tflop_per_s": round(rate / 1e12, 1),
        "generate_ms_per_window": round(1e3 * generate_s, 1),
        "engine_ms_per_window": round(1e3 * long_s, 1),
        "speedup_vs_generate": round(generate_s / long_s, 2),
        "floor_ms_per_window": round(1e3 * window_floor_s, 1),
        "engine_ms_per_step": round(1e3 * step_s, 3),
        "floor_ms_per_step": round(1e3 * step_floor_s, 3),
        "decode_share_of_floor": round(step_floor_s / step_s, 3),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 1),
        "statistics": vars(engine.statistics),
    }
