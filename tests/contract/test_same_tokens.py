# SPDX-License-Identifier: Apache-2.0
"""The engine and training give the network the same pixels, tokens and positions for a window."""

import dataclasses

import numpy as np
import pytest
import torch

from cosmos_reason_node.engine.base import Done, Request
from cosmos_reason_node.engine.grammar import YES_NO
from cosmos_reason_node.engine.torch import TorchEngine
from cosmos_reason_node.models import qwen2_5_vl
from cosmos_reason_node.types import Query, QueryKind
from cosmos_reason_node.vision.patchify import patchify
from tests import tiny_model
from training.sft.rows import encode_answer, pack_rows

QUERIES = (
    Query(QueryKind.COMPLETION, task="open the drawer", think_tokens=0),
    Query(QueryKind.AFFORDANCE, task="open the drawer", action="pull the handle", think_tokens=0),
    Query(QueryKind.NEXT_ACTION, task="open the drawer", options=("reach", "pull"), think_tokens=0),
)

VERDICT_WEIGHT = 16.0


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.set_num_threads(1)
    return qwen2_5_vl.load(tiny_model.write(tmp_path_factory.mktemp("model") / "tiny"), device="cpu")


class Spy:
    """Writes down what a LoadedModel and its decoder are given, and passes it on."""

    def __init__(self, model):
        self._model = model
        self.pixels, self.grids, self.tokens, self.positions = [], [], [], []

    def __getattr__(self, name):
        return getattr(self._model, name)

    def visual_features(self, patches, grids):
        self.pixels.append(patches)
        self.grids += grids
        return self._model.visual_features(patches, grids)

    def embed(self, tokens, features=None):
        self.tokens.append(tokens[0].tolist())
        return self._model.embed(tokens, features)

    def watch(self, decoder):
        read, write = decoder.read, decoder.write

        def watched_read(embedded, positions, prefix):
            self.positions.append(positions.numpy())
            read(embedded, positions, prefix)

        def watched_write(embedded, starts, *rest, **room):
            steps = torch.arange(embedded.shape[1])
            self.positions.append((starts[0] + steps).expand(3, -1).numpy())
            return write(embedded, starts, *rest, **room)

        decoder.read, decoder.write = watched_read, watched_write


def ask(model, window, queries):
    spy = Spy(model)
    engine = TorchEngine(spy, min_confidence=0.0)
    spy.watch(engine.machine.decoder)
    ended = [e for e in engine.answer(Request("r", (window,), queries)) if isinstance(e, Done)]
    return spy, {done.branch: done.answer for done in ended}


def training_batch(model, window, answers, fps):
    branches = [
        encode_answer(model.tokenizer, query, "", answer, VERDICT_WEIGHT)
        for query, answer in zip(QUERIES, answers, strict=True)
    ]
    frames = window.pixels()
    grid = model.spec.video_grid(*frames.shape[:3], fps)
    return branches, pack_rows([branches], [[grid]], [], model.tokenizer, model.spec)


@pytest.mark.parametrize("fps", [1.0, 2.0, 3.0, 4.0, 7.0, 29.97])
def test_tokens_and_positions(model, fps):
    window = dataclasses.replace(tiny_model.window(frames=6), period_ns=round(1e9 / fps))
    asked = [ask(model, window, (query,)) for query in QUERIES]  # one by one: rows without padding
    branches, packed = training_batch(model, window, [answers[0].answer for _, answers in asked], fps)
    start = 0
    for branch, (spy, _) in zip(branches, asked, strict=True):
        (prefix, chunk), (prefix_positions, positions) = spy.tokens, spy.positions
        start = start or len(prefix)
        assert packed.tokens[0, : len(prefix)].tolist() == prefix
        np.testing.assert_array_equal(packed.positions[:, 0, : len(prefix)].numpy(), prefix_positions)
        # The engine stops feeding at the verdict, which training goes on to teach.
        end = start + len(chunk)
        assert (branch.question + branch.target)[: len(chunk)] == chunk
        assert packed.tokens[0, start:end].tolist() == chunk
        np.testing.assert_array_equal(packed.positions[:, 0, start:end].numpy(), positions)
        start += len(branch.question) + len(branch.target)


def test_pixels(model):
    window = tiny_model.window(frames=6)
    spy, _ = ask(model, window, QUERIES[:1])
    patches, grid = patchify(window.pixels(), model.spec.patches)  # as training.sft.batches
    np.testing.assert_array_equal(np.concatenate(spy.pixels), patches)
    assert spy.grids == [grid]


def test_the_packed_batch_gives_the_engine_s_confidences(model):
    window = tiny_model.window()
    _, answers = ask(model, window, QUERIES)
    branches, packed = training_batch(model, window, [answers[i].answer for i in range(3)], window.fps)
    patches, grid = patchify(window.pixels(), model.spec.patches)
    with torch.inference_mode():
        features = model.visual_features(torch.from_numpy(patches), [grid])
        embedded = model.embed(packed.tokens, features)
        hidden = model.decode(embedded, packed.positions, attention_mask=packed.mask)
        logits = model.logits(hidden[packed.rows, packed.columns])
    groups = TorchEngine(model, min_confidence=0.0).vocabulary
    start = 0
    for i, branch in enumerate(branches):
        verdict = start + branch.verdict[0]
        choices = groups.letters[:2] if QUERIES[i].options else groups.yes_no
        mass = torch.stack([logits[verdict, list(c)].logsumexp(0) for c in choices]).softmax(0)
        said = answers[i].answer
        expected = answers[i].option_index if QUERIES[i].options else [g[0] for g in YES_NO].index(said)
        assert int(mass.argmax()) == expected
        assert float(mass.max()) == pytest.approx(answers[i].confidence, abs=1e-4)
        start += len(branch.target)
