# SPDX-License-Identifier: Apache-2.0
"""The trained model as a checkpoint directory that the node loads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cosmos_reason_node.models.checkpoint import check_files
from cosmos_reason_node.models.parts import network_class
from cosmos_reason_node.models.spec import (
    CONFIG,
    OWN,
    PREPROCESSOR,
    TOKENIZER,
    ModelSpec,
    read_json,
    read_model_spec,
)

from .config import LoraConfig
from .lora import merge, save_adapters
from .store import NOT_WRITTEN, StoreError, replacing

_DESCRIPTION = (
    CONFIG,
    PREPROCESSOR,
    OWN,
    TOKENIZER,
    "tokenizer_config.json",
    "generation_config.json",
    "video_preprocessor_config.json",
    "chat_template.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
)
_SHARD = "5GB"


def export(
    state: dict[str, Tensor],
    base: Path,
    spec: ModelSpec,
    target: Path,
    *,
    lora: LoraConfig | None = None,
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    """Write a model directory; it appears whole or not at all, and replaces the one before it.

    Args:
        state: whole tensors of the network, adapters included.
        base: checkpoint that training started from; its tokenizer and preprocessor are taken over.
        spec: description that the model was trained with; its window is written to cosmos_reason.json.
        target: directory, of a run that is held (lock.only_run); adapters go beside it, to
            ``<target>-adapters``.
        lora: settings of the adapters in ``state``.
        dtype: of the written weights.

    Raises:
        StoreError: it cannot be written.
    """
    try:
        with replacing(target) as partial:
            _write_weights(merge(state, lora) if lora else state, base, partial, dtype)
            # After the weights: what transformers writes beside them is worded for its own version, and lacks
            # the base's way to generate. The architecture is the base's.
            for name in _DESCRIPTION:
                if (base / name).is_file():
                    shutil.copyfile(base / name, partial / name)
            _describe_window(base, spec, partial)
            check_files(partial)
            if lora:
                with replacing(target.with_name(f"{target.name}-adapters")) as adapters:
                    save_adapters(state, lora, base, adapters)
    except NOT_WRITTEN as error:
        raise StoreError(
            f"the model cannot be written to {target} ({error}): make room there and start again; the last "
            "checkpoint is whole, so only the writing is repeated"
        ) from error


def _write_weights(state: dict[str, Tensor], base: Path, directory: Path, dtype: torch.dtype) -> None:
    from transformers import AutoConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    kind = network_class(hybrid=read_model_spec(base).hybrid)
    with torch.device("meta"):
        config = AutoConfig.from_pretrained(base, local_files_only=True)
        network: Any = kind._from_config(config, dtype=dtype)
    network.load_state_dict({name: tensor.to(dtype) for name, tensor in state.items()}, assign=True)
    network.tie_weights()
    network.save_pretrained(directory, max_shard_size=_SHARD)
    for path in directory.glob("*.safetensors"):
        path.chmod(0o644)  # written for its owner alone


def _describe_window(base: Path, spec: ModelSpec, directory: Path) -> None:
    own = read_json(base / OWN) if (base / OWN).exists() else {}
    own |= {"window_frames": spec.window_frames, "fps": spec.fps}
    if spec.frame_size is None:
        own["max_pixels"] = spec.max_pixels
    for calibrated in ("temperature", "confidence_temperature"):  # for the old weights
        own.pop(calibrated, None)
    (directory / OWN).write_text(json.dumps(own, indent=2) + "\n", encoding="utf-8")
