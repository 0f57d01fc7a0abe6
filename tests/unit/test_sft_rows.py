# SPDX-License-Identifier: Apache-2.0
"""Rows as batches: prompts, isolation of branches, and the loss on answers."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cosmos_reason_node import prompt
from cosmos_reason_node.models.qwen2_5_vl import load
from cosmos_reason_node.types import Query, QueryKind
from tests.unit.sft_files import make_model
from training.sft.rows import AnswerLoss, encode_answer, pack_rows

QUERIES = (
    Query(QueryKind.COMPLETION, task="open the drawer"),
    Query(QueryKind.AFFORDANCE, action="pull the drawer open"),
    Query(QueryKind.NEXT_ACTION, task="open the drawer", options=("reach for it", "pull it open")),
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load(make_model(tmp_path_factory.mktemp("sft") / "model"), device="cpu")


@pytest.fixture(scope="module")
def branches(model):
    traces = ("It is open.", "", "The hand is far.")
    answers = ("yes", "no", "B")
    return [
        encode_answer(model.tokenizer, *entry, 1.0) for entry in zip(QUERIES, traces, answers, strict=True)
    ]


def grid(model, frames=4):
    return model.spec.video_grid(frames, 112, 112, 4.0)


def patches(model, frames, seed):
    rng = np.random.default_rng(seed)
    t, h, w = grid(model, frames).grid
    return rng.standard_normal((t * h * w, model.spec.patches.patch_dim), np.float32)


def loss_of(model, rows, videos, pixels):
    with torch.no_grad():
        total, _ = AnswerLoss(model)(pack_rows(rows, videos, pixels, model.tokenizer, model.spec))
    return float(total)


def test_each_question_costs_what_it_costs_alone(model, branches):
    short, long = patches(model, 2, 1), patches(model, 4, 2)
    rows = [branches, branches[:2], branches[2:]]
    videos = [[grid(model, 4)], [], [grid(model, 2), grid(model, 4)]]
    together = loss_of(model, rows, videos, [long, short, long])
    alone = (
        sum(loss_of(model, [[branch]], [[grid(model, 4)]], [long]) for branch in branches)
        + sum(loss_of(model, [[branch]], [[]], []) for branch in branches[:2])
        + loss_of(model, [branches[2:]], [videos[2]], [short, long])
    )
    assert together == pytest.approx(alone, rel=1e-5)


def test_the_loss_is_the_nodes_prompt_and_the_answer_after_it(model, branches):
    visual = model.spec.patches.visual_tokens(grid(model).grid)
    tokens = prompt.encode_prefix(model.tokenizer, [visual]) + prompt.encode_suffix(
        model.tokenizer, QUERIES[2]
    )
    target = prompt.encode_target(model.tokenizer, "The hand is far.", "B")
    positions, _ = model.spec.positions(tokens + target, [grid(model)])
    pixels = patches(model, 4, 3)
    with torch.no_grad():
        features = model.visual_features(torch.from_numpy(pixels), [grid(model).grid])
        embedded = model.embed(torch.tensor([tokens + target]), features)
        hidden = model.decode(embedded, torch.from_numpy(positions)[:, None])
        logits = model.logits(hidden[0, len(tokens) - 1 : -1])
    wanted = F.cross_entropy(logits, torch.tensor(target), reduction="sum")
    found = loss_of(model, [branches[2:]], [[grid(model)]], [pixels])
    assert found == pytest.approx(float(wanted), rel=1e-5)


def test_only_the_verdict_weighs_more(model):
    branch = encode_answer(model.tokenizer, QUERIES[0], "It is open.", "yes", 8.0)
    heavy = [token for token, weight in zip(branch.target, branch.weights, strict=True) if weight == 8.0]
    assert model.tokenizer.decode(heavy) == "yes"
    assert set(branch.weights) == {1.0, 8.0}
    first, end = branch.verdict
    assert branch.target[first:end] == heavy


def test_long_answers_weigh_as_much_as_short_ones(model):
    query = Query(QueryKind.NEXT_ACTION, task="open the drawer")
    branch = encode_answer(model.tokenizer, query, "", "reach for it", 64.0)
    first, end = branch.verdict
    assert end - first > 1
    assert sum(branch.weights[first:end]) == pytest.approx(64.0)
    plain = encode_answer(model.tokenizer, query, "", "reach for it", 1.0)
    assert set(plain.weights) == {1.0}


def test_without_reasoning_the_answer_comes_at_once(model, branches):
    assert "</think>" in (said := model.tokenizer.decode(branches[1].target))
    assert said == prompt.target("", "no")


def test_answers_to_one_question_share_it(model, branches):
    first, second, third = (
        dataclasses.replace(branches[0], target=b.target, weights=b.weights) for b in branches
    )
    pixels, video = patches(model, 4, 1), [grid(model, 4)]
    alone = sum(
        loss_of(model, [[branch]], [video], [pixels]) for branch in (first, second, third, branches[1])
    )
    more = [dataclasses.replace(branch, question=[]) for branch in (second, third)]
    row = [first, *more, branches[1]]
    assert loss_of(model, [row], [video], [pixels]) == pytest.approx(alone, rel=1e-4)
    packed = pack_rows([row], [video], [pixels], model.tokenizer, model.spec)
    length = sum(len(branch.question) + len(branch.target) for branch in row)
    assert packed.size == int(packed.prefixes[0]) + length
    with pytest.raises(ValueError, match="has no question"):
        pack_rows([more], [video], [pixels], model.tokenizer, model.spec)


def test_a_process_without_videos_runs_the_tower_without_effect(model, branches):
    batch = pack_rows([branches], [[]], [], model.tokenizer, model.spec)
    objective = AnswerLoss(model)
    with torch.no_grad():
        plain, _ = objective(batch)
        objective.everywhere = True
        calls = []
        handle = model.network.model.visual.register_forward_hook(lambda *_: calls.append(1))
        everywhere, _ = objective(batch)
        handle.remove()
    assert calls == [1]
    assert torch.equal(plain, everywhere)
    loss, _ = objective(batch)
    loss.backward()  # reaches the tower: where it is sharded, the others wait for this process there
    assert all(not parameter.grad.any() for parameter in model.network.model.visual.parameters())
    model.network.zero_grad()
