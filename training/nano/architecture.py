# SPDX-License-Identifier: Apache-2.0
"""nano's architecture: Qwen2.5-VL with small numbers, and the files that describe it to the node."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from cosmos_reason_node.models.qwen2_5_vl import LoadedModel, wrap
from cosmos_reason_node.models.spec import read_model_spec
from cosmos_reason_node.models.tokenizer import TextTokenizer
from cosmos_reason_node.vision.patchify import CLIP_MEAN, CLIP_STD
from training.sft.store import StoreError

from .vocabulary import save_tokenizer, train_tokenizer

FRAME_SIDE = 112
WINDOW_FRAMES = 32
FPS = 4.0

VISION = {
    "depth": 4,
    "hidden_size": 128,
    "num_heads": 4,
    "intermediate_size": 320,
    "out_hidden_size": 192,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
    "window_size": 112,
    "fullatt_block_indexes": [1, 3],
    "tokens_per_second": 2,
    "hidden_act": "silu",
}
TEXT = {
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
    "tie_word_embeddings": True,
}


def describe(directory: Path) -> None:
    """Write tokenizer, preprocessor_config.json, cosmos_reason.json and config.json."""
    save_tokenizer(train_tokenizer(), directory)
    preprocessor = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "image_mean": list(CLIP_MEAN),
        "image_std": list(CLIP_STD),
        "patch_size": VISION["patch_size"],
        "temporal_patch_size": VISION["temporal_patch_size"],
        "merge_size": VISION["spatial_merge_size"],
        "min_pixels": FRAME_SIDE**2,
        "max_pixels": FRAME_SIDE**2,
    }
    _write(directory / "preprocessor_config.json", preprocessor)
    own = {"window_frames": WINDOW_FRAMES, "fps": FPS, "frame_height": FRAME_SIDE, "frame_width": FRAME_SIDE}
    _write(directory / "cosmos_reason.json", own)
    config(directory).save_pretrained(directory)


def describe_as(directory: Path, other: Path) -> None:
    """Write the same description as another checkpoint has: what it learned is in its tokenizer's ids.

    Raises:
        FileNotFoundError: that one has no tokenizer.
    """
    if not (other / "tokenizer.json").exists():
        raise FileNotFoundError(f"{other} is no checkpoint: it has no tokenizer.json")
    directory.mkdir(parents=True, exist_ok=True)
    for path in other.glob("*.json"):
        if path.name != "eval.json":
            shutil.copy(path, directory)


def config(directory: Path) -> Any:
    """The Qwen2_5_VLConfig for the tokenizer in ``directory``."""
    from transformers import Qwen2_5_VLConfig

    tokenizer = TextTokenizer(directory / "tokenizer.json")
    ids: dict[str, Any] = {
        name: tokenizer.id_of(f"<|{name}|>")
        for name in ("vision_start", "vision_end", "image_pad", "video_pad")
    }
    end, pad = tokenizer.id_of("<|im_end|>"), tokenizer.id_of("<|endoftext|>")
    text = {
        **TEXT,
        "vocab_size": len(tokenizer),
        "eos_token_id": end,
        "pad_token_id": pad,
        "bos_token_id": None,
    }
    made = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=VISION,
        image_token_id=ids["image_pad"],
        video_token_id=ids["video_pad"],
        vision_start_token_id=ids["vision_start"],
        vision_end_token_id=ids["vision_end"],
        tie_word_embeddings=True,
    )
    made.architectures = ["Qwen2_5_VLForConditionalGeneration"]
    return made


def create(directory: Path, seed: int = 0) -> LoadedModel:
    """A model with random weights, in float32; ``directory`` must hold what ``describe`` writes."""
    from transformers import Qwen2_5_VLForConditionalGeneration

    torch.manual_seed(seed)
    network = Qwen2_5_VLForConditionalGeneration._from_config(
        config(directory), dtype=torch.float32, attn_implementation="sdpa"
    )
    return wrap(network, TextTokenizer(directory / "tokenizer.json"), read_model_spec(directory))


def save_weights(model: LoadedModel, directory: Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write model.safetensors, config.json and generation_config.json, leaving ``model`` as it is.

    Raises:
        StoreError: they cannot be written; files that were there are as they were.
    """
    from transformers import Qwen2_5_VLForConditionalGeneration

    made = config(directory)
    copy = Qwen2_5_VLForConditionalGeneration._from_config(made, dtype=dtype)
    copy.load_state_dict(model.network.state_dict())
    partial = directory / f"partial-{os.getpid()}"
    try:
        copy.to(dtype).save_pretrained(partial, safe_serialization=True)
        (partial / "model.safetensors").chmod(0o644)  # written for its owner alone
        for path in partial.iterdir():
            path.replace(directory / path.name)
    except (OSError, SafetensorError) as error:
        raise StoreError(
            f"the weights cannot be written to {directory} ({error}): make room there and start it again"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
