# SPDX-License-Identifier: Apache-2.0
"""Requests that are written in step say what each says alone, and fail alone."""

import dataclasses
import time

import pytest
import torch

from cosmos_reason_node.engine.base import Done, Failed, Request, Sampling, Token
from cosmos_reason_node.engine.torch import TorchEngine
from cosmos_reason_node.errors import ErrorCode
from cosmos_reason_node.models import qwen2_5_vl
from cosmos_reason_node.types import Query, QueryKind
from tests import tiny_hybrid, tiny_model

QUERIES = (
    Query(QueryKind.COMPLETION, task="open the drawer", think_tokens=12),
    Query(QueryKind.NEXT_ACTION, task="open the drawer", options=("reach", "pull"), think_tokens=5),
    Query(QueryKind.QUESTION, question="What moves?", think_tokens=0),
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.set_num_threads(1)
    return qwen2_5_vl.load(tiny_model.write(tmp_path_factory.mktemp("model") / "tiny"), device="cpu")


def asked(place, **changes):
    """Other windows of another length, other numbers of queries, sampled with seeds of their own."""
    window = tiny_model.window(frames=4 + 2 * (place % 2), seed=place)
    settings = {"max_answer_tokens": 6 + 5 * place, "sampling": Sampling(temperature=1.0, seed=place)}
    return Request(f"r{place}", (window,), QUERIES[place % 3 :], **{**settings, **changes})


def ended(events):
    """Done and Failed by branch, of one request's events."""
    return {event.branch: event for event in events if not isinstance(event, Token)}


def together(engine, requests):
    told = {place: [] for place in range(len(requests))}
    for place, event in engine.answer_together(requests):
        told[place].append(event)
    return [ended(events) for events in told.values()]


def assert_same(events, others):
    assert events.keys() == others.keys()
    for branch, event in events.items():
        answer, other = event.answer, others[branch].answer
        assert answer.log_probs == pytest.approx(other.log_probs, abs=1e-4)
        assert answer.confidence == pytest.approx(other.confidence, abs=1e-4)
        left = [dataclasses.replace(a, confidence=0, log_probs=(), shares=()) for a in (answer, other)]
        assert left[0] == left[1]


@pytest.mark.parametrize(("free", "kept_pairs"), [(False, 0), (True, 0), (False, 16)])
def test_requests_in_step_say_what_they_say_alone(model, free, kept_pairs):
    engine = TorchEngine(model, min_confidence=0.5, kept_pairs=kept_pairs)
    requests = [asked(place, free=free) for place in range(4)]
    requests.append(dataclasses.replace(requests[0], request_id="same window"))
    found = together(engine, requests)
    for request, events in zip(requests, found, strict=True):
        assert_same(events, ended(engine.answer(request)))
    assert not engine._batches


def test_steps_are_shared(model):
    engine = TorchEngine(model, min_confidence=0.5)
    requests = [asked(place, free=True, min_tokens=8) for place in range(4)]
    for request in requests:
        list(engine.answer(request))
    alone = engine.statistics.decode_steps
    together(engine, requests)
    assert engine.statistics.decode_steps - alone < 0.6 * alone


def test_a_request_fails_alone(model):
    engine = TorchEngine(model, min_confidence=0.5)
    odd = dataclasses.replace(asked(1), windows=(tiny_model.window(frames=3),))
    requests = [asked(0), odd, asked(2, deadline_s=1e-9), asked(3)]
    found = together(engine, requests)
    assert found[1][-1].error_code is ErrorCode.BAD_IMAGE
    assert found[2][-1].error_code is ErrorCode.DEADLINE_EXCEEDED
    for place in (0, 3):
        assert_same(found[place], ended(engine.answer(requests[place])))
    assert not engine._batches


def test_no_request_of_many_can_be_shown(model):
    engine = TorchEngine(model, min_confidence=0.5)
    odd = [dataclasses.replace(asked(i), windows=(tiny_model.window(frames=3, seed=i),)) for i in range(2)]
    assert all(isinstance(events[-1], Failed) for events in together(engine, odd))


def test_out_of_memory_ends_all_of_them_and_the_engine_lives(model):
    engine = TorchEngine(model, min_confidence=0.5)
    hook = model.network.model.visual.register_forward_pre_hook(lambda *_: torch.empty(1 << 50))
    try:
        found = together(engine, [asked(0), asked(1)])
    finally:
        hook.remove()
    assert [events[-1].error_code for events in found] == [ErrorCode.OUT_OF_MEMORY] * 2
    assert all(
        isinstance(event, Done)
        for events in together(engine, [asked(0), asked(1)])
        for event in events.values()
    )


def test_a_window_that_is_being_answered_about_is_refused(model):
    engine = TorchEngine(model, min_confidence=0.5, kept_pairs=16)
    running = engine.answer(asked(0))
    for _ in range(6):
        next(running)
    found = together(engine, [asked(0), asked(1)])
    assert [events[-1].error_code for events in found] == [ErrorCode.INVALID_REQUEST] * 2
    assert ended(running).keys() == {0, 1, 2}


def test_closing_midway_leaves_nothing(model):
    engine = TorchEngine(model, min_confidence=0.5)
    running = engine.answer_together([asked(0), asked(1)])
    for _ in range(4):
        next(running)
    assert engine._batches
    running.close()
    assert not engine._batches


def test_hybrid_models_answer_one_after_the_other(tmp_path):
    from cosmos_reason_node.models.load import load

    engine = TorchEngine(load(tiny_hybrid.write(tmp_path / "hybrid"), device="cpu"), min_confidence=0.5)
    requests = [asked(0), asked(1)]
    for request, events in zip(requests, together(engine, requests), strict=True):
        assert_same(events, ended(engine.answer(request)))


def test_one_after_the_other_they_have_one_deadline(model, monkeypatch):
    """As hybrid models are asked: a round of many questions ends when one of a single question would."""
    engine = TorchEngine(model, min_confidence=0.5)
    monkeypatch.setattr(type(engine._decoder()), "can_interleave", False)
    answer, left = engine.answer, []

    def slowly(request):
        left.append(request.deadline_s)
        time.sleep(0.5)
        return answer(request)

    monkeypatch.setattr(engine, "answer", slowly)
    answers = together(engine, [asked(0, deadline_s=0.4), asked(1, deadline_s=0.4), asked(2)])
    assert left[0] > left[1] > 0
    assert left[2] == 0.0  # none
    assert {event.error_msg for event in answers[1].values()} == {
        "not answered within 0.4 s, one of 3 in turn"
    }
    assert all(isinstance(event, Done) for event in answers[2].values())
