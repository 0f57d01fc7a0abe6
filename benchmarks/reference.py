# SPDX-License-Identifier: Apache-2.0
"""transformers' own ``generate``, asked once per question: what the engine has to equal, and to beat.

The network is the stock class, untouched; pixels, prompt and M-RoPE positions are those of this project
(transformers' own positions go on after a video elsewhere, see models/mrope.py).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from cosmos_reason_node import prompt
from cosmos_reason_node.models.spec import ModelSpec
from cosmos_reason_node.models.tokenizer import TextTokenizer
from cosmos_reason_node.types import Query, Window
from cosmos_reason_node.vision.patchify import patchify


class Reference:
    """Greedy answers of a fixed length, without control tokens.

    Args:
        network: transformers' Qwen2_5_VLForConditionalGeneration.
        tokenizer: of its checkpoint.
        spec: of its checkpoint.
        static: use a static cache.
        compiled: compile the forward pass of decoding (only with ``static``).
    """

    def __init__(
        self,
        network: Any,
        tokenizer: TextTokenizer,
        spec: ModelSpec,
        *,
        static: bool = False,
        compiled: bool = False,
    ) -> None:
        self._network = network
        self._tokenizer = tokenizer
        self._spec = spec
        self._forbidden = sorted(tokenizer.control_ids) + list(
            range(len(tokenizer), network.lm_head.weight.shape[0])
        )
        self._settings: dict[str, Any] = {"cache_implementation": "static"} if static else {}
        if static:
            from transformers import CompileConfig

            compile_config: Any = CompileConfig(fullgraph=False, dynamic=False, mode="default")
            compile_config._compile_all_devices = compiled
            self._settings |= {"compile_config": compile_config, "disable_compile": not compiled}

    @torch.inference_mode()
    def answer(self, window: Window, query: Query, tokens: int) -> list[int]:
        """The ``tokens`` ids that follow the prompt of ``query`` about ``window``."""
        spec, device = self._spec, self._network.device
        patches, grid = patchify(window.pixels(), spec.patches)
        ids = prompt.encode_prefix(self._tokenizer, [spec.patches.visual_tokens(grid)])
        ids = ids + prompt.encode_suffix(self._tokenizer, query)
        height, width = window.frames[0].image.shape[:2]
        video = spec.video_grid(len(window.frames), height, width, window.fps)
        self._use_positions(spec.positions(ids, [video])[0])
        input_ids = torch.tensor([ids], device=device)
        output = self._network.generate(
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids),
            pixel_values_videos=torch.from_numpy(patches).to(device, self._network.dtype),
            video_grid_thw=torch.tensor([grid], device=device),
            mm_token_type_ids=2 * (input_ids == spec.video_token).int(),
            do_sample=False,
            min_new_tokens=tokens,
            max_new_tokens=tokens,
            suppress_tokens=self._forbidden,
            pad_token_id=self._forbidden[0],
            **self._settings,
        )
        return output[0, len(ids) :].tolist()

    def _use_positions(self, positions: np.ndarray) -> None:
        """Have the next call take these (3, L) positions for the prompt."""
        text = torch.arange(positions.shape[1])
        rows = torch.cat((text[None], torch.from_numpy(positions)))[:, None]  # (4, 1, L)
        model = self._network.model
        model.rope_deltas = torch.tensor([[int(positions.max()) + 1 - positions.shape[1]]])
        self._network._prepare_position_ids_for_generation = lambda *_: rows.to(self._network.device)
