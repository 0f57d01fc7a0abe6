# SPDX-License-Identifier: Apache-2.0
"""Adapters: what they train, how they are merged and saved."""

import functools

import pytest
import torch

from cosmos_reason_node.models.qwen2_5_vl import load
from cosmos_reason_node.models.spec import read_model_spec
from tests.unit.sft_files import files_up_to, make_data, make_model, settings
from training.settings import make_settings
from training.sft.config import LoraConfig, SftConfig
from training.sft.export import export
from training.sft.lora import add_adapters, merge
from training.sft.report import read_log
from training.sft.run import run
from training.sft.store import SnapshotStore, StoreError

torch.set_num_threads(1)
SETTINGS = LoraConfig(rank=4, alpha=8.0, dropout=0.0, vision=True)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("sft") / "base")


def test_adapters_start_as_no_change_and_alone_are_trained(base):
    model = load(base, device="cpu", dtype="bfloat16")
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    add_adapters(model.network, SETTINGS, 0)
    trained = {name for name, parameter in model.network.named_parameters() if parameter.requires_grad}
    assert all(".lora_" in name for name in trained)
    assert {name.split(".lora_")[0].rsplit(".", 1)[1] for name in trained} == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "qkv", "proj")
    }
    assert all(p.dtype == torch.float32 for p in model.network.parameters() if p.requires_grad)
    merged = merge(model.network.state_dict(), SETTINGS)
    assert merged.keys() == before.keys()
    assert all(torch.equal(merged[name], before[name]) for name in before)


def test_merging_is_pefts(base):
    model = load(base, device="cpu")
    add_adapters(model.network, SETTINGS, 0)
    torch.manual_seed(1)
    for name, parameter in model.network.named_parameters():
        if ".lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    merged = merge(model.network.state_dict(), SETTINGS)
    for name, module in model.network.named_modules():
        if hasattr(module, "lora_A"):
            module.merge()
            torch.testing.assert_close(merged[f"{name}.weight"], module.base_layer.weight)


def test_a_run_writes_a_merged_model_and_adapters_that_peft_reads(base, tmp_path):
    from peft import PeftModel

    output = tmp_path / "run"
    value = settings(
        *(base, make_data(tmp_path / "data", windows=3), output),
        model={"lora": {"rank": 4}, "train_vision": False, "weights": "bfloat16", "compute": "bfloat16"},
        optimizer={"steps": 4, "peak_rate": 1e-2, "final_rate": 1e-3},
    )
    run(make_settings(SftConfig, value))
    losses = [entry["loss"] for entry in read_log(output)]
    assert losses[-1] < losses[0]
    stored = SnapshotStore(output / "checkpoints", 1).newest().tensors("model")
    assert all(".lora_" in name for name in stored)  # frozen weights are not stored again
    model = load(output / "model", device="cpu", dtype="bfloat16")
    wrapped = PeftModel.from_pretrained(
        load(base, device="cpu", dtype="bfloat16").network, str(output / "model-adapters")
    )
    plain = wrapped.merge_and_unload().state_dict()
    changed = 0
    for name, tensor in model.network.state_dict().items():
        torch.testing.assert_close(tensor, plain[name], rtol=0.02, atol=1e-3)
        changed += not torch.equal(tensor, load_base(base)[name])
    assert changed == 2 * 7  # the matrices of two decoder layers


def test_a_disk_that_is_full_while_adapters_are_written_leaves_those_before(base, tmp_path):
    model, spec, large = load(base, device="cpu"), read_model_spec(base), LoraConfig(rank=1024)
    add_adapters(model.network, large, 0)
    state, folder = model.network.state_dict(), tmp_path / "model-adapters"
    export(state, base, spec, tmp_path / "model", lora=large)
    limit = (tmp_path / "model" / "model.safetensors").stat().st_size + 4096
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert max(map(len, before.values())) > limit
    with files_up_to(limit), pytest.raises(StoreError, match="make room"):
        export(state, base, spec, tmp_path / "model", lora=large)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert {path.name for path in tmp_path.iterdir()} == {"model", "model-adapters"}


@functools.cache
def load_base(base):
    return load(base, device="cpu", dtype="bfloat16").network.state_dict()
