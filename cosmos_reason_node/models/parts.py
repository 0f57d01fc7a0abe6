# SPDX-License-Identifier: Apache-2.0
"""Where the parts of a network are, for those who freeze, shard, count or write them: one place a family."""

from __future__ import annotations

from typing import Any

from torch import nn


def network_class(*, hybrid: bool) -> Any:
    """The class of a family's networks."""
    if hybrid:
        from .hybrid import HybridNetwork

        return HybridNetwork
    from transformers import Qwen2_5_VLForConditionalGeneration

    return Qwen2_5_VLForConditionalGeneration


def tower(network: Any) -> list[nn.Module]:
    """What makes visual tokens of frames."""
    model = network.model
    return [model.visual] if hasattr(model, "visual") else [model.vision_tower, model.multi_modal_projector]


def blocks(network: Any) -> list[nn.Module]:
    """The layers of tower and language model."""
    model = network.model
    seeing = model.visual.blocks if hasattr(model, "visual") else model.vision_tower.encoder.layer
    return [*seeing, *model.language_model.layers]
