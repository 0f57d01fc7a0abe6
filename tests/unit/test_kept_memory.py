# SPDX-License-Identifier: Apache-2.0
"""Which prefixes and regions are used again when several cameras take turns."""

import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cosmos_reason_node.engine.base import Done, Request
from cosmos_reason_node.engine.torch import TorchEngine
from cosmos_reason_node.models import fixed_step, qwen2_5_vl
from cosmos_reason_node.types import Frame, Query, QueryKind, Window
from tests import tiny_model

PERIOD = 250_000_000
CAMERAS = "abcde"
AT_ONCE = Query(QueryKind.COMPLETION, task="open the drawer", think_tokens=0)
THINKING = tuple(
    Query(kind, task="open the drawer", think_tokens=6)
    for kind in (QueryKind.COMPLETION, QueryKind.AFFORDANCE, QueryKind.NEXT_ACTION)
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.set_num_threads(1)
    return qwen2_5_vl.load(tiny_model.write(tmp_path_factory.mktemp("model") / "tiny"), device="cpu")


@pytest.fixture(scope="module")
def streams():
    rng = np.random.default_rng(0)
    return {camera: rng.integers(0, 256, (40, 28, 56, 3), dtype=np.uint8) for camera in CAMERAS}


def asked(streams, camera, first, queries, count=8):
    frames = tuple(
        Frame(camera, (i + 1) * PERIOD, i, streams[camera][i]) for i in range(first, first + count)
    )
    return Request(camera, (Window(camera, frames, first, PERIOD, 0, count),), queries, 8)


@pytest.mark.parametrize("order", ["aaaaa", "ababab", "aabbaabb", "aabaabaab"])
def test_windows_slide_in_whatever_order_cameras_are_asked(model, streams, order):
    engine = TorchEngine(model, min_confidence=0.0, kept_pairs=8, refresh_every=100, drafts=False)
    at, read = dict.fromkeys(CAMERAS, 0), []
    for camera in order:
        before = engine.statistics.prefix_tokens_read
        list(engine.answer(asked(streams, camera, at[camera], (AT_ONCE,))))
        read.append((at[camera] > 0, engine.statistics.prefix_tokens_read - before))
        at[camera] += 2
    whole = [tokens for slid, tokens in read if not slid]
    assert len({tokens for slid, tokens in read if slid}) == 1
    assert max(tokens for slid, tokens in read if slid) < min(whole) / 2


def test_windows_that_overlap_slide_each_in_its_own_place(model, streams):
    alone, beside = (
        TorchEngine(model, min_confidence=0.0, kept_pairs=8, refresh_every=100, drafts=False) for _ in "ab"
    )
    read = {alone: [], beside: []}
    for first in range(0, 8, 2):
        for engine, cameras in ((alone, "a"), (beside, "ab")):
            before = engine.statistics.prefix_tokens_read
            running = [engine.answer(asked(streams, camera, first, (AT_ONCE,))) for camera in cameras]
            for _ in range(3):
                for one in running:
                    next(one)
            for one in reversed(running):
                list(one)
            read[engine].append(engine.statistics.prefix_tokens_read - before)
    assert read[beside][1:] == [2 * tokens for tokens in read[alone][1:]]


@pytest.fixture
def captured(model, monkeypatch):
    """An engine that decodes at fixed shapes, and how often a CUDA graph would have been captured."""
    counts = []

    def capture(self, inputs, prefix, branches):
        counts.append(len(inputs[0]))
        ours, holders = (
            tuple(tensor.clone() for tensor in inputs),
            (weakref.ref(prefix), weakref.ref(branches)),
        )
        logits = self._step(*ours, prefix.cache, branches.cache).clone()

        def replay():
            logits.copy_(self._step(*ours, *(holder().cache for holder in holders)))

        return fixed_step._Graph(SimpleNamespace(replay=replay), ours, logits, *holders)

    monkeypatch.setattr(fixed_step.FixedStep, "_capture", capture)
    engine = TorchEngine(model, min_confidence=0.0, kept_pairs=8, run_ahead=True)
    engine.machine.fixed._is_graph = True
    return engine, counts


@pytest.mark.parametrize("cameras", [1, 4, 5])
def test_captured_steps_are_replayed_however_many_cameras_there_are(captured, model, streams, cameras):
    engine, counts = captured
    plain = TorchEngine(model, min_confidence=0.0, run_ahead=False)
    for turn in range(5):
        if turn == 3:
            counts.clear()
        for camera in CAMERAS[:cameras]:
            request = asked(streams, camera, 2 * turn, THINKING)
            answers, others = (
                [event.answer for event in one.answer(request) if isinstance(event, Done)]
                for one in (engine, plain)
            )
            assert [answer.reasoning for answer in answers] == [answer.reasoning for answer in others]
    assert len(counts) <= 1, "few numbers of branches are new after three turns"


def test_requests_side_by_side_have_regions_of_their_own_to_come_back_to(captured, streams):
    engine, counts = captured
    for turn in range(4):
        if turn == 2:
            counts.clear()
        running = [engine.answer(asked(streams, camera, 2 * turn, THINKING)) for camera in "ab"]
        while running:
            for one in list(running):
                if next(one, None) is None:
                    running.remove(one)
    assert counts == []
