# SPDX-License-Identifier: Apache-2.0
"""The engine on a CUDA GPU: ``pytest -m gpu tests/gpu`` from a source tree with torch and transformers."""

import pytest
import torch

from cosmos_reason_node.engine.base import Done, Failed, Request, Token
from cosmos_reason_node.engine.torch import TorchEngine
from cosmos_reason_node.errors import ErrorCode
from cosmos_reason_node.models import qwen2_5_vl
from cosmos_reason_node.types import Query, QueryKind
from tests import tiny_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
COMPLETION = Query(QueryKind.COMPLETION, task="open the drawer", think_tokens=12)
FREE = Query(QueryKind.QUESTION, question="What moves?", think_tokens=0)
REQUEST = Request("r", (tiny_model.window(),), (COMPLETION, FREE))


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tiny_model.write(tmp_path_factory.mktemp("model") / "tiny")


def answers(engine, request=REQUEST):
    events = [event for event in engine.answer(request) if not isinstance(event, Token)]
    assert all(isinstance(event, Done) for event in events), events
    return {event.branch: event.answer for event in events}


def test_float32_says_what_the_cpu_says(directory):
    torch.backends.cuda.matmul.allow_tf32 = False
    cpu, gpu = (
        answers(TorchEngine(qwen2_5_vl.load(directory, device, "float32"), min_confidence=0.5))
        for device in ("cpu", "cuda")
    )
    for branch in cpu:
        assert (gpu[branch].reasoning, gpu[branch].answer) == (cpu[branch].reasoning, cpu[branch].answer)
        assert gpu[branch].confidence == pytest.approx(cpu[branch].confidence, abs=1e-3)


def test_requests_in_step_say_what_they_say_alone(directory):
    torch.backends.cuda.matmul.allow_tf32 = False
    engine = TorchEngine(qwen2_5_vl.load(directory, "cuda", "float32"), min_confidence=0.5)
    windows = [tiny_model.window(frames=frames, seed=frames) for frames in (4, 6, 8)]
    requests = [Request(f"r{i}", (window,), REQUEST.queries) for i, window in enumerate(windows)]
    found: list[dict] = [{} for _ in requests]
    for place, event in engine.answer_together(requests):
        assert not isinstance(event, Failed), event
        if isinstance(event, Done):
            found[place][event.branch] = event.answer
    for request, said in zip(requests, found, strict=True):
        alone = answers(engine, request)
        assert said.keys() == alone.keys()
        for branch, answer in alone.items():
            assert (said[branch].reasoning, said[branch].answer) == (answer.reasoning, answer.answer)


def test_auto_takes_the_gpu_in_bfloat16_and_repeats_itself(directory):
    engine = TorchEngine(qwen2_5_vl.load(directory), min_confidence=0.5)
    assert engine.info.device.startswith("cuda:0 (")
    assert engine.info.dtype == "bfloat16"
    assert answers(engine) == answers(engine)


def test_out_of_memory_is_a_failure_and_memory_comes_back(directory):
    engine = TorchEngine(qwen2_5_vl.load(directory), min_confidence=0.5)
    before = torch.cuda.memory_reserved()
    hook = engine.model.network.model.visual.register_forward_pre_hook(
        lambda *_: torch.empty(1 << 50, dtype=torch.uint8, device="cuda")
    )
    (failed,) = engine.answer(REQUEST)
    hook.remove()
    assert isinstance(failed, Failed)
    assert failed.error_code is ErrorCode.OUT_OF_MEMORY
    assert torch.cuda.memory_reserved() <= before
    assert answers(engine)


def test_close_frees_the_memory(directory):
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    engine = TorchEngine(qwen2_5_vl.load(directory), min_confidence=0.5)
    assert torch.cuda.memory_allocated() > before
    engine.close()
    assert torch.cuda.memory_allocated() <= before
