# SPDX-License-Identifier: Apache-2.0
import dataclasses

import pytest
import torch

from cosmos_reason_node.engine.base import Done, Request
from cosmos_reason_node.engine.torch import TorchEngine
from cosmos_reason_node.models import qwen2_5_vl
from cosmos_reason_node.types import Query, QueryKind
from tests import tiny_model
from training.eval.__main__ import main
from training.eval.protocol import PROTOCOLS
from training.eval.rollout import Plan
from training.eval.slid import SlidEngine, part

QUERY = Query(QueryKind.COMPLETION, task="open the drawer", think_tokens=0)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.set_num_threads(1)
    return qwen2_5_vl.load(tiny_model.write(tmp_path_factory.mktemp("model") / "tiny"), device="cpu")


def engine(model, refresh_every=0):
    return TorchEngine(model, min_confidence=0.0, kept_pairs=8, refresh_every=refresh_every, drafts=False)


def confidence(asked, window):
    (done,) = (e for e in asked.answer(Request("r", (window,), (QUERY,))) if isinstance(e, Done))
    return done.answer.confidence


def test_exact_and_approximate_are_about_the_same_frames(model):
    window = dataclasses.replace(tiny_model.window(frames=10), asked=10)
    last = part(window, 4, 6)
    assert (last.first_tick, len(last.frames)) == (window.first_tick + 4, 6)
    truth = confidence(engine(model), last)
    assert confidence(SlidEngine(engine(model), 2), window) == pytest.approx(truth, abs=1e-5)
    rough = SlidEngine(engine(model, refresh_every=3), 2)
    said = [confidence(rough, window) for _ in range(2)]
    assert abs(said[0] - truth) > 1e-5
    assert said[1] == pytest.approx(said[0], abs=1e-6)  # nothing is left from the time before
    # Too short to slide: asked about as it is.
    short = part(window, 0, 4)
    assert confidence(rough, short) == pytest.approx(confidence(engine(model), short), abs=1e-5)


def test_command_line(capsys):
    assert main(["--model", "models/nano", "--bench", "sim", "--approximate"]) == 1
    assert "--slide" in capsys.readouterr().err


def test_answers_are_kept_apart_by_how_windows_came_into_view():
    plans = [Plan(PROTOCOLS["letter"], way=way) for way in ("", "slide 3", "slide 3 approximate")]
    assert len({plan.decoding for plan in plans}) == 3
