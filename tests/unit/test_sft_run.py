# SPDX-License-Identifier: Apache-2.0
"""Runs from configuration to model: learning, resuming, and what can go wrong on the way."""

import errno
import json
import os
import signal
import subprocess
import sys

import psutil
import pytest
import torch

from cosmos_reason_node.errors import CosmosReasonError
from cosmos_reason_node.models.qwen2_5_vl import load
from cosmos_reason_node.models.spec import read_model_spec
from cosmos_reason_node.types import QueryKind
from tests.unit.sft_files import (
    files_up_to,
    forked,
    held_at,
    make_data,
    make_model,
    settings,
    wait_for,
    write_config,
)
from training.data.problems import DataError
from training.settings import make_settings
from training.sft import launch
from training.sft.__main__ import main
from training.sft.config import ConfigError, SftConfig
from training.sft.export import export
from training.sft.report import read_log
from training.sft.run import run
from training.sft.store import SnapshotStore, StoreError

torch.set_num_threads(1)
EXACT = ("step", "loss", "grad_norm", "rate", "samples", "tokens", "right")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    root = tmp_path_factory.mktemp("sft")
    base = make_model(root / "base")
    own = json.loads((base / "cosmos_reason.json").read_text())
    calibrated = {"confidence_temperature": 2.0, "temperature": {"completion": 3.0}}
    (base / "cosmos_reason.json").write_text(json.dumps(own | calibrated))
    (base / "generation_config.json").write_text('{"eos_token_id": [5, 7], "temperature": 0.6}')
    return base, make_data(root / "data")


def config(files, output, **sections):
    return make_settings(SftConfig, settings(*files, output, **sections))


@pytest.fixture(scope="module")
def finished(files, tmp_path_factory):
    """A run without interruption, with validation."""
    output = tmp_path_factory.mktemp("whole") / "run"
    validation = {"validation": [{"path": str(files[1])}], "validation_rows": 4}
    run(config(files, output, data=validation, run={"validate_every": 3, "save_every": 2}))
    return output


def curve(output):
    return [{key: entry[key] for key in EXACT} for entry in read_log(output) if "loss" in entry]


def test_it_learns_and_reports(finished):
    losses = [entry["loss"] for entry in curve(finished)]
    assert len(losses) == 6
    assert losses[-1] < losses[0] - 1.0
    validation = [entry for entry in read_log(finished) if "validation_loss" in entry]
    assert [entry["step"] for entry in validation] == [2, 5]
    assert validation[1]["validation_loss"] < validation[0]["validation_loss"]
    assert (finished / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert (finished / "rejected.jsonl").read_text() == ""
    kept = sorted(path.name for path in (finished / "checkpoints").iterdir())
    assert kept == ["step-00000004", "step-00000006"]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_torn_clip_ends_a_strict_run_only(files, tmp_path, workers):
    data = make_data(tmp_path / "data")
    (data / "1.npz").write_bytes((data / "1.npz").read_bytes()[:-2000])
    torn = {"workers": workers, "validation": [{"path": str(data)}]}
    with pytest.raises(DataError, match=r"1.npz is damaged.*remove sample 1-"):
        run(config((files[0], data), tmp_path / "strict", data=torn))
    output = tmp_path / "run"
    run(config((files[0], data), output, data=torn | {"strict": False}, run={"validate_every": 3}))
    assert [entry["step"] for entry in curve(output)] == list(range(6))
    rejected = [json.loads(line) for line in (output / "rejected.jsonl").read_text().splitlines()]
    assert rejected
    assert all("1.npz is damaged" in problem["message"] for problem in rejected)
    assert (output / "model" / "config.json").is_file()


def test_the_node_loads_the_model(finished, files):
    model = load(finished / "model", device="cpu", dtype="float32")
    snapshot = SnapshotStore(finished / "checkpoints", 2).newest()
    trained = snapshot.tensors("model")
    for name, tensor in model.network.state_dict().items():
        assert torch.equal(tensor, trained[f"network.{name}"].bfloat16().float()), name
    assert model.spec.frame_size == (112, 112)
    assert not torch.equal(model.network.lm_head.weight, load(files[0], device="cpu").network.lm_head.weight)


def test_the_model_is_described_as_its_base_but_not_calibrated(finished, files):
    for name in ("config.json", "generation_config.json", "preprocessor_config.json", "tokenizer.json"):
        assert (finished / "model" / name).read_bytes() == (files[0] / name).read_bytes(), name
    spec = read_model_spec(finished / "model")
    assert read_model_spec(files[0]).calibration(QueryKind.COMPLETION) == 3.0
    assert {spec.calibration(kind) for kind in QueryKind} == {1.0}


def test_killed_in_the_middle_it_goes_on_bit_for_bit(finished, files, tmp_path):
    settings_ = config(files, tmp_path, run={"save_every": 2})
    child = forked(held_at, 3, run, settings_)
    wait_for(lambda: len(read_log(tmp_path)) >= 3 and (tmp_path / "checkpoints/step-00000002").exists())
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    done = SnapshotStore(tmp_path / "checkpoints", 2).newest().step
    assert done == 2
    run(settings_)
    assert curve(tmp_path) == curve(finished)
    one, two = (load(path / "model", device="cpu").network.state_dict() for path in (tmp_path, finished))
    assert all(torch.equal(one[name], two[name]) for name in one)
    run(settings_)  # a finished run only writes its model again
    assert curve(tmp_path) == curve(finished)


def test_a_signal_to_the_launcher_of_several_processes_saves_and_leaves_nobody_behind(files, tmp_path):
    several = {"launcher": "torchrun", "processes": 2, "save_every": 1000}
    value = settings(*files, tmp_path / "run", optimizer={"steps": 1000}, run=several)
    file = write_config(tmp_path / "sft.yaml", value)
    command = [sys.executable, "-m", "training.sft", "--config", str(file)]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: len(read_log(tmp_path / "run")) >= 2 or child.poll() is not None)
        family = psutil.Process(child.pid).children(recursive=True)
        assert len(family) >= 3  # torchrun and its workers
        child.send_signal(signal.SIGTERM)
        _, said = child.communicate(timeout=120)
    finally:
        child.kill()
    assert child.returncode == 130
    assert "start again to go on" in said.splitlines()[-1]
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive
    done = SnapshotStore(tmp_path / "run" / "checkpoints", 2).newest().step
    assert 2 <= done < 1000


def test_validation_whose_media_are_not_there_is_refused_before_it_starts(files, tmp_path):
    held_out = make_data(tmp_path / "held_out", windows=2)
    (held_out / "0.npz").unlink()
    with pytest.raises(DataError, match=r"0\.npz is missing"):
        run(config(files, tmp_path / "run", data={"validation": [{"path": str(held_out)}]}))
    assert not (tmp_path / "run" / "log.jsonl").exists()


def test_what_does_not_fit_is_refused_before_it_starts(files, tmp_path):
    huge = {"max_tokens": 1 << 20, "branches": 1}
    with pytest.raises(ConfigError) as raised:
        run(config(files, tmp_path, data=huge, optimizer={"batch": 1 << 20}))
    assert "memory estimate" in str(raised.value)
    assert "To fit: set model.checkpointing: true, or lower data.max_tokens (now 1048576)" in str(
        raised.value
    )
    assert not (tmp_path / "log.jsonl").exists()


def test_one_output_takes_one_run(files, tmp_path):
    import fcntl

    with (tmp_path / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="another run is writing to"):
            run(config(files, tmp_path))


def test_the_command_says_what_is_wrong(files, tmp_path):
    path = write_config(tmp_path / "c.yaml", settings(files[0], tmp_path / "none", tmp_path / "run"))
    command = [sys.executable, "-m", "training.sft", "--config", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "data.sources[0].path: is no folder: give the folder that holds the data set" in done.stderr


def test_wrong_paths_are_said_before_workers_are_started(files, tmp_path, monkeypatch):
    """Else each of them says it, behind torchrun's own pages; and a folder for nothing is left."""
    monkeypatch.setattr(launch, "_call", lambda command: pytest.fail("workers were started"))
    several = {"launcher": "torchrun", "processes": 2}
    missing = {"validation": [{"path": str(tmp_path / "gone")}], "sources": [{"path": str(tmp_path)}]}
    value = settings(*files, tmp_path / "run", run=several, data=missing)
    with pytest.raises(DataError) as raised:
        launch.launch(write_config(tmp_path / "a.yaml", value))
    assert [problem.field for problem in raised.value.problems] == [
        "data.sources[0].path",
        "data.validation[0].path",
    ]
    value = settings(tmp_path / "none", files[1], tmp_path / "run", run=several)
    with pytest.raises(CosmosReasonError, match="no checkpoint directory"):
        launch.launch(write_config(tmp_path / "b.yaml", value))
    assert not (tmp_path / "run").exists()


def test_a_disk_that_is_full_while_the_model_is_written_leaves_the_one_before(files, tmp_path):
    network, spec, target = (
        load(files[0], device="cpu").network,
        read_model_spec(files[0]),
        tmp_path / "model",
    )
    export(network.state_dict(), files[0], spec, target)
    before = {path.name: path.read_bytes() for path in target.iterdir()}
    for left in (".model.1.partial", ".model.1.old"):  # of runs that were killed
        (tmp_path / left).mkdir()
    with files_up_to(200_000), pytest.raises(StoreError, match=r"model cannot be written to .*make room"):
        export(network.state_dict(), files[0], spec, target)
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before
    assert {path.name for path in tmp_path.iterdir()} == {"model", ".model.1.old"}
    export(network.state_dict(), files[0], spec, target)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_full_disk_is_said_without_a_traceback(monkeypatch, capsys):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(launch, "launch", full)
    monkeypatch.setattr(sys, "argv", ["training.sft", "--config", "x.yaml"])
    assert main() == 1
    assert "make room in run.output" in capsys.readouterr().err
