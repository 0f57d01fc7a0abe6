# SPDX-License-Identifier: Apache-2.0
"""The batched attention computes what transformers' class computes segment by segment."""

import pytest
import torch
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLVisionAttention

from cosmos_reason_node.models.vision_attention import SegmentAttention

HIDDEN, HEADS = 64, 4


@pytest.mark.parametrize(
    "lengths",
    [(16, 16, 16), (16,), (64, 16, 64, 16, 32, 32, 8), (4, 64, 4)],
    ids=["equal", "one", "four kinds", "two kinds"],
)
def test_segments_are_attended_to_as_by_transformers(lengths):
    torch.manual_seed(0)
    config = Qwen2_5_VLVisionConfig(hidden_size=HIDDEN, num_heads=HEADS)
    config._attn_implementation = "sdpa"
    theirs = Qwen2_5_VLVisionAttention(config)
    ours = SegmentAttention(theirs)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    rows = sum(lengths)
    angles = torch.rand(rows, HIDDEN // HEADS) * 6
    borders = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    results = []
    for attention in (theirs, ours):
        hidden = torch.randn(rows, HIDDEN, generator=torch.Generator().manual_seed(1), requires_grad=True)
        attended = attention(hidden, cu_seqlens=borders, position_embeddings=(angles.cos(), angles.sin()))
        attended.square().sum().backward()
        results.append((attended.detach(), hidden.grad))
    for wanted, got in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_a_segment_does_not_see_the_others():
    torch.manual_seed(0)
    attention = SegmentAttention(
        Qwen2_5_VLVisionAttention(Qwen2_5_VLVisionConfig(hidden_size=HIDDEN, num_heads=HEADS))
    )
    hidden = torch.randn(48, HIDDEN)
    turn = (torch.ones(48, 16), torch.zeros(48, 16))
    borders = torch.tensor([0, 16, 32, 48], dtype=torch.int32)
    before = attention(hidden, borders, turn)
    hidden[16:32] += 1.0
    after = attention(hidden, borders, turn)
    torch.testing.assert_close(after[:16], before[:16], rtol=0, atol=0)
    torch.testing.assert_close(after[32:], before[32:], rtol=0, atol=0)
    assert not torch.allclose(after[16:32], before[16:32])
