# SPDX-License-Identifier: Apache-2.0
"""The hybrid family: InternViT, PixelShuffle, MLP and Nemotron-H, against transformers, and in the engine."""

import copy
import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from transformers import InternVLForConditionalGeneration

from cosmos_reason_node import prompt
from cosmos_reason_node.engine.base import Failed, Request, Sampling
from cosmos_reason_node.engine.loading import load_engine
from cosmos_reason_node.engine.spec import EngineSpec
from cosmos_reason_node.engine.torch import TorchEngine
from cosmos_reason_node.errors import CosmosReasonError, ErrorCode
from cosmos_reason_node.models import hybrid, qwen2_5_vl
from cosmos_reason_node.models.load import load
from cosmos_reason_node.models.mamba import scan
from cosmos_reason_node.models.spec import IMAGENET_MEAN, IMAGENET_STD, read_model_spec
from cosmos_reason_node.types import Frame, Query, QueryKind, Window
from cosmos_reason_node.vision.patchify import patchify
from tests import tiny_hybrid, tiny_model
from tests.unit.test_torch_engine import QUERIES, answers, by_whole_forwards

PERIOD = 500_000_000


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    torch.set_num_threads(1)
    return tiny_hybrid.write(tmp_path_factory.mktemp("model") / "hybrid")


@pytest.fixture(scope="module")
def model(directory):
    return load(directory, device="cpu")


@pytest.fixture(scope="module")
def stream():
    rng = np.random.default_rng(0)
    return [
        Frame(
            "front", (i + 1) * PERIOD, i, rng.integers(0, 256, (*tiny_hybrid.FRAME_SIZE, 3), dtype=np.uint8)
        )
        for i in range(12)
    ]


def window(stream, first, count):
    return Window("front", tuple(stream[first : first + count]), first, PERIOD, held=0, asked=count)


def request(*queries, windows):
    return Request("r1", windows, queries, max_answer_tokens=10)


def test_features_are_those_of_transformers(model, stream):
    pixels = window(stream, 0, 3).pixels()
    patches, grid = patchify(pixels, model.spec.patches)
    assert grid == (3, 4, 4)
    ours = model.visual_features(torch.from_numpy(patches), [grid])
    scaled = (pixels / 255.0 - IMAGENET_MEAN) / IMAGENET_STD
    images = torch.from_numpy(scaled.astype(np.float32)).permute(0, 3, 1, 2)
    theirs = model.network.model.get_image_features(
        images, vision_feature_layer=-1, vision_feature_select_strategy="default", return_dict=True
    ).pooler_output
    assert theirs.shape == (3, 4, 48)
    torch.testing.assert_close(ours, theirs.flatten(0, 1), rtol=1e-4, atol=1e-4)


@settings(deadline=None, max_examples=40)
@given(
    length=st.integers(1, 20), chunk=st.integers(1, 9), padded=st.integers(0, 6), seed=st.integers(0, 1000)
)
def test_the_scan_is_the_recurrence(length, chunk, padded, seed):
    torch.manual_seed(seed)
    rows, groups, heads, channels, states = 2, 2, 4, 3, 5
    values = torch.randn(rows, length, heads, channels)
    step = torch.rand(rows, length, heads)
    step[0, max(1, length - padded) :] = 0.0
    decay = -torch.rand(heads) * 3
    write, read = torch.randn(2, rows, length, groups, states)
    skip, memory = torch.randn(heads), torch.randn(rows, heads, channels, states)
    out, after = scan(values, step, decay, write, read, skip, memory, chunk)
    for t in range(length):
        own = (
            write[:, t].repeat_interleave(heads // groups, 1),
            read[:, t].repeat_interleave(heads // groups, 1),
        )
        new = (step[:, t, :, None] * values[:, t])[..., None] * own[0][:, :, None]
        memory = memory * (step[:, t] * decay).exp()[..., None, None] + new
        expected = (memory * own[1][:, :, None]).sum(-1) + skip[:, None] * values[:, t]
        torch.testing.assert_close(out[:, t], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(after, memory, rtol=1e-4, atol=1e-4)


def test_parts_of_any_length_give_what_one_forward_gives(model):
    """A prefix read in pieces, branches of different lengths behind it, then token by token."""
    rng = np.random.default_rng(1)
    vocabulary = model.network.lm_head.out_features - 30
    head, first, second = (rng.integers(0, vocabulary, n).tolist() for n in (23, 9, 5))
    decoder = model.decoder()
    with torch.inference_mode():
        prefix, branches = decoder.new_prefix(64), decoder.new_branches(3, 32)
        for piece in (head[:4], head[4:19], head[19:]):
            decoder.read(model.embed(torch.tensor(piece)), torch.zeros(3, len(piece)), prefix)
        padded = torch.tensor([[*first[:6], 0], second[:2] + [0] * 5])
        zeros, ends = torch.zeros(2, dtype=torch.long), torch.tensor([5, 1])
        hidden = decoder.write(model.embed(padded), zeros, zeros, ends, prefix, branches)
        for step in range(3):
            held = torch.tensor([6 + step, 2 + step])
            tokens = torch.tensor([[first[6 + step]], [second[2 + step]]])
            hidden = decoder.write(model.embed(tokens), zeros, held, zeros, prefix, branches)
        for row, branch in enumerate((first, second)):
            whole = model.embed(torch.tensor([head + branch]))
            expected = model.logits(model.decode(whole, torch.zeros(3, 1, whole.shape[1]))[0, -1])
            torch.testing.assert_close(decoder.logits(hidden[row]), expected, rtol=1e-3, atol=1e-3)
        branches.move(1, 0, 5)
        moved = decoder.write(
            model.embed(torch.tensor([[7]])), zeros[:1], torch.tensor([5]), zeros[:1], prefix, branches
        )
        whole = model.embed(torch.tensor([[*head, *second, 7]]))
        expected = model.decode(whole, torch.zeros(3, 1, whole.shape[1]))[0, -1]
        torch.testing.assert_close(moved[0], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_the_engine_says_what_whole_forwards_say(model, seed):
    shown = tiny_model.window(seed=seed, size=tiny_hybrid.FRAME_SIZE)
    ended = answers(TorchEngine(model, min_confidence=0.5), request(*QUERIES, windows=(shown,)))
    for branch, query in enumerate(QUERIES):
        slow, fast = by_whole_forwards(model, shown, query, 10), ended[branch].answer
        assert (fast.reasoning, fast.answer, fast.output_tokens) == (
            slow.reasoning,
            slow.answer,
            slow.output_tokens,
        )
        assert fast.confidence == pytest.approx(slow.confidence, abs=1e-3)


def test_what_is_kept_changes_no_answer(model, stream):
    """Windows that grow, slide, come again and are of two cameras."""
    keeping = TorchEngine(model, min_confidence=0.0, kept_pairs=8)
    shown = [(0, 2), (0, 4), (0, 6), (2, 6), (2, 6), (0, 4), (4, 6), (4, 8), (0, 2)]
    for first, count in shown:
        asked = request(*QUERIES, windows=(window(stream, first, count),))
        fresh = answers(TorchEngine(model, min_confidence=0.0), asked)
        kept = answers(keeping, asked)
        for branch in range(len(QUERIES)):
            assert kept[branch].answer.answer == fresh[branch].answer.answer
            assert kept[branch].answer.reasoning == fresh[branch].answer.reasoning
            assert kept[branch].answer.confidence == pytest.approx(fresh[branch].answer.confidence, abs=1e-3)
    statistics, slots = keeping.statistics, keeping.machine.prefixes._slots
    assert all(len(slot.prefix.marks) <= 3 for slot in slots)
    assert keeping.machine.prefixes.nbytes > sum(slot.prefix.cache.nbytes for slot in slots)
    assert statistics.vision_hits > 20  # frames, seen one by one
    text = len(prompt.encode_prefix(model.tokenizer, [])) + 1
    whole = text + 6 * 4 + 1
    # The first window is read whole; grown ones from the video's end on; slid ones from the system text on.
    assert statistics.prefix_tokens_reused >= (text + 2 * 4) + (text + 4 * 4) + text + whole


def test_branches_that_end_at_different_times_keep_their_states(model, stream):
    shown = window(stream, 0, 4)
    queries = [
        Query(QueryKind.QUESTION, question=text, think_tokens=tokens)
        for text, tokens in (("What moves?", 0), ("Is it open?", 20), ("Where is the gripper?", 7))
    ]
    engine = TorchEngine(model, min_confidence=0.0, kept_pairs=8)
    together = answers(engine, request(*queries, windows=(shown,)))
    for branch, query in enumerate(queries):
        alone = answers(engine, request(query, windows=(shown,)))[0].answer
        assert (alone.reasoning, alone.answer) == (
            together[branch].answer.reasoning,
            together[branch].answer.answer,
        )


def test_a_question_asked_twice_is_read_once_and_its_states_are_copied(model, stream):
    query = Query(QueryKind.QUESTION, question="What moves?", think_tokens=12)
    engine = TorchEngine(model, min_confidence=0.0)
    seeds = (1, 2, 3)

    def said(*own):
        asked = Request(
            "r1",
            (window(stream, 0, 4),),
            (query,) * len(own),
            sampling=Sampling(temperature=1.0),
            free=True,
            branch_seeds=own,
        )
        ended = answers(engine, asked)
        return [ended[branch].answer.token_ids for branch in range(len(own))]

    together, tokens = said(*seeds), engine.statistics.question_tokens
    assert together == [said(seed)[0] for seed in seeds]
    assert len(set(together)) == 3
    assert engine.statistics.question_tokens == 4 * tokens


def test_the_spec_of_a_hybrid(directory, model):
    spec = read_model_spec(directory)
    assert spec.hybrid
    assert (spec.patches.temporal_patch, spec.patches.merge, spec.frame_size) == (
        1,
        2,
        tiny_hybrid.FRAME_SIZE,
    )
    assert spec.patches.mean == IMAGENET_MEAN
    assert spec.video_token == model.tokenizer.id_of("<|video_pad|>")


def test_the_node_loads_it_and_refuses_what_it_cannot_do(directory):
    spec = EngineSpec(kind="torch", model_dir=str(directory), device="cpu", threads=1)
    engine = load_engine(spec)
    assert engine.info.engine == "torch"
    engine.close()
    for changes, words in (
        ({"kind": "onnx"}, "not exported"),
        ({"refresh_every": 8}, "approximate_slide"),
        ({"quantize": "int3"}, "quantize must be"),
    ):
        with pytest.raises(CosmosReasonError, match=words):
            load_engine(EngineSpec(**{**vars(spec), **changes}))
    with pytest.raises(CosmosReasonError, match="hybrid model") as caught:
        qwen2_5_vl.load(directory)
    assert caught.value.code == ErrorCode.INVALID_REQUEST


def test_a_checkpoint_that_transformers_own_class_saved(directory, model, tmp_path):
    plain = InternVLForConditionalGeneration(model.network.config)
    plain.model.multi_modal_projector = copy.deepcopy(model.network.model.multi_modal_projector)
    plain.load_state_dict(model.network.state_dict())
    plain.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as saved:
        assert "language_model.lm_head.weight" in set(saved.keys()), "another name than the network's own"
    for name in ("tokenizer.json", "cosmos_reason.json"):
        shutil.copy(directory / name, tmp_path)
    again = load(tmp_path, device="cpu").network.state_dict()
    assert again.keys() == model.network.state_dict().keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in model.network.state_dict().items())


def test_broken_checkpoints(directory, tmp_path):
    def copied(name, **changes):
        target = tmp_path / name
        target.mkdir()
        for file in directory.iterdir():
            (target / file.name).write_bytes(file.read_bytes())
        config = json.loads((target / "config.json").read_text())
        (target / "config.json").write_text(json.dumps(config | changes))
        return target, config

    target, config = copied("qwen", text_config={"model_type": "qwen2"})
    with pytest.raises(CosmosReasonError, match="around qwen2"):
        read_model_spec(target)
    target, _ = copied("flat", vision_config=config["vision_config"] | {"image_size": [56, 84]})
    with pytest.raises(CosmosReasonError, match="image_size must be square"):
        read_model_spec(target)
    target, _ = copied("wide", projector_hidden_size=64)
    with pytest.raises(CosmosReasonError, match="wrong shape"):
        load(target, device="cpu")
    target, _ = copied("token", image_token_id=3)
    with pytest.raises(CosmosReasonError, match="video_pad"):
        load(target, device="cpu")


def test_a_frame_of_another_size_is_refused(model):
    engine = TorchEngine(model, min_confidence=0.0)
    shown = tiny_model.window(size=(50, 56))
    (event,) = engine.answer(request(QUERIES[0], windows=(shown,)))
    assert isinstance(event, Failed)
    assert event.error_code == ErrorCode.BAD_IMAGE


def test_sizes_of_the_56b_model():
    config = hybrid.config_56b()
    kinds = config.text_config.layers_block_type
    assert [kinds.count(kind) for kind in ("linear_attention", "mlp", "full_attention")] == [54, 54, 10]
    with torch.device("meta"):
        network = hybrid.HybridNetwork(config)
    count = {
        name: sum(p.numel() for p in part.parameters()) / 1e9
        for name, part in (
            ("tower", network.model.vision_tower),
            ("projector", network.model.multi_modal_projector),
            ("all", network),
        )
    }
    assert count["tower"] == pytest.approx(0.304, abs=0.005)  # InternViT-300M
    assert count["projector"] == pytest.approx(0.403, abs=0.001)  # 4096 -> 32768 -> 8192
    assert 55 < count["all"] < 58
