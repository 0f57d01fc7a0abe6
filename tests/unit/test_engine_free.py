# SPDX-License-Identifier: Apache-2.0
"""Requests without the grammar, and seeds of their own for branches."""

import dataclasses
import math

import pytest
import torch

from cosmos_reason_node import prompt
from cosmos_reason_node.engine.base import Done, Failed, Request, Sampling
from cosmos_reason_node.engine.free import FreeBranch
from cosmos_reason_node.engine.torch import TorchEngine
from cosmos_reason_node.errors import ErrorCode
from cosmos_reason_node.models import qwen2_5_vl
from cosmos_reason_node.types import Query, QueryKind, Verdict
from cosmos_reason_node.vision.patchify import patchify
from tests import tiny_model

QUERY = Query(QueryKind.COMPLETION, task="open the drawer", think_tokens=10)
HOT = Sampling(temperature=1.0, top_p=1.0)


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    torch.set_num_threads(1)
    directory = tiny_model.write(tmp_path_factory.mktemp("model") / "tiny")
    return TorchEngine(qwen2_5_vl.load(directory, device="cpu"), min_confidence=0.5)


def answers(engine, *queries, **changes):
    request = Request("r", (tiny_model.window(),), queries, **{"max_answer_tokens": 6, **changes})
    events = [event for event in engine.answer(request) if isinstance(event, Done | Failed)]
    return {event.branch: event for event in events}


def written(engine, text, budget=1000):
    """A FreeBranch that was made to write ``text``, each token with probability 1/2."""
    branch = FreeBranch(engine.vocabulary, budget)
    for token in [*engine.vocabulary.encode(text), engine.vocabulary.end]:
        if branch.done:
            break
        assert not branch.step().forbidden[token]
        branch.push(token, math.log(0.5))
        assert branch.take() == [token]
    assert branch.done
    return branch.result(7, 0.5)


@pytest.mark.parametrize("at_once", [False, True])
def test_free_text_is_what_greedy_decoding_gives(engine, at_once):
    """Against the network run whole for every token."""
    answer = answers(engine, QUERY, free=True, at_once=at_once)[0].answer
    model, window = engine.model, tiny_model.window()
    patches, grid = patchify(window.pixels(), model.spec.patches)
    tokens = prompt.encode_prefix(model.tokenizer, [model.spec.patches.visual_tokens(grid)])
    tokens += prompt.encode_suffix(model.tokenizer, QUERY)
    opening = prompt.THINK_OPEN + prompt.THINK_CLOSE if at_once else ""
    tokens += prompt.encode_opening(model.tokenizer) if at_once else []
    video = model.spec.video_grid(4, *tiny_model.FRAME_SIZE, fps=window.fps)
    forbidden = torch.from_numpy(engine.vocabulary.in_text)
    said = []
    while len(said) < 16:
        positions, _ = model.spec.positions(tokens + said, [video])
        with torch.inference_mode():
            features = model.visual_features(torch.from_numpy(patches), [grid])
            embedded = model.embed(torch.tensor([tokens + said]), features)
            logits = model.logits(model.decode(embedded, torch.from_numpy(positions)[:, None])[0, -1])
        token = int(logits.masked_fill(forbidden, -torch.inf).argmax())
        if token == engine.vocabulary.end:
            break
        said.append(token)
    assert answer.answer == opening + model.tokenizer.decode(said)
    assert answer.output_tokens == len(said) + (len(said) < 16)
    assert answer.think_closed_by_budget == (len(said) == 16)
    assert answer.verdict is Verdict.UNKNOWN


def test_confidence_is_that_of_the_answers_tokens(engine):
    answer = written(engine, "<think>why</think>\n<answer> yes </answer>")
    assert answer.answer == "<think>why</think>\n<answer> yes </answer>"
    assert answer.confidence == pytest.approx(0.5)
    assert written(engine, "yes, it is").confidence == 0.0


def test_free_text_ends_at_its_budget(engine):
    answer = written(engine, "a text that is longer than its budget", budget=5)
    assert answer.think_closed_by_budget
    assert answer.output_tokens == 5


def test_a_branch_with_a_seed_of_its_own_does_not_depend_on_its_neighbours(engine):
    asked = {"sampling": HOT, "free": True}
    alone = answers(engine, QUERY, branch_seeds=(5,), **asked)[0].answer
    other = dataclasses.replace(QUERY, task="close it")
    beside = answers(engine, other, QUERY, QUERY, branch_seeds=(1, 5, 6), **asked)
    assert beside[1].answer.token_ids == alone.token_ids
    assert beside[1].answer.log_probs == pytest.approx(alone.log_probs, abs=1e-3)
    assert beside[2].answer.answer != alone.answer


def test_free_text_of_at_least_some_tokens(engine):
    short = answers(engine, dataclasses.replace(QUERY, think_tokens=40), free=True)[0].answer
    asked = {"free": True, "max_answer_tokens": 30, "min_tokens": 70}
    long = answers(engine, dataclasses.replace(QUERY, think_tokens=40), **asked)[0].answer
    assert len(long.token_ids) == 70
    assert engine.vocabulary.end not in long.token_ids
    assert long.token_ids[: len(short.token_ids) - 1] == short.token_ids[:-1]


def test_an_empty_thought_that_is_given_counts_as_prompt(engine):
    free, node = (
        answers(engine, dataclasses.replace(QUERY, think_tokens=0), **changes)[0].answer
        for changes in ({"free": True, "at_once": True}, {})
    )
    assert free.prompt_tokens == node.prompt_tokens + len(prompt.encode_opening(engine.model.tokenizer))
    assert len(free.token_ids) == len(free.log_probs) == free.output_tokens


def test_confidence_of_a_text_that_was_begun_is_that_of_what_was_said(engine):
    branch = FreeBranch(engine.vocabulary, 100, opening=prompt.THINK_OPEN + prompt.THINK_CLOSE)
    assert not branch.thinking
    for token in [*engine.vocabulary.encode("yes\n</answer>"), engine.vocabulary.end]:
        branch.push(token, math.log(0.5))
    answer = branch.result(7, 0.5)
    assert answer.answer == "<think>\n\n</think>\n\n<answer>\nyes\n</answer>"
    assert answer.confidence == pytest.approx(0.5)


def test_seeds_must_be_as_many_as_queries(engine):
    event = answers(engine, QUERY, branch_seeds=(1, 2))[-1]
    assert event.error_code is ErrorCode.INVALID_REQUEST


def test_a_question_asked_several_times_is_read_once(engine):
    """As for the answers of a group in RL: each is what it would have been on its own."""
    other = dataclasses.replace(QUERY, task="close the drawer")
    seeds = (11, 12, 13, 14, 15)
    queries = (QUERY, other, QUERY, QUERY, other)
    before = engine.statistics.question_tokens
    together = answers(engine, *queries, free=True, sampling=HOT, branch_seeds=seeds)
    read = engine.statistics.question_tokens - before
    alone = [
        answers(engine, query, free=True, sampling=HOT, branch_seeds=(seed,))[0].answer
        for query, seed in zip(queries, seeds, strict=True)
    ]
    assert [together[i].answer.token_ids for i in range(5)] == [answer.token_ids for answer in alone]
    for i, answer in enumerate(alone):
        assert together[i].answer.log_probs == pytest.approx(answer.log_probs, abs=1e-4)
    assert len({answer.token_ids for answer in alone}) == 5  # copies go on by themselves
    assert engine.statistics.question_tokens - before - read == 3 * len_of(engine, QUERY) + 2 * len_of(
        engine, other
    )
    assert read == len_of(engine, QUERY) + len_of(engine, other)


def len_of(engine, query):
    return len(prompt.encode_suffix(engine.model.tokenizer, query))
