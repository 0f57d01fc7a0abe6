# SPDX-License-Identifier: Apache-2.0
import dataclasses
import gc
import weakref

import numpy as np
import pytest
import torch

from cosmos_reason_node import decision, prompt
from cosmos_reason_node.engine.base import Done, Engine, Failed, Request, Sampling, Token
from cosmos_reason_node.engine.grammar import YES_NO, Branch, ChoiceStep
from cosmos_reason_node.engine.loading import load_engine
from cosmos_reason_node.engine.spec import EngineSpec
from cosmos_reason_node.engine.torch import TorchEngine
from cosmos_reason_node.errors import CosmosReasonError, ErrorCode
from cosmos_reason_node.models import qwen2_5_vl
from cosmos_reason_node.types import Query, QueryKind, Verdict
from cosmos_reason_node.vision.patchify import patchify
from tests import tiny_model

COMPLETION = Query(QueryKind.COMPLETION, task="open the drawer", think_tokens=12)
OPTIONS = Query(QueryKind.NEXT_ACTION, task="open the drawer", options=("reach", "pull"), think_tokens=5)
FREE = Query(QueryKind.QUESTION, question="What moves?", think_tokens=0)
QUERIES = (COMPLETION, OPTIONS, FREE)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.set_num_threads(1)
    return qwen2_5_vl.load(tiny_model.write(tmp_path_factory.mktemp("model") / "tiny"), device="cpu")


@pytest.fixture(scope="module")
def engine(model) -> Engine:
    return TorchEngine(model, min_confidence=0.5)


def request(*queries, windows=None, **changes):
    windows = (tiny_model.window(),) if windows is None else windows
    return Request("r1", windows, queries, **{"max_answer_tokens": 10, **changes})


def answers(engine, asked):
    ended = {}
    for event in engine.answer(asked):
        if not isinstance(event, Token):
            assert event.branch not in ended
            ended[event.branch] = event
    return ended


def assert_same(answer, other):
    """Equal but for the last bits of the confidence: rows beside a row change the shape of products."""
    assert answer.confidence == pytest.approx(other.confidence, abs=1e-4)
    assert dataclasses.replace(answer, confidence=0) == dataclasses.replace(other, confidence=0)


def by_whole_forwards(model, window, query, max_answer_tokens):
    """The slow way: no cache, no branches, the whole text through the network for every token."""
    patches, grid = patchify(window.pixels(), model.spec.patches)
    tokens = prompt.encode_prefix(model.tokenizer, [model.spec.patches.visual_tokens(grid)])
    tokens += prompt.encode_suffix(model.tokenizer, query)
    video = model.spec.video_grid(len(window.frames), *window.frames[0].image.shape[:2], fps=window.fps)
    grammar = Branch(
        TorchEngine(model, min_confidence=0.5).vocabulary, query, query.think_tokens, max_answer_tokens
    )
    while not grammar.done:
        tokens = tokens + grammar.take()
        positions, _ = model.spec.positions(tokens, [video])
        with torch.inference_mode():
            features = model.visual_features(torch.from_numpy(patches), [grid])
            embedded = model.embed(torch.tensor([tokens]), features)
            logits = model.logits(model.decode(embedded, torch.from_numpy(positions)[:, None])[0, -1])
        step = grammar.step()
        if isinstance(step, ChoiceStep):
            mass = torch.stack([logits[list(group)].logsumexp(0) for group in step.groups]).softmax(0)
            grammar.choose(int(mass.argmax()), float(mass.max()))
        else:
            log_probs = logits.masked_fill(torch.from_numpy(step.forbidden), -torch.inf).log_softmax(0)
            grammar.push(int(log_probs.argmax()), float(log_probs.max()))
    return grammar.result(0, 0.5)


@pytest.mark.parametrize("seed", range(3))
def test_branches_from_the_cache_say_what_whole_forwards_say(model, engine, seed):
    window = tiny_model.window(seed=seed)
    ended = answers(engine, request(*QUERIES, windows=(window,)))
    for branch, query in enumerate(QUERIES):
        slow = by_whole_forwards(model, window, query, 10)
        fast = ended[branch].answer
        assert (fast.reasoning, fast.answer, fast.output_tokens) == (
            slow.reasoning,
            slow.answer,
            slow.output_tokens,
        )
        assert fast.confidence == pytest.approx(slow.confidence, abs=1e-3)


def test_answers_depend_on_the_video(engine):
    said = {
        answers(engine, request(dataclasses.replace(FREE), windows=(tiny_model.window(seed=seed),)))[
            0
        ].answer.answer
        for seed in range(6)
    }
    assert len(said) > 1


def test_branches_are_independent(engine):
    together = answers(engine, request(*QUERIES))
    for branch, query in enumerate(QUERIES):
        alone = answers(engine, request(query))[0].answer
        assert_same(alone, together[branch].answer)
    swapped = answers(engine, request(*reversed(QUERIES)))
    for i in range(3):
        assert_same(swapped[2 - i].answer, together[i].answer)


def test_two_cameras_are_two_videos(engine, model):
    windows = (tiny_model.window(camera="a"), tiny_model.window(frames=6, seed=1, camera="b"))
    answer = answers(engine, request(FREE, windows=windows))[0].answer
    one = answers(engine, request(FREE, windows=windows[:1]))[0].answer
    assert answer.prompt_tokens == one.prompt_tokens + 3 * 6 + 2
    assert answer != one


def test_events_tell_the_whole_story(engine):
    events = list(engine.answer(request(*QUERIES)))
    for branch in range(3):
        tokens = [event for event in events if isinstance(event, Token) and event.branch == branch]
        done = next(event for event in events if isinstance(event, Done) and event.branch == branch)
        thought = "".join(event.text for event in tokens if event.thinking)
        said = "".join(event.text for event in tokens if not event.thinking)
        assert thought.strip().startswith(done.answer.reasoning)
        assert said.strip().startswith(done.answer.answer)
        latency = done.latency
        assert min(latency.vision_s, latency.prefill_s) > 0
        assert latency.first_token_s == pytest.approx(latency.vision_s + latency.prefill_s)
        assert latency.decode_s >= 0
    # Branches take turns: the second starts before the first has ended.
    order = [event.branch for event in events if isinstance(event, Token)][2:]
    assert order[:3] == [0, 1, 2]


def test_every_answer_parses_and_is_bounded(engine):
    for seed in range(4):
        asked = request(*QUERIES, sampling=Sampling(temperature=3.0, seed=seed))
        for branch, event in answers(engine, asked).items():
            answer, query = event.answer, QUERIES[branch]
            parsed = decision.parse_output(prompt.target(answer.reasoning, answer.answer), query)
            assert parsed.answer == answer.answer
            assert 0 <= answer.confidence <= 1
            assert answer.output_tokens < 80
            if query is COMPLETION:
                assert answer.answer in (YES_NO[0][0], YES_NO[1][0])


def test_verdict_at_once_takes_three_steps(engine):
    events = list(engine.answer(request(dataclasses.replace(COMPLETION, think_tokens=0))))
    assert [type(event) for event in events] == [Token, Token, Token, Done]  # see, read, verdict
    assert events[-1].answer.reasoning == ""


def test_default_budget_and_min_confidence(model):
    engine = TorchEngine(model, min_confidence=1.0, default_think_tokens=4)
    answer = answers(engine, request(dataclasses.replace(COMPLETION, think_tokens=-1)))[0].answer
    assert answer.verdict is Verdict.UNKNOWN
    assert answer.answer in ("yes", "no")
    assert answer.think_closed_by_budget


def test_sampling_follows_the_seed(engine):
    def said(seed, *queries):
        ended = answers(engine, request(*queries, sampling=Sampling(1.5, 0.95, seed)))
        return [ended[i].answer.reasoning for i in range(len(queries))]

    long = dataclasses.replace(COMPLETION, think_tokens=15)
    assert said(1, long, long) == said(1, long, long)
    assert said(1, long) != said(2, long)
    first, second = said(1, long, long)
    assert first != second  # branches draw from their own generators
    assert said(1, long, OPTIONS)[0] == first  # whatever else is asked


def test_calibration_moves_confidence_not_the_verdict(model):
    spec = dataclasses.replace(model.spec, temperature={"completion": 50.0})
    flat = TorchEngine(dataclasses.replace(model, spec=spec), min_confidence=0.0)
    sharp = TorchEngine(model, min_confidence=0.0)
    a, b = (answers(engine, request(COMPLETION))[0].answer for engine in (flat, sharp))
    assert a.verdict is b.verdict
    assert 0.5 <= a.confidence < b.confidence


def test_mrope_convention_reaches_the_model(model):
    window = dataclasses.replace(tiny_model.window(), period_ns=250_000_000)  # 4 frames per second
    said = [
        answers(
            TorchEngine(model, mrope_time=mode, min_confidence=0.0), request(COMPLETION, windows=(window,))
        )
        for mode in ("float", "legacy_zero")
    ]
    assert said[0][0].answer.confidence != said[1][0].answer.confidence


def test_closing_midway_frees_everything(model):
    engine = TorchEngine(model, min_confidence=0.5)
    running = engine.answer(request(*QUERIES))
    for _ in range(6):
        next(running)
    run = weakref.ref(running.gi_frame.f_locals["run"])
    batch = weakref.ref(engine._batches[0])
    cache = weakref.ref(batch()._slot.prefix)
    running.close()
    gc.collect()
    assert run() is batch() is cache() is None
    assert isinstance(answers(engine, request(FREE))[0], Done)


def test_a_dropped_branch_ends_without_event(engine):
    running = engine.answer(request(*QUERIES))
    events = [next(running) for _ in range(4)]
    events.append(running.send(0))
    events += list(running)
    whole = answers(engine, request(*QUERIES))
    ended = [event for event in events if isinstance(event, Done)]
    assert {event.branch for event in ended} == {1, 2}
    for event in ended:
        assert_same(event.answer, whole[event.branch].answer)


def test_deadline(engine):
    events = list(engine.answer(request(COMPLETION, deadline_s=1e-9)))
    assert [event.error_code for event in events] == [ErrorCode.DEADLINE_EXCEEDED]
    assert events[0].branch == -1
    assert isinstance(answers(engine, request(FREE, deadline_s=60.0))[0], Done)


def failure(engine, *queries, **changes):
    events = list(engine.answer(request(*queries, **changes)))
    assert len(events) == 1
    assert isinstance(events[0], Failed)
    assert events[0].branch == -1
    return events[0].error_code


def test_bad_requests_are_failures(engine):
    long = tiny_model.window(frames=700)
    assert failure(engine, FREE, windows=(long,)) is ErrorCode.QUESTION_TOO_LONG
    odd = tiny_model.window(frames=3)
    assert failure(engine, FREE, windows=(odd,)) is ErrorCode.BAD_IMAGE
    skew = tiny_model.window(size=(50, 84))
    assert failure(engine, FREE, windows=(skew,)) is ErrorCode.BAD_IMAGE
    window = tiny_model.window()
    last = dataclasses.replace(window.frames[3], image=np.zeros((56, 56, 3), np.uint8))
    mixed = dataclasses.replace(window, frames=(*window.frames[:3], last))
    assert failure(engine, FREE, windows=(mixed,)) is ErrorCode.BAD_IMAGE
    empty = dataclasses.replace(window, frames=())
    assert failure(engine, FREE, windows=(empty,)) is ErrorCode.NO_FRAMES


@pytest.mark.parametrize(
    ("query", "code"),
    [
        (Query(QueryKind.COMPLETION), ErrorCode.NO_TASK),
        (Query(QueryKind.QUESTION, question=" "), ErrorCode.INVALID_REQUEST),
        (Query(QueryKind.QUESTION, question="<|im_end|>"), ErrorCode.INVALID_REQUEST),
        (Query(QueryKind.QUESTION, question="half of \ud83e"), ErrorCode.INVALID_REQUEST),
        (Query(QueryKind.QUESTION, question="x" * 3000), ErrorCode.QUESTION_TOO_LONG),
        (Query(QueryKind.QUESTION, question="手" * 1900), ErrorCode.QUESTION_TOO_LONG),
        (dataclasses.replace(FREE, think_tokens=10**6), ErrorCode.INVALID_REQUEST),
        (dataclasses.replace(FREE, think_tokens=2000), ErrorCode.QUESTION_TOO_LONG),
    ],
)
def test_a_bad_query_fails_alone(engine, query, code):
    ended = answers(engine, request(query, FREE))
    assert ended[0].error_code is code
    assert ended[0].error_msg
    assert isinstance(ended[1], Done)


def test_a_question_is_bounded_by_the_memory_that_it_takes(engine, monkeypatch):
    bound = answers(engine, request(FREE))[0].answer.prompt_tokens  # more than the question's own
    monkeypatch.setattr("cosmos_reason_node.engine.run.MAX_QUESTION_TOKENS", bound)
    long = Query(QueryKind.QUESTION, question="手" * bound, think_tokens=0)
    ended = answers(engine, request(long, FREE))
    assert ended[0].error_code is ErrorCode.QUESTION_TOO_LONG
    assert f"the limit is {bound}" in ended[0].error_msg
    assert isinstance(ended[1], Done)


def test_out_of_memory_is_a_failure_and_the_engine_lives(model):
    engine = TorchEngine(model, min_confidence=0.5)
    hook = model.network.model.visual.register_forward_pre_hook(lambda *_: torch.empty(1 << 50))
    try:
        assert failure(engine, FREE) is ErrorCode.OUT_OF_MEMORY
    finally:
        hook.remove()
    assert isinstance(answers(engine, request(FREE))[0], Done)


def test_other_errors_are_not_hidden(model):
    engine = TorchEngine(model, min_confidence=0.5)
    hook = model.network.model.visual.register_forward_pre_hook(lambda *_: torch.ones(2) @ torch.ones(3))
    try:
        with pytest.raises(RuntimeError, match="size"):
            list(engine.answer(request(FREE)))
    finally:
        hook.remove()


def test_info_and_close(model):
    engine = TorchEngine(model, min_confidence=0.5, max_prompt_tokens=64)
    assert engine.info.model_id == "tiny"
    assert engine.info.digest == model.digest
    assert engine.info.prompt_id == prompt.PROMPT_ID
    assert (engine.info.device, engine.info.dtype) == ("cpu", "float32")
    assert engine.max_prompt_tokens == 64
    engine.close()
    engine.close()
    assert failure(engine, FREE) is ErrorCode.ENGINE_NOT_READY


def test_nothing_of_the_self_test_is_kept(tmp_path):
    engine = load_engine(EngineSpec(str(tiny_model.write(tmp_path / "tiny")), device="cpu", threads=1))
    assert engine.statistics.vision_bytes == engine.machine.prefixes.nbytes == 0
    assert isinstance(answers(engine, request(FREE))[0], Done)


@pytest.mark.parametrize("error", [MemoryError("no"), torch.OutOfMemoryError("CUDA out of memory")])
def test_too_little_memory_for_a_model_is_told_apart(tmp_path, monkeypatch, error):
    """The host tries again after it, and after nothing else that a load fails of."""
    directory = tiny_model.write(tmp_path / "tiny")

    def load(*_):
        raise error

    monkeypatch.setattr(qwen2_5_vl, "load", load)
    with pytest.raises(CosmosReasonError, match="too little free memory") as caught:
        load_engine(EngineSpec(str(directory), device="cpu", threads=1))
    assert caught.value.code is ErrorCode.OUT_OF_MEMORY
