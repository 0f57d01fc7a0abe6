# SPDX-License-Identifier: Apache-2.0
"""Quantised weights: scales found by nvidia-modelopt, linear layers that carry them into the graph.

    int8-wo    8-bit weights, a scale for each output
    int4-awq   4-bit weights in blocks along the input, inputs rescaled by what they are like (AWQ)
    fp8        8-bit floats (e4m3), weights and activations, one scale each

Only the decoder's linear layers are quantised: they are what every token reads. The vision tower, the
embedding and the output layer keep the activations' type.

Axes: I inputs, O outputs of a layer, G = I / block.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cosmos_reason_node.engine.base import Failed, Request
from cosmos_reason_node.models.qwen2_5_vl import LoadedModel
from cosmos_reason_node.types import Query, Window

QUANTISED = ("int8-wo", "int4-awq", "fp8")
# Ends of names of initialisers whose type torch lacks, or converts when it converts the model.
INT4, FP8 = ".int4", ".fp8"
_LIBRARY_SETTINGS = {"int8-wo": "INT8_WEIGHT_ONLY_CFG", "int4-awq": "INT4_AWQ_CFG", "fp8": "FP8_DEFAULT_CFG"}
_BLOCKS = (128, 64)  # that TensorRT unpacks
_FP8_MAX = 448.0
_THINK_TOKENS = 16  # so that reasoning is among what activations are measured on


@dataclass(frozen=True)
class Calibration:
    """What activations are measured on.

    Attributes:
        name: of the data, for the manifest.
        clips: windows of one moment and questions about them; read once.
        count: of clips.
        content: digest of what the clips show and what is asked about them.
    """

    name: str
    clips: Iterable[tuple[tuple[Window, ...], tuple[Query, ...]]]
    count: int
    content: str = ""

    def facts(self, precision: str) -> dict[str, Any]:
        """For the manifest."""
        import modelopt

        return {
            "library": f"nvidia-modelopt {modelopt.__version__}",
            "settings": _LIBRARY_SETTINGS[precision],
            "data": self.name,
            "clips": self.count,
            "content": self.content,
        }


class QuantisedLinear(nn.Module):
    """A linear layer whose weight is unpacked where it is used. In a graph it is a DequantizeLinear node.

    Args:
        precision: of QUANTISED.
        weight: (O, I), as the library left it: for AWQ the inputs' rescaling is in it.
        bias: (O,) or None.
        scale: of the weight: (O, 1), (O, G) or ().
        input_scale: AWQ: (I,) factors of the inputs; fp8: () scale of the inputs.
    """

    scale: Tensor
    input_scale: Tensor | None

    def __init__(
        self, precision: str, weight: Tensor, bias: Tensor | None, scale: Tensor, input_scale: Tensor | None
    ) -> None:
        super().__init__()
        self.precision = precision
        self.out_features, self.in_features = weight.shape
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        if precision == "fp8":
            narrow = (weight / scale).clamp(-_FP8_MAX, _FP8_MAX).to(torch.float8_e4m3fn)
            packed = narrow.view(torch.uint8).t().contiguous()
        else:
            high = 127 if precision == "int8-wo" else 7
            each = scale.repeat_interleave(weight.shape[1] // scale.shape[1], dim=1)
            packed = (weight / each).round().clamp(-high - 1, high).t().contiguous().to(torch.int8)
        self._weight = {"int8-wo": "int8", "int4-awq": INT4[1:], "fp8": FP8[1:]}[precision]
        self.register_buffer(self._weight, packed)  # (I, O)
        self.register_buffer("scale", scale.squeeze(1) if precision == "int8-wo" else scale.t().contiguous())
        self.register_buffer("input_scale", input_scale)

    @property
    def weight(self) -> Tensor:
        """(O, I), unpacked."""
        packed = getattr(self, self._weight)
        if self.precision == "fp8":
            packed = packed.view(torch.float8_e4m3fn)
        packed = packed.to(self.scale.dtype)
        if self.precision == "int4-awq":
            return (packed * self.scale.repeat_interleave(packed.shape[0] // self.scale.shape[0], 0)).t()
        return (packed * self.scale).t()

    def forward(self, inputs: Tensor) -> Tensor:
        """(..., I) to (..., O)."""
        if torch.compiler.is_exporting():
            result = self._rescaled(inputs, self._round_trip_node) @ self._unpack_node()
            return result if self.bias is None else result + self.bias
        return F.linear(self._rescaled(inputs, _fp8_round_trip), self.weight, self.bias)

    def _rescaled(self, inputs: Tensor, round_trip: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        if self.precision == "fp8":
            assert self.input_scale is not None
            return round_trip(inputs, self.input_scale)
        return inputs if self.input_scale is None else inputs * self.input_scale

    def _unpack_node(self) -> Tensor:
        """(I, O)."""
        packed: Tensor = getattr(self, self._weight)
        attributes: dict[str, Any] = {"axis": 1} if self.precision == "int8-wo" else {}
        if self.precision == "int4-awq":
            attributes = {"axis": 0, "block_size": packed.shape[0] // self.scale.shape[0]}
        return torch.onnx.ops.symbolic(
            "DequantizeLinear",
            (packed, self.scale),
            attributes,
            dtype=self.scale.dtype,
            shape=packed.shape,
        )

    def _round_trip_node(self, inputs: Tensor, scale: Tensor) -> Tensor:
        zero = torch.zeros((), dtype=torch.float8_e4m3fn)
        narrow = torch.onnx.ops.symbolic(
            "QuantizeLinear", (inputs, scale, zero), dtype=torch.float8_e4m3fn, shape=inputs.shape
        )
        return torch.onnx.ops.symbolic(
            "DequantizeLinear", (narrow, scale, zero), dtype=inputs.dtype, shape=inputs.shape
        )


def quantise(
    model: LoadedModel, precision: str, calibration: Calibration, say: Callable[[str], None]
) -> None:
    """Replace the decoder's linear layers by quantised ones.

    Args:
        model: in float32; changed.
        precision: of QUANTISED.
        calibration: see Calibration.
        say: told of the progress.

    Raises:
        ValueError: a layer's width suits no block size, or the calibration cannot be asked.
    """
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # it warns of every version of transformers that it was not tested with
        import modelopt.torch.quantization as mtq
    from cosmos_reason_node.engine.torch import TorchEngine

    settings = copy.deepcopy(getattr(mtq, _LIBRARY_SETTINGS[precision]))
    language = model.network.model.language_model
    if precision == "int4-awq":
        block = _block(
            layer.in_features for layer in language.layers.modules() if isinstance(layer, nn.Linear)
        )
        settings["quant_cfg"]["*weight_quantizer"]["block_sizes"] = {-1: block, "type": "static"}
    clips = list(calibration.clips)

    def ask(_: nn.Module) -> None:
        engine = TorchEngine(model, min_confidence=0.0, default_think_tokens=_THINK_TOKENS)
        for number, (windows, queries) in enumerate(clips, 1):
            for event in engine.answer(Request(f"calibration-{number}", windows, queries)):
                if isinstance(event, Failed):
                    raise ValueError(f"calibration clip {number}: {event.error_msg}")
            if number % 10 == 0 or number == len(clips):
                say(f"  calibration {number} of {len(clips)}")

    say(f"finding scales for {precision} with nvidia-modelopt")
    with torch.no_grad():
        mtq.quantize(language.layers, settings, ask)
    for layer in language.layers:
        for parent in (layer.self_attn, layer.mlp):
            for name, child in list(parent.named_children()):
                if hasattr(child, "weight_quantizer"):
                    setattr(parent, name, _taken_over(child, precision))


def _taken_over(layer: Any, precision: str) -> QuantisedLinear:
    """Our layer from the library's."""
    weight, amax = layer.weight.detach(), layer.weight_quantizer.amax.detach().float()
    input_scale = None
    if precision == "fp8":
        scale = amax.reshape(()) / _FP8_MAX
        input_scale = layer.input_quantizer.amax.detach().float().reshape(()) / _FP8_MAX
    elif precision == "int8-wo":
        scale = amax.reshape(-1, 1) / 127
    else:
        scale = amax.reshape(weight.shape[0], -1) / 7
        input_scale = getattr(layer.input_quantizer, "pre_quant_scale", None)
    tiny = torch.finfo(torch.float16).tiny
    return QuantisedLinear(precision, weight, layer.bias, scale.clamp_min(tiny), input_scale)


def _fp8_round_trip(inputs: Tensor, scale: Tensor) -> Tensor:
    narrow = (inputs / scale).clamp(-_FP8_MAX, _FP8_MAX).to(torch.float8_e4m3fn)
    return narrow.to(inputs.dtype) * scale


def _block(widths: Iterable[int]) -> int:
    widths = set(widths)
    for block in _BLOCKS:
        if all(width % block == 0 for width in widths):
            return block
    raise ValueError(
        f"int4-awq needs layers whose widths are multiples of {_BLOCKS[-1]}, not {sorted(widths)}"
    )
