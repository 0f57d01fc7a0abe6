# SPDX-License-Identifier: Apache-2.0
"""Where the parts of a network are, for those who freeze, shard, count or write them: one place a family."""

from __future__ import annotations

from typing import Any

from torch import nn

TOWERS = ("visual", "vision_tower", "multi_modal_projector")  # of either family


def network_class(*, hybrid: bool) -> Any:
    """The class of a family's networks."""
    if hybrid:
        from .hybrid import HybridNetwork

        return HybridNetwork
    from transformers import Qwen2_5_VLForConditionalGeneration

    return Qwen2_5_VLForConditionalGeneration


def tower(network: Any) -> list[nn.Module]:
    """What makes visual tokens of frames; nothing after ``without_tower``."""
    found = (getattr(network.model, name, None) for name in TOWERS)
    return [part for part in found if part is not None]


def without_tower(network: Any) -> None:
    """Free the tower's memory: visual tokens come from elsewhere."""
    for name in TOWERS:
        if hasattr(network.model, name):
            setattr(network.model, name, None)


def blocks(network: Any) -> list[nn.Module]:
    """The layers of tower and language model."""
    seeing: list[nn.Module] = []
    for part in tower(network):
        encoder: Any = getattr(part, "encoder", None)
        layers: Any = getattr(part, "blocks", None) if encoder is None else encoder.layer
        seeing += layers or ()
    return [*seeing, *network.model.language_model.layers]
