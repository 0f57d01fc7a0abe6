# SPDX-License-Identifier: Apache-2.0
import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from cosmos_reason_node.errors import CosmosReasonError, ErrorCode
from cosmos_reason_node.models import qwen2_5_vl
from cosmos_reason_node.models.checkpoint import SINGLE
from cosmos_reason_node.models.spec import read_model_spec
from cosmos_reason_node.vision.patchify import patchify
from tests import tiny_model


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tiny_model.write(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture(scope="module")
def model(directory):
    torch.set_num_threads(1)
    return qwen2_5_vl.load(directory, device="cpu")


@pytest.fixture
def copy(directory, tmp_path):
    return shutil.copytree(directory, tmp_path / "copy")


def edit(path, change):
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def load_error(path) -> CosmosReasonError:
    with pytest.raises(CosmosReasonError) as caught:
        qwen2_5_vl.load(path, device="cpu")
    return caught.value


def test_spec(model):
    spec = model.spec
    assert (spec.model_id, spec.window_frames, spec.fps) == ("tiny", 4, 2.0)
    assert spec.frame_size_for(480, 640) == tiny_model.FRAME_SIZE
    assert spec.video_token == model.tokenizer.id_of("<|video_pad|>")
    assert model.dtype == torch.float32


def test_spec_of_the_released_layout(tmp_path):
    config = {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "max_position_embeddings": 128000,
        "video_token_id": 151656,
        "vision_config": {"patch_size": 14, "spatial_patch_size": 14, "tokens_per_second": 2},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    spec = read_model_spec(tmp_path)
    assert (spec.window_frames, spec.fps, spec.max_position) == (32, 4.0, 128000)
    assert spec.frame_size_for(1080, 1080) == (448, 448)


def test_config_in_the_released_form_is_the_same_model(model, copy):
    """Text settings beside vision_config, old names of RoPE's: Cosmos-Reason1-7B's config.json."""

    def flatten(config):
        text, vision = config.pop("text_config"), config["vision_config"]
        rope = text.pop("rope_parameters")
        text.pop("layer_types")
        text.pop("model_type")
        vision.pop("rope_parameters")
        vision.pop("in_channels")
        vision.update(in_chans=3, spatial_patch_size=14)
        config.update(text, rope_theta=rope["rope_theta"], torch_dtype=config.pop("dtype"))
        config["rope_scaling"] = {"type": "mrope", "mrope_section": rope["mrope_section"]}

    edit(copy / "config.json", flatten)
    released = qwen2_5_vl.load(copy, device="cpu")
    embedded = model.embed(torch.tensor([[5, 6, 7, 8]]))
    positions = torch.tensor([[[0, 3, 5, 9]], [[0, 1, 1, 2]], [[0, 2, 4, 6]]])
    with torch.inference_mode():
        assert torch.equal(released.decode(embedded, positions), model.decode(embedded, positions))
    assert dataclasses.replace(released.spec, model_id="tiny") == model.spec


def test_weights_and_outputs_equal_transformers(model, directory):
    from transformers import Qwen2_5_VLForConditionalGeneration

    plain = Qwen2_5_VLForConditionalGeneration.from_pretrained(directory, local_files_only=True).eval()
    window = tiny_model.window()
    patches, grid = patchify(window.pixels(), model.spec.patches)
    n = model.spec.patches.visual_tokens(grid)
    tokens = model.tokenizer.encode(
        "look: <|vision_start|>" + "<|video_pad|>" * n + "<|vision_end|> what now?"
    )
    video = model.spec.video_grid(4, *tiny_model.FRAME_SIZE, fps=window.fps)
    positions, _ = model.spec.positions(tokens, [video])
    with torch.inference_mode():
        features = model.visual_features(torch.from_numpy(patches), [grid])
        embedded = model.embed(torch.tensor([tokens]), features)
        ours = model.logits(model.decode(embedded, torch.from_numpy(positions)[:, None]))
        theirs = plain(
            input_ids=torch.tensor([tokens]),
            pixel_values_videos=torch.from_numpy(patches),
            video_grid_thw=torch.tensor([grid]),
            second_per_grid_ts=torch.tensor([1.0]),
            mm_token_type_ids=(torch.tensor([tokens]) == model.spec.video_token).int() * 2,
        ).logits
    assert (ours - theirs).abs().max() < 1e-3  # logits of about 3; sums are taken in another order


def test_temporal_patches_do_not_see_each_other(model):
    patches, (t, h, w) = patchify(tiny_model.window(frames=6).pixels(), model.spec.patches)
    rows = torch.from_numpy(patches).reshape(t, h * w, -1)
    with torch.inference_mode():
        whole = model.visual_features(rows.flatten(0, 1), [(t, h, w)])
        alone = torch.cat([model.visual_features(row, [(1, h, w)]) for row in rows])
        swapped = model.visual_features(rows.flip(0).flatten(0, 1), [(t, h, w)])
    assert torch.allclose(whole, alone, atol=1e-5)
    torch.testing.assert_close(swapped.reshape(t, -1), whole.reshape(t, -1).flip(0), rtol=0, atol=1e-5)


def test_placeholders_must_match(model):
    with pytest.raises(ValueError, match="placeholders"):
        model.embed(torch.tensor([[model.spec.video_token]]), torch.zeros(2, 64))


def test_saved_weights_keep_their_names(model, tmp_path, directory):
    model.network.save_pretrained(tmp_path / "again")
    before, after = load_file(directory / SINGLE), load_file(tmp_path / "again" / SINGLE)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_digest_follows_every_file(directory, copy, model):
    assert len(model.digest) == 64
    assert qwen2_5_vl.digest(copy) == model.digest
    edit(copy / "cosmos_reason.json", lambda own: own.update(fps=4.0))
    changed = qwen2_5_vl.digest(copy)
    weights = load_file(copy / SINGLE)
    weights["lm_head.weight"][0, 0] += 1
    save_file(weights, copy / SINGLE, metadata={"format": "pt"})
    assert len({model.digest, changed, qwen2_5_vl.digest(copy)}) == 3


def test_sharded_checkpoint(tmp_path, model):
    sharded = tiny_model.write(tmp_path / "sharded", shards="200KB")
    files = sorted(sharded.glob("*.safetensors"))
    assert len(files) > 1
    loaded = qwen2_5_vl.load(sharded, device="cpu")
    assert torch.equal(loaded.network.lm_head.weight, model.network.lm_head.weight)
    files[1].unlink()
    error = load_error(sharded)
    assert error.code is ErrorCode.MODEL_INVALID
    assert files[1].name in error.message


def test_missing_directory(tmp_path):
    error = load_error(tmp_path / "nowhere")
    assert error.code is ErrorCode.MODEL_NOT_FOUND
    assert "nowhere" in error.message


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", SINGLE])
def test_missing_file(copy, name):
    (copy / name).unlink()
    error = load_error(copy)
    assert error.code is ErrorCode.MODEL_INVALID
    assert name in error.message


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", SINGLE])
@pytest.mark.parametrize("keep", [0, 5, 0.5])
def test_truncated_file(copy, name, keep):
    data = (copy / name).read_bytes()
    (copy / name).write_bytes(data[: int(len(data) * keep) if isinstance(keep, float) else keep])
    error = load_error(copy)
    assert error.code is ErrorCode.MODEL_INVALID
    assert name in error.message


def test_pickles_are_refused(copy):
    (copy / SINGLE).unlink()
    (copy / "pytorch_model.bin").write_bytes(b"\x80\x04")
    assert "never loaded" in load_error(copy).message


def test_index_may_not_leave_the_directory(copy):
    index = {"weight_map": {"lm_head.weight": "../model.safetensors"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "beside it" in load_error(copy).message


def test_two_sets_of_weights_are_refused(tmp_path, directory):
    """transformers loads the single file, whatever the index says: the digest would be of the other one."""
    sharded = tiny_model.write(tmp_path / "sharded", shards="200KB")
    shutil.copy(directory / SINGLE, sharded / SINGLE)
    error = load_error(sharded)
    assert error.code is ErrorCode.MODEL_INVALID
    assert "two sets of weights" in error.message


def test_weights_that_only_transformers_would_find_are_refused(copy):
    """They would be loaded, and the digest would be of the others."""
    edit(copy / "config.json", lambda c: c.update(transformers_weights="b.safetensors"))
    error = load_error(copy)
    assert error.code is ErrorCode.MODEL_INVALID
    assert "transformers_weights" in error.message


@pytest.mark.parametrize(
    ("file", "change", "reason"),
    [
        ("config.json", lambda c: c.update(architectures=7), "architecture"),
        ("config.json", lambda c: c["vision_config"].update(patch_size=0), "patch_size"),
        ("config.json", lambda c: c["vision_config"].update(temporal_patch_size=0), "temporal_patch_size"),
        ("config.json", lambda c: c["vision_config"].update(spatial_merge_size=-2), "spatial_merge_size"),
        (
            "config.json",
            lambda c: c["vision_config"].update(tokens_per_second=float("nan")),
            "tokens_per_sec",
        ),
        ("config.json", lambda c: c["text_config"].update(max_position_embeddings=0), "max_position"),
        ("config.json", lambda c: c.update(vision_config=["patch_size"]), "config.json"),
        ("preprocessor_config.json", lambda c: c.update(image_std=[0.0, 0.0, 0.0]), "image_std"),
        ("preprocessor_config.json", lambda c: c.update(image_std=[1, 1, float("inf")]), "image_std"),
        ("preprocessor_config.json", lambda c: c.update(image_mean=["x", 1, 1]), "preprocessor_config"),
        ("cosmos_reason.json", lambda c: c.update(window_frames=float("inf")), "cosmos_reason.json"),
    ],
)
def test_absurd_descriptions_are_refused_by_name(copy, file, change, reason):
    if not (copy / file).exists():
        (copy / file).write_text("{}")
    edit(copy / file, change)
    with pytest.raises(CosmosReasonError) as caught:
        read_model_spec(copy)
    assert caught.value.code is ErrorCode.MODEL_INVALID
    assert reason in caught.value.message


def test_wrong_architecture(copy):
    edit(copy / "config.json", lambda c: c.update(architectures=["LlamaForCausalLM"], model_type="llama"))
    assert "LlamaForCausalLM" in load_error(copy).message


def test_missing_and_misshapen_tensors(copy):
    weights = load_file(copy / SINGLE)
    lost = weights.pop("model.layers.1.mlp.up_proj.weight", None)
    if lost is None:
        weights.pop("model.language_model.layers.1.mlp.up_proj.weight")
    save_file(weights, copy / SINGLE, metadata={"format": "pt"})
    assert "up_proj" in load_error(copy).message
    weights["lm_head.weight"] = torch.zeros(3, 64)
    save_file(weights, copy / SINGLE, metadata={"format": "pt"})
    error = load_error(copy)
    assert error.code is ErrorCode.MODEL_INVALID


def test_weights_that_are_not_finite(copy):
    weights = load_file(copy / SINGLE)
    weights["lm_head.weight"][3, 3] = float("nan")
    save_file(weights, copy / SINGLE, metadata={"format": "pt"})
    error = load_error(copy)
    assert "lm_head" in error.message
    assert "not finite" in error.message


def test_tokenizer_of_another_model(copy):
    edit(copy / "config.json", lambda c: c.update(video_token_id=3))
    assert "video_pad" in load_error(copy).message


@pytest.mark.parametrize(
    ("own", "reason"),
    [
        ({"window_frames": 3}, "even"),
        ({"fps": 0}, "fps"),
        ({"fps": float("nan")}, "fps"),
        ({"frame_height": 50}, "multiples of 28"),
        ({"frame_height": None}, "together"),
        ({"max_pixels": 10}, "max_pixels"),
        ({"temperature": {"completion": -1}}, "temperature"),
        ({"temperature": {"mood": 1}}, "kinds are"),
        ({"colour": "blue"}, "unknown keys"),
    ],
)
def test_bad_own_settings(copy, own, reason):
    edit(copy / "cosmos_reason.json", lambda settings: settings.update(own))
    error = load_error(copy)
    assert error.code is ErrorCode.MODEL_INVALID
    assert reason in error.message


def test_devices_and_dtypes(directory):
    for device, dtype in (("tpu", "auto"), ("cuda:99", "auto"), ("cpu", "int3")):
        with pytest.raises(CosmosReasonError) as caught:
            qwen2_5_vl.load(directory, device, dtype)
        assert caught.value.code is ErrorCode.INVALID_REQUEST
    assert qwen2_5_vl.load(directory, "cpu", "bfloat16").dtype == torch.bfloat16


def test_errors_cross_processes():
    import pickle

    error = pickle.loads(pickle.dumps(CosmosReasonError(ErrorCode.MODEL_INVALID, "cut off")))
    assert (error.code, error.message) == (ErrorCode.MODEL_INVALID, "cut off")


def test_control_ids_cover_what_text_never_holds(model):
    controls = model.tokenizer.control_ids
    assert {model.tokenizer.id_of(token) for token in tiny_model.CONTROL} == controls
    assert np.all([model.tokenizer.texts[i] != "" for i in range(len(model.tokenizer))])


def test_quantised_weights_are_named_with_what_can_be_done(copy):
    edit(copy / "config.json", lambda value: value.update(quantization_config={"quant_method": "awq"}))
    error = load_error(copy)
    assert error.code is ErrorCode.MODEL_INVALID
    for piece in (str(copy), "(awq)", "quantize:=int8", "engine:=remote"):
        assert piece in error.message


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda text: text["rope_parameters"].update(rope_type="yarn", factor=4.0), r"scaled \(yarn\)"),
        (lambda text: text["rope_parameters"].pop("mrope_section"), "mrope_section must have three parts"),
        (lambda text: text["rope_parameters"].update(mrope_section=[1, 1, 1]), "mrope_section must have"),
        (lambda text: text.update(rope_parameters=["default"]), "no attribute"),
        (
            lambda text: text.update(use_sliding_window=True, sliding_window=64, max_window_layers=1),
            "sliding window",
        ),
    ],
)
def test_positions_and_attention_that_are_computed_otherwise_are_refused(copy, change, reason):
    edit(copy / "config.json", lambda value: change(value["text_config"]))
    error = load_error(copy)
    assert error.code is ErrorCode.MODEL_INVALID
    assert re.search(reason, error.message)
