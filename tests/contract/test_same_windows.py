# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning, reinforcement learning and evaluation look at the same frames of a long clip."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from cosmos_reason_node.models.spec import read_model_spec
from cosmos_reason_node.models.tokenizer import TextTokenizer
from cosmos_reason_node.vision.patchify import patchify
from tests.unit.nano_files import NANO
from tests.unit.video_files import steady, write_video
from training.data.readers import open_data_set
from training.data.readers.jsonl import write_samples
from training.data.schema import Provenance, QuestionKind, Sample, Video
from training.eval.benchmarks import data_set
from training.rl.config import DataConfig as RlDataConfig
from training.rl.groups import Ticket
from training.rl.tasks import TaskSampler
from training.sft.batches import RowLoader
from training.sft.config import DataConfig, SourceConfig
from training.sft.data import Rejections, load_sources

SPEC = read_model_spec(NANO)
SECONDS = 30.0


def released(root):
    turns = [{"from": "human", "value": "<video>\nWhat comes first?\nA. the cup\nB. the box"}]
    row = {"video": "a.mp4", "conversations": [*turns, {"from": "gpt", "value": "A"}]}
    (root / "rows.json").write_text(json.dumps([row]))


def own(root, whole):
    fields = {"kind": QuestionKind.COMMON_SENSE, "question": "Is it open?", "yes_no": True, "answer": "yes"}
    more = {"provenance": Provenance("home"), "extra": {"whole": True} if whole else {}}
    write_samples(root, [Sample("s", (Video("a.mp4"),), **fields, **more)])


LAYOUTS = {
    "released": (released, True),
    "curated": (lambda r: own(r, True), True),
    "own": (lambda r: own(r, False), False),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_long_clip_is_seen_alike(tmp_path, name):
    write, whole = LAYOUTS[name]
    write_video(tmp_path / "a.mp4", steady(round(4 * SECONDS), 4.0))
    write(tmp_path)
    (window,) = data_set(tmp_path, SPEC).stimuli[0].load()
    expected, _ = patchify(window.pixels(), SPEC.patches)
    span_s = (window.frames[-1].stamp_ns - window.frames[0].stamp_ns) / 1e9
    assert span_s > 0.9 * SECONDS if whole else span_s < 8.0

    split = open_data_set(tmp_path).samples[0].split
    config = SourceConfig(str(tmp_path), split=split)
    tokenizer = TextTokenizer(NANO / "tokenizer.json")
    data = DataConfig(sources=(config,), max_tokens=1024)
    (source,) = load_sources(data.sources, data, tokenizer, SPEC, 0, Rejections())
    batch = RowLoader(tokenizer, SPEC, augment=False, seed=0).load(source.rows[:1], (0, 0))
    assert torch.equal(batch.patches, torch.from_numpy(expected))

    sampler = TaskSampler(RlDataConfig(sources=(config,)), SPEC, 0)
    (rolled,) = sampler.draw(Ticket(0, 0, 0)).windows(sampler.window)
    assert np.array_equal(rolled.pixels(), window.pixels())
    assert dataclasses.replace(rolled, frames=()) == dataclasses.replace(window, frames=())
