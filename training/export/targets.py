# SPDX-License-Identifier: Apache-2.0
"""GPU generations, and what can build engines for them where."""

from __future__ import annotations

from dataclasses import dataclass

from cosmos_reason_node.engine.tensorrt import RTX_TARGETS


@dataclass(frozen=True)
class Target:
    """A GPU generation.

    Attributes:
        name: "sm89".
        boards: for people.
        precisions: that its tensor cores compute or its kernels unpack.
        opset: flavour of the graphs that its usual TensorRT parses.
    """

    name: str
    boards: str
    precisions: tuple[str, ...]
    opset: int

    @property
    def builds_anywhere(self) -> bool:
        """Whether TensorRT-RTX builds for it without a GPU."""
        return self.name in RTX_TARGETS


_ALL = ("fp32", "fp16", "bf16", "int8-wo", "int4-awq")
_FP8 = (*_ALL, "fp8")
TARGETS = {
    target.name: target
    for target in (
        Target("sm80", "A100, A30", _ALL, 23),
        Target("sm86", "RTX 30, A10, A40, RTX A-series", _ALL, 23),
        Target("sm87", "Jetson Orin", _ALL, 18),
        Target("sm89", "RTX 40, L4, L40S, RTX Ada", _FP8, 23),
        Target("sm90", "H100, H200, GH200", _FP8, 18),
        Target("sm100", "B200, GB200", _FP8, 18),
        Target("sm110", "Jetson Thor", _FP8, 18),
        Target("sm120", "RTX 50, RTX PRO Blackwell", _FP8, 23),
        Target("sm121", "DGX Spark", _FP8, 23),
    )
}
