# SPDX-License-Identifier: Apache-2.0
"""Weight-only quantisation of the language model's layers, by torchao (requirements/quantize.txt).

Decoding reads every weight once a step, so fewer bytes are fewer milliseconds. Embeddings, the output layer,
norms and the vision tower stay as they are: together a tenth of what a step of the 7B model reads, and what
quantisation harms most.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..errors import CosmosReasonError, ErrorCode

QUANTIZATIONS = ("none", "int8", "int4")
_GROUPS = (128, 64, 32)  # weights that share a scale, int4: what torch's own kernel takes


def quantize(network: Any, kind: str) -> None:
    """Quantise in place; the layers keep their classes, their weights become torchao tensors.

    Args:
        network: transformers' Qwen2_5_VLForConditionalGeneration, on its device.
        kind: one of QUANTIZATIONS. int4 needs a CUDA device and bfloat16.

    Raises:
        CosmosReasonError: INVALID_REQUEST or NOT_AVAILABLE, with what to do.
    """
    if kind == "none":
        return
    if kind not in QUANTIZATIONS:
        raise CosmosReasonError(
            ErrorCode.INVALID_REQUEST, f"quantize must be of {', '.join(QUANTIZATIONS)}, not {kind!r}"
        )
    weight = network.lm_head.weight
    if kind == "int4" and not (weight.is_cuda and str(weight.dtype) == "torch.bfloat16"):
        raise CosmosReasonError(
            ErrorCode.NOT_AVAILABLE,
            f"int4 needs a CUDA device and bfloat16, not {weight.device}, {weight.dtype}: take int8 or none",
        )
    try:
        from torchao.quantization import Int4WeightOnlyConfig, Int8WeightOnlyConfig, quantize_
    except ImportError as error:
        raise CosmosReasonError(
            ErrorCode.NOT_AVAILABLE,
            f"quantize {kind} needs torchao ({error}): pip install -r requirements/quantize.txt",
        ) from error
    layers = network.model.language_model.layers
    if kind == "int8":
        quantize_(layers, Int8WeightOnlyConfig())
        return
    group = int4_group(module.in_features for module in layers.modules() if hasattr(module, "in_features"))
    # The packing of torch's own kernel: torchao's default one needs another library (mslk).
    quantize_(layers, Int4WeightOnlyConfig(group_size=group, int4_packing_format="tile_packed_to_4d"))


def int4_group(widths: Iterable[int]) -> int:
    """Weights that share a scale: torchao passes over layers whose width is no multiple, without a word.

    Args:
        widths: inputs of each layer.

    Raises:
        CosmosReasonError: NOT_AVAILABLE, no group suits all.
    """
    widths = set(widths)
    for group in _GROUPS:
        if not any(width % group for width in widths):
            return group
    raise CosmosReasonError(
        ErrorCode.NOT_AVAILABLE,
        f"int4 needs layers whose widths are multiples of {_GROUPS[-1]}, not {sorted(widths)}: take int8 or "
        "none",
    )
