# SPDX-License-Identifier: Apache-2.0
"""Counts against a network's own weights, and against torch's FLOP counter."""

import json
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.cost import COSMOS_REASON1_7B, Shape, Work, rows, table
from benchmarks.streaming_gpu import TOKENIZER, random_7b
from cosmos_reason_node.models.tokenizer import TextTokenizer
from tests import tiny_model


@pytest.fixture(scope="module")
def network():
    return tiny_model.build_network(tiny_model.build_tokenizer())


@pytest.fixture(scope="module")
def shape(network):
    return Shape.from_config(network.config.to_dict())


def matrices(module):
    return sum(weight.numel() for weight in module.parameters() if weight.ndim > 1)


def test_weights(network, shape):
    model = network.model
    assert shape.layers * shape.layer_weights == matrices(model.language_model.layers)
    assert shape.head_weights == matrices(network.lm_head)
    assert shape.vision_weights == matrices(model.visual)
    assert COSMOS_REASON1_7B.step_weights == pytest.approx(7.07e9, rel=1e-3)
    assert COSMOS_REASON1_7B.kv_bytes(2) == 57_344


def test_the_network_of_the_gpu_section_has_the_7b_shape():
    network = random_7b(TextTokenizer(TOKENIZER), "meta")
    assert Shape.from_config(network.config.to_dict()) == COSMOS_REASON1_7B
    assert COSMOS_REASON1_7B.vision_weights == matrices(network.model.visual)
    assert network.lm_head.weight.dtype is torch.bfloat16


def test_language_flops(network, shape):
    """torch's counter leaves attention out on the CPU, so that is checked by hand."""
    model = network.model.language_model
    embedded, positions = torch.zeros(1, 12, 64), torch.zeros(3, 1, 12, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(inputs_embeds=embedded, position_ids=positions, use_cache=False)
    attention = 3 * (2 * 64 + 2 * 64) * sum(range(1, 13))  # scores and sums, 3 layers, causal
    assert shape.read_flops(12) == counter.get_total_flops() + attention
    assert shape.read_flops(12) == shape.read_flops(5) + shape.read_flops(7, 5)


def test_vision_flops_of_7b_are_those_of_the_paper_s_size():
    assert COSMOS_REASON1_7B.vision_flops(1024) == pytest.approx(1.35e12, rel=0.01)


def test_table_of_7b():
    costs = table(COSMOS_REASON1_7B, Work())
    flops = [cost.flops / 1e12 for cost in costs.values()]
    assert flops[:3] == pytest.approx([240, 82, 62], abs=1.5)
    assert flops[3] == flops[2]
    traffic = [cost.bytes for cost in costs.values()]
    assert traffic[2] / traffic[3] == pytest.approx(3, rel=0.05)
    assert [row["what"] for row in rows(costs)] == list(costs)


def test_nano_is_read_from_its_config():
    config = json.loads((Path(__file__).parents[2] / "models/nano/config.json").read_text())
    shape = Shape.from_config(config)
    assert (shape.hidden, shape.full_layers, shape.window_patches) == (192, 2, 64)
