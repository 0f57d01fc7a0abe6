# SPDX-License-Identifier: Apache-2.0
"""Cosmos-Reason1's second family, as its 56B model is: InternViT, PixelShuffle, MLP, Nemotron-H.

    frame 448x448 ─> InternViT (1,024 patches) ─> PixelShuffle 2x2 ─> MLP ─> 256 visual tokens ─> Nemotron-H

A checkpoint is a directory in the layout that transformers has for InternVL, with ``text_config.model_type``
``nemotron_h``; ``projector_hidden_size`` is the width of the MLP (InternVL: that of the language model). Each
frame is seen for itself, so what is kept of a frame is exact in every window that holds it. The tokenizer has
the control tokens of the prompt (prompt.py), and ``image_token_id`` is its <|video_pad|>.

NVIDIA has not released weights of the 56B model; sizes are the paper's (arXiv 2503.15558, table 3 and section
3.1). Axes: T frames, h x w patches, N visual tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import InternVLConfig, InternVLForConditionalGeneration

from ..errors import CosmosReasonError, ErrorCode
from .hybrid_decoder import HybridDecoder
from .qwen2_5_vl import LoadedModel, load_parts
from .spec import read_model_spec

# 118 layers: 54 Mamba-2, 54 MLP, 10 attention.
PATTERN_56B = "M-M-M-M*-" + 9 * "M-M-M-M-M*-" + "M-M-M-M-M-"


def config_56b() -> InternVLConfig:
    """Sizes of Cosmos-Reason1-56B; positions, which the paper does not bound, have room for two windows."""
    config = InternVLConfig(
        architectures=["InternVLForConditionalGeneration"],
        vision_config={"model_type": "internvl_vision", "hidden_size": 1024, "num_hidden_layers": 24},
        text_config={
            "model_type": "nemotron_h",
            "vocab_size": 131072,
            "hidden_size": 8192,
            "hybrid_override_pattern": PATTERN_56B,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "intermediate_size": 32768,
            "mamba_num_heads": 256,
            "mamba_head_dim": 64,
            "ssm_state_size": 256,
            "n_groups": 8,
            "max_position_embeddings": 20480,
        },
        tie_word_embeddings=False,
    )
    config.projector_hidden_size = 32768
    return config


# transformers knows InternVL's saved names for its own class alone, not for one that is made of it.
_RENAMED = {r"^language_model\.lm_head": "lm_head"}


class HybridNetwork(InternVLForConditionalGeneration):
    """transformers' InternVL with an MLP of the width that the configuration says."""

    def __init__(self, config: InternVLConfig) -> None:
        super().__init__(config)
        middle = getattr(config, "projector_hidden_size", None)
        projector = self.model.multi_modal_projector
        if middle and middle != projector.linear_1.out_features:
            projector.linear_1 = nn.Linear(projector.linear_1.in_features, middle)
            projector.linear_2 = nn.Linear(middle, projector.linear_2.out_features)
        for layer in self.model.language_model.layers:  # see the first trap in mamba.py
            if layer.block_type == "linear_attention":
                layer.mixer.time_step_limit = tuple(layer.mixer.config.time_step_limit)


class HybridModel(LoadedModel):
    """A hybrid checkpoint in memory."""

    def visual_features(self, patches: Tensor, grids: Sequence[tuple[int, int, int]]) -> Tensor:
        """Run InternViT, PixelShuffle and MLP.

        Args:
            patches: (sum of t*h*w, 3 * patch**2) of one or more videos, in the order of vision.patchify.
            grids: their (t, h, w).

        Returns:
            (N, D), the videos' tokens one after another.

        Raises:
            ValueError: videos differ in the size of their frames, which the description fixes.
        """
        sizes = {(h, w) for _, h, w in grids}
        if len(sizes) != 1:
            raise ValueError(f"frames of a hybrid model have one size, not {sorted(sizes)} patches")
        # All frames in one pass: processes that share the tower's weights gather them together.
        pixels = patches.to(device=self.device, dtype=self.dtype)
        return self._see(pixels, sum(t for t, _, _ in grids), *sizes.pop())

    def _see(self, patches: Tensor, t: int, h: int, w: int) -> Tensor:
        model, merge = self.network.model, self.spec.patches.merge
        tower, side = model.vision_tower, self.spec.patches.patch
        conv = tower.embeddings.patch_embeddings.projection
        # Patches do not overlap, so the convolution is a product. They come by visual token, and go by row.
        embedded = F.linear(patches, conv.weight.flatten(1), conv.bias)
        embedded = (
            embedded.view(t, h // merge, w // merge, merge, merge, -1).transpose(2, 3).reshape(t, h * w, -1)
        )
        hidden = torch.cat((tower.embeddings.cls_token.expand(t, -1, -1), embedded), 1)
        if tower.embeddings.position_embeddings is not None:
            hidden = hidden + tower.embeddings.interpolate_pos_encoding(hidden, h * side, w * side)
        hidden = tower.layernorm(tower.encoder(hidden).last_hidden_state)[:, 1:]
        shuffled = model.pixel_shuffle(hidden.reshape(t, h, w, -1), 1 / merge)
        return model.multi_modal_projector(shuffled.flatten(1, 2)).flatten(0, 1)

    def embed(self, tokens: Tensor, features: Tensor | None = None) -> Tensor:
        """See LoadedModel.embed."""
        return self.fill(self.network.model.language_model.embeddings(tokens), tokens, features)

    def decode(
        self, embedded: Tensor, positions: Tensor, cache: Any = None, attention_mask: Tensor | None = None
    ) -> Tensor:
        """Run the language model as transformers does; there are no positions.

        Args:
            embedded: (B, L, D).
            positions: of no use here.
            cache: a transformers Cache, or None.
            attention_mask: (B, past + L), 0 for padding, or None. A recurrent layer cannot be told what to
                see token by token.

        Returns:
            (B, L, D) last hidden states.
        """
        if attention_mask is not None and attention_mask.ndim != 2:
            raise CosmosReasonError(
                ErrorCode.INVALID_REQUEST, "a hybrid model does not take branches in one row: ask them apart"
            )
        return self.network.model.language_model(
            inputs_embeds=embedded,
            attention_mask=attention_mask,
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state

    def decoder(self, *, join: bool = False) -> HybridDecoder:
        """The language model over caches of its own."""
        return HybridDecoder(self.network)


def load(model_dir: str | Path, device: str = "auto", dtype: str = "auto") -> HybridModel:
    """Load a hybrid checkpoint directory; arguments and errors as those of qwen2_5_vl.load."""
    return HybridModel(
        *load_parts(
            HybridNetwork, Path(model_dir).expanduser(), read_model_spec(model_dir), device, dtype, _RENAMED
        )
    )
