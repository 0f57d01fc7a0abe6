# SPDX-License-Identifier: Apache-2.0
"""Low-rank adapters by peft: put into a network, merged into its weights on export, saved on their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from .config import LoraConfig

# A recurrent layer's out_proj is left out: fused kernels read its weight, past any adapter.
_LANGUAGE = (
    r"(?:.*\.)?language_model\..*\.(?:q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj|in_proj)"
)
_VISION = (
    r"(?:.*\.)?(?:visual\.blocks\..*\.(?:qkv|proj|gate_proj|up_proj|down_proj)"
    r"|vision_tower\.encoder\..*\.(?:q_proj|k_proj|v_proj|projection_layer|fc1|fc2))"
)
_ADAPTER = "default"


def add_adapters(network: nn.Module, settings: LoraConfig, seed: int) -> None:
    """Freeze the network and give its matrices float32 adapters; they start as no change."""
    from peft import inject_adapter_in_model

    torch.manual_seed(seed)  # the same adapters in all processes
    inject_adapter_in_model(_peft_config(settings), network, _ADAPTER)
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def merge(state: dict[str, Tensor], settings: LoraConfig) -> dict[str, Tensor]:
    """The plain network's weights from those of one with adapters: W + alpha / rank * B A.

    Args:
        state: whole tensors, as in a state dict.
        settings: of the adapters.
    """
    plain = {}
    for name, tensor in state.items():
        if ".lora_" in name:
            continue
        stem, found, kind = name.rpartition(".base_layer.")
        if not found:
            plain[name] = tensor
            continue
        if kind == "weight":
            a, b = (state[f"{stem}.lora_{side}.{_ADAPTER}.weight"].float() for side in "AB")
            tensor = (tensor.float() + settings.alpha / settings.rank * (b @ a)).to(tensor.dtype)
        plain[f"{stem}.{kind}"] = tensor
    return plain


def save_adapters(state: dict[str, Tensor], settings: LoraConfig, base: Path, directory: Path) -> None:
    """Write the adapters alone, in the layout that ``PeftModel.from_pretrained(network, directory)`` reads.

    Args:
        state: as for ``merge``.
        settings: of the adapters.
        base: checkpoint they belong to.
        directory: made when missing.
    """
    directory.mkdir(parents=True, exist_ok=True)
    adapters = {
        "base_model.model." + name.replace(f".{_ADAPTER}.", "."): tensor.contiguous()
        for name, tensor in state.items()
        if ".lora_" in name
    }
    save_file(adapters, directory / "adapter_model.safetensors")
    config = _peft_config(settings)
    config.base_model_name_or_path = str(base)
    config.inference_mode = True
    config.save_pretrained(str(directory))


def _peft_config(settings: LoraConfig) -> Any:
    from peft import LoraConfig as PeftConfig

    targets = f"{_LANGUAGE}|{_VISION}" if settings.vision else _LANGUAGE
    alpha: Any = settings.alpha  # peft's annotation says int, its arithmetic takes any number
    return PeftConfig(
        r=settings.rank, lora_alpha=alpha, lora_dropout=settings.dropout, target_modules=targets
    )
