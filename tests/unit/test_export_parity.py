# SPDX-License-Identifier: Apache-2.0
"""Graphs in ONNX Runtime against transformers: nano, and a slice of the 7B model at its true width."""

import math

import numpy as np
import onnxruntime
import pytest
import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from cosmos_reason_node.models import qwen2_5_vl
from cosmos_reason_node.models.mrope import VideoGrid, prompt_positions
from cosmos_reason_node.models.qwen2_5_vl import wrap
from cosmos_reason_node.models.spec import ModelSpec
from cosmos_reason_node.vision.patchify import PatchSpec, patchify
from tests.unit.export_files import NANO, exported, frames
from training.export.decoder import DecoderGraph
from training.export.onnx import ATTENTION, write_decoder, write_vision
from training.export.vision import VisionGraph, window_order

SIZE = (224, 224)  # four windows of attention
TEXT, AFTER = 5, 7  # rows before and behind the video of the decoder's test


def difference(found, wanted):
    """Greatest difference relative to the greatest value."""
    found, wanted = np.asarray(found, np.float32), np.asarray(wanted, np.float32)
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def session(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.enable_cpu_mem_arena = False
    options.add_session_config_entry("session.disable_prepacking", "1")  # it would hold every weight twice
    return onnxruntime.InferenceSession(str(path), options)


def slice_of_7b(dtype):
    """One block of each kind and one decoder layer, as wide as Cosmos-Reason1-7B, weights random."""
    torch.manual_seed(0)
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": 64,
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 1,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "max_position_embeddings": 128000,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        },
        vision_config={
            "depth": 2,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "out_hidden_size": 3584,
            "fullatt_block_indexes": [1],
            "window_size": 112,
            "tokens_per_second": 2,
        },
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        network = Qwen2_5_VLForConditionalGeneration._from_config(config, dtype=dtype)
    network = network.to_empty(device="cpu")
    with torch.no_grad():
        for name, weight in network.named_parameters():
            weight.fill_(1.0) if "norm" in name or "ln_q" in name else weight.uniform_(-0.03, 0.03)
    language, visual = network.model.language_model, network.model.visual
    fresh = type(language.rotary_emb)(language.config)  # its buffers have no values on the meta device
    language.rotary_emb = fresh
    visual.rotary_pos_emb = type(visual.rotary_pos_emb)(visual.config)
    spec = ModelSpec("slice", PatchSpec(), 4, 4.0, SIZE, 0, 63, 2.0, 128000)
    return wrap(network.eval(), None, spec)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-4), (torch.float16, 2e-2)])
def test_the_graphs_of_a_7b_slice(tmp_path, dtype, bound):
    model = slice_of_7b(torch.float32)
    patches, grid = patchify(np.stack([np.resize(image, (*SIZE, 3)) for image in frames()[:4]]), PatchSpec())
    pixels = torch.from_numpy(patches)
    video = VideoGrid((1, 4, 4), 0.5)  # as its positions; its features are any rows
    tokens = [1] * TEXT + [63] * 4 + [2] * AFTER
    positions, _ = prompt_positions(tokens, [video], video_token=63, merge=2, tokens_per_second=2.0)
    embedded = torch.randn(len(tokens), 3584, generator=torch.Generator().manual_seed(1)) * 0.5
    with torch.inference_mode():
        features = model.visual_features(pixels, [grid]).numpy()
        hidden = model.decode(embedded[None], torch.from_numpy(positions)[:, None])[0].numpy()
        rotary = model.network.model.language_model.rotary_emb
        cos, sin = (t[0].float() for t in rotary(embedded[None], torch.from_numpy(positions)[:, None]))
    model.network.to(dtype)
    rows = grid[1] * grid[2]
    write_vision(VisionGraph(model, SIZE, ATTENTION[18]), rows, 1176, tmp_path, 18)
    model.network.model.visual = None
    (found,) = session(tmp_path / "vision.onnx").run(None, {"pixels": patches.reshape(grid[0], rows, -1)})
    assert difference(found.reshape(features.shape), features) <= bound

    write_decoder(DecoderGraph(model, ATTENTION[18]), tmp_path, 18)
    del model
    run = session(tmp_path / "decoder.onnx")
    half = np.float32 if dtype == torch.float32 else np.float16

    def call(first, last, prefix, own):
        """Rows behind a prefix and what a branch holds, each filled up with rows that are masked."""
        count = last - first
        inputs = {"embeds": embedded[first:last].numpy().astype(half)}
        inputs |= {"cos": cos[first:last].numpy(), "sin": sin[first:last].numpy()}
        mask, columns = np.full((count, 8 + 8 + count), -30000, half), 0
        for name, caches in (("prefix", prefix), ("own", own)):
            held = 0 if caches is None else len(caches[0])
            mask[:, columns : columns + held] = 0
            columns += 8
            for which, cache in zip(("key", "value"), caches or (None, None), strict=True):
                inputs[f"{name}_{which}_0"] = np.zeros((8, 4, 128), half)
                if cache is not None:
                    inputs[f"{name}_{which}_0"][:held] = cache
        mask[:, 16:] = np.where(np.tril(np.ones((count, count), bool)), 0, -30000)
        return run.run(None, {**inputs, "mask": mask})

    first, *prefix = call(0, 6, None, None)
    second, *own = call(6, 13, prefix, None)
    third, *_ = call(13, len(tokens), prefix, own)
    assert difference(np.concatenate((first, second, third)), hidden) <= bound


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("opset", [18, 23])
def test_large_scores_lose_nothing_in_half_precision(opset, dtype):
    """Some heads of Qwen2.5 have products of queries and keys of more than 65,504."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, heads, 6, 128).to(dtype) for heads in (4, 2, 2))
    query[..., -1], key[..., -1] = 250.0, 280.0
    mask = torch.zeros(1, 1, 6, 6).masked_fill_(torch.ones(6, 6).triu(1).bool(), -math.inf)
    exact = ATTENTION[18](query.float(), key.float(), value.float(), mask)
    assert (ATTENTION[opset](query, key, value, mask.to(dtype)).float() - exact).abs().max() < 0.02


@pytest.mark.parametrize(("precision", "opset", "bound"), [("fp32", 18, 1e-4), ("fp16", 23, 2e-2)])
def test_nano_s_features_and_logits(precision, opset, bound):
    model = qwen2_5_vl.load(NANO, device="cpu", dtype="float32")
    folder, half = exported(precision, opset), np.float32 if precision == "fp32" else np.float16
    patches, grid = patchify(np.stack(frames()[:8]), model.spec.patches)
    with torch.inference_mode():
        features = model.visual_features(torch.from_numpy(patches), [grid])
        hidden = torch.randn(9, 192, generator=torch.Generator().manual_seed(0))
        logits = model.logits(hidden)
    for count in (1, 4):  # of temporal patches in a call
        pixels = patches.reshape(4, 64, -1)[:count]
        (found,) = session(folder / "vision.onnx").run(None, {"pixels": pixels})
        assert difference(found, features.reshape(4, 16, -1)[:count]) <= bound
    (found,) = session(folder / "head.onnx").run(None, {"hidden": hidden.numpy().astype(half)})
    assert found.dtype == np.float32
    assert difference(found, logits) <= bound


@pytest.mark.parametrize("size", [(112, 140), (84, 56), (196, 112)])
@pytest.mark.parametrize("opset", [18, 23])
def test_windows_that_an_edge_cuts(size, opset):
    model = qwen2_5_vl.load(NANO, device="cpu", dtype="float32")
    video = np.random.default_rng(0).integers(0, 256, (4, *size, 3), dtype=np.uint8)
    patches, grid = patchify(video, model.spec.patches)
    with torch.inference_mode():
        wanted = model.visual_features(torch.from_numpy(patches), [grid])
        found = VisionGraph(model, size, ATTENTION[opset])(torch.from_numpy(patches).reshape(2, -1, 1176))
    assert difference(found.reshape(wanted.shape), wanted) <= 1e-5


def test_the_order_of_windows():
    order, window = window_order(3, 5, 2)
    assert sorted(order) == list(range(15))
    assert [list(order[window == w]) for w in range(math.ceil(3 / 2) * math.ceil(5 / 2))] == [
        [0, 1, 5, 6],
        [2, 3, 7, 8],
        [4, 9],
        [10, 11],
        [12, 13],
        [14],
    ]
