# SPDX-License-Identifier: Apache-2.0
"""Quantised weights: what modelopt finds, in graphs and out of them."""

import collections

import numpy as np
import onnx
import pytest
import torch

from cosmos_reason_node.engine.manifest import read_manifest
from cosmos_reason_node.types import Query, QueryKind
from tests.unit.export_files import NANO, exported, onnx_engine, plan, window
from training.export.build import build, choose_library
from training.export.compare import losses, markdown, table
from training.export.plan import PlanError
from training.export.quantise import QUANTISED, Calibration, QuantisedLinear, _block
from training.export.run import export
from training.export.targets import TARGETS

pytest.importorskip("modelopt", reason="pip install -r requirements/export.txt")

ASKED = Query(QueryKind.COMPLETION, task="open the drawer", think_tokens=0)


def calibration():
    clips = [((window(first, 4),), (ASKED,)) for first in range(0, 12, 4)]
    return Calibration("drawer_open.mp4", clips, len(clips))


@pytest.fixture(scope="module", params=["int4-awq"])
def quantised(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("quantised")
    made = export(plan(request.param, opset=21), folder, calibration(), lambda text: None)
    return request.param, folder, made


def test_a_quantised_export_answers_and_says_how_it_was_made(quantised):
    precision, folder, made = quantised
    assert (made.precision, made.dtype) == (precision, "float16")
    assert made.quantisation["data"] == "drawer_open.mp4"
    whole = (exported("fp16", 23) / "decoder.onnx.data").stat().st_size
    assert (folder / "decoder.onnx.data").stat().st_size < 0.45 * whole
    from cosmos_reason_node.engine.base import Done, Request

    engine = onnx_engine(folder)
    events = list(engine.answer(Request("r", (window(),), (ASKED,))))
    assert isinstance(events[-1], Done)
    assert np.isfinite(events[-1].answer.confidence)


def test_four_bit_weights_are_four_bit_in_the_graph(quantised):
    graph = onnx.load(quantised[1] / "decoder.onnx", load_external_data=False).graph
    kinds = collections.Counter(entry.data_type for entry in graph.initializer)
    layers = quantised[2].dimensions.layers
    assert kinds[onnx.TensorProto.INT4] == 7 * layers
    unpacked = [node for node in graph.node if node.op_type == "DequantizeLinear"]
    blocks = {
        attribute.i for node in unpacked for attribute in node.attribute if attribute.name == "block_size"
    }
    assert (len(unpacked), blocks) == (7 * layers, {64})


def test_tensorrt_builds_it(quantised):
    _, folder, _ = quantised
    pytest.importorskip("tensorrt_rtx_bindings")
    sizes = read_manifest(folder).dimensions
    path, made = build("decoder", folder, sizes, TARGETS["sm86"], choose_library(TARGETS["sm86"]))
    assert path.stat().st_size > 10_000
    assert made.target == "sm86"


@pytest.mark.parametrize(("precision", "bound"), [("int8-wo", 0.01), ("fp8", 0.08), ("int4-awq", 0.2)])
def test_a_layer_computes_nearly_what_it_stood_for(precision, bound):
    generator = torch.Generator().manual_seed(0)
    weight, inputs = (torch.randn(96, 128, generator=generator), torch.randn(7, 128, generator=generator))
    bias = torch.randn(96, generator=generator)
    if precision == "int8-wo":
        scale, other = weight.abs().amax(1, keepdim=True) / 127, None
    elif precision == "fp8":
        scale, other = weight.abs().max() / 448, inputs.abs().max() / 448
    else:
        scale, other = weight.view(96, 2, 64).abs().amax(2) / 7, None
    layer = QuantisedLinear(precision, weight, bias, scale, other)
    wanted = inputs @ weight.T + bias
    found = layer(inputs)
    assert float((found - wanted).abs().max() / wanted.abs().max()) < bound
    assert not torch.equal(found, wanted)
    half = layer.to(torch.float16)(inputs.half())
    assert float((half - wanted).abs().max() / wanted.abs().max()) < bound + 0.01


def test_every_precision_needs_calibration_or_none():
    from training.export.calibration import find_calibration

    assert find_calibration(plan("fp16"), [], 4) is None
    for precision in QUANTISED:
        with pytest.raises(PlanError, match="--calibration"):
            find_calibration(plan(precision), [NANO], 4)


def test_widths_without_a_block_size():
    assert _block([128, 256]) == 128
    assert _block([128, 192]) == 64
    with pytest.raises(ValueError, match="multiples of 64, not \\[100\\]"):
        _block([100])


def test_a_loss_of_more_than_a_point_is_said():
    def report(name, mean):
        cell = {"mean": mean, "ci95": [mean - 0.02, mean + 0.02], "n": 200}
        return {
            "overall": cell,
            "by_kind": {"completion": cell},
            "model": {"engine": "x", "dtype": name, "model_id": "m"},
        }

    rows = table({"checkpoint": report("float32", 0.9), "a": report("fp16", 0.895), "b": report("fp8", 0.88)})
    assert [row["lost_points"] for row in rows] == [0.0, 0.5, 2.0]
    (warning,) = losses(rows)
    assert "b (fp8) loses 2.0 points of 90.0 on 200 questions" in warning
    assert "| b | fp8 | x | 200 | 88.0 | 88.0 | 86.0 to 90.0 | +2.0 |" in markdown(rows)
