# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch

pytest.importorskip("metaworld", reason="the simulator is only needed for training: requirements/train.txt")

from cosmos_reason_node import prompt
from cosmos_reason_node.types import Query, QueryKind
from tests.unit.nano_files import described
from training.data.sample import Provenance, Sample, Span
from training.nano.architecture import create
from training.sft.packing import VERDICT_WEIGHT, encode_branch, pack

QUERIES = (
    Query(QueryKind.COMPLETION, task="open the drawer"),
    Query(QueryKind.AFFORDANCE, action="pull the drawer open"),
    Query(QueryKind.NEXT_ACTION, task="open the drawer", options=("reach for it", "pull it open")),
)


def sample(query, answer):
    return Sample(
        Span(0, 4), query, answer, "The drawer is open.", Provenance("sim", "train", 0, "drawer", "stop")
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return create(described(tmp_path_factory.mktemp("nano")))


@pytest.fixture(scope="module")
def branches(model):
    answers = ("yes", "no", "B")
    return [
        encode_branch(model.tokenizer, sample(query, answer), think=think)
        for query, answer, think in zip(QUERIES, answers, (True, False, True), strict=True)
    ]


def video(model):
    return model.spec.video_grid(4, 112, 112, 4.0)


@torch.no_grad()
def hidden(model, packed, features):
    embedded = model.embed(packed.tokens, features)
    return model.decode(embedded, packed.positions, attention_mask=packed.mask)


def test_a_packed_branch_is_computed_as_if_it_were_alone(model, branches):
    grid = video(model)
    visual = model.spec.patches.visual_tokens(grid.grid)
    features = torch.randn(visual, 192, generator=torch.Generator().manual_seed(0))
    packed = pack([branches], model.tokenizer, model.spec, grid)
    together = hidden(model, packed, features)
    found = 0
    for branch in branches:
        tokens = prompt.encode_prefix(model.tokenizer, [visual]) + branch.question + branch.target
        positions, _ = model.spec.positions(tokens, [grid])
        with torch.no_grad():
            alone = model.decode(
                model.embed(torch.tensor([tokens]), features), torch.from_numpy(positions)[:, None]
            )
        count = len(branch.target)
        places = packed.columns[found : found + count]
        torch.testing.assert_close(together[0, places], alone[0, -count - 1 : -1], atol=2e-4, rtol=1e-3)
        found += count
    assert found == len(packed.labels)


def test_prompts_are_the_nodes_own(model, branches):
    packed = pack([branches[:1]], model.tokenizer, model.spec, video(model))
    visual = model.spec.patches.visual_tokens(video(model).grid)
    prefix = prompt.encode_prefix(model.tokenizer, [visual])
    wanted = prefix + prompt.encode_suffix(model.tokenizer, QUERIES[0])
    assert packed.tokens[0, : len(wanted)].tolist() == wanted
    target = prompt.encode_target(model.tokenizer, "The drawer is open.", "yes")
    assert packed.tokens[0, len(wanted) :].tolist() == target
    assert packed.labels.tolist() == target


def test_only_the_answer_itself_weighs_more(model, branches):
    heavy = [
        token for token, weight in zip(branches[0].target, branches[0].weights, strict=True) if weight > 1
    ]
    assert model.tokenizer.decode(heavy) == "yes"
    assert set(branches[0].weights) == {1.0, VERDICT_WEIGHT}


@pytest.mark.parametrize("answer", ["yes", "reach for the drawer handle"])
def test_long_answers_weigh_as_much_as_short_ones(model, answer):
    origin = Provenance("sim", "train", 1, "drawer", "stop")
    query = Query(QueryKind.NEXT_ACTION, task="open the drawer")
    branch = encode_branch(model.tokenizer, Sample(Span(0, 2), query, answer, "", origin), think=False)
    assert sum(w for w in branch.weights if w > 1) == pytest.approx(VERDICT_WEIGHT)


def test_windows_with_fewer_questions_are_padded_without_effect(model, branches):
    features = torch.randn(64, 192, generator=torch.Generator().manual_seed(1))
    both = pack([branches, branches[:1]], model.tokenizer, model.spec, video(model))
    alone = pack([branches[:1]], model.tokenizer, model.spec, video(model))
    length = alone.tokens.shape[1]
    padded = hidden(model, both, features)[1, :length]
    assert both.tokens.shape[1] > length
    torch.testing.assert_close(padded, hidden(model, alone, features[32:])[0], atol=2e-4, rtol=1e-3)


def test_questions_without_a_video(model, branches):
    packed = pack([branches], model.tokenizer, model.spec, None)
    assert model.spec.video_token not in packed.tokens
    assert np.isfinite(hidden(model, packed, None).numpy()).all()
