# SPDX-License-Identifier: Apache-2.0
"""What the engine keeps and shares changes no token: against transformers' generate, and fuzzed."""

import copy
import dataclasses
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.reference import Reference
from cosmos_reason_node.engine import batch
from cosmos_reason_node.engine.base import Done, Failed, Request, Sampling, Token
from cosmos_reason_node.engine.sampling import choose
from cosmos_reason_node.engine.torch import TorchEngine
from cosmos_reason_node.engine.vision_cache import VisionCache
from cosmos_reason_node.errors import ErrorCode
from cosmos_reason_node.models import qwen2_5_vl
from cosmos_reason_node.types import Frame, Query, QueryKind, Window
from cosmos_reason_node.vision.patchify import patchify
from tests import tiny_model

PERIOD = 500_000_000
SIZES = ((28, 56), (56, 84))
QUESTIONS = ("What moves?", "Is it open?", "Where is the gripper?", "push or pull")
YES_NO = Query(QueryKind.COMPLETION, task="open the drawer", think_tokens=0)
OPTIONS = Query(QueryKind.NEXT_ACTION, task="open it", options=("reach", "pull", "push"), think_tokens=0)


def ask(question, tokens=0):
    return Query(QueryKind.QUESTION, question=question, think_tokens=tokens)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    torch.set_num_threads(1)
    return tiny_model.write(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def model(directory):
    return qwen2_5_vl.load(directory, device="cpu")


@pytest.fixture(scope="module")
def reference(model):
    return Reference(tiny_model.build_network(tiny_model.build_tokenizer()), model.tokenizer, model.spec)


def new_engine(model, **changes):
    return TorchEngine(model, **{"min_confidence": 0.0, "kept_pairs": 6, **changes})


@pytest.fixture(scope="module")
def stream():
    """Frames of two sizes, by size."""
    rng = np.random.default_rng(0)
    return {
        size: [
            Frame("front", (i + 1) * PERIOD, i, rng.integers(0, 256, (*size, 3), dtype=np.uint8))
            for i in range(24)
        ]
        for size in SIZES
    }


def window(frames, first, count):
    return Window("front", tuple(frames[first : first + count]), first, PERIOD, 0, count)


def ends(events):
    return {event.branch: event for event in events if not isinstance(event, Token)}


@settings(max_examples=12, deadline=None, derandomize=True)
@given(data=st.data())
def test_tokens_are_those_of_generate(model, reference, stream, data):
    """Random windows, strides, sizes, numbers of branches and cancellations, on one engine."""
    engine = new_engine(model)
    frames = stream[data.draw(st.sampled_from(SIZES))]
    first = 2 * data.draw(st.integers(0, 2))
    for number in range(data.draw(st.integers(1, 3))):
        count = 2 * data.draw(st.integers(1, 4))
        seen = window(frames, first, count)
        if data.draw(st.booleans()):
            engine.observe(window(frames, first + count - 2, 2))
        questions = data.draw(st.lists(st.sampled_from(QUESTIONS), min_size=1, max_size=4, unique=True))
        length = data.draw(st.integers(2, 12))
        asked = Request(
            f"r{number}",
            (seen,),
            tuple(ask(question) for question in questions),
            max_answer_tokens=length,
            free=True,
            min_tokens=length,
        )
        cancels = data.draw(st.dictionaries(st.integers(1, 20), st.integers(0, len(questions) - 1)))
        running, events = engine.answer(asked), []
        for step in range(10_000):
            try:
                drop = cancels.get(step)
                events.append(running.send(drop) if events and drop is not None else next(running))
            except StopIteration:
                break
        ended = ends(events)
        assert set(range(len(questions))) - set(cancels.values()) <= set(ended)
        for branch, event in ended.items():
            expected = reference.answer(seen, asked.queries[branch], length)
            assert list(event.answer.token_ids) == expected
        assert not engine._batches
        first += 2 * data.draw(st.integers(0, 2))


@settings(max_examples=10, deadline=None, derandomize=True)
@given(strides=st.lists(st.integers(0, 3), min_size=1, max_size=4), size=st.sampled_from(SIZES))
def test_features_are_bitwise_those_of_a_fresh_encode(model, stream, strides, size):
    engine, first = new_engine(model), 0
    for stride in strides:
        first += 2 * stride
        seen = window(stream[size], first % 16, 8)
        list(engine.answer(Request("r", (seen,), (YES_NO,))))
        for i, pair in enumerate(engine.machine.vision.pairs(seen)):
            patches, grid = patchify(seen.pixels()[2 * i : 2 * i + 2], model.spec.patches)
            with torch.inference_mode():
                fresh = model.visual_features(torch.from_numpy(patches), [grid])
            assert torch.equal(pair.features, fresh)


def test_an_engine_that_keeps_nothing_encodes_a_window_in_one_call(model, stream):
    calls = []

    def encode(frames):
        calls.append(len(frames))
        patches, grid = patchify(frames, model.spec.patches)
        with torch.inference_mode():
            return model.visual_features(torch.from_numpy(patches), [grid])

    apart, joint = (VisionCache(encode, 2, 0, joint=joint) for joint in (False, True))
    windows = [window(stream[size], 0, 8) for size in SIZES]
    pairs = [[pair for seen in windows for pair in vision.pairs(seen)] for vision in (apart, joint)]
    apart.encode_all(pairs[0])
    assert calls == [2] * len(pairs[0])
    calls.clear()
    joint.encode_all(pairs[1])
    assert sorted(calls) == [8] * len(SIZES)
    for one, other in zip(*pairs, strict=True):
        torch.testing.assert_close(one.features, other.features, atol=1e-3, rtol=1e-3)
    joint.encode_all(pairs[1])
    assert len(calls) == len(SIZES)


def test_the_ring_is_bounded_and_only_what_is_seen_again_is_kept(model, stream):
    engine = new_engine(model, kept_pairs=4)
    for first in range(0, 16, 2):
        engine.observe(window(stream[SIZES[0]], first, 2))
    vision = engine.machine.vision
    pair_bytes = 2 * 28 * 56 * 3 + 2 * 64 * 4  # two frames, two visual tokens of 64 float32
    assert vision.bytes_by_camera == {"front": 4 * pair_bytes}
    assert (vision.hits, vision.misses) == (0, 8)
    list(engine.answer(Request("r", (window(stream[SIZES[0]], 8, 8),), (YES_NO,))))
    assert (vision.hits, vision.misses) == (4, 8)


def test_other_frames_at_the_same_ticks_are_encoded_anew(model, stream):
    engine = new_engine(model)
    seen = window(stream[SIZES[0]], 0, 4)
    (before,) = ends(engine.answer(Request("r", (seen,), (YES_NO,)))).values()
    other = dataclasses.replace(
        seen, frames=tuple(dataclasses.replace(f, image=255 - f.image) for f in seen.frames)
    )
    equal = dataclasses.replace(
        seen, frames=tuple(dataclasses.replace(f, image=f.image.copy()) for f in seen.frames)
    )
    (after,) = ends(engine.answer(Request("r", (other,), (YES_NO,)))).values()
    (fresh,) = ends(new_engine(model).answer(Request("r", (other,), (YES_NO,)))).values()
    assert after.answer.confidence == pytest.approx(fresh.answer.confidence, abs=1e-5)
    assert after.answer.confidence != before.answer.confidence
    misses = engine.machine.vision.misses
    list(engine.answer(Request("r", (dataclasses.replace(equal, frames=other.frames),), (YES_NO,))))
    assert engine.machine.vision.misses == misses


def test_nothing_stale_survives_new_weights(model, stream):
    changed = dataclasses.replace(model, network=copy.deepcopy(model.network))
    engine = new_engine(changed)
    asked = Request("r", (window(stream[SIZES[0]], 0, 4),), (YES_NO,))
    (before,) = ends(engine.answer(asked)).values()
    with torch.no_grad():
        for weight in changed.network.parameters():
            weight.mul_(0.8)
    engine.forget()
    (after,) = ends(engine.answer(asked)).values()
    (fresh,) = ends(new_engine(changed).answer(asked)).values()
    assert after.answer.confidence == pytest.approx(fresh.answer.confidence, abs=1e-6)
    assert after.answer.confidence != before.answer.confidence


def test_what_a_request_costs(model, stream):
    """Again: nothing of the prefix. Grown: the new pairs. Slid: the video. A verdict: one pass."""
    engine = new_engine(model)

    def cost(first, count, *queries):
        before = engine.statistics
        events = list(engine.answer(Request("r", (window(stream[SIZES[0]], first, count),), queries)))
        after = engine.statistics
        assert all(isinstance(event, Done) for event in ends(events).values())
        return (
            after.prefix_tokens_read - before.prefix_tokens_read,
            after.vision_misses - before.vision_misses,
            after.decode_steps - before.decode_steps,
        )

    tokens = 2  # visual tokens of a pair
    read, misses, steps = cost(0, 4, YES_NO)
    assert (misses, steps) == (2, 1)
    assert cost(0, 4, YES_NO, OPTIONS) == (0, 0, 1)
    assert cost(0, 6, YES_NO, OPTIONS, YES_NO) == (tokens + 1, 1, 1)  # and <|vision_end|>
    slid, misses, _ = cost(2, 6, YES_NO)
    assert (slid, misses) == (3 * tokens + 1, 1)
    assert slid < read + tokens


@pytest.mark.parametrize("again", [0, 1])
def test_the_approximate_mode_moves_the_video_and_reads_it_anew_every_so_often(model, stream, again):
    """However often each window is asked about."""
    exact, rough = new_engine(model), new_engine(model, refresh_every=3)
    costs, apart = [], []
    for first in range(0, 12, 2):
        asked = Request("r", (window(stream[SIZES[0]], first, 8),), (YES_NO,))
        before = rough.statistics.prefix_tokens_read
        (mine,), (theirs,) = (ends(engine.answer(asked)).values() for engine in (rough, exact))
        for _ in range(again):
            list(rough.answer(asked))
        costs.append(rough.statistics.prefix_tokens_read - before)
        apart.append(abs(mine.answer.confidence - theirs.answer.confidence))
    video, new = 4 * 2 + 1, 2 + 1  # visual tokens of four pairs, of one, and <|vision_end|>
    assert costs[1:] == [new, new, video, new, new]
    assert [gap < 1e-5 for gap in apart] == [True, False, False, True, False, False]
    assert exact.statistics.prefix_tokens_read > rough.statistics.prefix_tokens_read


def test_requests_about_the_same_window_share_steps(model, stream):
    engine = new_engine(model)
    seen = (window(stream[SIZES[0]], 0, 4),)
    length = {"max_answer_tokens": 8, "free": True, "min_tokens": 8}
    one = engine.answer(Request("a", seen, (ask(QUESTIONS[0]),), **length))
    events = [next(one) for _ in range(4)]
    two = engine.answer(Request("b", seen, (ask(QUESTIONS[1]),), **length))
    said = {0: events, 1: []}
    for _ in range(40):
        for number, running in enumerate((one, two)):
            said[number] += [event for event in (next(running, None),) if event is not None]
    assert engine.statistics.decode_steps < 8 + 8
    for number in range(2):
        alone = ends(new_engine(model).answer(Request("c", seen, (ask(QUESTIONS[number]),), **length)))
        assert ends(said[number])[0].answer.token_ids == alone[0].answer.token_ids


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.7, 0.95, 3)])
def test_guesses_change_the_number_of_passes_and_nothing_else(model, stream, sampling):
    """The same question about a window that slides, with answers under the grammar and without."""
    engine, plain = new_engine(model), new_engine(model, drafts=False)
    thought = dataclasses.replace(YES_NO, think_tokens=12)
    for first, free in ((0, True), (0, True), (2, True), (0, False), (0, False), (2, False)):
        seen = (window(stream[SIZES[0]], first, 6),)
        asked = Request("r", seen, (thought, ask(QUESTIONS[0])), max_answer_tokens=12, free=free)
        asked = dataclasses.replace(asked, sampling=sampling, min_tokens=12 * free)
        said, expected = ends(engine.answer(asked)), ends(plain.answer(asked))
        for branch in range(2):
            mine, theirs = said[branch].answer, expected[branch].answer
            assert (mine.reasoning, mine.answer, mine.token_ids) == (
                theirs.reasoning,
                theirs.answer,
                theirs.token_ids,
            )
            assert mine.confidence == pytest.approx(theirs.confidence, abs=1e-4)
    work = engine.statistics
    assert work.decode_steps < plain.statistics.decode_steps
    assert work.decode_tokens == plain.statistics.decode_tokens
    assert 0 < work.right_guesses <= work.guessed_tokens
    assert plain.statistics.guessed_tokens == 0


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.7, 0.95, 3)])
def test_running_ahead_changes_nothing(model, stream, sampling):
    """As on a GPU, with the fixed shapes of its graphs: answers of all kinds, one cut off in between."""
    ahead, plain = new_engine(model, run_ahead=True), new_engine(model, drafts=False)
    thought = dataclasses.replace(YES_NO, think_tokens=9)
    queries = (thought, ask(QUESTIONS[0], 3), dataclasses.replace(OPTIONS, think_tokens=4), YES_NO)
    for first, free in ((0, False), (2, True), (4, False)):
        seen = (window(stream[SIZES[0]], first, 6),)
        asked = Request("r", seen, queries, max_answer_tokens=12, free=free, sampling=sampling)
        said, expected = [], ends(plain.answer(asked))
        running = ahead.answer(asked)
        while len(said) < 9:
            said.append(next(running))
        said += [running.send(1), *running]
        for branch, event in ends(said).items():
            mine, theirs = event.answer, expected[branch].answer
            assert (mine.reasoning, mine.answer, mine.token_ids) == (
                theirs.reasoning,
                theirs.answer,
                theirs.token_ids,
            )
        assert set(ends(said)) >= {0, 2, 3}


def test_a_branch_that_fails_leaves_its_siblings_alone(model, stream):
    """One token's embedding is not finite, and one question has it."""
    broken = dataclasses.replace(model, network=copy.deepcopy(model.network))
    (bad,) = broken.tokenizer.encode("~", add_special_tokens=False)
    with torch.no_grad():
        broken.network.model.language_model.embed_tokens.weight[bad] = torch.nan
    engine = new_engine(broken)
    seen = (window(stream[SIZES[0]], 0, 4),)
    length = {"max_answer_tokens": 6, "free": True, "min_tokens": 6}
    queries = (ask(QUESTIONS[0]), ask("what ~ is"), ask(QUESTIONS[1]))
    ended = ends(engine.answer(Request("r", seen, queries, **length)))
    assert ended[1].error_code is ErrorCode.ENGINE_FAILED
    again = ends(engine.answer(Request("s", seen, (queries[2], queries[0], queries[2]), **length)))
    for branch, query in ((0, queries[0]), (2, queries[2])):
        alone = ends(new_engine(model).answer(Request("t", seen, (query,), **length)))[0].answer
        assert ended[branch].answer.token_ids == alone.token_ids
        assert again[1 if branch == 0 else 0].answer.token_ids == alone.token_ids


def test_orders_of_the_options_are_averaged(model, stream, monkeypatch):
    engine = new_engine(model)
    seen = (window(stream[SIZES[0]], 0, 4),)
    chosen = []
    monkeypatch.setattr(batch, "choose", lambda *given: chosen.append(choose(*given)) or chosen[-1])
    shares = np.zeros(3)
    for order in range(3):
        turned = dataclasses.replace(OPTIONS, options=OPTIONS.options[order:] + OPTIONS.options[:order])
        list(engine.answer(Request("r", seen, (turned,))))
        shares += np.roll(chosen[-1][1], order)
    asked = Request("r", seen, (OPTIONS, YES_NO), option_orders=5)
    ended = ends(engine.answer(asked))
    assert ended[0].answer.confidence == pytest.approx(shares.max() / 3, abs=1e-5)
    assert ended[0].answer.answer == "ABC"[int(shares.argmax())]
    assert isinstance(ended[1], Done)


@pytest.mark.parametrize("seed", range(6))
def test_any_interleaving_ends_every_branch_once_with_its_own_answer(model, stream, seed):
    """Several requests about two windows are started, stepped, cut and closed at random."""
    rng = random.Random(seed)
    engine = new_engine(model)
    length = {"max_answer_tokens": 5, "free": True, "min_tokens": 5}
    kinds = [(first, question) for first in (0, 2) for question in QUESTIONS]
    alone = {}
    for first, question in kinds:
        request = Request("a", (window(stream[SIZES[0]], first, 4),), (ask(question),), **length)
        alone[first, question] = ends(new_engine(model).answer(request))[0].answer.token_ids
    running, finished = {}, []
    for number in range(150):
        if number < 120 and (not running or rng.random() < 0.2):
            first = rng.choice((0, 2))
            asked = [rng.choice(QUESTIONS) for _ in range(rng.randint(1, 3))]
            request = Request(
                f"r{number}",
                (window(stream[SIZES[0]], first, 4),),
                tuple(ask(question) for question in asked),
                **length,
            )
            running[number] = (engine.answer(request), first, asked, [], set())
        if not running:
            continue
        chosen = rng.choice(list(running))
        generator, first, asked, events, dropped = running[chosen]
        action = rng.random()
        try:
            if action < 0.05:
                generator.close()
                raise StopIteration
            if action < 0.15 and events:
                dropped.add(branch := rng.randrange(len(asked)))
                events.append(generator.send(branch))
            else:
                events.append(next(generator))
        except StopIteration:
            finished.append((*running.pop(chosen)[1:], action < 0.05))
    for generator, first, asked, events, dropped in running.values():
        events += list(generator)
        finished.append((first, asked, events, dropped, False))
    assert not engine._batches
    for first, asked, events, dropped, closed in finished:
        last = [event for event in events if isinstance(event, Done | Failed)]
        assert len({event.branch for event in last}) == len(last)
        assert closed or {event.branch for event in last} >= set(range(len(asked))) - dropped
        for event in last:
            assert event.answer.token_ids == alone[first, asked[event.branch]]


def test_every_camera_keeps_its_prefix(model):
    engine = new_engine(model)
    asked = [
        Request("r", (tiny_model.window(camera=camera, seed=seed),), (YES_NO,))
        for seed, camera in enumerate(("front", "left", "right"))
    ]
    for request in (*asked, *asked):
        before = engine.statistics.prefix_tokens_read
        ends(engine.answer(request))
    assert engine.statistics.prefix_tokens_read == before  # the same window again: nothing is read
    for request in asked:
        ends(engine.answer(request))
    assert engine.statistics.prefix_tokens_read == before


@pytest.mark.parametrize("run_ahead", [False, True])
def test_what_is_not_finite_stays_with_the_window_that_it_came_from(model, monkeypatch, run_ahead):
    """Places that a later request masks are multiplied by zero: a NaN left there would be its answer's."""
    engine = new_engine(model, run_ahead=run_ahead, drafts=False)
    questions = tuple(
        ask(question) for question in ("What moves?", "Is it open, and if so how far?", "Where?")
    )
    encode = type(model).visual_features
    monkeypatch.setattr(type(model), "visual_features", lambda *given: encode(*given) * float("nan"))
    failed = ends(engine.answer(Request("bad", (tiny_model.window(frames=6),), (*questions, OPTIONS))))
    assert {event.error_code for event in failed.values()} == {ErrorCode.ENGINE_FAILED}
    monkeypatch.undo()
    good = Request("good", (tiny_model.window(seed=1),), questions, free=True, min_tokens=12)
    said = {branch: event.answer.token_ids for branch, event in ends(engine.answer(good)).items()}
    fresh = ends(new_engine(model, run_ahead=run_ahead, drafts=False).answer(good))
    assert said == {branch: event.answer.token_ids for branch, event in fresh.items()}


def test_a_free_text_is_asked_for_in_one_order(model):
    request = Request("r", (tiny_model.window(),), (OPTIONS,), free=True, min_tokens=8)
    once, turned = (
        ends(new_engine(model).answer(dataclasses.replace(request, option_orders=orders)))[0].answer
        for orders in (1, 3)
    )
    assert turned == once
