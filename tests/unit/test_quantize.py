# SPDX-License-Identifier: Apache-2.0
import copy

import pytest
import torch

from cosmos_reason_node.errors import CosmosReasonError, ErrorCode
from cosmos_reason_node.models.decoder import Decoder
from cosmos_reason_node.models.quantize import int4_group, quantize
from tests import tiny_model


@pytest.fixture(scope="module")
def network():
    torch.set_num_threads(1)
    return tiny_model.build_network(tiny_model.build_tokenizer())


def keys_of(network):
    decoder = Decoder(network, join=True)
    prefix = decoder.new_prefix(9)
    embedded = torch.randn(9, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        decoder.read(embedded, torch.arange(9).repeat(3, 1), prefix)
    return prefix.cache


def test_eight_bits_are_close_and_smaller(network):
    pytest.importorskip("torchao")
    small = copy.deepcopy(network)
    quantize(small, "int8")
    exact, rounded = keys_of(copy.deepcopy(network)), keys_of(small)
    error = (exact - rounded).norm() / exact.norm()
    assert 0 < float(error) < 0.05
    assert torch.equal(small.lm_head.weight, network.lm_head.weight)


def test_none_changes_nothing_and_nonsense_is_refused(network):
    quantize(network, "none")
    with pytest.raises(CosmosReasonError, match="must be of") as caught:
        quantize(network, "int3")
    assert caught.value.code is ErrorCode.INVALID_REQUEST
    with pytest.raises(CosmosReasonError, match="CUDA") as caught:
        quantize(network, "int4")
    assert caught.value.code is ErrorCode.NOT_AVAILABLE


def test_weights_of_every_layer_fall_into_groups():
    """torchao leaves layers of another width as they are, and says nothing."""
    assert int4_group([3584, 18944]) == 128
    assert int4_group([192, 512]) == 64
    with pytest.raises(CosmosReasonError, match=r"multiples of 32, not \[48, 64\]") as caught:
        int4_group([64, 48])
    assert caught.value.code is ErrorCode.NOT_AVAILABLE
