# SPDX-License-Identifier: Apache-2.0
"""CUDA graphs, running ahead and quantised weights: ``pytest -m gpu tests/gpu``."""

import dataclasses

import pytest
import torch

from cosmos_reason_node.engine.base import Done, Failed, Request, Sampling, Token
from cosmos_reason_node.engine.loading import load_engine
from cosmos_reason_node.engine.spec import EngineSpec
from cosmos_reason_node.engine.torch import TorchEngine
from cosmos_reason_node.models import qwen2_5_vl
from cosmos_reason_node.models.quantize import quantize
from cosmos_reason_node.types import Query, QueryKind
from tests import tiny_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
QUERIES = (
    Query(QueryKind.COMPLETION, task="open the drawer", think_tokens=20),
    Query(QueryKind.QUESTION, question="What moves?", think_tokens=0),
    Query(QueryKind.NEXT_ACTION, task="open it", options=("reach", "pull"), think_tokens=7),
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tiny_model.write(tmp_path_factory.mktemp("model") / "tiny")


def answers(engine, seed, **changes):
    request = Request("r", (tiny_model.window(frames=6, seed=seed),), QUERIES, **changes)
    done = {event.branch: event.answer for event in engine.answer(request) if isinstance(event, Done)}
    return [(done[i].reasoning, done[i].answer, done[i].token_ids) for i in range(3)]


@pytest.mark.parametrize("changes", [{}, {"free": True}, {"sampling": Sampling(0.7, 0.9, 1)}])
def test_graphs_and_running_ahead_say_what_plain_steps_say(directory, changes):
    torch.backends.cuda.matmul.allow_tf32 = False
    model = qwen2_5_vl.load(directory, "cuda", "float32")
    ahead, plain = (
        TorchEngine(model, min_confidence=0.0, kept_pairs=8, run_ahead=on, drafts=False)
        for on in (True, False)
    )
    for seed in (0, 1, 0):  # the third time on graphs that were captured the first
        assert answers(ahead, seed, **changes) == answers(plain, seed, **changes)


def test_a_decode_step_does_not_wait_for_the_device(directory):
    """torch reports synchronisations: between launches there is none but the wait for the step before."""
    engine = TorchEngine(qwen2_5_vl.load(directory), min_confidence=0.0, kept_pairs=8)
    long = dataclasses.replace(QUERIES[0], think_tokens=200)
    running = engine.answer(Request("r", (tiny_model.window(),), (long,), free=True, min_tokens=200))
    for _ in range(20):
        next(running)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(20):
            next(running)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    running.close()


def test_eight_bit_weights_answer(directory):
    pytest.importorskip("torchao")
    model = qwen2_5_vl.load(directory)
    quantize(model.network, "int8")
    assert answers(TorchEngine(model, min_confidence=0.0, kept_pairs=8), 0)


def test_four_bit_weights_are_in_every_layer_and_answer(directory):
    pytest.importorskip("torchao")
    model = qwen2_5_vl.load(directory)
    quantize(model.network, "int4")
    layers = model.network.model.language_model.layers
    linear = [module for module in layers.modules() if isinstance(module, torch.nn.Linear)]
    assert {type(module.weight).__name__ for module in linear} == {"Int4TilePackedTo4dTensor"}
    assert answers(TorchEngine(model, min_confidence=0.0, kept_pairs=8), 0)


def test_what_is_not_finite_stays_with_its_window(directory, monkeypatch):
    model = qwen2_5_vl.load(directory, "cuda", "float32")
    engine = TorchEngine(model, min_confidence=0.0, kept_pairs=8)
    encode = type(model).visual_features
    monkeypatch.setattr(type(model), "visual_features", lambda *given: encode(*given) * float("nan"))
    bad = Request("bad", (tiny_model.window(frames=8, seed=3),), QUERIES)
    assert all(isinstance(event, (Failed, Token)) for event in engine.answer(bad))
    monkeypatch.undo()
    assert answers(engine, 0) == answers(TorchEngine(model, min_confidence=0.0, kept_pairs=8), 0)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_another_than_the_first_gpu_says_the_same(directory):
    said = []
    try:
        for device in ("cuda:0", "cuda:1"):
            engine = load_engine(
                EngineSpec(str(directory), device=device, dtype="float32", min_confidence=0.0)
            )
            said.append(answers(engine, 0))
            engine.close()
    finally:
        torch.cuda.set_device(0)
    assert said[0] == said[1]
