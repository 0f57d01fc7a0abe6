# SPDX-License-Identifier: Apache-2.0
"""FLOPs and bytes of a window and its questions, counted from the shape of a network; nothing is run.

A product of (m, k) and (k, n) is 2mkn FLOPs. Bytes are what has to cross the memory bus at least: the weights
once for each pass through them, keys and values once for each pass that reads them; activations are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Shape:
    """Sizes of a Qwen2.5-VL network; names as in its config.json.

    Attributes:
        layers, hidden, heads, kv_heads, ffn, vocab: of the language model.
        vision_layers, vision_hidden, vision_ffn: of the vision tower.
        full_layers: vision layers that attend over a whole temporal patch.
        window_patches: patches of an attention window in the other layers.
        patch_dim: values of a patch.
        merge: patches a side that become one visual token.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    ffn: int
    vocab: int
    vision_layers: int
    vision_hidden: int
    vision_ffn: int
    full_layers: int
    window_patches: int
    patch_dim: int
    merge: int = 2

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Shape:
        """From a parsed config.json."""
        text, vision = config.get("text_config") or config, config["vision_config"]
        patch = vision.get("patch_size") or vision["spatial_patch_size"]
        return cls(
            layers=text["num_hidden_layers"],
            hidden=text["hidden_size"],
            heads=text["num_attention_heads"],
            kv_heads=text["num_key_value_heads"],
            ffn=text["intermediate_size"],
            vocab=text["vocab_size"],
            vision_layers=vision["depth"],
            vision_hidden=vision["hidden_size"],
            vision_ffn=vision["intermediate_size"],
            full_layers=len(vision["fullatt_block_indexes"]),
            window_patches=(vision["window_size"] // patch) ** 2,
            patch_dim=3 * vision.get("temporal_patch_size", 2) * patch**2,
            merge=vision.get("spatial_merge_size", 2),
        )

    @property
    def layer_weights(self) -> int:
        """Of the products of one language layer."""
        kv = self.hidden * self.kv_heads // self.heads
        return self.hidden * (2 * self.hidden + 2 * kv + 3 * self.ffn)

    @property
    def head_weights(self) -> int:
        """Of the output layer."""
        return self.hidden * self.vocab

    @property
    def step_weights(self) -> int:
        """Weights that a pass through the language model reads."""
        return self.layers * self.layer_weights + self.head_weights

    @property
    def vision_weights(self) -> int:
        """Weights that a pass through the vision tower reads."""
        d, merged = self.vision_hidden, self.vision_hidden * self.merge**2
        block = d * (4 * d + 3 * self.vision_ffn)
        return self.vision_layers * block + d * self.patch_dim + merged * (merged + self.hidden)

    def kv_bytes(self, element: int) -> int:
        """Keys and values of one token."""
        return 2 * self.layers * self.hidden * self.kv_heads // self.heads * element

    def vision_flops(self, patches: int) -> float:
        """One temporal patch of ``patches`` patches."""
        d, merged = self.vision_hidden, self.vision_hidden * self.merge**2
        products = patches * (self.vision_weights - merged * (merged + self.hidden))
        merger = patches // self.merge**2 * merged * (merged + self.hidden)
        reach = self.full_layers * patches + (self.vision_layers - self.full_layers) * self.window_patches
        return 2.0 * (products + merger) + 4.0 * d * patches * reach

    def read_flops(self, tokens: int, past: int = 0, outputs: int = 0) -> float:
        """``tokens`` after ``past`` others through the language model, ``outputs`` of them to logits."""
        attended = tokens * past + tokens * (tokens + 1) / 2
        products = 2.0 * (tokens * self.layers * self.layer_weights + outputs * self.head_weights)
        return products + 4.0 * self.layers * self.hidden * attended


# Cosmos-Reason1-7B, which is Qwen2.5-VL-7B.
COSMOS_REASON1_7B = Shape(28, 3584, 28, 4, 18944, 152064, 32, 1280, 3420, 4, 64, 1176)


@dataclass(frozen=True)
class Work:
    """What is asked of a window.

    Attributes:
        pairs: temporal patches of the window.
        patches: of a temporal patch.
        text: tokens of the prefix that are not visual.
        new_pairs: by which the window has slid.
        queries: questions.
        question, answer: tokens of each.
    """

    pairs: int = 16
    patches: int = 1024
    text: int = 24
    new_pairs: int = 1
    queries: int = 3
    question: int = 40
    answer: int = 48


@dataclass(frozen=True)
class Cost:
    """Of one slid window: FLOPs by part, and bytes."""

    vision_flops: float
    prefill_flops: float
    decode_flops: float
    bytes: float

    @property
    def flops(self) -> float:
        """All of them."""
        return self.vision_flops + self.prefill_flops + self.decode_flops


def table(shape: Shape, work: Work, element: int = 2) -> dict[str, Cost]:
    """The cost of a slid window, one means after another.

    Args:
        shape: of the network.
        work: what is asked.
        element: bytes of a weight, and of a key or value.
    """
    prefix = work.text + work.pairs * work.patches // shape.merge**2
    vision, weights = shape.vision_flops(work.patches), shape.step_weights * element
    kv, n = shape.kv_bytes(element), work.queries
    read, question = shape.read_flops(prefix), shape.read_flops(work.question, prefix, 1)
    steps = work.answer - 1  # the first token comes out of the question's pass
    decode = sum(shape.read_flops(1, prefix + work.question + i, 1) for i in range(steps))
    own = sum(work.question + i + 1 for i in range(steps)) * kv  # a branch's own keys and values, read
    see = shape.vision_weights * element

    def cost(visions: int, passes: int, reads: int, questions: float, streams: int) -> Cost:
        """``streams``: passes through weights and prefix in which the n answers are decoded, a token."""
        in_bytes = passes * see + reads * (weights + prefix * kv) + streams * (weights + prefix * kv) * steps
        return Cost(visions * vision, reads * read + questions, n * decode, in_bytes + n * own)

    asked, one_pass = n * question, weights + prefix * kv
    shared = cost(work.pairs, 1, 1, asked, n)
    cached = cost(work.new_pairs, 1, 1, asked, n)
    packed = cost(work.new_pairs, 1, 1, asked, 1)
    return {
        "naive": cost(n * work.pairs, n, n, asked, n),
        "shared prefix": _add(shared, n * one_pass),
        "+ vision cache": _add(cached, n * one_pass),
        "+ packed branches": _add(packed, one_pass),
    }


def _add(cost: Cost, more: float) -> Cost:
    """With the bytes of passes for the questions."""
    return Cost(cost.vision_flops, cost.prefill_flops, cost.decode_flops, cost.bytes + more)


def rows(costs: Mapping[str, Cost]) -> list[dict[str, Any]]:
    """As JSON has it: TFLOP and GB."""
    return [
        {
            "what": name,
            "vision_tflop": round(cost.vision_flops / 1e12, 2),
            "prefill_tflop": round(cost.prefill_flops / 1e12, 2),
            "decode_tflop": round(cost.decode_flops / 1e12, 2),
            "tflop": round(cost.flops / 1e12, 1),
            "gb": round(cost.bytes / 1e9, 1),
        }
        for name, cost in costs.items()
    ]
