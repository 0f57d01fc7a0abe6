# SPDX-License-Identifier: Apache-2.0
"""A hybrid checkpoint (InternViT, MLP, Nemotron-H) of random weights, small enough for a test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import InternVLConfig

from cosmos_reason_node.models.hybrid import HybridNetwork
from tests.tiny_model import build_tokenizer

FRAME_SIZE = (56, 56)


def build_network(tokenizer: Tokenizer, seed: int = 0, pattern: str = "M-M*-M-*M") -> HybridNetwork:
    """Random weights, spread widely enough that greedy output is not one token for ever."""
    config = InternVLConfig(
        vision_config={
            "model_type": "internvl_vision",
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 48,
            "image_size": list(FRAME_SIZE),
            "patch_size": [14, 14],
        },
        text_config={
            "model_type": "nemotron_h",
            "vocab_size": tokenizer.get_vocab_size() + 12,
            "hidden_size": 48,
            "hybrid_override_pattern": pattern,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "intermediate_size": 64,
            "ssm_state_size": 16,
            "mamba_num_heads": 6,
            "mamba_head_dim": 16,
            "n_groups": 2,
            "chunk_size": 8,
            "max_position_embeddings": 2048,
        },
        image_token_id=tokenizer.token_to_id("<|video_pad|>"),
        tie_word_embeddings=False,
    )
    config.projector_hidden_size = 40
    torch.manual_seed(seed)
    network = HybridNetwork(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if weight.ndim > 1 or "bias" in name:
                scale = 0.3 if weight.ndim == 2 else 0.1
                weight.copy_(torch.randn(weight.shape, generator=generator) * scale)
    return network


def write(directory: Path, seed: int = 0, **own: Any) -> Path:
    """Write a checkpoint directory; ``own`` are entries of cosmos_reason.json."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer()
    build_network(tokenizer, seed).save_pretrained(directory)
    config = json.loads((directory / "config.json").read_text())
    config["architectures"] = ["InternVLForConditionalGeneration"]
    (directory / "config.json").write_text(json.dumps(config))
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "cosmos_reason.json").write_text(json.dumps({"window_frames": 4, "fps": 2.0, **own}))
    return directory
