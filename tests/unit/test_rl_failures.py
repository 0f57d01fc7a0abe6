# SPDX-License-Identifier: Apache-2.0
"""Bad luck: full disks, weights cut off on their way, processes that fail, and what the command says."""

import contextlib
import errno
import os
import re
import runpy
import socket
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from cosmos_reason_node.models.qwen2_5_vl import load
from tests.unit.rl_files import make_base, short, story
from tests.unit.sft_files import forked, wait_for
from training.rl import actors
from training.rl.events import Events
from training.rl.loop import make_books, run_inline
from training.rl.publish import WeightStore
from training.rl.run import train_role
from training.sft.loop import TrainingError
from training.sft.report import RunLog
from training.sft.store import StoreError

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_base(tmp_path_factory.mktemp("rl"))


def test_a_full_disk_while_weights_are_published(base, tmp_path, monkeypatch):
    def full(tensors, path):
        raise OSError(28, "No space left on device")

    run_inline(short(*base, tmp_path / "run", optimizer={"steps": 2}))
    before = sorted(path.name for path in (tmp_path / "run" / "weights").iterdir())
    store = WeightStore(tmp_path / "run" / "weights")
    monkeypatch.setattr("training.sft.store.save_file", full)
    with pytest.raises(StoreError, match=r"No space left.*make room"):
        store.publish(7, {"x": torch.zeros(2)})
    assert sorted(path.name for path in (tmp_path / "run" / "weights").iterdir()) == before


def test_weights_whose_transfer_was_cut_off_are_not_used_and_that_is_said(base, tmp_path, capsys):
    model = load(base[0], device="cpu", dtype="float32")
    state = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    store = WeightStore(tmp_path)
    store.publish(1, state)
    store.publish(2, {name: tensor + 1 for name, tensor in state.items()})
    half = tmp_path / "step-00000002" / "model.safetensors"
    half.write_bytes(half.read_bytes()[:-1000])
    assert store.load(model.network) == 1
    assert re.search(r"weights: .*step-00000002 is damaged .*version 1 is taken", capsys.readouterr().out)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.network.state_dict().items())
    store.load(model.network)
    assert capsys.readouterr().out == ""  # said once, however often it is asked for
    store.publish(1, state)  # the trainer is back at version 1: what came later is gone
    assert [path.name for path in tmp_path.glob("step-*")] == ["step-00000001"]


def test_a_trainer_killed_while_it_publishes_leaves_whole_weights(tmp_path):
    """Ten times, at other moments; what a worker loads is one version, not two halves."""
    network = torch.nn.Module()
    for number in range(20):
        network.register_buffer(f"b{number}", torch.zeros(64, 64))
    names = list(network.state_dict())

    def publish(first):
        store = WeightStore(tmp_path)
        for version in range(first, first + 1000):
            store.publish(version, {name: torch.full((64, 64), float(version)) for name in names})

    def newest():
        return max((int(path.name.split("-")[1]) for path in tmp_path.glob("step-*")), default=0)

    version = 0
    for number in range(10):
        child = forked(publish, version + 1)
        wait_for(lambda before=version: newest() > before)
        time.sleep(0.003 * number)
        child.kill()
        child.join()
        loaded = WeightStore(tmp_path).load(network)
        assert loaded > version
        assert {float(value) for tensor in network.buffers() for value in tensor.unique()} == {float(loaded)}
        version = loaded


@pytest.mark.parametrize("folder", ["monitor", "run"])
def test_a_full_disk_while_logs_are_written(base, tmp_path, monkeypatch, folder):
    """The run ends with what to do, and goes on as if nothing had been once there is room."""
    run_inline(short(*base, tmp_path / "whole"))
    config, real = short(*base, tmp_path / "run"), RunLog.write

    def full(self, entry):
        if self._directory.name == folder and entry["step"] == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(self, entry)

    monkeypatch.setattr(RunLog, "write", full)
    with pytest.raises(TrainingError, match=r"cannot be written .*No space left.*make room there"):
        run_inline(config)
    monkeypatch.undo()
    run_inline(config)
    assert story(tmp_path / "run") == story(tmp_path / "whole")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_a_full_disk_ends_the_events_and_not_the_run(tmp_path, capsys):
    events = Events(tmp_path / "events")
    events.add(0, {"loss": 1.0})
    (file,) = (tmp_path / "events").iterdir()
    assert file.stat().st_size > 50
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, events._writer._py_recordio_writer._writer.fileno())
    os.close(full)
    for step in range(100):
        events.add(step, {"loss": 1.0})
    said = capsys.readouterr().out
    assert said.count("no more TensorBoard events") == 1
    assert "No space left" in said


@pytest.mark.parametrize(
    ("processes", "error", "raised"),
    [(1, "StoreError", False), (2, "StoreError", True), (2, "RuntimeError", True), (1, "RuntimeError", True)],
)
def test_what_a_restart_does_not_mend_is_told_and_ends_all_processes(
    base, tmp_path, monkeypatch, processes, error, raised
):
    config = short(*base, tmp_path, run={"launcher": "ray", "processes": processes})
    books, lives = make_books(config), []

    def fail(config, books):
        lives.append(1)
        raise {"StoreError": StoreError, "RuntimeError": RuntimeError}[error]("no room")

    monkeypatch.setattr("training.rl.run.train_role", fail)
    monkeypatch.chdir(tmp_path)  # as it does itself
    given = {"config": config, "books": books, "folder": str(tmp_path)}
    with pytest.raises((StoreError, RuntimeError)) if raised else contextlib.nullcontext():
        actors._trainer_process(given)
    fatal = error == "StoreError"
    assert books.failure() == ("StoreError: no room" if fatal else "")
    # Ray starts it again.
    with contextlib.nullcontext() if fatal else pytest.raises(RuntimeError):
        actors._trainer_process(given)
    assert len(lives) == (1 if fatal else 2), "a life after a fatal one loads nothing"


def test_where_the_first_trainer_process_fails_the_others_do_not_wait(base, tmp_path):
    config = short(*base, tmp_path / "run", run={"timeout_s": 300})
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def work(rank):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
        os.environ |= {name: str(value) for name, value in place.items()}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}

        def full(self, version, state):
            raise StoreError("no room")

        WeightStore.publish = full
        try:
            train_role(config, make_books(config))
        except StoreError:
            (tmp_path / f"{rank}.store").touch()
        except RuntimeError as error:
            (tmp_path / f"{rank}.other").write_text(str(error))

    started = time.monotonic()
    processes = [forked(work, rank) for rank in range(2)]
    for process in processes:
        process.join(timeout=200)
        process.kill()
    assert time.monotonic() - started < 200
    assert (tmp_path / "0.store").exists()
    assert "process 0 of the trainer has failed" in (tmp_path / "1.other").read_text()


def call(monkeypatch, *arguments):
    """Exit status of the command."""
    monkeypatch.setattr(sys, "argv", ["training.rl", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        runpy.run_module("training.rl", run_name="__main__")
    return end.value.code


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"path": "nowhere"}}, r"nowhere.*"),
        ({"data": {"sources": [{"path": "nowhere"}]}}, r"nowhere.*"),
        ({"grpo": {"group_sise": 4}}, r"rl.yaml: grpo.group_sise: is not a setting; did you mean group_size"),
        ({"grpo": {"group_size": "nine"}}, r"rl.yaml: grpo.group_size: must be int, not 'nine'"),
        ({"optimizer": {"peak_rate": -1}}, r"rl.yaml: optimizer.peak_rate: .*raise it"),
        ({"run": {"output": "/proc/nowhere"}}, r"run.output: /proc/nowhere cannot be written"),
    ],
)
@pytest.mark.parametrize("launcher", ["inline", "ray"])
def test_the_command_says_what_is_wrong_at_once(
    base, tmp_path, monkeypatch, capsys, changes, message, launcher
):
    """In a line, and before anything is started."""
    value = {
        "model": {"path": str(base[0])},
        "data": {"sources": [{"path": str(base[1])}]},
        "run": {"output": str(tmp_path / "run"), "launcher": launcher, "device": "cpu"},
        "rollout": {"max_staleness": 0},
    }
    for name, more in changes.items():
        value[name] = value.get(name, {}) | more
    (tmp_path / "rl.yaml").write_text(yaml.safe_dump(value))
    monkeypatch.setattr("training.sft.launch.start_ray", lambda cpus: pytest.fail("Ray was started"))
    assert call(monkeypatch, "--config", tmp_path / "rl.yaml") == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert re.search(message, said)
    assert "Traceback" not in said


@pytest.mark.parametrize("text", [None, "a: [", "[1]", "", "model: 3"])
def test_a_file_that_is_no_configuration(tmp_path, monkeypatch, capsys, text):
    if text is not None:
        (tmp_path / "rl.yaml").write_text(text)
    assert call(monkeypatch, "--config", tmp_path / "rl.yaml") == 1
    assert re.match(r"error: .*rl.yaml", capsys.readouterr().err)
