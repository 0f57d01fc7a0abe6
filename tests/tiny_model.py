# SPDX-License-Identifier: Apache-2.0
"""A Qwen2.5-VL of random weights, small enough to build, load and run in a test.

``python -m tests.tiny_model DIR [SEED]`` writes one by hand.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from cosmos_reason_node import prompt
from cosmos_reason_node.types import Frame, Window

FRAME_SIZE = (56, 84)
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
CORPUS = [
    "the robot arm opens the drawer and closes it, then the gripper moves left. yes. no.",
    "Yes No yes no reach grasp lift place push pull " + prompt.SYSTEM,
    prompt.YES_NO_LINE,
    prompt.OPTIONS_LINE,
    prompt.FORMAT_LINE,
    *prompt.QUESTIONS.values(),
]


def build_tokenizer() -> Tokenizer:
    """Byte-level BPE of a few hundred tokens; <think> and <answer> are ordinary text, as in Qwen's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS * 2, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CONTROL])
    return tokenizer


def build_network(tokenizer: Tokenizer, seed: int = 0) -> Qwen2_5_VLForConditionalGeneration:
    """Random weights, spread widely enough that greedy output is not one token for ever."""
    ids = {token: tokenizer.token_to_id(token) for token in CONTROL}
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": tokenizer.get_vocab_size() + 12,  # padding rows, as real checkpoints have
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 2048,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
        },
        vision_config={
            "depth": 3,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "out_hidden_size": 64,
            "fullatt_block_indexes": [1],
            "window_size": 56,
            "tokens_per_second": 2,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=False,
    )
    torch.manual_seed(seed)
    network = Qwen2_5_VLForConditionalGeneration(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in network.parameters():
            if weight.ndim > 1:
                scale = 0.3 if weight.ndim == 2 else 0.05
                weight.copy_(torch.randn(weight.shape, generator=generator) * scale)
    return network


def write(directory: Path, seed: int = 0, shards: str = "1GB", **own: object) -> Path:
    """Write a checkpoint directory; ``own`` are entries of cosmos_reason.json."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer()
    build_network(tokenizer, seed).save_pretrained(directory, max_shard_size=shards)
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {
        "window_frames": 4,
        "fps": 2.0,
        "frame_height": FRAME_SIZE[0],
        "frame_width": FRAME_SIZE[1],
        **own,
    }
    (directory / "cosmos_reason.json").write_text(json.dumps(settings))
    return directory


def window(
    frames: int = 4, seed: int = 0, camera: str = "front", size: tuple[int, int] = FRAME_SIZE
) -> Window:
    """A window of noise at 2 frames per second."""
    pixels = np.random.default_rng(seed).integers(0, 256, (frames, *size, 3), dtype=np.uint8)
    period = 500_000_000
    return Window(
        camera=camera,
        frames=tuple(Frame(camera, (10 + i) * period, 10 + i, image) for i, image in enumerate(pixels)),
        first_tick=10,
        period_ns=period,
        held=0,
        asked=frames,
    )


if __name__ == "__main__":
    print(write(Path(sys.argv[1]), *map(int, sys.argv[2:])))
