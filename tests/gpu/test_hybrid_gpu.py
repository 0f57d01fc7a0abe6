# SPDX-License-Identifier: Apache-2.0
"""The hybrid family on a GPU: ``pytest -m gpu tests/gpu``."""

import pytest
import torch

from cosmos_reason_node.engine.base import Done, Request
from cosmos_reason_node.engine.torch import TorchEngine
from cosmos_reason_node.models import mamba
from cosmos_reason_node.models.load import load
from cosmos_reason_node.types import Query, QueryKind
from tests import tiny_hybrid, tiny_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
QUERIES = (
    Query(QueryKind.COMPLETION, task="open the drawer", think_tokens=20),
    Query(QueryKind.QUESTION, question="What moves?", think_tokens=0),
)


def test_the_gpu_says_what_the_cpu_says(tmp_path):
    directory = tiny_hybrid.write(tmp_path / "hybrid")
    said = []
    for device in ("cpu", "cuda"):
        engine = TorchEngine(load(directory, device, "float32"), min_confidence=0.0, kept_pairs=8)
        request = Request("r", (tiny_model.window(size=tiny_hybrid.FRAME_SIZE),), QUERIES)
        done = {event.branch: event.answer for event in engine.answer(request) if isinstance(event, Done)}
        said.append([(done[i].reasoning, done[i].answer) for i in range(len(QUERIES))])
    assert said[0] == said[1]


@pytest.mark.parametrize("length", [1, 300])
def test_the_scan_of_mamba_ssm_is_ours(length):
    pytest.importorskip("mamba_ssm")
    torch.manual_seed(0)
    rows, heads, channels, groups, states = 2, 8, 64, 2, 128
    step = torch.rand(rows, length, heads) * 0.1
    step[0, length // 2 + 1 :] = 0.0
    inputs = (
        torch.randn(rows, length, heads, channels),
        step,
        -torch.rand(heads) * 3,
        torch.randn(rows, length, groups, states),
        torch.randn(rows, length, groups, states),
        torch.randn(heads),
        torch.randn(rows, heads, channels, states),
    )
    on_gpu = [part.cuda() for part in inputs]
    assert mamba._kernel(on_gpu[0]) is not None
    for ours, theirs in zip(mamba.scan(*inputs, 128), mamba.scan(*on_gpu, 128), strict=True):
        torch.testing.assert_close(theirs.cpu(), ours, rtol=2e-2, atol=2e-2)
