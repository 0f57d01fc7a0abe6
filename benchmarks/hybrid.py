# SPDX-License-Identifier: Apache-2.0
"""Three questions about a sliding window, of a hybrid model: this engine beside transformers' generate.

The network has the shape of Cosmos-Reason1-56B with random weights and a few million parameters; what is
compared does not depend on what it says, as long as both say the same.

    python -m benchmarks.hybrid --json FILE
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cosmos_reason_node import deployment, prompt
from cosmos_reason_node.engine.torch import TorchEngine
from cosmos_reason_node.models.hybrid import HybridModel, HybridNetwork, config_56b
from cosmos_reason_node.models.spec import IMAGENET_MEAN, IMAGENET_STD, ModelSpec
from cosmos_reason_node.models.tokenizer import TextTokenizer
from cosmos_reason_node.types import Query, Window
from cosmos_reason_node.vision.patchify import PatchSpec, patchify

from .machine import command_line, describe_machine
from .streaming import CLIP, FRAMES, STRIDE, Clock, questions, read_frames, stream, window

SIDE = 112  # pixels of a frame: 16 visual tokens
PATTERN = "M-M-M*-M-M-M*-M-"


def build(tokenizer: TextTokenizer) -> HybridModel:
    """A small hybrid of random weights around that tokenizer."""
    config: Any = config_56b()
    vision, text = config.vision_config, config.text_config
    vision.hidden_size, vision.num_hidden_layers, vision.num_attention_heads = 128, 4, 4
    vision.intermediate_size, vision.image_size = 512, (SIDE, SIDE)
    text.hidden_size, text.intermediate_size, text.num_attention_heads = 256, 1024, 8
    text.num_key_value_heads, text.head_dim = 2, 32
    text.layers_block_type = text._pattern_to_list(PATTERN)
    text.mamba_num_heads, text.mamba_head_dim, text.ssm_state_size, text.n_groups = 16, 32, 64, 2
    text.vocab_size, config.projector_hidden_size = len(tokenizer), 512
    config.image_token_id = tokenizer.id_of("<|video_pad|>")
    torch.manual_seed(0)
    network = HybridNetwork(config).eval()
    network.generation_config.eos_token_id = tokenizer.id_of("<|im_end|>")  # else it is some word
    with torch.no_grad():
        for weight in network.parameters():
            if weight.ndim == 2:  # spread widely, or greedy output is one token for ever
                weight.copy_(torch.randn(weight.shape) * 3 / weight.shape[1] ** 0.5)
    spec = ModelSpec(
        model_id="hybrid",
        patches=PatchSpec(temporal_patch=1, mean=IMAGENET_MEAN, std=IMAGENET_STD),
        window_frames=FRAMES,
        fps=4.0,
        frame_size=(SIDE, SIDE),
        max_pixels=SIDE**2,
        video_token=config.image_token_id,
        tokens_per_second=0.0,
        max_position=text.max_position_embeddings,
        hybrid=True,
    )
    return HybridModel(network, tokenizer, spec)


@torch.inference_mode()
def generate(model: HybridModel, seen: Window, queries: list[Query], tokens: int) -> list[list[int]]:
    """Stock ``generate`` once per question; ``tokens`` ids each."""
    forbidden = sorted(model.tokenizer.control_ids)
    frames, spec = seen.pixels(), model.spec
    visual = spec.patches.visual_tokens(patchify(frames, spec.patches)[1])
    scaled = (torch.from_numpy(frames).float() / 255 - torch.tensor(IMAGENET_MEAN)) / torch.tensor(
        IMAGENET_STD
    )
    said = []
    for query in queries:
        ids = prompt.encode_prefix(model.tokenizer, [visual]) + prompt.encode_suffix(model.tokenizer, query)
        output = model.network.generate(
            input_ids=torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            pixel_values=scaled.permute(0, 3, 1, 2),
            do_sample=False,
            min_new_tokens=tokens,
            max_new_tokens=tokens,
            suppress_tokens=forbidden,
            pad_token_id=forbidden[0],
        )
        said.append(output[0, len(ids) :].tolist())
    return said


def measure(windows: int, tokens: int) -> dict[str, Any]:
    """Both, window by window, on one thread."""
    torch.set_num_threads(1)
    tokenizer = TextTokenizer(deployment.bundled_model() / "tokenizer.json")
    model = build(tokenizer)
    engine = TorchEngine(model, min_confidence=0.0, kept_pairs=FRAMES + 2)
    frames = read_frames(CLIP, FRAMES + STRIDE * windows, (SIDE, SIDE))
    queries = questions(tokenizer)
    clocks, different = {"engine": Clock(), "generate": Clock()}, 0
    for number in range(windows):
        first = number * STRIDE
        ours = clocks["engine"](partial(stream, engine, frames, first, queries, tokens))
        theirs = clocks["generate"](partial(generate, model, window(frames, first), queries, tokens))
        different += ours != theirs
    times = {name: clock.report() for name, clock in clocks.items()}
    return {
        "speedup": round(times["generate"]["cpu_s"] / times["engine"]["cpu_s"], 2),
        "windows": windows,
        "windows_answered_differently": different,
        "parameters_million": round(sum(p.numel() for p in model.network.parameters()) / 1e6, 1),
        "layers": PATTERN,
        "window": f"{FRAMES} frames of {SIDE}x{SIDE}, sliding by {STRIDE}",
        "answer_tokens": tokens,
        "dtype": "float32",
        "threads": 1,
        **times,
    }


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hybrid", description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="where to write the result")
    parser.add_argument("--windows", type=int, default=8, help="windows of the comparison")
    parser.add_argument("--tokens", type=int, default=48, help="of each answer")
    options = parser.parse_args()
    result = {
        "command": command_line(),
        "machine": describe_machine(("torch", "transformers")),
        **measure(options.windows, options.tokens),
    }
    print(json.dumps(result, indent=1))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
