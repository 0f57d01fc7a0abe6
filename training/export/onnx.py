# SPDX-License-Identifier: Apache-2.0
"""Writes the graphs as ONNX files: named inputs and outputs, weights beside them in one file a graph.

Flavours of the same graphs: opset 18, which parsers since TensorRT 8.6 read, with attention spelt out; opset
21, the same with 4-bit and 8-bit float weights; opset 23 (TensorRT >= 10.15, TensorRT-RTX), where attention
is one operator.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cosmos_reason_node.engine.manifest import CACHE_INPUTS, CACHE_OUTPUTS, cache_name, onnx_name

from .attention import Attend, attend_by_operator, attend_by_products
from .decoder import DecoderGraph, HeadGraph
from .quantise import FP8, INT4
from .vision import VisionGraph

ATTENTION: dict[int, Attend] = {18: attend_by_products, 21: attend_by_products, 23: attend_by_operator}
# All unlike, so that no two axes are taken for one.
_ROWS, _PREFIX, _OWN = 5, 7, 11


def write_vision(graph: VisionGraph, rows: int, patch_dim: int, directory: Path, opset: int) -> list[Path]:
    """Write the vision graph; returns its files.

    Args:
        graph: to write.
        rows: patches of a temporal patch.
        patch_dim: values of a patch.
        directory: exists.
        opset: of ``ATTENTION``.

    Raises:
        OSError: a file cannot be written.
    """
    pixels = torch.zeros(3, rows, patch_dim)
    shapes = ({0: torch.export.Dim.DYNAMIC},)
    return _write(graph, (pixels,), ["pixels"], ["features"], shapes, directory / onnx_name("vision"), opset)


def write_decoder(graph: DecoderGraph, directory: Path, opset: int) -> list[Path]:
    """Write the decoder graph; see ``write_vision``."""
    attention: Any = graph.layers[0].self_attn
    channels, layers = attention.head_dim, range(len(graph.layers))
    groups = attention.k_proj.out_features // channels
    old = [torch.zeros(rows, groups, channels, dtype=graph.dtype) for rows in (_PREFIX, _PREFIX, _OWN, _OWN)]
    example = (
        torch.zeros(_ROWS, attention.q_proj.in_features, dtype=graph.dtype),
        torch.zeros(_ROWS, channels),
        torch.zeros(_ROWS, channels),
        torch.zeros(_ROWS, _PREFIX + _OWN + _ROWS, dtype=graph.dtype),
        tuple(tuple(tensor.clone() for tensor in old) for _ in layers),
    )
    rows, prefix, own = ({0: torch.export.Dim(name)} for name in ("rows", "prefix", "own"))
    mask = {**rows, 1: torch.export.Dim.DYNAMIC}
    shapes = (rows, rows, rows, mask, tuple((prefix, prefix, own, own) for _ in layers))
    inputs = ["embeds", "cos", "sin", "mask"]
    inputs += [cache_name(name, layer) for layer in layers for name in CACHE_INPUTS]
    outputs = ["hidden", *(cache_name(name, layer) for layer in layers for name in CACHE_OUTPUTS)]
    return _write(graph, example, inputs, outputs, shapes, directory / onnx_name("decoder"), opset)


def write_head(graph: HeadGraph, directory: Path, opset: int) -> list[Path]:
    """Write the output layer; see ``write_vision``."""
    weight = graph.lm_head.weight
    hidden = torch.zeros(_ROWS, weight.shape[1], dtype=weight.dtype)
    shapes = ({0: torch.export.Dim("rows")},)
    return _write(graph, (hidden,), ["hidden"], ["logits"], shapes, directory / onnx_name("head"), opset)


def _write(
    graph: nn.Module,
    example: tuple[Any, ...],
    inputs: list[str],
    outputs: list[str],
    shapes: tuple[Any, ...],
    path: Path,
    opset: int,
) -> list[Path]:
    """Export to ``path`` and ``path`` + ".data"; they appear whole or not at all."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program: Any = torch.onnx.export(
            graph.eval(),
            example,
            dynamo=True,
            opset_version=opset,
            input_names=inputs,
            output_names=outputs,
            dynamic_shapes=shapes,
            verbose=False,
            external_data=True,
        )
    _narrow(program.model)
    partial = path.parent / f".{path.stem}.{os.getpid()}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        program.save(str(partial / path.name), external_data=True)
        written = sorted(partial.iterdir(), reverse=True)  # the weights first: a graph without them is torn
        for file in written:
            file.replace(path.parent / file.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return sorted(path.parent / file.name for file in written)


def _narrow(model: Any) -> None:
    """Give initialisers the types that torch has not (4-bit integers) or held as bytes (8-bit floats)."""
    import ml_dtypes
    import onnx_ir

    for name, value in model.graph.initializers.items():
        if name.endswith((INT4, FP8)):
            array = value.const_value.numpy()
            is_int4 = name.endswith(INT4)
            kind = onnx_ir.DataType.INT4 if is_int4 else onnx_ir.DataType.FLOAT8E4M3FN
            array = array.astype(ml_dtypes.int4) if is_int4 else array.view(ml_dtypes.float8_e4m3fn)
            value.const_value = onnx_ir.Tensor(array, dtype=kind, name=name)
            value.type = onnx_ir.TensorType(kind)
